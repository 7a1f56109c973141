"""The training loop, around DeepSpeed's engine. It knows no task: batches in, steps out.

A model given to it returns `(loss, metrics)`: this micro-batch's shares of the global batch's mean
loss and mean metrics. So sums over micro-steps and ranks are exact means, whatever the world size
and accumulation, and one global batch has one gradient (docs/numerics.md).
"""

import dataclasses
import importlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import compiler
from torch import Tensor, nn

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.common.hashing import hash64
from dist_bert.data.batches import MicroBatch, StepBatch
from dist_bert.distributed.device_timer import Span, moment
from dist_bert.distributed.stop_agreement import Agreement
from dist_bert.model.micro_batches import sum_of_shares, to_device
from dist_bert.training.config import RunConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.loss_spikes import LossSpikes
from dist_bert.training.optimizer import lr_share, parameter_groups
from dist_bert.training.skipped_steps import SkippedSteps, gradient_factor, skip_plain_updates


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What an optimizer step leaves behind. Tensors stay on the device: reading waits for it."""

    state: TrainState  # after the step
    batch: StepBatch
    metrics: Tensor  # (number of metrics,) this rank's shares
    grad_norm: float | Tensor | None  # before clipping; None where the JSON switches it off
    lr: float
    data_wait_seconds: float
    forward_spans: Sequence[Span] = ()  # of the micro-steps; none where they hold collectives
    is_skipped: bool = False  # loss or gradient was not finite, or a spike: nothing was updated
    spike: float = 0.0  # loss by the running median where it was a spike, if spikes are acted on


def build_engine(model: nn.Module, config: DeepSpeedConfig) -> Any:
    """DeepSpeed's engine around a model that lies on the CPU in float32."""
    _import_muon()
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, config.weight_decay),
        config={**config.values, "steps_per_print": 1 << 62},  # its console lines are ours to write
    )
    if config.zero_stage == 0 and config.precision == "fp32":
        skip_plain_updates(engine)
    elif config.zero_stage == 0:
        # DeepSpeed makes the optimizer's state by a step that is counted: the bias correction of
        # the first update would be that of the second, and the update three quarters of its size.
        for optimizer_state in engine.basic_optimizer.state.values():
            optimizer_state["step"].zero_()
    return engine


def _import_muon() -> None:
    """Imports the optimizer that ZeRO compares with ours, without compiling its kernels.

    They are never run here, and torch's compiler takes a second or two of every start to import.
    """
    compile_kernel = compiler.compile
    compiler.compile = lambda: lambda kernel: kernel
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_kernel


def train(
    engine: Any,
    batches: Iterator[StepBatch],
    state: TrainState,
    run: RunConfig,
    peak_lr: float,
    *,
    stop: Agreement,
    beat: Callable[[str], None],
    report: Callable[[StepRecord], None],
    validate: Callable[[TrainState], bool],
    save: Callable[[TrainState], None],
    roll_back: Callable[[TrainState], None],
    spikes: LossSpikes | None = None,
    act_on_spike: Callable[[TrainState, float], None] | None = None,
) -> TrainState:
    """Trains until `run.num_train_steps`, an agreed stop, or a validation that tells to end.

    Called by all ranks together.

    An agreed stop leaves a checkpoint of the last step; a validation that was due there is left to
    the resumed run.

    Args:
        engine: from `build_engine`, holding the weights and optimizer state of `state`.
        batches: the steps that follow `state.samples`.
        state: where the run stands.
        run: gives the number of steps, the schedule, the seed, the intervals, `max_skipped_steps`.
        peak_lr: the learning rate that the schedule scales.
        stop: asked once a step, while its last micro-step is computed.
        beat: told before every micro-step what begins.
        report: takes the record of every step.
        validate: called where `validation_is_due`; may agree to stop. Tells whether to go on.
        save: called after the first step, so that a save that cannot work fails now, every
            `checkpoint_interval` steps and after the last one, but not while steps are skipped:
            what follows them would depend on how many there were.
        roll_back: called when too many steps in a row were skipped.
        spikes: tells the steps whose updates are left out because their loss jumps; None = none.
        act_on_spike: called behind such a step, with its multiple of the running median.

    Returns:
        Where the run stands now.
    """
    engine.train()
    skipped = SkippedSteps(engine)
    save_is_due, goes_on = False, True
    while state.step < run.num_train_steps and goes_on and not stop.reason:
        record = _train_step(engine, batches, state, run, peak_lr, skipped, stop, beat, spikes)
        state = record.state
        report(record)
        if skipped.in_a_row >= run.max_skipped_steps:
            roll_back(state)
            skipped = SkippedSteps(engine)
        elif record.spike and act_on_spike is not None:
            act_on_spike(state, record.spike)
        if validation_is_due(state.step, run) and not stop.reason:
            goes_on = validate(state)
        save_is_due |= state.step % run.checkpoint_interval == 0 or state.step == 1
        save_is_due |= bool(stop.reason) or not goes_on
        if state.step == run.num_train_steps or (save_is_due and not record.is_skipped):
            save(state)
            save_is_due = False
    return state


