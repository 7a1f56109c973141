"""A training run around the loop: start, resume, validations, checkpoints, end.

For every kind of training: `TrainingSetup` is what a kind brings. Not for: what is trained on
(`dist_bert.pretraining.pretrain`, `dist_bert.finetuning.finetune`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import nn

from dist_bert.checkpoint import checkpoint
from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.run_dir import (
    CHECKPOINTS_NAME,
    INTERRUPTED_NAME,
    LOG_NAME,
    latest_checkpoint,
)
from dist_bert.checkpoint.writer import CheckpointWriter
from dist_bert.common import files
from dist_bert.common.device import describe_device
from dist_bert.common.errors import UserError
from dist_bert.common.prefetch import prefetch
from dist_bert.data.batches import MicroBatch, StepBatch
from dist_bert.distributed.agreement import StopAgreement, all_ranks_agree
from dist_bert.distributed.interrupts import REASONS, SAVE_FAILED, Interrupts
from dist_bert.distributed.watchdog import START, STEP, Watchdog
from dist_bert.training.config import TrainingConfig
from dist_bert.training.console import Console
from dist_bert.training.engine import build_engine
from dist_bert.training.job import Job
from dist_bert.training.loop import SaveSchedule, StepRecord, TrainingLoop, validation_is_due
from dist_bert.training.loss_spikes import LossSpikes, usual_losses
from dist_bert.training.metrics import Prediction, read_metrics
from dist_bert.training.out_of_memory import told_if_out_of_memory
from dist_bert.training.progress import Progress
from dist_bert.training.rank_reports import Ranks, total_peak_flops
from dist_bert.training.run_record import first_line, kept_peak, open_run
from dist_bert.training.weight_average import start_average

Batches = Iterator[MicroBatch]


class Validation(NamedTuple):
    """What a validation found.

    Attributes:
        metrics: by name, without "validation/".
        ask: answers to fixed sentences; not called where the validation was stopped.
        score: by which checkpoints are compared, the higher the better; None = by the loss.
    """

    metrics: dict[str, float]
    ask: Callable[[], Sequence[Prediction]] = tuple
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """What a kind of training brings to a run.

    Attributes:
        model: at step 0, on the CPU in float32, the same on all ranks.
        stream: this rank's steps from a state on.
        validate: scores the engine's model; takes the engine, the step, and a function that watches
            over the micro-batches passed through it and ends them early when all ranks agree to
            stop.
        has_pairs: whether samples have a next-sentence label.
        patience: validations in a row without a better one after which the run is over; 0 = never.
        before_step: changes the engine's model where a step needs it; takes the engine and the
            number of the step.
        describe: metrics of a step that follow from its number.
        comparable_since: the step after which losses are on the same data as a step's.
        settle: finds out what depends on the device; takes the engine with the run's weights, and
            returns the job and the setup that follow.
    """

    model: nn.Module
    stream: Callable[[TrainState], Iterator[StepBatch]]
    validate: Callable[[Any, int, Callable[[Batches], Batches]], Validation]
    has_pairs: bool = True
    patience: int = 0
    before_step: Callable[[Any, int], None] = lambda engine, step: None
    describe: Callable[[int], dict[str, float]] = lambda step: {}
    comparable_since: Callable[[int], int] = lambda step: 0
    settle: Callable[[Any], tuple[Job, "TrainingSetup"]] | None = None


def train_run(
    job: Job, setup: TrainingSetup, interrupts: Interrupts, console: Console, watchdog: Watchdog
) -> int:
    """Trains until the last step, resuming from the latest checkpoint if there is one.

    Called by all ranks together, within `dist_bert.training.rank_group.joined_ranks`.

    Returns:
        The number of the reason to stop early (`interrupts.REASONS`); 0 = the run is done.

    Raises:
        UserError: the checkpoint does not fit the job, or training has diverged.
    """
    run = job.run
    watchdog.use(START)
    watchdog.beat("making the engine")
    engine = build_engine(setup.model, job.deepspeed)
    start_average(engine, run.average_decay)
    saves = CheckpointWriter(
        engine,
        run.output_dir,
        job.identity(),
        run.keep_checkpoints,
        watchdog,
        lambda step: console.say(f"saved step {step:,} in {run.output_dir}/{CHECKPOINTS_NAME}"),
    )
    try:
        watchdog.beat("loading the checkpoint")
        state = checkpoint.load(engine, run.output_dir, job.identity(), job.may_differ)
        checkpoint.settle(run.output_dir, state.step)
        if setup.settle is not None:
            job, setup = setup.settle(engine)
        watchdog.beat("starting the loop")
        stop = StopAgreement(lambda: SAVE_FAILED if saves.has_failed else interrupts.noted)
        session = _Session(job, setup, engine, saves, state, stop, watchdog, console)
        state = _train(session, setup.stream(state), state)
        watchdog.beat("ending")
        session.close()
        _tell_end(run, state, stop.reason, console)
    except UserError:
        saves.close()
        engine.destroy()
        raise
    saves.close()
    engine.destroy()
    return stop.reason


def _train(session: "_Session", stream: Iterator[StepBatch], state: TrainState) -> TrainState:
    """The steps of a run with saves and validations in between; returns the last state."""
    run, stop, saves = session.run, session.stop, SaveSchedule(session.run)
    stop.begin()
    is_over = session.is_over(state.step)
    if not stop.end() and session.lacks_validation(state):
        is_over = session.validate(state)  # the one during which the run was interrupted
        session.add_validation(state)
    batches = prefetch(stream)
    if not is_over:
        with told_if_out_of_memory(lambda: session.job.batch_shape(state.step + 1)):
            for record in session.loop.steps(batches, state):
                state = record.state
                session.report(record)
                session.recover(record)
                if validation_is_due(state.step, run) and not stop.reason:
                    is_over = session.validate(state)
                if saves.is_due(record, is_stop=bool(stop.reason) or is_over):
                    session.save(state)
                if is_over:
                    break
    batches.close()
    return state


class _Session:
    """One start of a run: its files, its progress, and what it does between two steps.

    Every method is called by all ranks together.
    """

    def __init__(
        self,
        job: Job,
        setup: TrainingSetup,
        engine: Any,
        saves: CheckpointWriter,
        state: TrainState,
        stop: StopAgreement,
        watchdog: Watchdog,
        console: Console,
    ) -> None:
        """Opens the run's folder, and says where the run begins."""
        self.job = job
        self._setup = setup
        self._engine = engine
        self._saves = saves
        self.stop = stop
        self._watchdog = watchdog
        self._console = console
        # Loss of the last step that had a validation, and since when such losses compare.
        self._validations: dict[int, tuple[float, int]] = {}
        self._best = checkpoint.best_validation(job.run.output_dir)  # its loss and step
        self._has_rolled_back = False  # since the last checkpoint: so it need not be saved
        self.run = run = job.run
        is_first = dist.get_rank() == 0
        device = describe_device(engine.device, job.deepspeed.precision)
        watchdog.beat("measuring the device's peak")
        device["world_size"] = dist.get_world_size()
        device["peak_flops"] = total_peak_flops(engine.device, job.deepspeed.precision)
        if is_first:
            device["peak_flops"] = kept_peak(run.output_dir, device)
        with all_ranks_agree("cannot start"):
            self._writer = open_run(job, state, device, console.say) if is_first else None
        self._rows = read_metrics(run.output_dir) if is_first and state.step else []
        told = [usual_losses(self._rows)]
        dist.broadcast_object_list(told, src=0)  # so that all ranks act on a spike together
        spikes = LossSpikes(run.spike_threshold, told[0], setup.comparable_since)
        acted_on = spikes if run.on_spike != "record" else None
        self.loop = TrainingLoop(
            engine,
            run,
            job.lr,
            stop,
            watchdog.beat,
            acted_on,
            lambda step: setup.before_step(engine, step),
        )
        self._progress = Progress(
            engine,
            job.model,
            run,
            setup.has_pairs,
            self._writer,
            console,
            Ranks(run.output_dir, console),
            device["peak_flops"],
            _skipped_steps(self._rows),
            None if acted_on else spikes,
            setup.describe,
        )
        if is_first:
            console.open_log(Path(run.output_dir) / LOG_NAME)
        console.say(first_line(job, state, device))
        console.start_bar(run.num_train_steps, state.step)

    def lacks_validation(self, state: TrainState) -> bool:
        """Whether the checkpoint's validation was interrupted; on all ranks, by rank 0's rows."""
        if not (state.step and validation_is_due(state.step, self.run)):
            return False
        is_written = any(
            row["step"] == state.step and any(name.startswith("validation/") for name in row)
            for row in self._rows[-2:]
        )
        answer = [is_written]
        dist.broadcast_object_list(answer, src=0)
        return not answer[0]

    def report(self, record: StepRecord) -> None:
        """Takes the record of a step."""
        self._watchdog.use(STEP)
        self._progress.add(record)
        self._saves.tell_written()

    def close(self) -> None:
        """Ends the saves and the run's files.

        Raises:
            UserError: on all ranks, if any could not write a checkpoint.
        """
        self._saves.finish()
        if self._writer is not None:
            self._writer.close()

    def validate(self, state: TrainState) -> bool:
        """Writes scores on held-out samples, unless a stop is agreed on meanwhile.

        Returns:
            Whether the run is over.
        """
        self._progress.flush()
        doing = f"in the validation at step {state.step:,}"
        found = self._setup.validate(
            self._engine,
            state.step,
            lambda batches: self.stop.until_stop(self._watched(batches, doing)),
        )
        if not self.stop.reason:
            loss = self._progress.validation(state.step, found.metrics, found.ask())
            loss = loss if found.score is None else 1.0 - found.score
            self._validations = {state.step: (loss, self._setup.comparable_since(state.step))}
            self._best = min(self._best, (loss, state.step))
        self._progress.restart_clock()
        return self.is_over(state.step)

    def add_validation(self, state: TrainState) -> None:
        """Gives the checkpoint that the run goes on from the validation that it lacked.

        Raises:
            UserError: on all ranks, if it cannot be written.
        """
        if state.step in self._validations:  # not interrupted once more
            checkpoint.add_validation(
                self.run.output_dir, state.step, *self._validations[state.step]
            )

    def is_over(self, step: int) -> bool:
        """Whether so many validations in a row were not better that training ends."""
        patience, (_, best_step) = self._setup.patience, self._best
        return patience > 0 and step - best_step >= patience * self.run.validation_interval

    def save(self, state: TrainState) -> None:
        """Takes a checkpoint, which is written while training continues.

        Raises:
            UserError: on all ranks, if any could not write one.
        """
        self._progress.flush()  # a resumed run writes only what follows its checkpoint
        self._watchdog.beat(f"saving step {state.step:,}")
        if self.stop.reason == SAVE_FAILED:
            self._saves.finish()
        self._saves.save(state, *self._validations.get(state.step, (None, 0)))
        if state.step == 1:  # a save that cannot work fails at once
            self._saves.finish()
        self._watchdog.beat(f"after step {state.step:,}")
        self._has_rolled_back = False
        self._progress.restart_clock()

    def recover(self, record: StepRecord) -> None:
        """Rolls back after too many skipped steps, or a spike that the run acts on.

        Raises:
            UserError: rolling back did not help, or there is no checkpoint.
        """
        if record.must_roll_back:
            self._roll_back(record)
        elif record.spike and self.run.on_spike == "roll_back" and not self._has_rolled_back:
            step = record.state.step
            problem = f"step {step:,}: the loss is {record.spike:.2f} times the running median"
            self._go_back(step, problem)

    def _roll_back(self, record: StepRecord) -> None:
        """Takes back all updates since the last checkpoint; step and position in the data continue.

        The same samples would end the same way. A run that is killed before its next checkpoint
        comes here again when resumed, so resuming stays exact.

        Raises:
            UserError: that did not help, or there is no checkpoint.
        """
        run, state = self.run, record.state
        many = run.max_skipped_steps
        steps = range(state.step - many + 1, state.step + 1)  # of a ramp, each has its own size
        first = state.samples - sum(self.job.batch_shape(n).global_batch_size for n in steps)
        problem = f"step {state.step:,}: loss or gradient was not finite in {many} steps"
        advice = "try a lower lr, a longer warmup_steps, gradient_clipping 1.0, or fp32"
        if record.spike:
            problem = f"step {state.step:,}: the loss was a spike in {many} steps"
            advice = "raise spike_threshold, or try a lower lr or a longer warmup_steps"
        problem += f" (samples {first:,} to {state.samples - 1:,} of the stream)"
        if self._has_rolled_back:
            self._progress.flush()
            raise UserError(f"{problem}, also after rolling back to a checkpoint: {advice}")
        if not self._go_back(state.step, problem):
            raise UserError(f"{problem}, before the first checkpoint: {advice}")

    def _go_back(self, step: int, problem: str) -> bool:
        """After a step, takes the weights of the last checkpoint; returns whether there is one."""
        self._progress.flush()
        self._saves.finish()  # a run that was killed and resumed has no newer checkpoint, either
        job = self.job
        if latest_checkpoint(job.run.output_dir) is None:
            return False
        self._watchdog.beat("rolling back to a checkpoint")
        place = job.run.output_dir
        from_state = checkpoint.load(self._engine, place, job.identity(), job.may_differ)
        for taken in range(from_state.step + 1, step + 1):
            self._setup.before_step(self._engine, taken)  # what it has changed since then
        self._has_rolled_back = True
        self._console.say(
            f"{problem}: rolled back to the weights of step {from_state.step:,}; training continues"
            " with the next samples"
        )
        return True

    def _watched(self, batches: Iterator[MicroBatch], doing: str) -> Iterator[MicroBatch]:
        for number, batch in enumerate(batches, start=1):
            self._watchdog.beat(f"{doing}, micro-batch {number:,}")
            yield batch


def _skipped_steps(rows: list[dict[str, float]]) -> int:
    """How many steps a resumed run had skipped."""
    counts = (row["train/skipped_steps"] for row in reversed(rows) if "train/skipped_steps" in row)
    return int(next(counts, 0))


def _tell_end(run: TrainingConfig, state: TrainState, reason: int, console: Console) -> None:
    """Rank 0 says that the run is done or, also in a file for batch scripts, interrupted."""
    if reason and dist.get_rank() == 0:
        text = f"stopped at step {state.step:,} of {run.num_train_steps:,}: {REASONS[reason]}"
        try:
            files.write_bytes(Path(run.output_dir) / INTERRUPTED_NAME, f"{text}\n".encode())
        except OSError as error:  # of a full disk: the exit code says it, too
            console.warn(f"{error.filename}: cannot be written ({error.strerror})")
        console.say(f"{text}; the same command resumes from the latest checkpoint")
    elif not reason:
        console.say(
            f"done: {state.step:,} steps, {state.samples:,} samples, {state.tokens:,} tokens"
        )
