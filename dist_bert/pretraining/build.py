"""The parts of a pretraining job on one rank that training and its check make alike."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.checkpoint.weights import load_initial_weights
from dist_bert.common.device import has_gpu
from dist_bert.common.errors import UserError
from dist_bert.common.hashing import hash64
from dist_bert.data.batches import StepBatch
from dist_bert.data.masking import MaskingVocabulary
from dist_bert.data.mixture import MixedOrder
from dist_bert.data.pretraining_batches import FreshMasks, piece_counts, training_batches
from dist_bert.data.reader import JointReader, SampleReader
from dist_bert.data.sample_order import WINDOW_BLOCKS, SampleOrder
from dist_bert.model.attention import use_flash_attention_3
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.float8 import use_float8
from dist_bert.model.micro_batches import pinned
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.pretraining.positions import repeat_positions
from dist_bert.pretraining.timeline import PhasePlan
from dist_bert.tokenizer.tokenizer import Tokenizer

Readers = Mapping[str, SampleReader]  # by the place of their data set


def open_corpora(job: PretrainingJob, split: str) -> Readers:
    """The readers of all data sets, of one of `SPLITS`.

    Raises:
        UserError: one has no samples, or a shard is missing or has another size.
    """
    return {
        corpus.source.place: SampleReader(corpus.source, corpus.manifest, split)
        for corpus in job.timeline.corpora
    }


def new_model(
    job: PretrainingJob, readers: Readers, say: Callable[[str], None]
) -> BertForPreTraining:
    """The model at step 0, the same on all ranks.

    Args:
        job: what to train.
        readers: of the training splits.
        say: takes a line about the source of given weights, or a way to compute.
    """
    run = job.run
    torch.manual_seed(int(hash64(run.seed, "weights") >> 1))
    model = BertForPreTraining(job.model)
    model.encoder.activation_checkpointing = run.activation_checkpointing
    if run.flash_attention_3:
        use_flash_attention_3()
        say("attention by FlashAttention 3")
    if run.float8:
        use_float8(model.encoder.layers)
        say("matrix products of the layers in 8 bits")
    if job.compiles_layers(has_gpu()):
        model.encoder.compile_layers()
    has_mlm_head = False
    if run.init_from and latest_checkpoint(run.output_dir) is None:
        source = WeightSource.find(run.init_from, is_average=run.init_average)
        loaded = load_initial_weights(model, job.model, source, run.init_parts)
        has_mlm_head = loaded.has_mlm_head
        say(loaded.description)
    if not has_mlm_head:
        first = job.timeline.corpora[0]
        vocab_size = first.manifest.tokenizer["vocab_size"]
        counts = piece_counts(readers[first.source.place], vocab_size, WINDOW_BLOCKS)
        model.start_from_frequencies(torch.from_numpy(counts))
    return model


def training_stream(
    job: PretrainingJob, readers: Readers, state: TrainState
) -> Iterator[StepBatch]:
    """This rank's steps from the state of the run on.

    Raises:
        UserError: the state is not one of this recipe.
    """
    timeline, step = job.timeline, state.step + 1
    shift = state.samples - timeline.samples_before(step)  # of a run whose batch size was changed
    if shift and len(timeline.phases[0].stages) + len(timeline.phases) > 2:
        raise UserError(
            f"{job.run.output_dir}: step {state.step:,} has seen {state.samples:,} samples, and"
            f" {state.samples - shift:,} by the phases of this run: a batch that was changed with"
            " change_batch_size does not go together with several phases or a ramp"
        )
    steps = _steps(job, readers, state.step, shift)
    return pinned(steps) if has_gpu() else steps


def _steps(job: PretrainingJob, readers: Readers, done: int, shift: int) -> Iterator[StepBatch]:
    """All steps after those that are done, stage after stage."""
    for phase in job.timeline.phases:
        if done >= phase.last_step:
            continue
        own = [readers[corpus.source.place] for corpus in phase.corpora]
        seed = job.run.seed
        orders = [SampleOrder(r.shard_of_block, r.block_sizes, seed) for r in own]
        order = MixedOrder(orders, phase.weights, phase.consumed)
        reader = JointReader(own)
        vocabulary = _masking_vocabulary(job, phase) if job.run.masks == "fresh" else None
        for stage in phase.stages:
            in_phase = done - phase.first_step
            num_steps = stage.first_step + stage.num_steps - in_phase
            if num_steps < 1:
                continue
            before = (in_phase - stage.first_step) * stage.shape.global_batch_size
            yield from training_batches(
                reader,
                order,
                stage.shape,
                dist.get_rank(),
                stage.first_sample + before + shift,
                _fresh_masks(job, phase, vocabulary, in_phase),
                num_steps,
            )
            done += num_steps


def _masking_vocabulary(job: PretrainingJob, phase: PhasePlan) -> MaskingVocabulary:
    config = phase.corpora[0].manifest.config
    tokenizer = Tokenizer(job.tokenizer_path)
    return tokenizer.masking_vocabulary(config["whole_words"], config["mean_span_length"])


def _fresh_masks(
    job: PretrainingJob, phase: PhasePlan, vocabulary: MaskingVocabulary | None, done: int
) -> FreshMasks | None:
    """The masks of the steps of a phase after those that are done; None = the stored ones."""
    if vocabulary is None:
        return None
    if not phase.settings.masked_lm_prob:
        return FreshMasks(vocabulary, job.run.seed)
    stored = phase.corpora[0].manifest.config["masked_lm_prob"]
    return FreshMasks(
        vocabulary, job.run.seed, stored, lambda k: phase.masked_lm_prob(done + k + 1)
    )


def grow_positions(job: PretrainingJob, engine: Any, step: int, say: Callable[[str], None]) -> None:
    """Before the first step of a phase with longer samples: repeats learned position embeddings.

    As `extend_positions` does between two runs. A step that is taken again after a kill does it
    again, with the same result.
    """
    phase = job.timeline.phase_of(step)
    before = [p.sequence_length for p in job.timeline.phases if p.last_step < step]
    if before and step == phase.first_step + 1 and job.model.positions == "learned":
        known = max(before)
        if phase.sequence_length > known:
            repeat_positions(engine, known, phase.sequence_length)
            say(
                f"phase {phase.settings.name}: positions repeated from {known} to"
                f" {phase.sequence_length}"
            )
