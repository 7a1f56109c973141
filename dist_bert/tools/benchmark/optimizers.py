"""What each optimizer's update takes of a training step: in turns, in one process.

The update is the optimizer's own step on this rank's part, with what it sends to other ranks. It
leaves out clipping and the copy into 16-bit weights, which are alike for all; at ZeRO 0 in float32
it contains clipping.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from dist_bert.data.reader import SampleReader
from dist_bert.distributed.device_timer import Span, moment, total_seconds
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.tools.benchmark.training import Contestant, first_batch, measure, our_step
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine

_FUSED = {"torch_adam": True, "fused": True}  # as in configs/


def compare_optimizers(
    names: list[str],
    reader: SampleReader,
    model: ModelConfig,
    deepspeed: DeepSpeedConfig,
    *,
    rounds: int,
    report: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Measures steps over one global batch; called by all ranks together.

    Args:
        names: of optimizers; the first one is what the others are compared with.
        reader: of the training split.
        model: the architecture.
        deepspeed: all other settings, and those of the optimizer that it names.
        rounds: in which they take turns; the median counts.
        report: is told what is being done.

    Returns:
        Optimizer -> milliseconds of a step and of its update on this rank, the update's share of
        the step, and the update by that of the first one.
    """
    batch = first_batch(reader, deepspeed.batch_shape)
    spans: list[Span] = []
    contestants = {}
    for name in names:
        report(f"making {name}")
        torch.manual_seed(0)
        engine = build_engine(BertForPreTraining(model), with_optimizer(deepspeed, name))
        _time_updates(engine, spans)
        contestants[name] = Contestant(
            lambda engine=engine: our_step(engine, batch.micro_batches),  # type: ignore[misc]
            engine,
        )
    steps: dict[str, list[float]] = {name: [] for name in names}
    updates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):  # the first one pays for set-up
        for name, contestant in contestants.items():
            report(f"round {number} of {rounds}: {name}" if number else f"warming up {name}")
            spans.clear()
            seconds, _ = measure(contestant.step)
            if number:
                steps[name].append(seconds)
                updates[name].append(total_seconds(spans))
    return {
        name: {
            "step_ms": 1e3 * statistics.median(steps[name]),
            "update_ms": 1e3 * statistics.median(updates[name]),
            "update_share": _median_ratio(updates[name], steps[name]),
            f"update_by_{names[0]}": _median_ratio(updates[name], updates[names[0]]),
        }
        for name in names
    }


def with_optimizer(deepspeed: DeepSpeedConfig, name: str) -> DeepSpeedConfig:
    """The same with another optimizer: its learning rate and weight decay, or all that it says."""
    own = deepspeed.values["optimizer"]
    if own["type"].lower() == name.lower():
        return deepspeed
    params = {"lr": deepspeed.peak_lr, "weight_decay": deepspeed.weight_decay}
    optimizer = {"type": name, "params": {**params, **(_FUSED if name == "AdamW" else {})}}
    values = {**deepspeed.values, "optimizer": optimizer}
    world_size = deepspeed.batch_shape.world_size
    return DeepSpeedConfig.from_values(values, f"--optimizers {name}", world_size)


def _time_updates(engine: Any, spans: list[Span]) -> None:
    """Adds the time of every step of an engine's optimizer to `spans`."""
    inner = engine.basic_optimizer
    step = inner.step

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = moment(engine.device)
        result = step(*args, **kwargs)
        spans.append((start, moment(engine.device)))
        return result

    inner.step = timed


def _median_ratio(above: list[float], below: list[float]) -> float:
    """Of each round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
