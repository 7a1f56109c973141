"""Reads one rank's micro-batches from shards, in an order that depends on one integer only.

    sample number --SampleOrder--> (block, row) --SampleReader--> columns
                  --deal--> rank and micro-step --fresh masks, unpad--> micro-batch

The whole state of the data is the number of samples consumed. It belongs to the training loop
(`dist_bert.training.loop`), which knows what was trained on; how far the reader is ahead never
matters. Numpy only: tensors are made where the device is known.

Letters: K steps planned at once, G samples of a global batch, A micro-steps, W ranks, M samples of
a micro-batch, S longest sample, P most predictions of a sample, T tokens of a micro-batch.
"""

import dataclasses
import itertools
from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.common.hashing import hash64
from dist_bert.common.prefetch import prefetch
from dist_bert.data.batches import BatchShape, MicroBatch, StepBatch, deal, unpad
from dist_bert.data.masking import NUM_SPECIAL_IDS, MaskingVocabulary, draw_masks, restore
from dist_bert.data.reader import Columns, Memory, SampleReader, inverse
from dist_bert.data.sample_order import SampleOrder

AHEAD_WINDOWS = 4  # whose shards a cache prefetches, including the one being read


@dataclasses.dataclass(frozen=True)
class FreshMasks:
    """New masks in every epoch except the first, keyed by (seed, epoch, sample)."""

    vocabulary: MaskingVocabulary
    seed: int

    def apply(
        self, columns: Columns, epochs: NDArray[np.int64], sample_numbers: NDArray[np.int64]
    ) -> None:
        """Replaces the masks of all rows of epoch 1 and later, in place."""
        anew = np.flatnonzero(epochs > 0)
        for begin in range(0, anew.size, 1_024):  # a block's worth fits the processor's cache
            rows = anew[begin : begin + 1_024]
            old = {field: column[rows] for field, column in columns.items()}
            originals = restore(
                old["input_ids"],
                old["masked_lm_positions"],
                old["masked_lm_labels"],
                old["num_masked"],
            )
            keys = hash64(self.seed, "fresh masks", epochs[rows], sample_numbers[rows])
            input_ids, positions, labels = draw_masks(
                originals, old["num_tokens"], old["num_masked"], keys, self.vocabulary
            )
            columns["input_ids"][rows] = input_ids
            columns["masked_lm_positions"][rows, : positions.shape[1]] = positions
            columns["masked_lm_labels"][rows, : labels.shape[1]] = labels


def training_batches(
    reader: SampleReader,
    order: SampleOrder,
    shape: BatchShape,
    rank: int,
    start_sample: int,
    fresh_masks: FreshMasks | None = None,
) -> Generator[StepBatch]:
    """Endless stream of optimizer steps: this rank's share of each.

    Every micro-batch also carries `num_masked` and `num_samples` of its whole global batch: the
    denominators of the losses. Samples are read by windows, the next window in a thread.

    Args:
        reader: of the training split.
        order: of the same split.
        shape: division of a global batch; the samples of a step depend only on the global size.
        rank: this rank, 0 to W - 1.
        start_sample: samples consumed so far: the position to resume from.
        fresh_masks: replaces the stored masks after the first epoch; None = always keep these.
    """
    windows = prefetch(_windows(reader, order, shape, rank, start_sample, fresh_masks), depth=1)
    try:
        for window in windows:
            yield from window.steps(shape)
    finally:
        windows.close()


@dataclasses.dataclass(frozen=True)
class _Window:
    """The samples of K optimizer steps, read together."""

    columns: Columns  # of this rank
    places: NDArray[np.intp]  # the row in `columns` of each sample, in the order of training
    num_tokens: NDArray[np.int64]  # (K, G)
    num_masked: NDArray[np.int64]  # (K,)

    def steps(self, shape: BatchShape) -> Iterator[StepBatch]:
        micro_batches = _micro_batches(self.columns, self.places, shape.micro_batch_size)
        size = shape.global_batch_size
        for num_tokens, num_masked in zip(self.num_tokens, self.num_masked, strict=True):
            totals = {"num_masked": int(num_masked), "num_samples": size}
            yield StepBatch(
                [{**next(micro_batches), **totals} for _ in range(shape.accumulation_steps)],
                num_samples=size,
                num_tokens=int(num_tokens.sum()),
                lengths=num_tokens,
                num_masked=int(num_masked),
            )


