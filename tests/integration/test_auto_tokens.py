"""`micro_batch_tokens auto` on two ranks of which one has less memory than is planned with."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dist_bert.training.metrics import read_metrics
from tests.integration.conftest import ROOT, TINY_MODEL, environment, launcher, run_script

pytestmark = pytest.mark.trains

# 12 samples of 53 tokens a rank are planned, and half of that is tried next.
PLANNED, HALF = 12 * 53, 6 * 53


def pretrain(
    folder: Path, data_set: Path, tokens: str, **memory: int
) -> subprocess.CompletedProcess[str]:
    deepspeed = json.loads((ROOT / "configs/zero2.json").read_text())
    assert deepspeed["train_micro_batch_size_per_gpu"] == "auto"
    deepspeed |= {"train_batch_size": 24}
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed))
    (folder / "model.json").write_text(json.dumps(TINY_MODEL))
    return run_script(
        *launcher(2), "tests/integration/memory_pretrain.py", "--shards", data_set,
        "--deepspeed_config", folder / "deepspeed.json", "--model", folder / "model.json",
        "--output_dir", folder / tokens,
        *(() if tokens == "auto" else ("--micro_batch_tokens", tokens)),
        "--num_train_steps", "4", "--warmup_steps", "0", "--log_interval", "1", "--lr", "2e-3",
        env={**environment(), **{name: str(value) for name, value in memory.items()}},
    )  # fmt: skip


def curve(run: Path) -> list[tuple[Any, Any]]:
    rows = [row for row in read_metrics(run) if "train/loss" in row]
    return [(row["train/loss"], row["train/grad_norm"]) for row in rows]


def test_what_does_not_fit_is_halved_and_leaves_no_trace(data_set: Path, tmp_path: Path) -> None:
    found = pretrain(tmp_path, data_set, "auto", MOST_TOKENS=400)
    assert found.returncode == 0, found.stdout + found.stderr
    line = f"micro_batch_tokens auto: out of memory with {PLANNED} tokens a rank; trying {HALF}"
    assert found.stdout.count(line) == 1, found.stdout
    assert f"micro_batch_tokens auto: {HALF} tokens (planned for " in found.stdout
    assert f"2 ranks x micro-steps of {HALF} tokens" in found.stdout
    (start,) = map(json.loads, (tmp_path / "auto/starts.jsonl").read_text().splitlines())
    assert start["micro_batch_tokens"] == HALF
    config = json.loads((tmp_path / "auto/config.json").read_text())
    assert config["run"]["micro_batch_tokens"] == "auto"

    given = pretrain(tmp_path, data_set, str(HALF), FULL_AT_STEP=4)
    assert len(curve(tmp_path / "auto")) == 4
    assert curve(tmp_path / "auto")[:3] == curve(tmp_path / str(HALF)), "bit for bit"
    assert given.returncode == 2
    remedy = f"rank 1: out of GPU memory: lower --micro_batch_tokens (now {HALF}, try {HALF // 2})"
    assert remedy in given.stderr and "Tried to allocate 2.00 GiB" in given.stderr
