"""Pretraining, assembled: shards, model, engine, checkpoint, loop. See launch/pretrain.py."""

import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_bert import checkpoint, files
from dist_bert.agreement import Agreement
from dist_bert.checkpoint import TrainState
from dist_bert.config import RunConfig
from dist_bert.data import (
    WINDOW_BLOCKS,
    FreshMasks,
    MicroBatch,
    SampleOrder,
    StepBatch,
    count_validation_samples,
    piece_counts,
    training_batches,
    validation_batches,
)
from dist_bert.engine import (
    build_engine,
    shut_down,
    start_distributed,
    train,
    validate,
    validation_is_due,
)
from dist_bert.errors import UserError
from dist_bert.hashing import hash64
from dist_bert.heartbeat import Heartbeat
from dist_bert.initial_weights import load_initial_weights
from dist_bert.interrupts import (
    INTERRUPTED_EXIT_CODE,
    INTERRUPTED_NAME,
    REASONS,
    Interrupts,
    end_with_error,
)
from dist_bert.job import PretrainingJob
from dist_bert.metrics import MetricsWriter, read_metrics
from dist_bert.model import BertForPreTraining
from dist_bert.prefetch import prefetch
from dist_bert.progress import Progress
from dist_bert.reader import SampleReader
from dist_bert.run_dir import CHECKPOINTS_NAME, CONFIG_NAME, TOKENIZER_NAME, latest_checkpoint
from dist_bert.tokenizer import Tokenizer
from dist_bert.watchdog import Watchdog
from dist_bert.weight_source import WeightSource

_VERSIONS_KEPT = ("torch", "deepspeed", "numpy", "sentencepiece")


def pretrain(job: PretrainingJob, interrupts: Interrupts) -> int:
    """Trains until the last step, going on from the latest checkpoint where there is one.

    Called by every rank of the launcher.

    Args:
        job: what to train.
        interrupts: notes the reasons to stop earlier.

    Returns:
        The exit code: 0, or `INTERRUPTED_EXIT_CODE` when the same job is to be started again.

    Raises:
        UserError: the checkpoint or the shards do not fit the job, or training has diverged.
    """
    run = job.run
    job.deepspeed.check_device(torch.cuda.is_available())
    training = SampleReader(run.shards, job.manifest, "train")
    held_out = SampleReader(run.shards, job.manifest, "validation")
    world_size = job.deepspeed.batch_shape.world_size
    count_validation_samples(held_out, world_size, run.validation_samples)  # now, not at step 1,000
    watchdog = Watchdog(run.watchdog_minutes)
    heartbeat = engine = None
    try:
        start_distributed(run.timeout_seconds)
        heartbeat = Heartbeat(run.heartbeat_seconds)
        watchdog.beat("making model and engine")
        engine = build_engine(_new_model(job, training), job.deepspeed)
        watchdog.beat("loading the checkpoint")
        state = checkpoint.load(engine, run.output_dir, job.identity(), job.may_differ)
        watchdog.beat("starting the loop")
        writer = _open_run(job, state) if dist.get_rank() == 0 else None
        rows = read_metrics(run.output_dir) if dist.get_rank() == 0 and state.step else []
        progress = Progress(
            engine, job.model, run, training.has_pairs, writer, _skipped_steps(rows)
        )
        stop = Agreement(lambda: interrupts.noted)
        parts = _Parts(job, engine, held_out, progress, stop, watchdog)
        stop.begin()
        if not stop.end() and _lacks_validation(rows, state, run):
            parts.validate(state)  # the one during which the run was interrupted
        batches = prefetch(_training_stream(job, training, state))
        state = train(
            engine,
            batches,
            state,
            run,
            job.deepspeed.peak_lr,
            stop=stop,
            beat=watchdog.beat,
            report=progress.add,
            validate=parts.validate,
            save=parts.save,
            roll_back=parts.roll_back,
        )
        batches.close()
        watchdog.beat("ending")
        if writer is not None:
            writer.close()
        if state.step == run.num_train_steps:
            checkpoint.write_weights(run.output_dir)
        _tell_end(run, state, stop.reason)
        heartbeat.stop()
        dist.barrier()  # a rank that still beats would miss those that have left
    except UserError:  # raised by all ranks together; after any other error the peers may hang
        watchdog.stop()
        if heartbeat is not None:
            heartbeat.stop()
        shut_down(engine)
        raise
    except Exception as error:
        end_with_error(error)
    shut_down(engine)
    watchdog.stop()
    return INTERRUPTED_EXIT_CODE if stop.reason else 0


