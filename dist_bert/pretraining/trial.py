"""What a device turns out to bear, tried before the first step: compiled layers, a micro-batch.

A trial is one rank's forward and backward pass over [PAD] tokens, whose gradients go nowhere: it
runs none of DeepSpeed's hooks, sends no message and changes no state. So a rank that runs out of
memory keeps no other one waiting, and the first step begins with nothing accumulated. Not for: the
number that is tried first (`dist_bert.pretraining.auto_tokens`).
"""

import dataclasses
import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dist_bert.common.device import has_gpu, rank_memory_bytes
from dist_bert.common.errors import UserError
from dist_bert.common.settings import AUTO
from dist_bert.data.batches import MicroBatch, trial_micro_batch
from dist_bert.distributed.agreement import first_problem
from dist_bert.model.micro_batches import to_device
from dist_bert.pretraining.auto_tokens import (
    layout_of,
    longest_samples,
    masked_share,
    phases_to_settle,
    planned_tokens,
    with_tokens,
)
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.pretraining.timeline import PhasePlan
from dist_bert.training.memory import MARGIN, buffer_bytes

_MOST_TOLD = 300  # characters of a compiler's error


def needs_trial(job: PretrainingJob) -> bool:
    """Whether a setting is auto that is tried on this device."""
    is_compiled = job.run.compile_layers == AUTO and job.compiles_layers(has_gpu())
    return is_compiled or bool(phases_to_settle(job.timeline))


def settled(
    job: PretrainingJob, engine: Any, say: Callable[[str], None], beat: Callable[[str], None]
) -> PretrainingJob:
    """The job with what is found for `compile_layers auto` and `micro_batch_tokens auto`.

    Called by all ranks together, which find the same.

    Args:
        job: what is trained.
        engine: with the weights and the optimizer's state of the run.
        say: takes a line for the console.
        beat: takes what begins.

    Raises:
        UserError: not even one of the longest samples fits.
    """
    if job.run.compile_layers == AUTO and engine.module.encoder.are_layers_compiled:
        beat("compiling the layers")
        _compile_or_not(job, engine, say)
    if phases_to_settle(job.timeline):
        return _with_tokens_that_fit(job, engine, say, beat)
    return job


def _compile_or_not(job: PretrainingJob, engine: Any, say: Callable[[str], None]) -> None:
    """Compiles the layers, or, if that fails on any rank, lets those of all ranks run as they are.

    Raises:
        Exception: of the layers themselves, which fail without a compiler, too.
    """
    phases = job.timeline.phases
    micro_batch = _micro_batch(phases, 2 * max(phase.sequence_length for phase in phases))
    problem = ""
    try:
        _pass_over(engine, micro_batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:_MOST_TOLD]}"
    problem = first_problem(problem)
    if problem:
        engine.module.encoder.uncompile_layers()
        _pass_over(engine, micro_batch)
        say(f"compile_layers auto: the layers run uncompiled, because compiling fails ({problem})")


def _with_tokens_that_fit(
    job: PretrainingJob, engine: Any, say: Callable[[str], None], beat: Callable[[str], None]
) -> PretrainingJob:
    """The job with the most tokens that fit, of those tried."""
    phases = phases_to_settle(job.timeline)
    layout = layout_of(job.model, job.deepspeed, job.run)
    memory = int(_least_of_ranks(rank_memory_bytes(), engine))
    samples = longest_samples(job.timeline)
    longest = max(sample.num_tokens for sample in samples)
    is_gpu = engine.device.type == "cuda"
    tokens = planned_tokens(
        job.timeline, layout, samples, job.run.activation_checkpointing, memory, is_gpu
    )
    reserve = round(MARGIN * memory) + sum(buffer_bytes(layout).values()) if is_gpu else 0
    is_tried = layout.stage < 3
    while is_tried:
        beat(f"trying micro-batches of {tokens:,} tokens")
        fits = _fits(engine, _micro_batch(phases, tokens), reserve)
        if _least_of_ranks(fits, engine):
            break
        if tokens == longest:
            raise UserError(
                "micro_batch_tokens = auto: not even one of the longest samples"
                f" ({longest:,} tokens) fits the device: set activation_checkpointing, a"
                " higher ZeRO stage or offload, or prepare shorter shards"
            )
        smaller = max(longest, tokens // 2)
        say(
            f"micro_batch_tokens auto: out of memory with {tokens:,} tokens a rank; trying"
            f" {smaller:,}"
        )
        tokens = smaller
    how = "tried" if is_tried else "not tried: at ZeRO-3, ranks wait for each other in every pass"
    say(
        f"micro_batch_tokens auto: {tokens:,} tokens (planned for {memory / 2**30:.1f} GiB a rank;"
        f" {how})"
    )
    timeline = with_tokens(job.timeline, tokens)
    deepspeed = job.deepspeed.with_shape(timeline.largest_shape)
    return dataclasses.replace(job, timeline=timeline, deepspeed=deepspeed)


def _micro_batch(phases: Sequence[PhasePlan], num_tokens: int) -> MicroBatch:
    """One longest sample, others of the mean length: padded attention needs most where they differ.

    Args:
        phases: give lengths and masks.
        num_tokens: of all samples, at least those of the longest.
    """
    longest = max(phase.sequence_length for phase in phases)
    mean = max(1, int(min(phase.tokens_per_sample for phase in phases)))
    num_others, rest = divmod(num_tokens - longest, mean)
    lengths = np.array([longest, *num_others * [mean], *([rest] if rest else [])])
    return trial_micro_batch(lengths, max(map(masked_share, phases)))


def _fits(engine: Any, micro_batch: MicroBatch, reserve_bytes: int) -> bool:
    """Whether this rank has the memory for a micro-batch, and as much besides as is reserved."""
    try:
        _pass_over(engine, micro_batch, reserve_bytes)
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    gc.collect()  # the error's frames may hold tensors in a cycle
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # the run's own peak is a metric
    return fits


def _pass_over(engine: Any, micro_batch: MicroBatch, reserve_bytes: int = 0) -> None:
    """Forward and backward, with all gradients at once, which no hook sees and nobody keeps."""
    reserve = torch.empty(reserve_bytes, dtype=torch.uint8, device=engine.device)
    engine.train()
    loss, _ = engine.module(**to_device(micro_batch, engine.device))
    torch.autograd.grad(loss, list(engine.module.parameters()), allow_unused=True)
    del reserve


def _least_of_ranks(number: int, engine: Any) -> int:
    """The lowest number of all ranks."""
    least = torch.tensor(number, dtype=torch.int64, device=engine.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)
