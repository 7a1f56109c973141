"""What checkpoints cost training: steps without a save, beside one that is waited for or not.

- none: steps alone
- waiting: the loop waits until the checkpoint is written
- beside: the loop goes on when it is copied to host memory, as in training

They take turns over the same micro-batches, in one process. A turn is some steps; where there is a
save, it follows the first one, and is written when the next turn begins.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.writer import CheckpointWriter
from dist_bert.common.device import has_gpu
from dist_bert.data.batches import MicroBatch
from dist_bert.data.reader import SampleReader
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.tools.benchmark.training import first_batch, our_step
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine

NONE, WAITING, BESIDE = "none", "waiting", "beside"
_INTERVAL = 100  # steps between two saves, of whose time a share is told


class _Turn(NamedTuple):
    """Some steps, the first of them saved or not."""

    seconds: float
    stall_seconds: float
    left_seconds: float


def compare_saves(
    reader: SampleReader,
    model: ModelConfig,
    deepspeed: DeepSpeedConfig,
    place: str | None,
    *,
    num_steps: int,
    rounds: int,
    report: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Measures turns of steps with and without a save; called by all ranks together.

    Args:
        reader: of the training split.
        model: the architecture.
        deepspeed: batch sizes, optimizer, precision and ZeRO stage.
        place: folder that has the checkpoints for a while; None = where temporary files are.
        num_steps: of a turn: more than the writing takes, so that all of its cost is seen.
        rounds: in which they take turns; the median counts.
        report: is told what is being done.

    Returns:
        Way -> figures of the slowest rank. `stall_seconds` is for how long the loop stands still at
        a save, `first_stall_seconds` the same where the copy's memory is new; `cost_seconds` is by
        how much a turn takes longer than one without a save of the same round: also because who
        writes and who computes share the machine. `left_seconds` is what was left of the writing
        behind the turn: about 0, or the turn is too short for the whole cost.
    """
    batch = first_batch(reader, deepspeed.batch_shape)
    torch.manual_seed(0)
    engine = build_engine(BertForPreTraining(model), deepspeed)
    told = [tempfile.mkdtemp(prefix="benchmark-", dir=place) if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(told, src=0)
    saves = CheckpointWriter(engine, told[0], {}, 1, Watchdog())
    turns: dict[str, list[_Turn]] = {way: [] for way in (NONE, WAITING, BESIDE)}
    try:
        for number in range(rounds + 1):  # the first one pays for set-up
            for way, own in turns.items():
                report(f"round {number} of {rounds}: {way}" if number else f"warming up {way}")
                state = TrainState(step=1 + number)
                own.append(_take_turn(way, engine, batch.micro_batches, num_steps, saves, state))
    finally:
        saves.close()
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(told[0])
        engine.destroy()
    return {way: _figures(own, turns[NONE], num_steps) for way, own in turns.items()}


def _take_turn(
    way: str,
    engine: Any,
    micro_batches: list[MicroBatch],
    num_steps: int,
    saves: CheckpointWriter,
    state: TrainState,
) -> _Turn:
    """Times of the slowest rank."""
    dist.barrier()
    begin = _now()
    our_step(engine, micro_batches)
    saved_at = _now()
    if way != NONE:
        saves.save(state)
    if way == WAITING:
        saves.finish()
    stall = time.perf_counter() - saved_at
    for _ in range(num_steps - 1):
        our_step(engine, micro_batches)
    turn = _now() - begin
    ended = time.perf_counter()
    saves.finish()
    times = torch.tensor([turn, stall, time.perf_counter() - ended], dtype=torch.float64)
    times = times.to(engine.device)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return _Turn(*times.tolist())


def _figures(own: list[_Turn], without: list[_Turn], num_steps: int) -> dict[str, float]:
    """Medians over the rounds behind the first one."""
    step = statistics.median(turn.seconds for turn in without[1:]) / num_steps
    stall = statistics.median(turn.stall_seconds for turn in own[1:])
    cost = statistics.median(
        turn.seconds - other.seconds for turn, other in zip(own[1:], without[1:], strict=True)
    )
    return {
        "seconds_per_step": statistics.median(turn.seconds for turn in own[1:]) / num_steps,
        "stall_seconds": stall,
        "first_stall_seconds": own[0].stall_seconds,
        "stall_in_steps": stall / step,
        "left_seconds": statistics.median(turn.left_seconds for turn in own[1:]),
        "cost_seconds": cost,
        f"stall_percent_every_{_INTERVAL}": 100 * stall / (_INTERVAL * step),
        f"cost_percent_every_{_INTERVAL}": 100 * cost / (_INTERVAL * step),
    }


def _now() -> float:
    if has_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()