class _Parts:
    """What the training loop calls beside the steps; each method by all ranks together."""

    def __init__(
        self,
        job: PretrainingJob,
        engine: Any,
        held_out: SampleReader,
        progress: Progress,
        stop: Agreement,
        watchdog: Watchdog,
    ) -> None:
        self._job = job
        self._engine = engine
        self._held_out = held_out
        self._progress = progress
        self._stop = stop
        self._watchdog = watchdog
        self._validation_losses: dict[int, float] = {}  # of the last step that had a validation
        self._has_rolled_back = False  # since the last checkpoint: so it need not be saved

    def validate(self, state: TrainState) -> None:
        """Writes the scores on held-out samples, unless a stop is agreed on meanwhile."""
        self._progress.flush()
        run, shape = self._job.run, self._job.deepspeed.batch_shape
        batches = validation_batches(self._held_out, shape, dist.get_rank(), run.validation_samples)
        doing = f"in the validation at step {state.step:,}"
        metrics = validate(self._engine, self._stop.until_stop(self._watched(batches, doing)))
        if not self._stop.reason:
            loss = self._progress.validation(state.step, metrics)
            self._validation_losses = {state.step: loss}
        self._progress.restart_clock()

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint."""
        run = self._job.run
        self._progress.flush()  # a resumed run writes only what follows its checkpoint
        self._watchdog.beat(f"saving step {state.step:,}")
        checkpoint.save(
            self._engine,
            run.output_dir,
            state,
            self._job.identity(),
            run.keep_checkpoints,
            self._validation_losses.get(state.step),
        )
        self._watchdog.beat(f"behind step {state.step:,}")
        _say(f"saved step {state.step:,} in {run.output_dir}/{CHECKPOINTS_NAME}")
        self._has_rolled_back = False
        self._progress.restart_clock()

    def roll_back(self, state: TrainState) -> None:
        """Takes back all updates since the last checkpoint; step and position in the data go on.

        The same samples would end the same way. A run that is killed before its next checkpoint
        comes here again when resumed, so resuming stays exact.

        Raises:
            UserError: that did not help, or there is no checkpoint.
        """
        self._progress.flush()
        run = self._job.run
        size = self._job.deepspeed.batch_shape.global_batch_size
        first = state.samples - run.max_skipped_steps * size
        problem = (
            f"step {state.step:,}: loss or gradient was not finite in {run.max_skipped_steps} steps"
            f" (samples {first:,} to {state.samples - 1:,} of the stream)"
        )
        advice = "try a lower lr, a longer warmup_steps, gradient_clipping 1.0, or fp32"
        if self._has_rolled_back:
            raise UserError(f"{problem}, also after going back to a checkpoint: {advice}")
        if latest_checkpoint(run.output_dir) is None:
            raise UserError(f"{problem}, before the first checkpoint: {advice}")
        self._watchdog.beat("going back to a checkpoint")
        job = self._job
        from_state = checkpoint.load(self._engine, run.output_dir, job.identity(), job.may_differ)
        self._has_rolled_back = True
        _say(
            f"{problem}: going on behind them with the weights of step {from_state.step:,};"
            f" the updates since then are taken back"
        )

    def _watched(self, batches: Iterator[MicroBatch], doing: str) -> Iterator[MicroBatch]:
        for number, batch in enumerate(batches, start=1):
            self._watchdog.beat(f"{doing}, micro-batch {number:,}")
            yield batch


def _skipped_steps(rows: list[dict[str, float]]) -> int:
    """How many steps a resumed run had skipped."""
    counts = (row["train/skipped_steps"] for row in reversed(rows) if "train/skipped_steps" in row)
    return int(next(counts, 0))


def _lacks_validation(rows: list[dict[str, float]], state: TrainState, run: RunConfig) -> bool:
    """Whether the checkpoint's validation was interrupted; on all ranks, by the rows of rank 0."""
    if not (state.step and validation_is_due(state.step, run)):
        return False
    is_written = any(r["step"] == state.step and "validation/mlm_loss" in r for r in rows[-2:])
    answer = [is_written]
    dist.broadcast_object_list(answer, src=0)
    return not answer[0]


