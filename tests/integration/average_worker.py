"""One rank of test_weight_average: averages of weights beside the average of whole weights.

Started with a folder for checkpoints: one rank resumes those of two. Prints a line for each case.
"""

import argparse
import dataclasses
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_bert.checkpoint import checkpoint, fragments
from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.format import AVERAGE, WEIGHT, CheckpointReader
from dist_bert.checkpoint.writer import CheckpointWriter
from dist_bert.common.cli import end_rank
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.model.bert import BertForPreTraining
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from dist_bert.training.memory import state_bytes
from dist_bert.training.weight_average import start_average, update_average
from dist_bert.training.zero_layout import ZeroLayout
from tests.integration.optimizer_worker import MODEL, NUM_SAMPLES, train

DECAY, NUM_STEPS, SAVED_STEP = 0.35, 9, 5  # the decay is reached at step 4
CASES = (
    *itertools.product(range(4), ["fp32"]), (0, "bf16"), (1, "bf16"), (3, "bf16"),
    (2, "offload"), (3, "offload"),
)  # fmt: skip
Tensors = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("--output_dir", type=Path)
    arguments = parser.parse_args()
    start_distributed()
    for stage, precision in CASES:
        folder = arguments.output_dir / f"run-{stage}-{precision}"
        check(stage, precision, folder)
        if precision == "fp32":
            check_start_on_resume(stage, arguments.output_dir / f"plain-{stage}")
        if dist.get_rank() == 0:
            print(f"ZeRO {stage}, {precision}: right", flush=True)
    leave_distributed()


def check(stage: int, precision: str, folder: Path) -> None:
    """The average is that of whole weights; it is saved, and resumed on any layout."""
    engine = new_engine(stage, precision)
    if precision != "offload":  # which is not planned
        planned = state_bytes(planned_layout(stage, precision))["average of the weights"]
        assert sum(a.nbytes for a in fragments.averages(engine).values()) == planned
    expected = {name: t.double() for name, t in whole(engine, WEIGHT).items()}
    for step, weights in enumerate(trained(engine, range(1, NUM_STEPS + 1)), start=1):
        share = min(DECAY, (1 + step) / (10 + step))
        expected = {n: share * e + (1 - share) * weights[n].double() for n, e in expected.items()}
        if step == SAVED_STEP and dist.get_world_size() == 2:
            save(engine, folder)
    found = whole(engine, AVERAGE)
    for name, values in expected.items():
        torch.testing.assert_close(found[name].double(), values, rtol=1e-6, atol=1e-7)
        assert not torch.equal(found[name], weights[name]), name
    own = contents(engine)
    engine.destroy()

    saved = CheckpointReader(folder / f"checkpoints/step-{SAVED_STEP:09d}").weights(is_average=True)
    engine = new_engine(stage, precision)
    checkpoint.load(engine, folder, {})
    loaded = whole(engine, AVERAGE)
    assert all(torch.equal(loaded[name], values) for name, values in saved.items())
    for _ in trained(engine, range(SAVED_STEP + 1, NUM_STEPS + 1)):
        pass
    if dist.get_world_size() == 2:
        assert all(torch.equal(*pair) for pair in zip(contents(engine), own, strict=True))
        engine.destroy()
        in_memory = "fp32" if precision == "offload" else precision
        engine = new_engine((stage + 2) % 4, in_memory)  # elsewhere
        checkpoint.load(engine, folder, {})
        loaded = whole(engine, AVERAGE)
        assert all(torch.equal(loaded[name], values) for name, values in saved.items())
    engine.destroy()


def check_start_on_resume(stage: int, folder: Path) -> None:
    """A checkpoint without an average: it begins as the weights are, and a line says so."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dist_bert").addHandler(handler)
    if dist.get_world_size() == 2:
        engine = new_engine(stage, "fp32", decay=0.0)
        train(engine, range(1, 3))
        save(engine, folder, step=2)
        engine.destroy()
    engine = new_engine(stage, "fp32")
    checkpoint.load(engine, folder, {})
    average, weights = whole(engine, AVERAGE), whole(engine, WEIGHT)
    assert all(torch.equal(average[name], values) for name, values in weights.items())
    logging.getLogger("dist_bert").removeHandler(handler)
    expected = f"{folder}/checkpoints/step-000000002 has no average of the weights: it starts from"
    assert [line.startswith(expected) for line in lines] == [True] * (dist.get_rank() == 0), lines
    engine.destroy()


def deepspeed_config(stage: int, precision: str) -> DeepSpeedConfig:
    params = {"lr": 1e-2, "weight_decay": 0.1, "torch_adam": True}
    offload = {"offload_optimizer": {"device": "cpu"}} if precision == "offload" else {}
    values = {
        "train_batch_size": NUM_SAMPLES,
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": {"stage": stage, **offload},
        "bf16": {"enabled": precision != "fp32"},
    }
    return DeepSpeedConfig.from_values(values, "case", dist.get_world_size())


def planned_layout(stage: int, precision: str) -> ZeroLayout:
    layout = ZeroLayout.of(MODEL, deepspeed_config(stage, precision))
    return dataclasses.replace(layout, has_average=True)


def new_engine(stage: int, precision: str, decay: float = DECAY) -> Any:
    torch.manual_seed(1)
    engine = build_engine(BertForPreTraining(MODEL), deepspeed_config(stage, precision))
    start_average(engine, decay)
    return engine


def trained(engine: Any, steps: range) -> Iterator[Tensors]:
    """Trains; yields the whole weights after every step."""
    for step in steps:
        train(engine, range(step, step + 1))
        update_average(engine, DECAY, step)
        yield whole(engine, WEIGHT)


def save(engine: Any, folder: Path, step: int = SAVED_STEP) -> None:
    saves = CheckpointWriter(engine, folder, {}, 1, Watchdog())
    saves.save(TrainState(step))
    saves.close()
    dist.barrier()


def whole(engine: Any, what: str) -> Tensors:
    """Weights or averages of all ranks, flat."""
    pieces = [(f.name, f.start, f.tensors[what]) for f in fragments.fragments(engine)]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, pieces)
    found: Tensors = {}
    for name, parameter in engine.module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        found[name] = torch.full(shape, torch.nan)
    for name, start, values in itertools.chain.from_iterable(gathered):
        found[name].view(-1)[start : start + len(values)] = values
    return found


def contents(engine: Any) -> list[torch.Tensor]:
    """All that this rank holds."""
    return [t.clone() for f in fragments.fragments(engine) for t in f.tensors.values()]


if __name__ == "__main__":
    main()
    end_rank(0)
