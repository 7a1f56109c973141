"""Runs of several phases and data sets: exact through every border, killed or not, on any ranks."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.common.json_lines import read_rows
from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import (
    TINY_MODEL,
    assert_one_line_error,
    kill_when_printed,
    launcher,
    mpiexec,
    run_script,
)
from tests.support.corpus import write_text_files

pytestmark = pytest.mark.trains

SHORT = 23  # tokens; the shards of `data_set` have 53
DEEPSPEED = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 3,
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 2e-3, "weight_decay": 0.01, "torch_adam": True, "fused": True},
    },
    "gradient_clipping": 1.0,
}
# It would differ between numbers of ranks.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SETTINGS = {
    "warmup_steps": 2,
    "schedule": "linear",
    "checkpoint_interval": 1,
    "keep_checkpoints": 20,
    "log_interval": 1,
    "validation_interval": 5,
    "validation_samples": 24,
}


@pytest.fixture(scope="module")
def places(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three data sets of one tokenizer: short samples, and long ones of two texts."""
    folder = tmp_path_factory.mktemp("places")
    write_text_files(folder / "text", count=211, seed=5)
    for name, length in (("short", SHORT), ("other", 53)):
        made = run_script(
            *mpiexec(2), "launch/prepare_shards.py", "--input", folder / "text" / "*.txt",
            "--tokenizer", data_set / "tokenizer.model", "--output_dir", folder / name,
            "--sequence_length", str(length), "--validation_share", "0.1",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    return {"short": str(folder / "short"), "other": str(folder / "other"), "long": str(data_set)}


def phases_of(places: dict[str, str]) -> list[dict[str, Any]]:
    """Steps 1 to 6, of growing batches; 7 to 11, of two data sets; 12 to 15."""
    return [
        {"name": "first", "shards": places["short"], "steps": 6, "initial_batch_size": 12,
         "ramp_samples": 24, "masked_lm_prob": 0.3, "final_masked_lm_prob": 0.15},
        {"name": "second", "shards": {places["long"]: 0.7, places["other"]: 0.3}, "steps": 5},
        {"name": "third", "shards": places["other"], "samples": 48, "train_batch_size": 12,
         "schedule": "wsd_sqrt", "warmup_steps": 1, "decay_steps": 2, "lr_share": 0.5},
    ]  # fmt: skip


def command(
    folder: Path, phases: list[dict[str, Any]], stage: int = 1, precision: str = "fp32"
) -> list[str | Path]:
    """Writes the JSON files of a run."""
    deepspeed = {**DEEPSPEED, "zero_optimization": {"stage": stage}}
    if precision == "bf16":
        deepspeed["bf16"] = {"enabled": True}
    (folder / "recipe.json").write_text(json.dumps({**SETTINGS, "phases": phases}))
    (folder / "model.json").write_text(json.dumps(TINY_MODEL | NO_DROPOUT))
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed))
    return [
        "launch/pretrain.py", "--recipe", folder / "recipe.json", "--model", folder / "model.json",
        "--deepspeed_config", folder / "deepspeed.json",
    ]  # fmt: skip


