"""Checkpoints in whole runs: read by any layout, whole or absent, damaged ones put aside."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from dist_bert.checkpoint.format import CheckpointReader, write_state
from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common.json_lines import read_rows
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import (
    BIN,
    MODERN_PARTS,
    TINY_MODEL,
    launcher,
    run_script,
    small_disk,
)
from tests.support.processes import started, wait_until

pytestmark = pytest.mark.trains

MODEL = {**TINY_MODEL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RUN = {
    "num_train_steps": 16,
    "warmup_steps": 3,
    "checkpoint_interval": 4,
    "validation_interval": 8,
    "validation_samples": 36,
    "keep_checkpoints": 9,
}
OPTIMIZER = {
    "type": "AdamW",
    "params": {"lr": 2e-3, "weight_decay": 0.01, "torch_adam": True, "fused": True},
}


def command(
    folder: Path, data_set: Path, ranks: int, stage: int, precision: str = "fp32", batch: int = 36,
    micro_batch: int = 9, optimizer: dict[str, Any] = OPTIMIZER, **run: object,
) -> list[str | Path]:  # fmt: skip
    """A pretraining command with its own configuration files in a folder."""
    folder.mkdir(exist_ok=True)
    deepspeed = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "optimizer": optimizer,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        **({"bf16": {"enabled": True}} if precision == "bf16" else {}),
    }
    flags: list[str | Path] = []
    for name, value in (("model", MODEL), ("config", RUN | run), ("deepspeed_config", deepspeed)):
        (folder / f"{name}.json").write_text(json.dumps(value))
        flags += [f"--{name}", folder / f"{name}.json"]
    return [*launcher(ranks), "launch/pretrain.py", *flags, "--shards", data_set, "--output_dir"]


def losses(run_dir: Path) -> dict[int, float]:
    return {int(r["step"]): r["train/loss"] for r in read_metrics(run_dir) if "train/loss" in r}


def back_to(step: int, run_dir: Path) -> None:
    """Makes a step the latest that a run has saved."""
    for path in (run_dir / "checkpoints").glob("step-*"):
        if path.name > f"step-{step:09d}":
            shutil.rmtree(path)
    (run_dir / "checkpoints" / "latest").write_text(f"step-{step:09d}\n")


@pytest.fixture(scope="module")
def undisturbed(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 steps on 2 ranks with ZeRO 2 in fp32, all of its checkpoints kept."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run_script(*command(folder, data_set, ranks=2, stage=2), folder / "run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "stage", "precision", "micro_batch", "tolerance"),
    [
        (2, 3, "fp32", 9, 1e-6),
        (1, 0, "fp32", 12, 1e-5),
        (1, 3, "fp32", 36, 1e-5),
        (4, 1, "fp32", 9, 1e-5),
        (3, 2, "fp32", 4, 1e-5),
        (2, 0, "bf16", 6, 5e-3),
        (1, 2, "bf16", 12, 5e-3),
    ],
)
def test_resumed_on_another_layout(
    data_set: Path,
    undisturbed: Path,
    tmp_path: Path,
    ranks: int,
    stage: int,
    precision: str,
    micro_batch: int,
    tolerance: float,
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    back_to(4, run_dir)
    start = command(tmp_path / "config", data_set, ranks, stage, precision, micro_batch=micro_batch)
    ended = run_script(*start, run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed at step 4 of 16" in ended.stdout
    expected, found = losses(undisturbed), losses(run_dir)
    assert found.keys() == expected.keys()
    for step in range(5, 17):
        assert found[step] == pytest.approx(expected[step], rel=tolerance), step
    samples = [r["progress/samples"] for r in read_metrics(run_dir) if "train/loss" in r]
    assert samples == [36 * step for step in range(1, 17)]


@pytest.mark.slow
def test_a_modern_run_is_resumed_on_other_layouts(data_set: Path, tmp_path: Path) -> None:
    """2 ranks at ZeRO 2; from step 4 on 1 rank at ZeRO 0, and on 4 at ZeRO 3."""
    parts = [f"--{name}={str(value).lower()}" for name, value in MODERN_PARTS.items()]
    whole = tmp_path / "whole"
    start = command(tmp_path / "2", data_set, 2, 2, num_train_steps=8)
    ended = run_script(*start, whole, *parts)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for ranks, stage in ((1, 0), (4, 3)):
        run_dir = tmp_path / f"run-{ranks}"
        shutil.copytree(whole, run_dir)
        back_to(4, run_dir)
        start = command(tmp_path / f"{ranks}", data_set, ranks, stage, num_train_steps=8)
        ended = run_script(*start, run_dir, *parts)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "resumed at step 4 of 8" in ended.stdout
        assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_an_optimizer_of_ours_resumes_and_no_other_does(data_set: Path, tmp_path: Path) -> None:
    """Muon on 2 ranks at ZeRO 2, then on 1 at ZeRO 0; then Lamb, which tells its ratios."""
    params = {"lr": 2e-3, "weight_decay": 0.01}
    run_dir, muon = tmp_path / "run", {"type": "Muon", "params": params}
    start = command(tmp_path / "2", data_set, 2, 2, optimizer=muon, num_train_steps=6)
    ended = run_script(*start, run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    unbroken = losses(run_dir)
    back_to(4, run_dir)
    start = command(tmp_path / "1", data_set, 1, 0, optimizer=muon, num_train_steps=6)
    ended = run_script(*start, run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed at step 4 of 6" in ended.stdout
    assert losses(run_dir) == pytest.approx(unbroken, rel=1e-5)

    lamb = {"type": "Lamb", "params": params}
    start = command(tmp_path / "lamb", data_set, 1, 0, optimizer=lamb, num_train_steps=6)
    ended = run_script(*start, run_dir)
    assert ended.returncode != 0
    assert "optimizer type is 'Lamb', the checkpoint has 'Muon'" in ended.stderr
    ended = run_script(*start, tmp_path / "other")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    row = next(r for r in reversed(read_metrics(tmp_path / "other")) if "train/loss" in r)
    ratios = [row[f"train/trust_ratio_{name}"] for name in ("min", "median", "max")]
    assert 0 < ratios[0] < ratios[1] < ratios[2]


@pytest.mark.slow
def test_another_batch_size_goes_on_at_the_next_sample(
    data_set: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    back_to(4, run_dir)
    start = command(tmp_path / "config", data_set, ranks=1, stage=1, batch=54, num_train_steps=7)
    ended = run_script(*start, run_dir)
    assert ended.returncode != 0
    assert "train_batch_size is 54, the checkpoint has 36" in ended.stderr
    ended = run_script(*start, run_dir, "--change_batch_size", "true")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    samples = [r["progress/samples"] for r in read_metrics(run_dir) if "train/loss" in r]
    assert samples == [36, 72, 108, 144, 198, 252, 306]
    changes: dict[str, list[Any]] = {
        "run.num_train_steps": [16, 7],
        "run.change_batch_size": [False, True],
        "deepspeed.train_batch_size": [36, 54],
        "deepspeed.zero_optimization.stage": [2, 1],
        "deepspeed.gradient_accumulation_steps": [2, 6],
        "world_size": [2, 1],
    }
    assert read_rows(run_dir / "starts.jsonl")[-1]["changes"] == changes
    told = ", ".join(f"{n} {json.dumps(a)} -> {json.dumps(b)}" for n, (a, b) in changes.items())
    assert f"resumed with other settings: {told}\n" in ended.stdout


def test_best_and_final_weights(undisturbed: Path) -> None:
    folder = undisturbed / "checkpoints"
    steps = sorted(int(path.name[5:]) for path in folder.glob("step-*"))
    assert steps == [1, 4, 8, 12, 16], "the first save shows that saving works"
    validations = {
        row["step"]: row["validation/loss"]
        for row in read_metrics(undisturbed)
        if "validation/loss" in row
    }
    best = min(validations, key=lambda step: validations[step])
    assert (folder / "best").read_text() == f"step-{int(best):09d}\n"
    assert set(validations) == {8, 16}
    exported = load_file(undisturbed / "model.safetensors")
    latest = latest_checkpoint(undisturbed)
    assert latest is not None
    weights = CheckpointReader(latest).weights()
    assert exported.keys() == weights.keys()
    assert all((exported[name] == weights[name].numpy()).all() for name in weights)


def test_weights_are_saved_on_request(undisturbed: Path, tmp_path: Path) -> None:
    script: list[str | Path] = [BIN / "python", "launch/save_weights.py"]
    script += ["--checkpoint", undisturbed]
    ended = run_script(*script, "--output", tmp_path / "latest.safetensors")
    assert ended.returncode == 0 and "the weights of step-000000016" in ended.stdout, ended.stderr
    assert (tmp_path / "latest.safetensors").read_bytes() == (
        undisturbed / "model.safetensors"
    ).read_bytes()
    best = (undisturbed / "checkpoints" / "best").read_text().strip()
    ended = run_script(*script, "--best", "--output", tmp_path / "best.safetensors")
    assert ended.returncode == 0 and f"the weights of {best}" in ended.stdout, ended.stderr


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(data_set: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Here the loss of an earlier one is changed, so that the later ones are worse."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    back_to(8, run_dir)
    path = run_dir / "checkpoints" / "step-000000008" / "state.json"
    contents = CheckpointReader(path.parent).contents
    assert contents["validation_loss"] > 1
    write_state(path.parent, {**contents, "validation_loss": 0.5})
    (run_dir / "checkpoints" / "best").write_text("step-000000008\n")
    start = command(tmp_path / "config", data_set, ranks=1, stage=1, keep_checkpoints=2)
    ended = run_script(*start, run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    steps = sorted(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*"))
    assert steps == [8, 12, 16]
    assert (run_dir / "checkpoints" / "best").read_text() == "step-000000008\n"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_put_aside(
    data_set: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    back_to(12, run_dir)
    path = run_dir / "checkpoints" / "step-000000012" / "fragments-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ended = run_script(*command(tmp_path / "config", data_set, ranks=2, stage=2), run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "step-000000012: fragments-00001.safetensors has changed" in ended.stdout
    assert "resumed at step 8 of 16" in ended.stdout
    assert losses(run_dir) == losses(undisturbed)
    assert (run_dir / "checkpoints" / "damaged-step-000000012").exists()


@pytest.mark.slow
def test_going_back_by_hand_gives_up_what_is_newer(
    data_set: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """`latest` is written by hand; all that is kept in use is of the new course."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    folder = run_dir / "checkpoints"
    for step in (8, 12):  # 16 stays, and with it `best`
        shutil.rmtree(folder / f"step-{step:09d}")
    assert (folder / "best").read_text() > "step-000000012"
    (folder / ".step-000000003.partial").mkdir()  # of a save that was killed
    (folder / "latest").write_text("step-000000004\n")
    changes: dict[str, Any] = {
        "num_train_steps": 6,
        "keep_checkpoints": 1,
        "validation_interval": 5,
    }
    start = command(tmp_path / "config", data_set, ranks=1, stage=1, **changes)
    ended = run_script(*start, run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed at step 4 of 6" in ended.stdout
    assert "step-000000016 is newer than step 4: put aside" in ended.stdout
    there = {path.name for path in folder.iterdir()}
    assert there == {"latest", "best", "step-000000006", "aside-step-000000016"}
    assert (folder / "latest").read_text() == (folder / "best").read_text() == "step-000000006\n"
    exported = load_file(run_dir / "model.safetensors")
    weights = CheckpointReader(folder / "step-000000006").weights()
    assert all((exported[name] == weights[name].numpy()).all() for name in weights)


@pytest.mark.slow
def test_a_changed_state_and_a_damaged_pointer_are_survived(
    data_set: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    back_to(12, run_dir)
    folder = run_dir / "checkpoints"
    (folder / "latest").write_bytes(b"\xff\x00")
    (folder / "best").write_bytes(b"")
    path = folder / "step-000000012" / "state.json"
    contents = json.loads(path.read_text())
    contents["state"]["samples"] -= 36  # would train on a batch twice
    path.write_text(json.dumps(contents))
    start = command(tmp_path / "config", data_set, ranks=2, stage=2)
    ended = run_script(*start, run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "step-000000012 is damaged and put aside" in ended.stdout
    assert "latest: names no checkpoint that is there; step-000000008 is used" in ended.stdout
    assert "resumed at step 8 of 16" in ended.stdout
    assert losses(run_dir) == losses(undisturbed)
    # Where none is whole, all stay where they are: neither this start nor the next begins anew.
    for path in folder.glob("step-*/state.json"):
        path.write_text("{}")
    for _ in range(2):
        ended = run_script(*start, run_dir)
        assert ended.returncode != 0 and "no checkpoint is whole" in ended.stderr, ended.stderr


def test_a_checkpoint_is_used_by_itself(undisturbed: Path, tmp_path: Path) -> None:
    given = undisturbed / "checkpoints" / "step-8"
    script: list[str | Path] = [BIN / "python", "launch/save_weights.py", "--checkpoint", given]
    ended = run_script(*script, "--output", tmp_path / "weights.safetensors")
    assert ended.returncode == 0, ended.stderr
    weights = CheckpointReader(undisturbed / "checkpoints" / "step-000000008").weights()
    saved = load_file(tmp_path / "weights.safetensors")
    assert all((saved[name] == weights[name].numpy()).all() for name in weights)
    run, source = TrainedRun.load(given), WeightSource.find(given)
    assert run.step == 8 and source.checkpoint == given.with_name("step-000000008")
    assert source.model == run.config
    found = {name: value.numpy() for name, value in run.model.state_dict().items()}
    assert all((found[name] == saved[name]).all() for name in saved)


@pytest.mark.slow
def test_killed_while_it_saves(data_set: Path, undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    start = command(tmp_path / "config", data_set, ranks=2, stage=2)
    partial = run_dir / "checkpoints" / ".step-000000008.partial"
    with started(*start, run_dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: partial.exists() or process.poll() is not None, str(partial))
    assert not (run_dir / "checkpoints" / "step-000000008").exists()
    latest = latest_checkpoint(run_dir)
    assert latest is not None and latest.name == "step-000000004"
    ended = run_script(*start, run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert losses(run_dir) == losses(undisturbed)
    weights = []
    for folder in (undisturbed, run_dir):
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None
        weights.append(CheckpointReader(checkpoint).weights())
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert not list((run_dir / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_full_disk_harms_no_checkpoint(data_set: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "2800k"):
        start = command(tmp_path / "config", data_set, ranks=2, stage=2)
        ended = run_script(*start, disk / "run")
        assert ended.returncode != 0
        assert "cannot save step 8: " in ended.stderr and "No space left" in ended.stderr
        latest = latest_checkpoint(disk / "run")
        assert latest is not None and latest.name == "step-000000004"
        reader = CheckpointReader(latest)
        assert not any(file.problem(latest) for file in reader.files)
        assert not list((disk / "run" / "checkpoints").glob(".*"))
