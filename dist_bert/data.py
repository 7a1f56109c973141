"""From shards to the micro-batches of one rank, in an order that is a pure function of one integer.

    sample number --SampleOrder--> (block, row) --SampleReader--> columns
                  --deal--> rank and micro-step --fresh masks, unpad--> micro-batch

The whole state of the data is the number of samples consumed. It is the loop's
(`dist_bert.engine`), which knows what was trained on; how far the reader is ahead never matters.
Numpy only: tensors are made where the device is known.

Letters: K steps planned at once, G samples of a global batch, A micro-steps, W ranks, M samples of
a micro-batch, S longest sample, P most predictions of a sample, T tokens of a micro-batch.
"""

import dataclasses
import functools
import itertools
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.errors import UserError
from dist_bert.hashing import hash64, permuted
from dist_bert.masking import NUM_SPECIAL_IDS, MaskingVocabulary, draw_masks, restore
from dist_bert.prefetch import prefetch
from dist_bert.reader import Columns, Memory, SampleReader, inverse

MicroBatch = dict[str, Any]

# Shapes of micro-batches are rounded up: matrix kernels are prepared anew for every shape that they
# meet, which made bf16 products on CPU 2.8 times slower, and what is compiled recompiles.
TOKEN_MULTIPLE = 64  # of T and P
LENGTH_MULTIPLE = 8  # of max_seqlen
NO_LABEL = -100  # of a masked position that is none, of a sample without B; losses leave it out

WINDOW_BLOCKS = 64  # blocks whose samples are mixed: 65,536 samples, 25 MB at length 128
AHEAD_WINDOWS = 4  # of which a cache fetches the shards, the one that is read now included


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """How a global batch is cut: `global_batch_size` = accumulation * world size * micro-batch."""

    accumulation_steps: int  # A, micro-steps of an optimizer step
    world_size: int  # W, data-parallel ranks
    micro_batch_size: int  # M, samples of one rank in one micro-step

    @property
    def global_batch_size(self) -> int:
        """G, samples of one optimizer step over all ranks."""
        return self.accumulation_steps * self.world_size * self.micro_batch_size


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """One optimizer step: what this rank computes, and the size of the whole global batch."""

    micro_batches: list[MicroBatch]  # A of this rank
    num_samples: int  # G
    num_tokens: int  # real tokens of the global batch
    num_token_pairs: int  # sum of squared lengths over the global batch: what attention works on
    num_masked: int = 0  # masked positions of the global batch


