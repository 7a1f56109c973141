"""Samples of 8,192 tokens from text to answers: prepared, planned, trained, evaluated and used."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_bert.data.reader import SampleReader
from dist_bert.data.shard_format import Manifest
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import MODERN_PARTS, TINY_MODEL, launcher, run_script
from tests.support.corpus import english_sentences

pytestmark = [pytest.mark.trains, pytest.mark.slow]

LENGTH = 8_192
MODEL = {
    **TINY_MODEL,
    **MODERN_PARTS,
    "hidden_size": 16,
    "num_attention_heads": 1,
    "intermediate_size": 23,
    "max_position_embeddings": LENGTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DEEPSPEED = {
    "train_batch_size": 2,
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 2},
}
RUN = {"num_train_steps": 1, "warmup_steps": 0, "validation_interval": 1, "validation_samples": 2}


def run(*command: object) -> str:
    """Runs a script that must end well; returns what it printed."""
    ended = run_script(*command)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def shards(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for number in range(4):
        sentences = english_sentences(1_100, seed=number)
        (folder / f"{number}.txt").write_text(" ".join(sentences))
    run(
        sys.executable, "launch/prepare_shards.py", "--input", folder / "*.txt",
        "--tokenizer", data_set / "tokenizer.model", "--output_dir", folder / "shards",
        "--sequence_length", str(LENGTH), "--pair_objective", "none",
        "--short_sequence_prob", "0", "--validation_share", "0.5",
    )  # fmt: skip
    return folder / "shards"


def test_the_fields_hold_positions_of_8192_tokens(shards: Path) -> None:
    reader = SampleReader(shards, Manifest.load(shards), "train")
    rows = np.arange(reader.num_samples)
    columns = reader.gather(np.zeros_like(rows), rows)
    assert columns["num_tokens"].max() > LENGTH - 32  # whole sentences
    longest = columns["num_tokens"].argmax()
    assert columns["masked_lm_positions"].dtype == np.uint16
    num_masked = int(columns["num_masked"][longest])
    assert num_masked == pytest.approx(0.15 * LENGTH, rel=0.01)
    positions = columns["masked_lm_positions"][longest, :num_masked].astype(int)
    assert (np.diff(positions) > 0).all() and positions[-1] > LENGTH - 200


def test_from_shards_to_answers(shards: Path, tmp_path: Path) -> None:
    """One rank and two ranks take the same step; what they made takes a text of any length."""
    for name, values in (("model", MODEL), ("deepspeed", DEEPSPEED), ("run", RUN)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    settings = [
        "--shards", shards, "--model", tmp_path / "model.json", "--config", tmp_path / "run.json",
        "--deepspeed_config", tmp_path / "deepspeed.json",
    ]  # fmt: skip
    metrics: list[list[dict[str, Any]]] = []
    for num_ranks in (1, 2):
        folder = tmp_path / f"{num_ranks}"
        run(*launcher(num_ranks), "launch/pretrain.py", *settings, "--output_dir", folder)
        metrics.append(read_metrics(folder))
    for one, two in zip(*metrics, strict=True):
        for name in one.keys() & {"train/loss", "train/grad_norm", "validation/loss"}:
            assert two[name] == pytest.approx(one[name], rel=1e-4), name

    checkpoint = ["--checkpoint", tmp_path / "1"]
    scores = tmp_path / "scores.json"
    run(
        sys.executable, "launch/evaluate.py", *checkpoint, "--shards", shards, "--max_samples", "2",
        "--json", scores,
    )  # fmt: skip
    last = metrics[0][-1]["validation/mlm_loss"]
    assert json.loads(scores.read_text())["mlm_loss"] == pytest.approx(last, rel=1e-5)

    sentences = english_sentences(350, seed=9)
    text = " ".join(["The [MASK] lamp was old.", *sentences, "A quiet [MASK] stood there."])
    answers = run_script(
        sys.executable, "launch/fill_mask.py", *checkpoint, "--json", "--input", "-", stdin=text
    )
    assert answers.returncode == 0, answers.stderr
    (row,) = [json.loads(line) for line in answers.stdout.splitlines()]
    assert len(row["answers"]) == 2
    embedded = run_script(
        sys.executable, "launch/embed.py", *checkpoint, "--npz", tmp_path / "vectors.npz",
        "--input", "-", stdin=text + "\nA lamp.",
    )  # fmt: skip
    assert embedded.returncode == 0, embedded.stderr
    with np.load(tmp_path / "vectors.npz") as arrays:
        vectors = arrays["vectors"]
    assert vectors.shape == (2, MODEL["hidden_size"]) and np.isfinite(vectors).all()


def test_a_plan_for_them(shards: Path, tmp_path: Path) -> None:
    """Two samples of the published size on one GPU, from the shards' own lengths."""
    run(
        sys.executable, "launch/plan.py", "--gpus", "1", "--gpu", "H100", "--shards", shards,
        "--model", "configs/model/modern_base.json", "--train_batch_size", "2",
        "--train_micro_batch_size_per_gpu", "2", "--json", tmp_path / "plan.json",
    )  # fmt: skip
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["settings"]["workload"]["sequence_length"] == LENGTH
    assert plan["plan"]["memory"]["activations"]["layers"] > 2 * LENGTH * 22 * 2 * 8 * 768
