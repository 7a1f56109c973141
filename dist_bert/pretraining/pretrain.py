"""Pretraining, assembled: shards, model and validation for the run. See launch/pretrain.py."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from dist_bert.checkpoint import checkpoint
from dist_bert.common.device import has_gpu
from dist_bert.data.pretraining_batches import count_validation_samples, validation_batches
from dist_bert.data.reader import SampleReader
from dist_bert.distributed.interrupts import INTERRUPTED_EXIT_CODE, Interrupts
from dist_bert.pretraining.build import new_model, training_stream
from dist_bert.pretraining.fixed_sentences import FixedSentences
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.tokenizer.tokenizer import Tokenizer
from dist_bert.training.console import Console
from dist_bert.training.engine import validate
from dist_bert.training.rank_group import joined_ranks
from dist_bert.training.session import Batches, TrainingSetup, Validation, train_run


def pretrain(job: PretrainingJob, interrupts: Interrupts, console: Console) -> int:
    """Trains until the last step, resuming from the latest checkpoint if there is one.

    Called by every rank of the launcher.

    Args:
        job: what to train.
        interrupts: notes the reasons to stop earlier.
        console: of this rank.

    Returns:
        The exit code: 0, or `INTERRUPTED_EXIT_CODE` when the same job is to be started again.

    Raises:
        UserError: the checkpoint or the shards do not fit the job, or training has diverged.
    """
    run = job.run
    job.check_device(has_gpu())
    training = SampleReader(job.source, job.manifest, "train")
    held_out = SampleReader(job.source, job.manifest, "validation")
    world_size = job.deepspeed.batch_shape.world_size
    count_validation_samples(held_out, world_size, run.validation_samples)  # now, not at step 1,000

    with joined_ranks(run, console, run.output_dir) as watchdog:
        training.beat = held_out.beat = watchdog.beat
        watchdog.beat("making the model")
        setup = _setup(job, training, held_out, console.say)
        reason = train_run(job, setup, interrupts, console, watchdog)
        if not reason:
            checkpoint.write_weights(run.output_dir)
    return INTERRUPTED_EXIT_CODE if reason else 0


def _setup(
    job: PretrainingJob,
    training: SampleReader,
    held_out: SampleReader,
    say: Callable[[str], None],
) -> TrainingSetup:
    """Masked LM and next sentence, and their scores on the first held-out samples."""
    sentences = FixedSentences(held_out, Tokenizer(job.tokenizer_path))

    def validate_held_out(engine: Any, watched: Callable[[Batches], Batches]) -> Validation:
        shape, count = job.deepspeed.batch_shape, job.run.validation_samples
        batches = validation_batches(held_out, shape, dist.get_rank(), count)
        metrics = validate(engine, watched(batches))
        return Validation(metrics, lambda: sentences.ask(engine))

    return TrainingSetup(
        new_model(job, training, say),
        lambda state: training_stream(job, training, state),
        validate_held_out,
        training.has_pairs,
    )