def _windows(
    reader: SampleReader,
    order: SampleOrder,
    shape: BatchShape,
    rank: int,
    start_sample: int,
    fresh_masks: FreshMasks | None,
) -> Iterator[_Window]:
    """Endless windows; a block's rows for this rank are read once per window."""
    size = shape.global_batch_size
    num_steps = max(1, int(reader.block_sizes[: order.window_blocks].sum()) // size)
    memories: list[Memory] = [{}, {}, {}]  # one window is in use, one is ready, one is being read
    for memory in itertools.cycle(memories):
        stop_sample = start_sample + num_steps * size
        reader.expect(
            order.blocks_near(start_sample, start_sample + AHEAD_WINDOWS * num_steps * size)
        )
        epochs, blocks, rows = order.locate(start_sample, stop_sample)
        counts = reader.gather(blocks, rows, ("num_tokens", "num_masked"))
        num_tokens = counts["num_tokens"].reshape(num_steps, size).astype(np.int64)
        dealt = deal(num_tokens, shape)[:, :, rank]
        own = (dealt + np.arange(num_steps)[:, None, None] * size).reshape(-1)
        columns, order_of_rows = reader.collect(blocks[own], rows[own], memory)
        if fresh_masks is not None:
            sorted_own = own[order_of_rows]
            numbers = reader.sample_numbers(blocks[sorted_own], rows[sorted_own])
            fresh_masks.apply(columns, epochs[sorted_own], numbers)
        num_masked = counts["num_masked"].reshape(num_steps, size).sum(axis=1, dtype=np.int64)
        yield _Window(columns, inverse(order_of_rows), num_tokens, num_masked)
        start_sample = stop_sample


def piece_counts(reader: SampleReader, vocab_size: int, max_blocks: int) -> NDArray[np.int64]:
    """Number of occurrences of each piece as an original token, (vocab_size,); special pieces 0.

    From the first `max_blocks` blocks: documents are in random order in the shards.
    """
    counts = np.zeros(vocab_size, np.int64)
    for block, size in enumerate(reader.block_sizes[:max_blocks]):
        columns = reader.gather(np.full(size, block), np.arange(size))
        masks = (columns["masked_lm_positions"], columns["masked_lm_labels"], columns["num_masked"])
        originals = restore(columns["input_ids"], *masks)
        counts += np.bincount(originals.reshape(-1), minlength=vocab_size)
    counts[:NUM_SPECIAL_IDS] = 0
    return counts


def count_validation_samples(reader: SampleReader, world_size: int, num_samples: int) -> int:
    """Number of samples of a validation of `num_samples` (0 = all).

    Raises:
        UserError: fewer samples than ranks, so some ranks would have none.
    """
    count = min(num_samples or reader.num_samples, reader.num_samples)
    if count < world_size:
        raise UserError(
            f"validation has {count} samples for {world_size} ranks: increase validation_samples"
            " or prepare the shards with a larger validation_share"
        )
    return count


def validation_batches(
    reader: SampleReader, shape: BatchShape, rank: int, num_samples: int = 0
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the first `num_samples` samples (0 = all), each sample once.

    Every rank gets the same number of micro-batches, none of them empty. `num_masked` and
    `num_samples` count the whole validation, so the sum of the model's shares is the exact mean.

    Raises:
        UserError: fewer samples than ranks.
    """
    count = count_validation_samples(reader, shape.world_size, num_samples)
    blocks = np.repeat(np.arange(reader.block_sizes.size), reader.block_sizes)[:count]
    rows = np.concatenate([np.arange(size) for size in reader.block_sizes])[:count]
    counts = reader.gather(blocks, rows, ("num_tokens", "num_masked"))
    totals = {"num_masked": int(counts["num_masked"].sum(dtype=np.int64)), "num_samples": count}
    num_steps = max(1, count // (shape.micro_batch_size * shape.world_size))
    longest_first = np.argsort(-counts["num_tokens"].astype(np.int64), kind="stable")
    for step in np.array_split(longest_first, num_steps):
        own = step[rank :: shape.world_size]
        yield {**unpad(reader.gather(blocks[own], rows[own])), **totals}


def _micro_batches(columns: Columns, places: NDArray[np.intp], size: int) -> Iterator[MicroBatch]:
    """Runs of `size` samples, unpadded; `places` has the row of each sample."""
    for begin in range(0, places.size, size):
        rows = places[begin : begin + size]
        yield unpad({field: column.take(rows, axis=0) for field, column in columns.items()})