def _tell_end(run: RunConfig, state: TrainState, reason: int) -> None:
    """Rank 0 says that the run is done or, also in a file for batch scripts, interrupted."""
    if reason and dist.get_rank() == 0:
        text = f"stopped at step {state.step:,} of {run.num_train_steps:,}: {REASONS[reason]}"
        files.write_bytes(Path(run.output_dir) / INTERRUPTED_NAME, f"{text}\n".encode())
        print(f"{text}; the same command goes on from the last checkpoint", flush=True)
    elif not reason:
        _say(f"done: {state.step:,} steps, {state.samples:,} samples, {state.tokens:,} tokens")


def _new_model(job: PretrainingJob, reader: SampleReader) -> BertForPreTraining:
    """The model at step 0, the same on all ranks."""
    run = job.run
    torch.manual_seed(int(hash64(run.seed, "weights") >> 1))
    model = BertForPreTraining(job.model)
    model.encoder.activation_checkpointing = run.activation_checkpointing
    has_mlm_head = False
    if run.init_from and latest_checkpoint(run.output_dir) is None:
        loaded = load_initial_weights(model, job.model, WeightSource.find(run.init_from))
        has_mlm_head = loaded.has_mlm_head
        _say(loaded.description)
    if not has_mlm_head:
        counts = piece_counts(reader, job.manifest.tokenizer["vocab_size"], WINDOW_BLOCKS)
        model.start_from_frequencies(torch.from_numpy(counts))
    return model


def _training_stream(
    job: PretrainingJob, reader: SampleReader, state: TrainState
) -> Iterator[StepBatch]:
    """This rank's steps from where the run stands."""
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, job.run.seed)
    fresh_masks = None
    if job.run.masks == "fresh":
        tokenizer = Tokenizer(job.tokenizer_path)
        config = job.manifest.config
        vocabulary = tokenizer.masking_vocabulary(config["whole_words"], config["mean_span_length"])
        fresh_masks = FreshMasks(vocabulary, job.run.seed)
    shape = job.deepspeed.batch_shape
    return training_batches(reader, order, shape, dist.get_rank(), state.samples, fresh_masks)


def _open_run(job: PretrainingJob, state: TrainState) -> MetricsWriter:
    """Rank 0: the run's folder with all that its use needs later, and its metrics."""
    run_dir = Path(job.run.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / INTERRUPTED_NAME).unlink(missing_ok=True)
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS_KEPT}
    resolved: dict[str, Any] = {**job.resolved(), "versions": versions}
    files.write_json(run_dir / CONFIG_NAME, resolved)
    shutil.copyfile(job.tokenizer_path, run_dir / TOKENIZER_NAME)
    writer = MetricsWriter(run_dir, state.step)
    writer.text(state.step, "config", f"```json\n{json.dumps(resolved, indent=2)}\n```")
    shape = job.deepspeed.batch_shape
    print(
        f"{'resumed at' if state.step else 'starting from'} step {state.step:,} of"
        f" {job.run.num_train_steps:,}: {shape.global_batch_size} samples a step ="
        f" {shape.world_size} ranks x {shape.accumulation_steps} micro-steps x"
        f" {shape.micro_batch_size}, ZeRO {job.deepspeed.zero_stage}, {job.deepspeed.precision}",
        flush=True,
    )
    return writer


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)
