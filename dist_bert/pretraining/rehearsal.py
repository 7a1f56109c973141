"""A run in small: two steps, a save, a load, a validation batch; what they cost, and the whole run.

By the code of the run itself. What it writes goes to a folder of its own on the run's file system,
which is removed.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_bert.checkpoint import checkpoint
from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.fragments import fragments
from dist_bert.checkpoint.run_dir import CHECKPOINTS_NAME
from dist_bert.checkpoint.writer import CheckpointWriter
from dist_bert.common.device import describe_device, run_device
from dist_bert.common.errors import UserError
from dist_bert.common.prefetch import prefetch
from dist_bert.data.batches import BatchShape
from dist_bert.data.pretraining_batches import count_validation_samples, validation_batches
from dist_bert.distributed.agreement import StopAgreement
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.pretraining.build import (
    Readers,
    grow_positions,
    new_model,
    open_corpora,
    training_stream,
)
from dist_bert.pretraining.fixed_sentences import FixedSentences
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.pretraining.trial import settled
from dist_bert.tokenizer.tokenizer import Tokenizer
from dist_bert.training.engine import build_engine, validate
from dist_bert.training.loop import StepRecord, TrainingLoop
from dist_bert.training.progress import duration, flops_of_batches, peak_memory_bytes, slowness
from dist_bert.training.rank_reports import total_peak_flops
from dist_bert.training.weight_average import start_average

_NUM_STEPS = 2  # with an update; the first one pays for set-up, the last one is timed
_SCRATCH_NAME = ".check"
_GIB = 2**30


class Rehearsal:
    """One rank's part of it; every method is called by all ranks together."""

    def __init__(self, job: PretrainingJob, say: Callable[[str], None], watchdog: Watchdog) -> None:
        """Takes what it works with.

        Args:
            job: without problems of its own.
            say: takes a line for rank 0's console.
            watchdog: gets a beat when something begins.
        """
        self._job = job
        self._say = say
        self._watchdog = watchdog
        self._beat = watchdog.beat
        self._engine: Any = None
        self._state = TrainState()
        self._seconds = self._validation_seconds = 0.0  # of all steps to come, of a validation
        self._save_seconds = 0.0  # while which the loop waits
        self._mfu: float | None = None
        self._checkpoint_bytes = self._free_bytes = 0
        self._peak_flops = 1.0  # of all ranks' devices

    @property
    def shape(self) -> BatchShape:
        """The division of the global batch of the next step."""
        return self._job.batch_shape(self._state.step + 1)

    def problems(self, may_resume: bool) -> list[str]:
        """What goes wrong, as far as this rank sees it.

        Args:
            may_resume: whether the run's checkpoint, if it has one, is resumed.
        """
        job = self._job
        self._beat("making model and engine")
        training = open_corpora(job, "train")
        for reader in training.values():
            reader.beat = self._beat
        device = describe_device(run_device(), job.deepspeed.precision)
        self._peak_flops = total_peak_flops(run_device(), job.deepspeed.precision)
        self._say(
            f"checked  {device['device']}: {device['arithmetic']}; matrix products reach"
            f" {self._peak_flops / 1e12:.3g} TFLOP/s over all ranks"
        )
        try:
            self._engine = build_engine(new_model(job, training, self._say), job.deepspeed)
            start_average(self._engine, job.run.average_decay)
            if may_resume:
                self._state = checkpoint.load(
                    self._engine, job.run.output_dir, job.identity(), job.may_differ
                )
            self._job = settled(job, self._engine, self._say, self._beat)
            found = self._take_steps(training)
            found += self._validate_once()
            with _scratch_folder(Path(job.run.output_dir)) as folder:
                found += self._save_and_load(folder)
            return found + self._estimate()
        except UserError as error:  # raised by all ranks together
            return [str(error)]
        finally:
            if self._engine is not None:
                self._engine.destroy()

    def _take_steps(self, training: Readers) -> list[str]:
        """Steps from where the run stands, then from the beginning of every phase to come."""
        timeline, done = self._job.timeline, self._state.step
        found = []
        for phase in timeline.phases:
            if phase.last_step <= done:
                continue
            state = self._state
            if phase.first_step > done:
                samples = timeline.samples_before(phase.first_step + 1)
                state = TrainState(phase.first_step, samples)
            problems, seconds = self._take_steps_from(training, state)
            found += problems
            self._seconds += seconds * (phase.last_step - state.step)
        if done >= timeline.num_steps:
            self._say(f"checked  no step: all {done:,} are done")
        return found

    def _take_steps_from(self, training: Readers, state: TrainState) -> tuple[list[str], float]:
        """Forward, backward and update; returns what is wrong, and the seconds of a step."""
        records: list[StepRecord] = []
        times: list[float] = []
        job, engine, stop = self._job, self._engine, StopAgreement(lambda: 0)
        loop = TrainingLoop(
            engine,
            job.run,
            job.lr,
            stop,
            self._beat,
            before_step=lambda step: grow_positions(job, engine, step, self._say),
        )
        batches = prefetch(training_stream(job, training, state))
        # With fp16 updates are left out as a matter of course, until the loss scale has fallen.
        may_skip = job.deepspeed.precision == "fp16"
        num_left_out = 0
        for record in loop.steps(batches, state):
            record.metrics.tolist()  # waits for the device
            times.append(time.perf_counter())
            records.append(record)
            num_left_out += record.is_skipped and may_skip
            if len(records) - num_left_out == _NUM_STEPS or record.must_roll_back:
                break
        batches.close()
        seconds = times[-1] - times[-2] if len(times) > 1 else 0.0
        if seconds:
            has_pairs = next(iter(training.values())).has_pairs
            flops = flops_of_batches(job.model, [records[-1].batch], has_pairs)
            self._mfu = min(1.0, flops / seconds / self._peak_flops)
        metrics = torch.stack([record.metrics for record in records])
        dist.all_reduce(metrics)
        losses = metrics[:, :2].sum(1).tolist()  # mlm_loss and nsp_loss
        peak = torch.tensor([peak_memory_bytes(engine.device) / _GIB]).to(engine.device)
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        self._say(
            f"checked  {len(records)} steps after step {state.step:,}: losses"
            f" {', '.join(f'{loss:.4f}' for loss in losses)}, {seconds:.3g} s a step,"
            f" at most {peak.item():.2f} GiB a rank"
            + (f", {num_left_out} without update to find the loss scale" if num_left_out else "")
        )
        return [
            f"step {record.state.step:,}: loss or gradient is not finite: try a lower lr, a longer"
            " warmup_steps, gradient_clipping 1.0, or fp32"
            for record, loss in zip(records, losses, strict=True)
            if not math.isfinite(loss)
            or (record.is_skipped and (record.must_roll_back or not may_skip))
        ], seconds

    def _validate_once(self) -> list[str]:
        """One batch of a validation, and the fixed sentences."""
        run, shape = self._job.run, self._job.batch_shape(1)
        first = self._job.timeline.corpora[0]
        held_out = open_corpora(self._job, "validation")[first.source.place]
        held_out.beat = self._beat
        self._beat("validating")
        batches = validation_batches(held_out, shape, dist.get_rank(), run.validation_samples)
        batch = next(batches)
        start = time.perf_counter()
        scores = validate(self._engine, [batch])
        seconds = time.perf_counter() - start
        FixedSentences(held_out, Tokenizer(self._job.tokenizer_path)).ask(self._engine)
        count = count_validation_samples(held_out, shape.world_size, run.validation_samples)
        num_own = batch["next_sentence_label"].size
        num_batches = max(1, count // (num_own * shape.world_size))
        self._validation_seconds = seconds * num_batches
        self._say(f"checked  a validation batch: {seconds:.3g} s, {num_batches:,} a validation")
        if all(map(math.isfinite, scores.values())):
            return []
        return ["validation: a score is not finite: try a lower lr, or fp32"]

    def _save_and_load(self, folder: Path) -> list[str]:
        """A checkpoint goes to the disk and comes back, and every bit of it is compared."""
        self._beat("saving and loading")
        identity = self._job.identity()
        saved = [_bits(tensor) for tensor in self._tensors()]
        start = time.perf_counter()
        saves = CheckpointWriter(self._engine, folder, identity, 1, self._watchdog)
        try:
            saves.save(self._state)
            self._save_seconds = time.perf_counter() - start
            saves.finish()
        finally:
            saves.close()
        seconds = time.perf_counter() - start
        dist.barrier()  # the files of all ranks are there
        self._checkpoint_bytes = _bytes_below(folder)
        for tensor in self._tensors():
            tensor.zero_()
        state = checkpoint.load(self._engine, folder, identity)
        loaded = [_bits(tensor) for tensor in self._tensors()]
        is_equal = state == self._state and all(map(torch.equal, saved, loaded))
        dist.barrier()  # all have read: the folder may go
        self._free_bytes = shutil.disk_usage(folder).free + self._checkpoint_bytes
        self._say(
            f"checked  a checkpoint of {_size(self._checkpoint_bytes)}: saved in"
            f" {seconds:.3g} s, of which a training waits {self._save_seconds:.3g} s; loaded and"
            " compared bit for bit"
        )
        return [] if is_equal else [f"{folder}: a loaded checkpoint is not what was saved"]

    def _estimate(self) -> list[str]:
        """Time to the end of the run, and the disk that its checkpoints will take."""
        run, step = self._job.run, self._state.step
        num_steps = run.num_train_steps - step
        num_validations = num_steps // (run.validation_interval or num_steps or 1)
        num_saves = -(-num_steps // run.checkpoint_interval)
        seconds = (
            self._seconds
            + num_validations * self._validation_seconds
            + num_saves * self._save_seconds
        )
        self._say(
            f"estimate {duration(seconds)} for {num_steps:,} steps, {num_validations:,} validations"
            f" and {num_saves:,} checkpoints"
        )
        for text in slowness(self._mfu, seconds).values():
            self._say(f"warning: {text}")
        # Those that are kept, the best one, the one that is being written.
        needed = (run.keep_checkpoints + 2) * self._checkpoint_bytes
        available = self._free_bytes + _bytes_below(Path(run.output_dir) / CHECKPOINTS_NAME)
        figures = f"{_size(needed)} for checkpoints, {_size(available)}"
        self._say(f"estimate {figures} available")
        if needed <= available:
            return []
        return [
            f"--output_dir {run.output_dir}: {figures} available: free some space, or lower"
            f" keep_checkpoints (now {run.keep_checkpoints})"
        ]

    def _tensors(self) -> Iterator[Tensor]:
        for fragment in fragments(self._engine):
            yield from fragment.tensors.values()


def _bits(tensor: Tensor) -> Tensor:
    """A copy on the CPU that is equal only to what is bit for bit: NaN to itself, 0 not to -0."""
    return tensor.to("cpu", copy=True).view(torch.int32)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB else f"{num_bytes / 2**20:.1f} MiB"


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _scratch_folder(run_dir: Path) -> Iterator[Path]:
    """A path on the run's file system for what may be written; nothing is left there."""
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    folder = existing / (
        _SCRATCH_NAME if existing == run_dir else f"{_SCRATCH_NAME}-{run_dir.name}"
    )
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a check that was killed
    dist.barrier()
    try:
        yield folder
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
