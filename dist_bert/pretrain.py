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
from dist_bert.checkpoint import TrainState
from dist_bert.data import (
    WINDOW_BLOCKS,
    FreshMasks,
    SampleOrder,
    StepBatch,
    count_validation_samples,
    piece_counts,
    training_batches,
    validation_batches,
)
from dist_bert.engine import build_engine, shut_down, start_distributed, train, validate
from dist_bert.errors import UserError
from dist_bert.hashing import hash64
from dist_bert.job import PretrainingJob
from dist_bert.metrics import MetricsWriter
from dist_bert.model import BertForPreTraining
from dist_bert.prefetch import prefetch
from dist_bert.progress import Progress
from dist_bert.reader import SampleReader
from dist_bert.run_dir import CHECKPOINTS_NAME, CONFIG_NAME, TOKENIZER_NAME
from dist_bert.tokenizer import Tokenizer

_VERSIONS_KEPT = ("torch", "deepspeed", "numpy", "sentencepiece")


def pretrain(job: PretrainingJob) -> None:
    """Trains until the last step, going on from the latest checkpoint where there is one.

    Called by every rank of the launcher.

    Raises:
        UserError: the checkpoint or the shards do not fit the job.
    """
    run = job.run
    training = SampleReader(run.shards, job.manifest, "train")
    held_out = SampleReader(run.shards, job.manifest, "validation")
    world_size = job.deepspeed.batch_shape.world_size
    count_validation_samples(held_out, world_size, run.validation_samples)  # now, not at step 1,000
    start_distributed()
    engine = None
    try:
        engine = build_engine(_new_model(job, training), job.deepspeed)
        state = checkpoint.load(engine, run.output_dir, job.identity())
        writer = _open_run(job, state) if dist.get_rank() == 0 else None
        progress = Progress(engine, job.model, run, training.has_pairs, writer)

        def validate_now(state: TrainState) -> None:
            progress.flush()
            shape, rank = job.deepspeed.batch_shape, dist.get_rank()
            batches = validation_batches(held_out, shape, rank, run.validation_samples)
            progress.validation(state.step, validate(engine, batches))
            progress.restart_clock()

        def save_now(state: TrainState) -> None:
            progress.flush()  # a resumed run writes only what follows its checkpoint
            checkpoint.save(engine, run.output_dir, state, job.identity(), run.keep_checkpoints)
            _say(f"saved step {state.step:,} in {run.output_dir}/{CHECKPOINTS_NAME}")
            progress.restart_clock()

        batches = prefetch(_training_stream(job, training, state))
        state = train(
            engine,
            batches,
            state,
            run,
            job.deepspeed.peak_lr,
            report=progress.add,
            validate=validate_now,
            save=save_now,
        )
        batches.close()
        if writer is not None:
            writer.close()
        _say(f"done: {state.step:,} steps, {state.samples:,} samples, {state.tokens:,} tokens")
    except UserError:  # raised by all ranks together; after any other error the peers may hang
        shut_down(engine)
        raise
    shut_down(engine)


def _new_model(job: PretrainingJob, reader: SampleReader) -> BertForPreTraining:
    """The model at step 0, the same on all ranks."""
    torch.manual_seed(int(hash64(job.run.seed, "weights") >> 1))
    model = BertForPreTraining(job.model)
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
