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
from collections.abc import Callable, Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.common.hashing import hash64
from dist_bert.common.prefetch import prefetch
from dist_bert.data.batches import (
    BatchShape,
    MicroBatch,
    StepBatch,
    deal,
    deal_by_tokens,
    unpad,
)
from dist_bert.data.masking import (
    NUM_SPECIAL_IDS,
    MaskingVocabulary,
    draw_masks,
    rescaled_num_masked,
    restore,
)
from dist_bert.data.mixture import MixedOrder
from dist_bert.data.reader import BlockReader, Columns, Memory, inverse
from dist_bert.data.sample_order import SampleOrder

AHEAD_WINDOWS = 4  # whose shards a cache prefetches, including the one being read


@dataclasses.dataclass(frozen=True)
class FreshMasks:
    """New masks in every epoch except the first, keyed by (seed, epoch, sample).

    Attributes:
        vocabulary: of the masks.
        seed: of the run.
        stored_rate: share of the tokens that the shards have masked.
        rate: share to mask in the k-th step of the stream, k from 0; None = the stored one. With
            it, the masks of the first epoch are new, too.
    """

    vocabulary: MaskingVocabulary
    seed: int
    stored_rate: float = 0.15
    rate: Callable[[int], float] | None = None

    def num_masked(
        self,
        stored: NDArray[np.int64],
        epochs: NDArray[np.int64],
        sample_numbers: NDArray[np.int64],
        first_step: int,
    ) -> NDArray[np.int64]:
        """Predictions of every sample of K steps from `first_step` on; all arrays are (K, G)."""
        if self.rate is None:
            return stored
        rates = np.array([[self.rate(first_step + k)] for k in range(stored.shape[0])])
        keys = hash64(self.seed, "share of masks", epochs, sample_numbers)
        return rescaled_num_masked(stored, self.stored_rate, rates, keys)

    def apply(
        self,
        columns: Columns,
        epochs: NDArray[np.int64],
        sample_numbers: NDArray[np.int64],
        num_masked: NDArray[np.int64],
    ) -> None:
        """Replaces the masks of all rows that get new ones, in place; all arrays are (B,)."""
        if self.rate is not None:
            _widen(columns, int(num_masked.max(initial=0)))
        anew = np.flatnonzero(epochs > 0 if self.rate is None else epochs >= 0)
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
                originals, old["num_tokens"], num_masked[rows], keys, self.vocabulary
            )
            columns["input_ids"][rows] = input_ids
            columns["masked_lm_positions"][rows, : positions.shape[1]] = positions
            columns["masked_lm_labels"][rows, : labels.shape[1]] = labels
            columns["num_masked"][rows] = num_masked[rows]


def _widen(columns: Columns, width: int) -> None:
    """Room for more predictions than the shards have."""
    for field in ("masked_lm_positions", "masked_lm_labels"):
        missing = width - columns[field].shape[1]
        if missing > 0:
            columns[field] = np.pad(columns[field], ((0, 0), (0, missing)))


def training_batches(
    reader: BlockReader,
    order: SampleOrder | MixedOrder,
    shape: BatchShape,
    rank: int,
    start_sample: int,
    fresh_masks: FreshMasks | None = None,
    num_steps: int | None = None,
) -> Generator[StepBatch]:
    """Stream of optimizer steps: this rank's share of each.

    Every micro-batch also carries `num_masked` and `num_samples` of its whole global batch: the
    denominators of the losses. Samples are read by windows, the next window in a thread.

    Args:
        reader: of the training split.
        order: of the same split.
        shape: division of a global batch; the samples of a step depend only on the global size.
        rank: this rank, 0 to W - 1.
        start_sample: samples of the order consumed so far: the position to resume from.
        fresh_masks: replaces the stored masks; None = always keep these.
        num_steps: after which it ends; None = never.
    """
    windows = prefetch(
        _windows(reader, order, shape, rank, start_sample, fresh_masks, num_steps), depth=1
    )
    try:
        for window in windows:
            yield from window.steps()
    finally:
        windows.close()


