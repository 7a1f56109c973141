"""Averages of weights: the same on every layout, exact on resume, and taken by every script."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.run_dir import checkpoints_newest_first
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.checkpoint.weights import read_stored
from tests.integration.average_worker import CASES
from tests.integration.conftest import (
    TINY_MODEL,
    assert_one_line_error,
    kill_when_printed,
    launcher,
    run_script,
)
from tests.integration.test_checkpoints import command
from tests.support.labelled import pairs, write_pairs

pytestmark = [pytest.mark.trains, pytest.mark.slow]

SETTINGS: dict[str, Any] = {"num_train_steps": 5, "checkpoint_interval": 2, "average_decay": 0.5}
STILL: dict[str, Any] = {  # moves no weight by a bit
    "type": "AdamW",
    "params": {"lr": 1e-30, "torch_adam": True},
}


@pytest.fixture(scope="module")
def averaged(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 5 steps with an average, on 2 ranks with ZeRO 2."""
    folder = tmp_path_factory.mktemp("averaged")
    ended = run_script(*command(folder, data_set, 2, 2, **SETTINGS), folder / "run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def plain(averaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without checkpoints whose weights are the average of the other."""
    folder = tmp_path_factory.mktemp("plain")
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(averaged / name, folder)
    ended = run_script(
        sys.executable, "launch/save_weights.py", "--checkpoint", averaged,
        "--output", folder / "model.safetensors", "--average", "true",
    )  # fmt: skip
    assert ended.returncode == 0 and "the average of the weights of step-" in ended.stdout
    return folder


def average_of(run_dir: Path) -> dict[str, Tensor]:
    return CheckpointReader(checkpoints_newest_first(run_dir)[0]).weights(is_average=True)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_every_layout_averages_whole_weights(tmp_path: Path) -> None:
    """2 ranks save, then 1 rank resumes, too."""
    for num_ranks in (2, 1):
        ended = run_script(
            *launcher(num_ranks), "tests/integration/average_worker.py", "--output_dir", tmp_path
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ended.stdout.count(": right\n") == len(CASES), ended.stdout


def test_killed_and_resumed_has_the_same_average(
    data_set: Path, averaged: Path, tmp_path: Path
) -> None:
    start = command(tmp_path, data_set, 2, 2, **SETTINGS)
    kill_when_printed("saved step 2 ", *start, tmp_path / "run")
    checked = run_script(*start, tmp_path / "run", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "loaded and compared bit for bit" in checked.stdout
    ended = run_script(*start, tmp_path / "run")
    assert ended.returncode == 0 and "resumed at step " in ended.stdout, ended.stderr
    assert "no average" not in ended.stdout
    found = average_of(tmp_path / "run")
    assert equal(found, average_of(averaged))
    weights = CheckpointReader(checkpoints_newest_first(averaged)[0]).weights()
    assert not any(torch.equal(found[name], weights[name]) for name in found)


def test_scripts_use_the_average(
    averaged: Path, plain: Path, data_set: Path, tmp_path: Path
) -> None:
    """As they use a run whose weights it is."""
    scores, vectors, answers = [], [], []
    for index, flags in enumerate(((averaged, "--average", "true"), (plain,))):
        scored, npz = tmp_path / f"{index}.json", tmp_path / f"{index}.npz"
        for script, more in (
            ("evaluate", ("--shards", data_set, "--max_samples", "20", "--json", scored)),
            ("embed", ("--npz", npz, "An old lamp.")),
            ("fill_mask", ("--json", "The [MASK] lamp.")),
        ):
            ended = run_script(sys.executable, f"launch/{script}.py", "--checkpoint", *flags, *more)
            assert ended.returncode == 0, ended.stderr
        answers.append(ended.stdout)
        scores.append(json.loads(scored.read_text()))
        vectors.append(np.load(npz))
    assert answers[0] == answers[1]
    assert scores[0] == scores[1]
    assert all(np.array_equal(vectors[0][name], vectors[1][name]) for name in vectors[1].files)


def test_export_takes_the_average(averaged: Path, tmp_path: Path) -> None:
    flags = ("--checkpoint", averaged, "--output_dir", tmp_path / "out", "--average", "true")
    ended = run_script(sys.executable, "launch/export_model.py", *flags)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found, expected = read_stored(WeightSource.find(tmp_path / "out")).tensors, average_of(averaged)
    rows = TINY_MODEL["vocab_size"]  # the others are padding
    found, expected = ({n: t[:rows] for n, t in own.items()} for own in (found, expected))
    assert "encoder.word_embeddings.weight" in found
    assert equal(found, {name: expected[name] for name in found})
    assert "an exponential average over the steps" in (tmp_path / "out/README.md").read_text()


def test_training_starts_from_the_average(
    averaged: Path, plain: Path, data_set: Path, tmp_path: Path
) -> None:
    """Pretraining and fine-tuning."""
    expected = average_of(averaged)
    settings: dict[str, Any] = {"num_train_steps": 1, "warmup_steps": 0}
    start = command(tmp_path / "c", data_set, 1, 0, optimizer=STILL, **settings)
    init = ("--init_from", averaged, "--init_average", "true")
    ended = run_script(*start, tmp_path / "run", *init)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"weights from {averaged} at step-000000005, the average" in ended.stdout
    assert equal(load_file(tmp_path / "run/model.safetensors"), expected)

    write_pairs(tmp_path / "pairs.tsv", pairs(12))
    config = tmp_path / "deepspeed.json"
    config.write_text(json.dumps({"train_batch_size": 6, "optimizer": STILL}))
    ended = run_script(
        sys.executable, "launch/finetune.py", "--deepspeed_config", config,
        "--checkpoint", averaged, "--average", "true", "--train", tmp_path / "pairs.tsv",
        "--output_dir", tmp_path / "tuned", "--num_train_epochs", "1",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    encoder = {
        name: values
        for name, values in load_file(tmp_path / "tuned/model.safetensors").items()
        if name.startswith("encoder.")
    }
    assert encoder and equal(encoder, {name: expected[name] for name in encoder})
    results = json.loads((tmp_path / "tuned/results.json").read_text())
    assert results["identity"]["encoder"] == f"{averaged} step-000000005 (average)"

    refused = run_script(
        sys.executable, "launch/export_model.py", "--checkpoint", tmp_path / "tuned",
        "--output_dir", tmp_path / "out", "--average", "true",
    )  # fmt: skip
    assert_one_line_error(refused, "is fine-tuned, which leaves none")
    refused = run_script(
        sys.executable, "launch/fill_mask.py", "--checkpoint", plain, "--average", "true",
        "--dry_run", "A [MASK].",
    )  # fmt: skip
    assert_one_line_error(refused, f"{plain}/model.safetensors: has no average of the weights")
