"""The training loop: batches in, optimizer steps out. It knows no task.

A model given to it returns `(loss, metrics)`: this micro-batch's shares of the global batch's mean
loss and mean metrics. So sums over micro-steps and ranks are exact means, whatever the world size
and accumulation, and one global batch has one gradient (docs/numerics.md).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.common.hashing import hash64
from dist_bert.data.batches import StepBatch
from dist_bert.distributed.agreement import StopAgreement
from dist_bert.distributed.device_timer import Span, moment
from dist_bert.model.micro_batches import to_device
from dist_bert.training.config import TrainingConfig
from dist_bert.training.loss_spikes import LossSpikes
from dist_bert.training.skipped_steps import SkippedSteps, gradient_factor
from dist_bert.training.weight_average import update_average


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """The results of an optimizer step. Tensors stay on the device: reading them waits for it."""

    state: TrainState  # after the step
    batch: StepBatch
    metrics: Tensor  # (number of metrics,) this rank's shares
    grad_norm: float | Tensor | None  # before clipping; None where the JSON switches it off
    lr: float
    data_wait_seconds: float
    forward_spans: Sequence[Span] = ()  # of the micro-steps; none where they hold collectives
    is_skipped: bool = False  # loss or gradient was not finite, or a spike: nothing was updated
    must_roll_back: bool = False  # too many steps in a row were skipped
    spike: float = 0.0  # loss by the running median where it was a spike, if spikes are acted on


@dataclasses.dataclass(frozen=True)
class TrainingLoop:
    """One optimizer step after the other. The caller saves, validates and rolls back in between.

    Attributes:
        engine: from `dist_bert.training.engine.build_engine`.
        run: gives the number of steps, the seed, `max_skipped_steps`.
        lr: the learning rate of a step.
        stop: polled once a step, overlapped with its last micro-step.
        beat: called before every micro-step with what begins.
        spikes: finds the steps whose updates are left out because their loss jumps; None = none.
        before_step: called with the number of every step before it.
    """

    engine: Any
    run: TrainingConfig
    lr: Callable[[int], float]
    stop: StopAgreement
    beat: Callable[[str], None]
    spikes: LossSpikes | None = None
    before_step: Callable[[int], None] = lambda step: None

    def steps(self, batches: Iterator[StepBatch], state: TrainState) -> Iterator[StepRecord]:
        """Trains until `run.num_train_steps` or an agreed stop; iterated by all ranks together.

        After a record that `must_roll_back`, the caller has put other weights into the engine.

        Args:
            batches: the steps that follow `state.samples`.
            state: where the run stands; the engine holds its weights and optimizer state.
        """
        self.engine.train()
        skipped = SkippedSteps(self.engine)
        while state.step < self.run.num_train_steps and not self.stop.reason:
            record = self._step(batches, state, skipped)
            yield record
            state = record.state
            if record.must_roll_back:
                skipped = SkippedSteps(self.engine)

    def _step(
        self, batches: Iterator[StepBatch], state: TrainState, skipped: SkippedSteps
    ) -> StepRecord:
        """One global batch."""
        engine, rank, world_size = self.engine, dist.get_rank(), dist.get_world_size()
        step = state.step + 1
        waiting_since = time.perf_counter()
        batch = next(batches)
        data_wait_seconds = time.perf_counter() - waiting_since
        self.before_step(step)
        lr = self.lr(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        spans: list[Span] = []
        metrics = torch.zeros(len(engine.module.metric_names), device=engine.device)
        loss_so_far, spike = torch.zeros((), device=engine.device), 0.0
        for micro_step, micro_batch in enumerate(batch.micro_batches):
            self.beat(
                f"in step {step:,}, micro-step {micro_step + 1} of {len(batch.micro_batches)}"
            )
            is_last = micro_step == len(batch.micro_batches) - 1
            engine.set_gradient_accumulation_boundary(is_last)  # steps may differ in their number
            if is_last:
                self.stop.begin()
            # Seeded by what is computed: no generator state needs to be saved.
            torch.manual_seed(int(hash64(self.run.seed, "dropout", step, micro_step, rank) >> 1))
            start = moment(engine.device)
            loss, shares = engine(**to_device(micro_batch, engine.device))
            spans.append((start, moment(engine.device)))
            if self.spikes is not None:
                loss_so_far += loss.detach()
                if is_last:
                    dist.all_reduce(loss_so_far)
                    spike = self.spikes.measure(step, float(loss_so_far))  # waits for the device
                    loss = loss * math.nan if spike else loss  # the guard leaves the update out
            # DeepSpeed averages gradients over ranks; shares want their sum.
            engine.backward(loss * gradient_factor(loss, world_size), scale_wrt_gas=False)
            engine.step()  # updates the weights after the last micro-step, else only counts
            metrics += shares
        self.stop.end()
        is_skipped = skipped.count()
        if not is_skipped:
            update_average(engine, self.run.average_decay, step)
        return StepRecord(
            TrainState(step, state.samples + batch.num_samples, state.tokens + batch.num_tokens),
            batch,
            metrics,
            engine.get_global_grad_norm(),
            lr,
            data_wait_seconds,
            # At stage 3 every layer gathers its weights, so all ranks take as long as the slowest.
            spans if engine.zero_optimization_stage() < 3 else (),
            is_skipped=is_skipped,
            must_roll_back=skipped.in_a_row >= self.run.max_skipped_steps,
            spike=spike,
        )


class SaveSchedule:
    """Which steps are followed by a save.

    The first one, so that a save that cannot work fails now, every `checkpoint_interval` steps and
    the last one; but not while steps are skipped, because what follows them would depend on how
    many there were. The save is then due after the next step that is not.
    """

    def __init__(self, run: TrainingConfig) -> None:
        """Takes the settings of a run."""
        self._run = run
        self._is_due = False

    def is_due(self, record: StepRecord, is_stop: bool) -> bool:
        """Whether to save now.

        Args:
            record: of the last step.
            is_stop: the run stops after it.
        """
        step = record.state.step
        self._is_due |= step % self._run.checkpoint_interval == 0 or step == 1 or is_stop
        if step < self._run.num_train_steps and (record.is_skipped or not self._is_due):
            return False
        self._is_due = False
        return True


def validation_is_due(step: int, run: TrainingConfig) -> bool:
    """Whether a validation belongs to the state after an optimizer step."""
    interval = run.validation_interval
    return step == run.num_train_steps or (interval > 0 and step > 0 and step % interval == 0)
