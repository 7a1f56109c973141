"""The parts of a pretraining job on one rank that training and its check make alike."""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.checkpoint.run_dir import latest_checkpoint
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.checkpoint.weights import load_initial_weights
from dist_bert.common.device import has_gpu
from dist_bert.common.hashing import hash64
from dist_bert.data.batches import StepBatch
from dist_bert.data.pretraining_batches import FreshMasks, piece_counts, training_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import WINDOW_BLOCKS, SampleOrder
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.micro_batches import pinned
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.tokenizer.tokenizer import Tokenizer


def new_model(
    job: PretrainingJob, reader: SampleReader, say: Callable[[str], None]
) -> BertForPreTraining:
    """The model at step 0, the same on all ranks.

    Args:
        job: what to train.
        reader: of the training split.
        say: takes a line that names the source of given weights.
    """
    run = job.run
    torch.manual_seed(int(hash64(run.seed, "weights") >> 1))
    model = BertForPreTraining(job.model)
    model.encoder.activation_checkpointing = run.activation_checkpointing
    if run.compile_layers:
        model.encoder.compile_layers()
    has_mlm_head = False
    if run.init_from and latest_checkpoint(run.output_dir) is None:
        source = WeightSource.find(run.init_from, is_average=run.init_average)
        loaded = load_initial_weights(model, job.model, source, run.init_parts)
        has_mlm_head = loaded.has_mlm_head
        say(loaded.description)
    if not has_mlm_head:
        counts = piece_counts(reader, job.manifest.tokenizer["vocab_size"], WINDOW_BLOCKS)
        model.start_from_frequencies(torch.from_numpy(counts))
    return model


def training_stream(
    job: PretrainingJob, reader: SampleReader, state: TrainState
) -> Iterator[StepBatch]:
    """This rank's steps from the state of the run on."""
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, job.run.seed)
    fresh_masks = None
    if job.run.masks == "fresh":
        tokenizer = Tokenizer(job.tokenizer_path)
        config = job.manifest.config
        vocabulary = tokenizer.masking_vocabulary(config["whole_words"], config["mean_span_length"])
        fresh_masks = FreshMasks(vocabulary, job.run.seed)
    shape = job.deepspeed.batch_shape
    steps = training_batches(reader, order, shape, dist.get_rank(), state.samples, fresh_masks)
    return pinned(steps) if has_gpu() else steps
