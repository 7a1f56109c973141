"""Plans of recipes and of batches that grow: parts of a run, their sums, their picture."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.pictures import Curve
from dist_bert.data.batches import BatchShape
from dist_bert.data.shard_source import ShardSource
from dist_bert.model.config import ModelConfig
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.recipe import Phase
from dist_bert.pretraining.timeline import Corpus, make_timeline
from dist_bert.tools.plan import schedule
from dist_bert.tools.plan.plan import make_plan, time_of_step
from dist_bert.tools.plan.workload import Part, Workload
from dist_bert.training.memory import plan_memory
from tests.support.processes import run_script
from tests.support.synthetic import SEQUENCE_LENGTH, write_data_set
from tests.unit.tools.test_plan import HARDWARE, base_layout

SHORT = Workload(64, 50.0, 36_000.0, 8.0, True, 1_000, 0.15)
LONG = Workload(256, 200.0, 500_000.0, 30.0, True, 3_000, 0.15)
PARTS = (
    Part("short", 7, BatchShape(1, 8, 16), SHORT),
    Part("short", 5, BatchShape(3, 8, 16), SHORT),
    Part("long", 11, BatchShape(2, 8, 8), LONG),
)


def test_a_mixture_has_the_means_and_the_longest_samples_of_all() -> None:
    mixed = Workload.mixed([SHORT, LONG], [3.0, 1.0])
    assert mixed == Workload(
        256, 87.5, 152_000.0, 13.5, True, None, 0.15, most_masked=mixed.most_masked
    )
    assert mixed.longest_sample.num_tokens == 256
    assert mixed.longest_sample.num_masked == pytest.approx(30 * 256 / 200)
    assert Workload.mixed([LONG], [0.7]) is LONG


def test_masks_that_move_count_as_their_mean_and_memory_as_their_most() -> None:
    moved = LONG.with_masks(0.3, 0.15)
    assert moved.masked_per_sample == pytest.approx(30 * 0.225 / 0.15)
    assert moved.longest_sample.num_masked == pytest.approx(2 * 30 * 256 / 200)
    assert LONG.with_masks(0.0, 0.0) is LONG


def test_a_run_is_the_sum_of_its_parts_and_memory_that_of_the_largest() -> None:
    run = PretrainingConfig(num_train_steps=23, warmup_steps=0, checkpoint_interval=10)
    plan = make_plan(base_layout(), run, PARTS, HARDWARE)
    layouts = [base_layout(accumulation_steps=n) for n in (1, 3, 2)]
    steps = [
        time_of_step(layout, part.shape.micro_batch_size, part.workload, HARDWARE)
        for layout, part in zip(layouts, PARTS, strict=True)
    ]
    own_seconds = [n * step.seconds for n, step in zip((7, 5, 11), steps, strict=True)]
    assert plan["run"]["steps"] == 23
    assert plan["run"]["samples"] == 7 * 128 + 5 * 384 + 11 * 128
    assert plan["run"]["tokens"] == 50 * (7 * 128 + 5 * 384) + 200 * 11 * 128
    assert plan["run"]["hours"] == pytest.approx(sum(own_seconds) / 3_600)
    flops = [p.workload.flops(ModelConfig(), p.shape.global_batch_size) for p in PARTS]
    assert plan["run"]["flops"] == pytest.approx(
        7 * flops[0] + 5 * flops[1] + 11 * flops[2], rel=1e-12
    )
    assert plan["run"]["epochs"] is None
    assert (plan["run"]["phase"], plan["run"]["step_seconds"]) == ("long", steps[2].seconds)
    assert plan["communication"]["exposed_seconds"] == steps[2].exposed_seconds
    short, long = plan["phases"]["short"], plan["phases"]["long"]
    assert list(plan["phases"]) == ["short", "long"]
    assert (short["steps"], short["samples"], long["samples"]) == (12, 2_816, 1_408)
    assert short["hours"] == pytest.approx(sum(own_seconds[:2]) / 3_600)
    peaks = [
        plan_memory(
            layout, part.workload.longest_sample, part.shape.micro_batch_size, False
        ).peak
        for layout, part in zip(layouts, PARTS, strict=True)
    ]  # fmt: skip
    assert short["peak_bytes"] == max(peaks[:2]) < peaks[2] == long["peak_bytes"]
    memory = plan["memory"]
    assert memory["peak_bytes"] == peaks[2]
    assert (memory["phase"], memory["sequence_length"], memory["micro_batch_size"]) == (
        "long", 256, 8,
    )  # fmt: skip
    interval = 10 * sum(own_seconds) / 23
    slow = dataclasses.replace(HARDWARE, disk_bytes_per_second=1e6)
    disk = make_plan(base_layout(), run, PARTS, slow)["disk"]
    assert disk["share_of_time"] == pytest.approx(1 - interval / disk["write_seconds"], rel=1e-12)


def data_set(folder: Path, tokens_per_sample: int, masked: int) -> str:
    """Of 27 samples, of which the manifest says that they are 100."""
    manifest = write_data_set(folder, ((5, 3), (7,), (4, 2, 6))).manifest
    counts = {
        "num_samples": 100, "num_tokens": 100 * tokens_per_sample, "num_masked": 100 * masked,
        "length_bin_tokens": 64, "length_histogram": [100],
    }  # fmt: skip
    dataclasses.replace(manifest, statistics={"train": counts}).save(folder)
    return str(folder)


def launch(tmp_path: Path, *flags: str) -> tuple[str, str, dict[str, Any]]:
    output = tmp_path / "plan.json"
    ended = run_script(
        sys.executable, "launch/plan.py", "--gpus", "2", "--gpu", "L4",
        "--train_batch_size", "48", "--train_micro_batch_size_per_gpu", "4",
        "--json", str(output), *flags,
    )  # fmt: skip
    return ended.stdout, ended.stderr, json.loads(output.read_text()) if output.exists() else {}


def test_the_script_plans_a_recipe_and_draws_it(tmp_path: Path) -> None:
    short, long = data_set(tmp_path / "short", 20, 3), data_set(tmp_path / "long", 30, 4)
    phases = [
        {"name": "begin", "shards": short, "steps": 6, "initial_batch_size": 16,
         "ramp_samples": 64, "masked_lm_prob": 0.3},
        {"name": "end", "shards": {short: 1, long: 3}, "tokens": 9_000},
    ]  # fmt: skip
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"phases": phases, "warmup_steps": 2}))
    picture = tmp_path / "schedule.png"
    told, errors, written = launch(tmp_path, "--recipe", str(recipe), "--picture", str(picture))
    assert not errors and picture.read_bytes().startswith(b"\x89PNG")
    run, by_phase = written["plan"]["run"], written["plan"]["phases"]
    assert (by_phase["begin"]["steps"], by_phase["end"]["steps"]) == (6, 7)  # of 1,320 tokens
    assert by_phase["begin"]["samples"] == 2 * 16 + 32 + 3 * 48
    assert run["samples"] == 208 + 7 * 48 and run["steps"] == 13
    assert run["tokens"] == 208 * 20 + 7 * 48 * 27.5
    assert written["settings"]["workloads"]["begin"]["masked_per_sample"] == pytest.approx(6)
    assert written["settings"]["run"]["num_train_steps"] == 13
    assert (
        re.search("^begin +1 to 6 +208 +4,160 ", told, re.M)
        and "544 in 13 steps of 16 to 48" in told
    )
    assert "micro-batch of 4 longest samples, in phase " in told

    _, errors, _ = launch(tmp_path, "--recipe", str(recipe), "--sequence_length", "9")
    assert errors.startswith("error: --sequence_length 9: the data sets of --recipe")


def test_micro_batches_by_tokens_are_planned_by_their_mean_and_their_longest_samples(
    tmp_path: Path,
) -> None:
    shards = data_set(tmp_path / "shards", 20, 3)  # 31 tokens at most
    _, errors, written = launch(tmp_path, "--shards", shards, "--micro_batch_tokens", "170")
    assert not errors
    plan = written["plan"]
    assert plan["memory"]["micro_batch_size"] == 170 // 31
    assert plan["run"]["train_batch_size"] == 48
    (time,) = [time for time in plan["scaling"] if time["num_gpus"] == 2]
    assert (time["micro_batch_size"], time["accumulation_steps"]) == (8, 3)  # of 8.5 that fit


def test_auto_is_planned_as_the_number_that_a_start_tries(tmp_path: Path) -> None:
    shards = data_set(tmp_path / "shards", 20, 3)
    flags = ("--shards", shards, "--micro_batch_tokens", "auto", "--gpu_memory_gib")
    _, errors, written = launch(tmp_path, *flags, "24")
    assert not errors and written["settings"]["run"]["micro_batch_tokens"] == "auto"
    memory = written["plan"]["memory"]
    assert memory["micro_batch_size"] == 24 < memory["largest_micro_batch"], "all that a rank has"
    _, errors, written = launch(tmp_path, *flags, str(memory["peak_bytes"] / 2**30))
    memory = written["plan"]["memory"]
    assert memory["micro_batch_size"] == max(1, memory["largest_micro_batch"]) < 24


def test_the_json_s_micro_batch_does_not_restrict_one_of_tokens() -> None:
    flags = (
        "--gpus", "3", "--gpu", "L4", "--sequence_length", "64", "--train_batch_size", "48",
        "--deepspeed_config", "configs/zero3.json",
    )  # fmt: skip
    ended = run_script(sys.executable, "launch/plan.py", *flags)
    assert "train_batch_size = 48 is not a multiple of train_micro_batch_size" in ended.stderr
    ended = run_script(sys.executable, "launch/plan.py", *flags, "--micro_batch_tokens", "auto")
    assert ended.returncode == 0, ended.stderr


def test_the_ramp_of_a_run_without_a_recipe_is_counted(tmp_path: Path) -> None:
    told, errors, written = launch(
        tmp_path, "--sequence_length", "64", "--num_train_steps", "9", "--warmup_steps", "2",
        "--initial_batch_size", "16", "--ramp_samples", "64", "--masked_lm_prob", "0.3",
    )  # fmt: skip
    assert not errors and written["plan"]["run"]["samples"] == 2 * 16 + 32 + 6 * 48
    assert "352 in 9 steps of 16 to 48" in told and "in phase" not in told
    assert written["settings"]["workload"]["masked_per_sample"] == pytest.approx(0.3 * 61)


def test_the_picture_has_what_every_step_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_data_set(tmp_path / "a").manifest
    corpora = {"a": Corpus("a", ShardSource(tmp_path / "a"), manifest)}
    phases = (
        Phase({"a": 1}, "one", steps=3, initial_batch_size=6, ramp_samples=6),
        Phase({"a": 1}, "two", steps=5, lr_share=0.5, masked_lm_prob=0.3,
              final_masked_lm_prob=0.1),
    )  # fmt: skip
    run = PretrainingConfig(warmup_steps=0, schedule="constant")
    timeline = make_timeline(run, phases, corpora, BatchShape(2, 3, 2))
    drawn: dict[str, Curve] = {}

    def keep(path: str, axis: str, curves: list[Curve], marks: dict[int, str]) -> None:
        drawn.update({curve.title: curve for curve in curves})
        assert marks == {1: "one", 4: "two"} and (path, axis) == ("x.png", "optimizer step")

    monkeypatch.setattr(schedule, "write_curves", keep)
    workload = Workload.of_length(SEQUENCE_LENGTH, ModelConfig())
    parts = [Part("", 1, BatchShape(1, 1, 1), workload)] * 3
    schedule.draw_schedule(timeline, parts, 2e-3, "x.png")
    assert drawn["learning rate"].places == [1, 2, 3, 4, 5, 6, 7, 8]
    assert drawn["learning rate"].values == [2e-3] * 3 + [1e-3] * 5
    assert drawn["samples of a step"].places == [1, 1, 2, 3, 4, 8]
    assert drawn["samples of a step"].values == [6, 6, 12, 12, 12, 12]
    assert drawn["share of masks"].values == pytest.approx([0.15] * 4 + [0.3, 0.1])
    assert drawn["longest sample (tokens)"].values == [SEQUENCE_LENGTH] * 6
