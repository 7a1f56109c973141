"""Pretraining, assembled: shards, model and validation for the run. See launch/pretrain.py."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from dist_bert.checkpoint import checkpoint
from dist_bert.common.device import has_gpu
from dist_bert.data.pretraining_batches import count_validation_samples, validation_batches
from dist_bert.distributed.interrupts import INTERRUPTED_EXIT_CODE, Interrupts
from dist_bert.model.bert import BertForPreTraining
from dist_bert.pretraining.build import (
    Readers,
    grow_positions,
    new_model,
    open_corpora,
    training_stream,
)
from dist_bert.pretraining.fixed_sentences import FixedSentences
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.pretraining.timeline_text import phase_values, warnings_of
from dist_bert.pretraining.trial import needs_trial, settled
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
    training = open_corpora(job, "train")
    held_out = open_corpora(job, "validation")
    for reader in held_out.values():  # now, not at step 1,000
        world_size = job.deepspeed.batch_shape.world_size
        count_validation_samples(reader, world_size, run.validation_samples)

    with joined_ranks(run, console, run.output_dir) as watchdog:
        for reader in (*training.values(), *held_out.values()):
            reader.beat = watchdog.beat
        watchdog.beat("making the model")
        for warning in warnings_of(job.timeline):
            console.say(f"warning: {warning}")
        model = new_model(job, training, console.say)
        setup = _setup(job, model, training, held_out, console.say, watchdog.beat)
        reason = train_run(job, setup, interrupts, console, watchdog)
        if not reason:
            checkpoint.write_weights(run.output_dir)
    return INTERRUPTED_EXIT_CODE if reason else 0


def _setup(
    job: PretrainingJob,
    model: BertForPreTraining,
    training: Readers,
    held_out: Readers,
    say: Callable[[str], None],
    beat: Callable[[str], None],
) -> TrainingSetup:
    """Masked LM and next sentence, and their scores on the first held-out samples."""
    first = held_out[job.timeline.corpora[0].source.place]
    sentences = FixedSentences(first, Tokenizer(job.tokenizer_path))

    def validate_held_out(
        engine: Any, step: int, watched: Callable[[Batches], Batches]
    ) -> Validation:
        metrics = held_out_scores(job, held_out, engine, step, watched)
        return Validation(metrics, lambda: sentences.ask(engine))

    def settle(engine: Any) -> tuple[PretrainingJob, TrainingSetup]:
        found = settled(job, engine, say, beat)
        return found, _setup(found, model, training, held_out, say, beat)

    return TrainingSetup(
        model,
        lambda state: training_stream(job, training, state),
        validate_held_out,
        first.has_pairs,
        before_step=lambda engine, step: grow_positions(job, engine, step, say),
        describe=lambda step: phase_values(job, step),
        comparable_since=lambda step: job.timeline.phase_of(step).first_step,
        settle=settle if needs_trial(job) else None,
    )


def held_out_scores(
    job: PretrainingJob,
    held_out: Readers,
    engine: Any,
    step: int,
    watched: Callable[[Batches], Batches] = lambda batches: batches,
) -> dict[str, float]:
    """The scores after a step: the means over its phase's data sets, weighted as in training.

    Where there are several, each one's losses, too, as `mlm_loss/NAME`; they share out the
    `validation_samples`.
    """
    phase, shape = job.timeline.phase_of(step), job.batch_shape(step)
    count = -(-job.run.validation_samples // len(phase.corpora))
    if len(phase.corpora) > 1 and count:
        count = max(count, shape.world_size)
    mean: dict[str, float] = {}
    of_each: dict[str, float] = {}
    for corpus, weight in zip(phase.corpora, phase.weights, strict=True):
        reader = held_out[corpus.source.place]
        batches = validation_batches(reader, shape, dist.get_rank(), count)
        for name, value in validate(engine, watched(batches)).items():
            mean[name] = mean.get(name, 0.0) + value * weight / sum(phase.weights)
            if name.endswith("_loss"):
                of_each[f"{name}/{corpus.name}"] = value
    return mean if len(phase.corpora) == 1 else {**mean, **of_each}
