"""What the doctor says of a recipe: its data sets, the memory of its phases, its checkpoints."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.device import rank_memory_bytes
from dist_bert.model.config import ModelConfig
from dist_bert.tools.doctor import recipe as recipes
from dist_bert.tools.doctor import trials
from dist_bert.tools.doctor.findings import Finding
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.memory import SampleSize, checkpoint_bytes, plan_memory
from dist_bert.training.zero_layout import ZeroLayout
from tests.support.processes import ROOT, run_script
from tests.support.synthetic import SEQUENCE_LENGTH, VOCAB_SIZE, write_data_set

MODEL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 128,
}  # fmt: skip
NEEDS: dict[str, Any] = {
    "problems": [],
    "warnings": [],
    "phases": [
        {
            "name": "short", "data_sets": ["web", "wiki"], "num_steps": 4_000,
            "num_samples": 1_024_000, "sequence_length": 128, "rank_bytes": 3 << 30,
        }
    ],
    "memory_bytes": 4 << 30,
    "disk_bytes": 1 << 20,
    "not_planned": "",
}  # fmt: skip


def recipe(tmp_path: Path, **others: Any) -> list[str]:
    """Flags of two phases, of which the second reads two data sets; `others` are run settings."""
    write_data_set(tmp_path / "short")
    write_data_set(tmp_path / "long", ((5, 3), (7,), (4, 2, 6)))
    phases = [
        {"name": "begin", "shards": str(tmp_path / "short"), "steps": 3, "train_batch_size": 6},
        {"name": "end", "shards": {str(tmp_path / "short"): 1, str(tmp_path / "long"): 3},
         "steps": 500, "train_batch_size": 8},
    ]  # fmt: skip
    (tmp_path / "recipe.json").write_text(
        json.dumps({"phases": phases, "warmup_steps": 2, **others})
    )
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    return ["--recipe", str(tmp_path / "recipe.json"), "--model", str(tmp_path / "model.json"),
            "--deepspeed_config", str(ROOT / "configs/zero2.json")]  # fmt: skip


def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, needs: Any) -> list[Finding]:
    """The doctor's findings about a recipe that needs so much."""
    monkeypatch.setattr(recipes, "recipe_needs", lambda flags: needs)
    return list(recipes.recipe_findings(["--recipe", "r.json"], str(tmp_path), 1 << 40))


def test_needs_are_those_of_the_phases(tmp_path: Path) -> None:
    flags = recipe(tmp_path, micro_batch_tokens=4 * SEQUENCE_LENGTH + 1, keep_checkpoints=3)
    needs = trials.recipe_needs(["--num_ranks", "2", *flags])
    assert isinstance(needs, dict), needs
    assert needs["problems"] == [] and needs["not_planned"] == ""
    (warning,) = needs["warnings"]
    assert warning.startswith("long is seen ")
    model, changes = (
        ModelConfig(**MODEL),
        {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1},
    )
    layout = ZeroLayout.of(
        model, DeepSpeedConfig.load(str(ROOT / "configs/zero2.json"), 2, changes)
    )
    sample = SampleSize(SEQUENCE_LENGTH, 0.15 * SEQUENCE_LENGTH)
    begin, end = needs["phases"]
    assert begin["rank_bytes"] == end["rank_bytes"] == plan_memory(layout, sample, 4, False).peak
    assert (begin["name"], begin["num_steps"], begin["num_samples"]) == ("begin", 3, 18)
    assert (end["data_sets"], end["num_samples"]) == (["short", "long"], 4_000)
    assert needs["memory_bytes"] == rank_memory_bytes()
    assert needs["disk_bytes"] == 5 * checkpoint_bytes(layout) + 4 * layout.num_parameters


def test_a_missing_data_set_is_fatal(tmp_path: Path) -> None:
    flags = recipe(tmp_path)
    (tmp_path / "long/manifest.json").unlink()
    findings = list(recipes.recipe_findings(flags, str(tmp_path), 1 << 40))
    (problem,) = findings
    assert problem.is_fatal and problem.problem.startswith(
        f"--shards {tmp_path}/long: is unfinished"
    )


def test_a_recipe_that_fits_is_told_phase_by_phase(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    phase, checkpoints = found(monkeypatch, tmp_path, NEEDS)
    assert phase.name == "phase short" and not phase.problem
    assert phase.value == (
        "4,000 steps, 1,024,000 samples of up to 128 tokens from web, wiki; a rank needs 3.00 GiB"
    )
    assert checkpoints.value == f"up to 0.00 GiB in {tmp_path}" and not checkpoints.problem


def test_too_little_memory_and_disk_are_warnings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs = {**NEEDS, "memory_bytes": 2 << 30, "disk_bytes": 1 << 60, "warnings": ["a is seen"]}
    data_sets, phase, checkpoints = found(monkeypatch, tmp_path, needs)
    assert data_sets.problem == "a is seen"
    assert phase.problem == "a rank has 2.00 GiB" and "micro-batch" in phase.remedy
    assert (
        checkpoints.problem == "there are 1,024.00 GiB free"
        and "--output_dir" in checkpoints.remedy
    )
    assert not any(finding.is_fatal for finding in (data_sets, phase, checkpoints))


def test_what_cannot_be_planned_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (phase,) = NEEDS["phases"]
    needs = {**NEEDS, "phases": [{**phase, "rank_bytes": None}], "not_planned": "offload: no"}
    told, unplanned = found(monkeypatch, tmp_path, needs)
    assert told.value.endswith("from web, wiki") and not told.problem
    assert unplanned.value == "not planned: offload: no"
    (failed,) = found(monkeypatch, tmp_path, "no answer within 60 s")
    assert failed.is_fatal and failed.problem == "no answer within 60 s"
    assert failed.remedy.startswith("try again when the machine is less busy")
    (failed,) = found(monkeypatch, tmp_path, "error: why")
    assert failed.remedy == "see launch/pretrain.py --help"


def test_flags_of_a_recipe_need_one() -> None:
    ended = run_script(
        sys.executable, "launch/doctor.py", "--model", "configs/model/bert_tiny.json"
    )
    assert ended.returncode == 2
    assert ended.stderr == "error: --model: needs --recipe, whose run it belongs to\n"
