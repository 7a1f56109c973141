"""Workload, messages, time, scaling and disk of a plan, and its script."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.common.text_tables import number
from dist_bert.data.batches import BatchShape
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import PEAK_BF16_FLOPS, training_flops
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.tools.plan.communication import Collective, Link, plan_communication
from dist_bert.tools.plan.plan import (
    GPU_MEMORY_GBYTES,
    Hardware,
    make_plan,
    measured_mfu,
    scaling,
    scaling_end,
    time_of_step,
)
from dist_bert.tools.plan.workload import Part, Workload
from tests.support.processes import run_script
from tests.unit.training.test_memory import make_layout

ROOT = Path(__file__).parents[3]
LINK = Link(300e9, 40e9, gpus_per_node=8, latency_seconds=5e-6)
HARDWARE = Hardware(141e9, 989e12, 0.4, LINK, 1e9, launch_seconds=1e-9)
WORKLOAD = Workload.of_length(128, ModelConfig())
FP32 = "configs/zero2_fp32.json"


def base_layout(**values: Any) -> Any:
    return make_layout(ModelConfig(), **{"bucket_size": 50_000_000, "num_ranks": 8, **values})


def test_every_gpu_with_a_peak_has_a_memory() -> None:
    assert GPU_MEMORY_GBYTES.keys() == PEAK_BF16_FLOPS.keys()


def test_a_ring_by_hand() -> None:
    """8 GPUs in a node, 16 over two: the slowest link counts, and every step's latency."""
    all_reduce = Collective("all_reduce", "gradients", 800, 3, 0.0)
    gather = Collective("all_gather_into_tensor", "weights", 800, 1, 0.0)
    link = Link(100.0, 10.0, gpus_per_node=8, latency_seconds=0.25)
    assert all_reduce.wire_bytes(8) == 2 * 700 and gather.wire_bytes(8) == 700
    assert all_reduce.seconds(8, link) == 1_400 / 100 + 3 * 14 * 0.25
    assert gather.seconds(16, link) == 750 / 10 + 15 * 0.25
    assert all_reduce.seconds(1, link) == 0.0


def test_zero_1_and_2_send_half_as_much_again_as_zero_0() -> None:
    sent = [
        plan_communication(base_layout(stage=stage, accumulation_steps=3)).wire_bytes
        for stage in range(4)
    ]
    assert sent[1] / sent[0] == pytest.approx(1.5, rel=1e-6)
    assert sent[2] / sent[0] == pytest.approx(3.5, rel=1e-6)  # gradients of every micro-step
    assert sent[3] / sent[0] == pytest.approx(3.0, rel=1e-2)  # and weights


def test_overlap_hides_no_more_than_there_is_to_compute() -> None:
    messages = plan_communication(base_layout(stage=2))
    reduce, gather = (c.seconds(8, LINK) for c in messages.collectives)
    assert messages.exposed_seconds(LINK, 0.0) == reduce + gather == messages.seconds(LINK)
    assert messages.exposed_seconds(LINK, 0.75 * reduce) == pytest.approx(0.5 * reduce + gather)
    assert messages.exposed_seconds(LINK, 100.0) == gather
    waiting = plan_communication(base_layout(stage=2, overlaps=False))
    assert waiting.exposed_seconds(LINK, 100.0) == reduce + gather


def test_a_step_is_its_operations_at_the_given_mfu() -> None:
    layout = base_layout(accumulation_steps=2)
    time = time_of_step(layout, 32, WORKLOAD, HARDWARE)
    num_samples = 32 * 8 * 2
    flops = training_flops(
        ModelConfig(), num_samples * 128, num_samples * 12 * 128**2, round(18.75 * 512), num_samples
    )
    assert time.compute_seconds == pytest.approx(flops / (8 * 989e12 * 0.4))
    assert time.seconds == time.compute_seconds + time.exposed_seconds
    assert 0 < time.share < time.share_without_overlap < 1


def test_scaling_keeps_the_batch_until_every_gpu_has_one_sample() -> None:
    times = scaling(base_layout(), 48, 6, WORKLOAD, HARDWARE)
    assert [t.num_gpus for t in times] == [1, 2, 4, 8, 16]
    assert {t.num_gpus * t.micro_batch_size * t.accumulation_steps for t in times} == {48}
    assert [t.micro_batch_size for t in times] == [6, 6, 6, 6, 3]


def test_scaling_ends_where_the_share_passes_a_fifth() -> None:
    def end(batch_size: int, link: Link) -> int:
        hardware = dataclasses.replace(HARDWARE, link=link)
        times = scaling(base_layout(stage=1), batch_size, 32, WORKLOAD, hardware)
        shares = {time.num_gpus: time.share for time in times}
        most = scaling_end(times)
        assert shares[most] <= 0.2 < shares[2 * most]
        return most

    faster = dataclasses.replace(LINK, between_bytes_per_second=300e9)
    assert end(256, LINK) < end(16_384, LINK) < end(16_384, faster)