def train(num_ranks: int, *arguments: str | Path) -> str:
    ended = run_script(*launcher(num_ranks), *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def steps_of(run_dir: Path, *names: str) -> list[tuple[float, ...]]:
    rows = [row for row in read_metrics(run_dir) if "train/loss" in row]
    return [tuple(row[name] for name in ("step", *names)) for row in rows]


def weights_of(run_dir: Path) -> dict[str, Any]:
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    return CheckpointReader(checkpoint).weights()


@pytest.mark.slow
def test_killed_at_both_borders_equals_never_stopped(
    places: dict[str, str], tmp_path: Path
) -> None:
    script = command(tmp_path, phases_of(places), precision="bf16")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    told = train(2, *script, "--output_dir", whole)
    assert "done: 15 steps, 288 samples" in told
    for step in (6, 11):
        kill_when_printed(f"saved step {step} ", *launcher(2), *script, "--output_dir", broken)
    assert "resumed at step 1" in train(2, *script, "--output_dir", broken)
    names = ("train/loss", "train/grad_norm", "train/lr", "progress/tokens", "progress/phase")
    assert steps_of(whole, *names) == steps_of(broken, *names)
    ours, theirs = weights_of(whole), weights_of(broken)
    assert all((ours[name] == theirs[name]).all() for name in ours)

    rows = [row for row in read_metrics(whole) if "train/loss" in row]
    assert [row["progress/phase"] for row in rows] == [1] * 6 + [2] * 5 + [3] * 4
    assert [row["progress/batch_size"] for row in rows] == [12] * 2 + [24] * 9 + [12] * 4
    assert rows[0]["progress/masked_lm_prob"] == 0.3 and "progress/masked_lm_prob" not in rows[6]
    last = rows[-1]["progress/epochs/other"]
    assert last == pytest.approx((36 + 48) / 36 * rows[10]["progress/epochs/other"], rel=0.03)
    assert [row["train/lr"] for row in rows[10:]] == pytest.approx(
        [2e-3 * 4 / 13, 1e-3, 1e-3, 1e-3 * (1 - 0.5**0.5), 0.0]
    )
    validations = [row for row in read_metrics(whole) if "validation/loss" in row]
    assert [row["step"] for row in validations] == [5, 10, 15]
    names_of_each = {n.split("/")[2] for n in validations[1] if n.count("/") == 2}
    assert names_of_each == {"shards", "other"}
    weighted = sum(
        share * validations[1][f"validation/mlm_loss/{name}"]
        for name, share in (("shards", 0.7), ("other", 0.3))
    )
    assert validations[1]["validation/mlm_loss"] == pytest.approx(weighted)


@pytest.mark.slow
def test_any_number_of_ranks_goes_on_at_exactly_the_next_sample(
    places: dict[str, str], tmp_path: Path
) -> None:
    script = command(tmp_path, phases_of(places))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(1, *script, "--output_dir", whole)
    for num_ranks, step in ((2, 1), (4, 6), (1, 8), (2, 11)):
        arguments = [*script, "--output_dir", broken]
        kill_when_printed(f"saved step {step} ", *launcher(num_ranks), *arguments)
    train(4, *script, "--output_dir", broken)
    exact = ("progress/samples", "progress/tokens", "train/lr", "progress/epochs/other")
    rows = [row for row in read_metrics(broken) if "train/loss" in row]
    assert [tuple(row.get(name) for name in exact) for row in rows] == [
        tuple(row.get(name) for name in exact) for row in read_metrics(whole) if "train/loss" in row
    ]
    for name in ("train/mlm_loss", "train/nsp_loss", "train/grad_norm"):
        ours, theirs = (
            {step: value for step, value in steps_of(folder, name)} for folder in (whole, broken)
        )
        assert ours == pytest.approx(theirs, rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_positions_are_repeated_at_a_border(
    places: dict[str, str], tmp_path: Path, stage: int
) -> None:
    """The last step has an lr of 0: what it leaves is what the border made."""
    phases = [
        {"shards": places["short"], "steps": 3},
        {"shards": places["long"], "steps": 1},
    ]
    script = command(tmp_path, phases, stage, "bf16" if stage else "fp32")
    told = train(2, *script, "--output_dir", tmp_path / "run")
    assert f"phase 2: positions repeated from {SHORT} to 53" in told
    name = "encoder.position_embeddings.weight"
    checkpoints = tmp_path / "run" / "checkpoints"
    before, after = (
        CheckpointReader(checkpoints / f"step-{step:09d}").weights()[name] for step in (3, 4)
    )
    assert (before[:SHORT] == after[:SHORT]).all()
    for row in range(SHORT, 53):
        assert (after[row] == before[row % SHORT]).all()
    assert (before[SHORT:] != after[SHORT:]).any()


def test_what_is_to_come_may_be_changed_and_is_recorded(
    places: dict[str, str], tmp_path: Path
) -> None:
    phases = phases_of(places)[1:]
    script = command(tmp_path, phases)
    run_dir = tmp_path / "run"
    kill_when_printed("saved step 3 ", *launcher(1), *script, "--output_dir", run_dir)
    changed = [phases[0], {**phases[1], "shards": places["long"], "samples": 36}]
    script = command(tmp_path, changed)
    refused = run_script(sys.executable, *script, "--output_dir", run_dir)
    assert_one_line_error(refused, "cannot resume: phase 2 shards fingerprint is")
    allowed = [*script, "--output_dir", run_dir, "--change_recipe", "true"]
    assert "done: 8 steps" in train(1, *allowed)
    starts = read_rows(run_dir / "starts.jsonl")
    assert any(name.startswith("phases.third.shards") for name in starts[-1]["changes"])
    past = [{**phases[0], "shards": places["other"]}, changed[1]]
    refused = run_script(sys.executable, *command(tmp_path, past), *allowed[len(script) :])
    assert_one_line_error(refused, "cannot resume: shards fingerprint is")


def test_the_check_takes_steps_of_every_phase(places: dict[str, str], tmp_path: Path) -> None:
    script = command(tmp_path, phases_of(places))
    checked = run_script(sys.executable, *script, "--output_dir", tmp_path / "run", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for told in (
        "checked  2 steps after step 0: ",
        "checked  2 steps after step 6: ",
        "checked  2 steps after step 11: ",
        "problems found: none",
    ):
        assert told in checked.stdout
    assert re.search(
        "^first +1 to 6 .*\nsecond +7 to 11 .*\nthird +12 to 15 ", checked.stdout, re.M
    )
    assert not (tmp_path / "run").exists()