def _train_step(
    engine: Any,
    batches: Iterator[StepBatch],
    state: TrainState,
    run: RunConfig,
    peak_lr: float,
    skipped: SkippedSteps,
    stop: Agreement,
    beat: Callable[[str], None],
    spikes: LossSpikes | None,
) -> StepRecord:
    """One global batch; the arguments are those of `train`."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    step = state.step + 1
    waiting_since = time.perf_counter()
    batch = next(batches)
    data_wait_seconds = time.perf_counter() - waiting_since
    lr = peak_lr * lr_share(step, run)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    spans: list[Span] = []
    metrics = torch.zeros(len(engine.module.metric_names), device=engine.device)
    loss_so_far, spike = torch.zeros((), device=engine.device), 0.0
    for micro_step, micro_batch in enumerate(batch.micro_batches):
        beat(f"in step {step:,}, micro-step {micro_step + 1} of {len(batch.micro_batches)}")
        if micro_step == len(batch.micro_batches) - 1:
            stop.begin()
        # Dropout depends on what is computed, not on what was before: no generator state to save.
        torch.manual_seed(int(hash64(run.seed, "dropout", step, micro_step, rank) >> 1))
        start = moment(engine.device)
        loss, shares = engine(**to_device(micro_batch, engine.device))
        spans.append((start, moment(engine.device)))
        if spikes is not None:
            loss_so_far += loss.detach()
            if micro_step == len(batch.micro_batches) - 1:
                dist.all_reduce(loss_so_far)
                spike = spikes.measure(float(loss_so_far))  # waits for the device
                loss = loss * math.nan if spike else loss  # the guard leaves the update out
        # DeepSpeed averages gradients over ranks; shares want their sum.
        engine.backward(loss * gradient_factor(loss, world_size), scale_wrt_gas=False)
        engine.step()  # updates the weights after the last micro-step, else only counts
        metrics += shares
    stop.end()
    return StepRecord(
        TrainState(step, state.samples + batch.num_samples, state.tokens + batch.num_tokens),
        batch,
        metrics,
        engine.get_global_grad_norm(),
        lr,
        data_wait_seconds,
        # At stage 3 each layer's weights are gathered: all ranks take as long as the slowest one.
        spans if engine.zero_optimization_stage() < 3 else (),
        is_skipped=skipped.count(),
        spike=spike,
    )


def validation_is_due(step: int, run: RunConfig) -> bool:
    """Whether a validation belongs to the state after an optimizer step."""
    interval = run.validation_interval
    return step == run.num_train_steps or (interval > 0 and step > 0 and step % interval == 0)


def validate(engine: Any, batches: Iterable[MicroBatch]) -> dict[str, float]:
    """Mean metrics over the validation samples; every rank gets the same result."""
    engine.eval()
    total = sum_of_shares(engine, batches, engine.device)
    engine.train()
    dist.all_reduce(total)
    return dict(zip(engine.module.metric_names, total.tolist(), strict=True))