def test_the_run_and_its_checkpoints() -> None:
    run = PretrainingConfig(num_train_steps=1_000, warmup_steps=10, checkpoint_interval=100)
    workload = dataclasses.replace(WORKLOAD, samples_per_epoch=12_800)
    parts = [Part("", 1_000, BatchShape(1, 8, 32), workload)]
    plan = make_plan(base_layout(), run, parts, HARDWARE)
    assert plan["run"]["samples"] == 256_000 and plan["run"]["epochs"] == 20.0
    assert plan["run"]["tokens"] == 256_000 * 128
    step = plan["run"]["step_seconds"]
    assert plan["run"]["hours"] == pytest.approx(step * 1_000 / 3_600)
    size = 12 * plan["parameters"]
    assert plan["disk"]["checkpoint_bytes"] == size == plan["disk"]["write_seconds"] * 1e9
    assert plan["disk"]["most_bytes"] == 4 * size + 4 * plan["parameters"]  # 2 kept
    waits = 1 - 100 * step / (size / 1e9)
    assert plan["disk"]["share_of_time"] == pytest.approx(waits) and 0 < waits < 1
    fast = dataclasses.replace(HARDWARE, disk_bytes_per_second=size / (99 * step))
    plan = make_plan(base_layout(), run, parts, fast)
    assert plan["disk"]["share_of_time"] == 0
    assert plan["disk"]["host_bytes_per_rank"] == pytest.approx(2 * size / base_layout().num_ranks)


def test_mfu_is_the_median_of_what_a_run_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no throughput/mfu"):
        measured_mfu(str(tmp_path))
    rows = [{"step": i, "throughput/mfu": mfu} for i, mfu in enumerate([0.1, 0.42, 0.44, 0.43])]
    lines = [json.dumps(row) for row in [*rows, {"step": 4, "validation/loss": 1.0}]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert measured_mfu(str(tmp_path)) == 0.425


def launch(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch/plan.py", *flags]
    return run_script(*command)


def test_the_script_prints_a_plan_and_writes_it(tmp_path: Path) -> None:
    ended = launch(
        "--gpus", "64", "--gpu", "H200", "--sequence_length", "128", "--mfu", "0.45",
        "--train_batch_size", "4096", "--train_micro_batch_size_per_gpu", "64",
        "--num_train_steps", "20000", "--json", str(tmp_path / "plan.json"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / "plan.json").read_text())
    plan = written["plan"]
    assert plan["parameters"] == 110_111_036 and "110,111,036" in ended.stdout
    assert f"{number(plan['run']['hours'])}, of all GPUs" in ended.stdout
    assert f"{plan['memory']['peak_bytes'] / 2**30:.2f}  of 131.3 GiB" in ended.stdout
    assert written["settings"]["hardware"]["mfu"] == 0.45
    largest = plan["memory"]["largest_micro_batch"]
    assert 64 < largest < plan["memory"]["largest_micro_batch_with_checkpointing"]
    assert f"{largest:,}  with 8% left free" in ended.stdout


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--sequence_length", "128"), "--gpu: must be given, or both --gpu_memory_gib"),
        (("--gpu", "H100", "--shards", "nowhere"), "give --sequence_length to plan"),
        (("--gpu", "H100", "--sequence_length", "600"), "max_position_embeddings = 512 is below"),
        (
            ("--gpu", "H100", "--sequence_length", "99", "--micro_batch_tokens", "98"),
            "micro_batch_tokens = 98 is below the sequence length 99: raise it",
        ),
        (
            ("--gpu", "L4", "--sequence_length", "9", "--deepspeed_config", FP32),
            "give --peak_tflops",
        ),
        (("--gpu", "L4", "--sequence_length", "9", "--mfu", "1.5"), "at most 1"),
    ],
)  # fmt: skip
def test_the_script_refuses_in_one_line(flags: tuple[str, ...], problem: str) -> None:
    ended = launch("--gpus", "8", *flags)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert problem in ended.stderr


def test_a_dry_run_prints_the_settings_alone() -> None:
    ended = launch(
        "--gpus", "2", "--gpu_memory_gib", "16", "--peak_tflops", "65", "--sequence_length", "77",
        "--activation_checkpointing", "true", "--dry_run",
        "--shards", "https://me:geheim@host/shards?sig=geheim",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    settings = json.loads(ended.stdout)
    assert settings["run"]["shards"] == "https://***@host/shards?***"
    assert settings["hardware"]["memory_bytes"] == 16 * 2**30
    assert settings["hardware"]["mfu"] == pytest.approx(0.3)  # a pass more of four
    assert settings["workload"]["tokens_per_sample"] == 77
