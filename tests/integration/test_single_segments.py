"""Data without pairs through `launch/`: the next-sentence head is neither trained nor reported."""

import json
from pathlib import Path

import pytest

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import BIN, run_script
from tests.integration.test_pretrain import write_configs
from tests.support.corpus import english_sentences
from tests.support.synthetic import write_data_set

pytestmark = pytest.mark.trains

NUM_PIECES = 151


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    config = TokenizerConfig(vocab_size=NUM_PIECES)
    tokenizer = train_tokenizer(english_sentences(500, seed=1), folder, config)
    write_data_set(
        folder / "shards",
        vocab_size=NUM_PIECES,
        tokenizer=tokenizer.read_bytes(),
        pair_objective="none",
    )
    return folder / "shards"


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_on_single_segments_has_no_next_sentence_metrics(
    shards: Path, tmp_path: Path, stage: int
) -> None:
    flags = write_configs(tmp_path, stage, "bf16", train_batch_size=6)
    run_dir = tmp_path / "run"
    ended = run_script(
        BIN / "python", "launch/pretrain.py", *flags, "--shards", shards,
        "--output_dir", run_dir, "--validation_samples", "0", "--masks", "fresh",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "(mlm " in ended.stdout and "nsp" not in ended.stdout
    rows = read_metrics(run_dir)
    assert not [name for row in rows for name in row if "nsp" in name]
    training = [row for row in rows if "train/loss" in row]
    assert len(training) == 14
    assert all(row["train/loss"] == row["train/mlm_loss"] > 0 for row in training)
    assert rows[-1]["validation/loss"] == rows[-1]["validation/mlm_loss"]
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    weights = CheckpointReader(checkpoint).weights()
    assert abs(weights["nsp.bias"]).max() == 0.0  # as it started

    ended = run_script(
        BIN / "python", "launch/evaluate.py", "--checkpoint", run_dir, "--shards", shards,
        "--json", tmp_path / "scores.json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "MLM accuracy" in ended.stdout and "NSP" not in ended.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert not [name for name in scores if name.startswith("nsp")]
    assert scores["mlm_loss"] == pytest.approx(rows[-1]["validation/mlm_loss"], rel=0.02)