class SampleOrder:
    """Which sample comes at which position of the endless training stream.

    Epoch e permutes the shards, and the blocks within them; the samples of every run of
    `WINDOW_BLOCKS` blocks are permuted together. Each sample comes once an epoch, and any position
    is found at once.
    """

    def __init__(
        self, shard_of_block: NDArray[np.integer], block_sizes: NDArray[np.integer], seed: int
    ) -> None:
        """Takes the layout of the data set: the shard and the number of samples of every block."""
        self._shard_of_block = shard_of_block
        self._block_sizes = block_sizes
        self._seed = seed
        self.window_blocks = WINDOW_BLOCKS
        self.num_samples = int(block_sizes.sum())
        self._epoch_blocks = functools.lru_cache(2)(self._permute_blocks)
        self._window = functools.lru_cache(2)(self._permute_window)

    def locate(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Epoch, block and row of the samples at positions [start, stop) of the stream."""
        parts = []
        while start < stop:
            epoch, position = divmod(start, self.num_samples)
            _, starts = self._epoch_blocks(epoch)
            window = int(np.searchsorted(starts, position, "right") - 1) // self.window_blocks
            blocks, rows = self._window(epoch, window)
            skip = position - int(starts[window * self.window_blocks])
            count = min(blocks.size - skip, stop - start)
            chosen = slice(skip, skip + count)
            parts.append((np.full(count, epoch), blocks[chosen], rows[chosen]))
            start += count
        epochs, blocks, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        return epochs, blocks, rows

    def blocks_near(self, start: int, stop: int) -> NDArray[np.int64]:
        """The blocks whose windows hold positions [start, stop) of the stream, in their order."""
        parts = []
        while start < stop:
            epoch, position = divmod(start, self.num_samples)
            blocks, starts = self._epoch_blocks(epoch)
            end = min(position + stop - start, self.num_samples)
            ends = np.searchsorted(starts, (position, end - 1), "right") - 1
            first, last = ends // self.window_blocks * self.window_blocks
            parts.append(blocks[first : last + self.window_blocks])
            start += end - position
        return np.concatenate(parts)

    def _permute_blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of all blocks, and the position at which each begins (and the end)."""
        num_blocks, num_shards = self._block_sizes.size, int(self._shard_of_block.max()) + 1
        shard_rank = permuted(self._shard_of_block, num_shards, self._seed, "shards", epoch)
        block_rank = permuted(np.arange(num_blocks), num_blocks, self._seed, "blocks", epoch)
        blocks = np.lexsort((block_rank, shard_rank))
        return blocks, np.concatenate(([0], np.cumsum(self._block_sizes[blocks], dtype=np.int64)))

    def _permute_window(
        self, epoch: int, window: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Block and row of every sample of one window, in the order of training."""
        blocks, _ = self._epoch_blocks(epoch)
        blocks = blocks[window * self.window_blocks : (window + 1) * self.window_blocks]
        sizes = self._block_sizes[blocks]
        rows = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        blocks = np.repeat(blocks, sizes)
        order = permuted(np.arange(rows.size), rows.size, self._seed, "window", epoch, window)
        return blocks[order], rows[order]


@dataclasses.dataclass(frozen=True)
class FreshMasks:
    """Masks drawn anew in every epoch but the first, keyed by (seed, epoch, sample)."""

    vocabulary: MaskingVocabulary
    seed: int

    def apply(
        self, columns: Columns, epochs: NDArray[np.int64], sample_numbers: NDArray[np.int64]
    ) -> None:
        """Replaces the masks of all rows of epoch 1 and later, in place."""
        anew = np.flatnonzero(epochs > 0)
        for begin in range(0, anew.size, 1_024):  # a block's worth stays in the processor's cache
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


def deal(num_tokens: NDArray[np.int64], shape: BatchShape) -> NDArray[np.int64]:
    """Deals every global batch out to micro-steps and ranks, alike on every rank.

    Sorted by length and dealt back and forth, so that a micro-batch holds samples of similar length
    and the ranks of one micro-step carry almost equal numbers of tokens.

    Args:
        num_tokens: (K, G) lengths of the samples of K global batches.
        shape: how each is cut.

    Returns:
        (K, A, W, M) indices into G.
    """
    longest_first = np.argsort(-num_tokens, axis=1, kind="stable")
    rounds = longest_first.reshape(
        -1, shape.accumulation_steps, shape.micro_batch_size, shape.world_size
    ).copy()
    rounds[:, :, 1::2] = rounds[:, :, 1::2, ::-1]
    return rounds.swapaxes(2, 3)


def unpad(columns: Columns) -> MicroBatch:
    """The padded columns of a micro-batch as the unpadded arguments of the model.

    T is rounded up by samples of [PAD] tokens behind the M real ones, without next-sentence label;
    P by positions whose label is `NO_LABEL`. That is also the next-sentence label of samples
    without a segment B.

    Returns:
        What `encoder_input` returns, and as int64 `masked_lm_positions` (into T),
        `masked_lm_labels`, and `next_sentence_label` (M,).
    """
    num_tokens = columns["num_tokens"].astype(np.int64)
    cu_seqlens = np.concatenate(([0], np.cumsum(num_tokens)))
    position = np.arange(columns["input_ids"].shape[1])
    is_token = position < num_tokens[:, None]
    prediction = np.arange(columns["masked_lm_positions"].shape[1])
    is_masked = prediction < columns["num_masked"][:, None]
    in_segment_b = position >= columns["segment_b_start"][:, None]
    has_b = columns["segment_b_start"] < num_tokens
    next_sentence_label = np.where(has_b, columns["next_sentence_label"].astype(np.int64), NO_LABEL)
    masked_lm_positions = columns["masked_lm_positions"] + cu_seqlens[:-1, None]
    positions = np.broadcast_to(position, is_token.shape)
    return {
        **encoder_input(
            columns["input_ids"][is_token], in_segment_b[is_token], positions[is_token], cu_seqlens
        ),
        "masked_lm_positions": round_up(masked_lm_positions[is_masked]),
        "masked_lm_labels": round_up(columns["masked_lm_labels"][is_masked], NO_LABEL),
        "next_sentence_label": next_sentence_label,
    }


def encoder_input(
    input_ids: NDArray[Any],
    token_type_ids: NDArray[Any],
    position_ids: NDArray[Any],
    cu_seqlens: NDArray[np.int64],
) -> MicroBatch:
    """The arguments of the encoder: tokens (T,) each, rounded up by samples of [PAD] tokens.

    Args:
        input_ids: of all samples, one after the other.
        token_type_ids: of the same tokens.
        position_ids: of the same tokens.
        cu_seqlens: (M + 1,) where each sample begins, and the end; no sample is empty.

    Returns:
        `input_ids`, `token_type_ids`, `position_ids` as int64, `cu_seqlens` (M + 1 and one for each
        sample of padding, none longer than the longest of the M,) as int32, `max_seqlen` as int.
    """
    longest = int(np.diff(cu_seqlens).max())
    stop = -(-cu_seqlens[-1] // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    padding_bounds = np.append(np.arange(cu_seqlens[-1], stop, longest), stop)
    return {
        "input_ids": round_up(input_ids),
        "token_type_ids": round_up(token_type_ids),
        "position_ids": round_up(position_ids),
        "cu_seqlens": np.union1d(cu_seqlens, padding_bounds).astype(np.int32),
        "max_seqlen": -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE,
    }


def round_up(values: NDArray[Any], filler: int = 0) -> NDArray[np.int64]:
    """Values as int64, followed by as much filler as makes a multiple of `TOKEN_MULTIPLE`."""
    missing = -values.size % TOKEN_MULTIPLE
    return np.pad(values.astype(np.int64), (0, missing), constant_values=filler)


def training_batches(
    reader: SampleReader,
    order: SampleOrder,
    shape: BatchShape,
    rank: int,
    start_sample: int,
    fresh_masks: FreshMasks | None = None,
) -> Generator[StepBatch]:
    """Endless stream of optimizer steps, as this rank's share of each.

    Every micro-batch also carries `num_masked` and `num_samples` of its whole global batch: the
    denominators of the losses. Samples are read a window at a time, the next one in a thread.

    Args:
        reader: of the training split.
        order: of the same split.
        shape: how a global batch is cut; shapes of equal size see the same samples in each step.
        rank: this rank, 0 to W - 1.
        start_sample: samples consumed so far: the position to go on from.
        fresh_masks: replaces the stored masks after the first epoch, or None to keep them always.
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
                num_token_pairs=int((num_tokens**2).sum()),
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
    """Endless; a block's rows for this rank are taken in one go, once for the whole window."""
    size = shape.global_batch_size
    num_steps = max(1, int(reader.block_sizes[: order.window_blocks].sum()) // size)
    memories: list[Memory] = [{}, {}, {}]  # one window is in use, one waits and one is made
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
    """How often each piece occurs as an original token, (vocab_size,); special ones count 0.

    From the first `max_blocks` blocks: documents lie in shards in random order.
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
    """How many samples a validation of `num_samples` (0 = all) has.

    Raises:
        UserError: fewer samples than ranks, some of which would have nothing to do.
    """
    count = min(num_samples or reader.num_samples, reader.num_samples)
    if count < world_size:
        raise UserError(
            f"validation has {count} samples for {world_size} ranks: raise validation_samples"
            " or prepare the shards with a larger validation_share"
        )
    return count


def validation_batches(
    reader: SampleReader, shape: BatchShape, rank: int, num_samples: int = 0
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the first `num_samples` samples (0 = all), each sample once.

    Every rank gets the same number of micro-batches and none is empty. `num_masked` and
    `num_samples` count the whole validation, so the sum of the model's shares over all is the exact
    mean.

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
