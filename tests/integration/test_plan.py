"""The plan against what engines on real ranks hold and send, and what its script prints."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_bert.data.reader import SampleReader
from dist_bert.data.shard_format import Manifest
from dist_bert.model.config import ModelConfig
from dist_bert.tools.plan.communication import plan_communication
from dist_bert.tools.plan.workload import Workload
from dist_bert.training.memory import buffer_bytes, state_bytes
from dist_bert.training.zero_layout import ZeroLayout
from tests.integration.conftest import launcher, run_script
from tests.integration.plan_worker import MODELS, Case, cases

OPTIMIZER = ("float32 weights", "AdamW moments")


def by_operation(model: ModelConfig, case: Case, num_ranks: int) -> dict[str, int]:
    """Bytes and messages that the plan says are handed over in a step."""
    layout = ZeroLayout.of(model, case.config(num_ranks))
    planned: Counter[str] = Counter()
    for message in plan_communication(layout).collectives:
        planned[message.operation] += message.message_bytes
        planned[f"{message.operation} calls"] += message.num_calls
    return planned


def by_owner(model: ModelConfig, case: Case, num_ranks: int) -> dict[str, int]:
    """Bytes that the plan says are held, as the worker divides them."""
    layout = ZeroLayout.of(model, case.config(num_ranks))
    states = state_bytes(layout)
    if case.stage == 1 and case.accumulation_steps > 1:  # they stay until gradients are reduced
        states["gradient buckets"] = buffer_bytes(layout)["gradient buckets"]
    weights = sum(size for name, size in states.items() if name.startswith("weights"))
    optimizer = sum(states.get(name, 0) for name in OPTIMIZER)
    return {
        "weights": weights,
        "optimizer": optimizer,
        "rest": sum(states.values()) - weights - optimizer,
    }


def test_it_takes_the_means_of_prepared_shards(data_set: Path, tmp_path: Path) -> None:
    """And their squares from a histogram, whose bins are wide for samples of 53 tokens."""
    ended = run_script(
        sys.executable, "launch/plan.py", "--gpus", "2", "--gpu", "L4", "--shards", data_set,
        "--json", tmp_path / "plan.json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    settings = json.loads((tmp_path / "plan.json").read_text())["settings"]
    workload = Workload(**settings["workload"])
    reader = SampleReader(data_set, Manifest.load(data_set), "train")
    blocks = np.repeat(np.arange(reader.block_sizes.size), reader.block_sizes)
    rows = np.concatenate([np.arange(size) for size in reader.block_sizes])
    counts = reader.gather(blocks, rows, ("num_tokens", "num_masked"))
    lengths = counts["num_tokens"].astype(np.float64)
    assert (workload.sequence_length, workload.samples_per_epoch) == (53, lengths.size)
    assert workload.tokens_per_sample == pytest.approx(lengths.mean())
    assert workload.masked_per_sample == pytest.approx(counts["num_masked"].mean())
    pairs = 12 * (lengths**2).mean()  # of BERT-base, 12 layers
    assert workload.attention_pairs_per_sample == pytest.approx(pairs, rel=0.2)
    assert workload.tokens_per_sample < workload.longest_sample.num_tokens == 53


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "num_ranks", "first_accumulation"),
    [("bert", 2, 2), ("bert", 4, 1), ("modern", 2, 1)],
)
def test_engines_hold_and_send_what_is_planned(
    tmp_path: Path, architecture: str, num_ranks: int, first_accumulation: int
) -> None:
    ended = run_script(
        *launcher(num_ranks), "tests/integration/plan_worker.py",
        "--architecture", architecture, "--first_accumulation", str(first_accumulation),
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ranks: list[list[dict[str, Any]]] = [
        json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(num_ranks)
    ]
    model = MODELS[architecture]
    for case, *measured in zip(cases(first_accumulation), *ranks, strict=True):
        for rank in measured:
            assert rank["sent"] == by_operation(model, case, num_ranks), case
        held = {name: max(rank["held"][name] for rank in measured) for name in measured[0]["held"]}
        assert held == pytest.approx(by_owner(model, case, num_ranks), rel=0.001), case