@dataclasses.dataclass(frozen=True)
class _Window:
    """The samples of K optimizer steps, read together."""

    columns: Columns  # of this rank
    places: NDArray[np.intp]  # the row in `columns` of each sample, in the order of training
    sizes: list[list[int]]  # of each step, the samples of this rank's micro-batches
    num_tokens: NDArray[np.int64]  # (K, G)
    num_masked: NDArray[np.int64]  # (K,)

    def steps(self) -> Iterator[StepBatch]:
        ends = np.cumsum([size for sizes in self.sizes for size in sizes])
        micro_batches = map(self._micro_batch, np.split(self.places, ends[:-1]))
        size = self.num_tokens.shape[1]
        for sizes, num_tokens, num_masked in zip(
            self.sizes, self.num_tokens, self.num_masked, strict=True
        ):
            totals = {"num_masked": int(num_masked), "num_samples": size}
            yield StepBatch(
                [{**next(micro_batches), **totals} for _ in sizes],
                num_samples=size,
                num_tokens=int(num_tokens.sum()),
                lengths=num_tokens,
                num_masked=int(num_masked),
            )

    def _micro_batch(self, rows: NDArray[np.intp]) -> MicroBatch:
        return unpad({field: column.take(rows, axis=0) for field, column in self.columns.items()})


def _windows(
    reader: BlockReader,
    order: SampleOrder | MixedOrder,
    shape: BatchShape,
    rank: int,
    start_sample: int,
    fresh_masks: FreshMasks | None,
    num_steps: int | None,
) -> Iterator[_Window]:
    """Windows up to the last step; a block's rows for this rank are read once per window."""
    size = shape.global_batch_size
    steps_of_window = max(1, int(reader.block_sizes[: order.window_blocks].sum()) // size)
    memories: list[Memory] = [{}, {}, {}]  # one window is in use, one is ready, one is being read
    first_step = 0
    for memory in itertools.cycle(memories):
        steps = (
            steps_of_window if num_steps is None else min(steps_of_window, num_steps - first_step)
        )
        if not steps:
            return
        grid = (steps, size)
        stop_sample = start_sample + steps * size
        reader.expect(order.blocks_near(start_sample, start_sample + AHEAD_WINDOWS * steps * size))
        epochs, blocks, rows = order.locate(start_sample, stop_sample)
        counts = reader.gather(blocks, rows, ("num_tokens", "num_masked"))
        num_tokens = counts["num_tokens"].reshape(grid).astype(np.int64)
        num_masked = counts["num_masked"].reshape(grid).astype(np.int64)
        dealt = _deal(num_tokens, shape, rank)
        own = np.concatenate(
            [part + step * size for step, parts in enumerate(dealt) for part in parts]
        )
        columns, order_of_rows = reader.collect(blocks[own], rows[own], memory)
        if fresh_masks is not None:
            numbers = reader.sample_numbers(blocks, rows)
            num_masked = fresh_masks.num_masked(
                num_masked, epochs.reshape(grid), numbers.reshape(grid), first_step
            )
            sorted_own = own[order_of_rows]
            fresh_masks.apply(
                columns, epochs[sorted_own], numbers[sorted_own], num_masked.reshape(-1)[sorted_own]
            )
        sizes = [[part.size for part in parts] for parts in dealt]
        yield _Window(columns, inverse(order_of_rows), sizes, num_tokens, num_masked.sum(axis=1))
        start_sample = stop_sample
        first_step += steps


def _deal(
    num_tokens: NDArray[np.int64], shape: BatchShape, rank: int
) -> list[list[NDArray[np.int64]]]:
    """Of each of K steps, the samples (into G) of this rank's micro-batches."""
    if not shape.micro_batch_tokens:
        return [list(parts) for parts in deal(num_tokens, shape)[:, :, rank]]
    world_size, most = shape.world_size, shape.micro_batch_tokens
    return [deal_by_tokens(lengths, world_size, most)[rank::world_size] for lengths in num_tokens]


def piece_counts(reader: BlockReader, vocab_size: int, max_blocks: int) -> NDArray[np.int64]:
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


def count_validation_samples(reader: BlockReader, world_size: int, num_samples: int) -> int:
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
    reader: BlockReader, shape: BatchShape, rank: int, num_samples: int = 0
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
    num_tokens, world_size = counts["num_tokens"].astype(np.int64), shape.world_size
    if shape.micro_batch_tokens:
        parts = deal_by_tokens(num_tokens, world_size, shape.micro_batch_tokens)[rank::world_size]
    else:
        num_steps = max(1, count // (shape.micro_batch_size * world_size))
        steps = np.array_split(np.argsort(-num_tokens, kind="stable"), num_steps)
        parts = [step[rank::world_size] for step in steps]
    for own in parts:
        yield {**unpad(reader.gather(blocks[own], rows[own])), **totals}
