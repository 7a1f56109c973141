"""The order of samples in training: a pure function of the position in the stream."""

import functools

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.hashing import permuted

WINDOW_BLOCKS = 64  # blocks whose samples are mixed: 65,536 samples, 25 MB at length 128


class SampleOrder:
    """The sample at each position of the endless training stream.

    Epoch e permutes the shards, and the blocks within them; the samples of every run of
    `WINDOW_BLOCKS` blocks are permuted together. Each sample occurs once per epoch, and any
    position is computed directly.
    """

    def __init__(
        self, shard_of_block: NDArray[np.integer], block_sizes: NDArray[np.integer], seed: int
    ) -> None:
        """Takes the layout of the data set: the shard and the number of samples of every block."""
        self._shard_of_block = shard_of_block
        self._block_sizes = block_sizes
        self._seed = seed
        self.window_blocks = WINDOW_BLOCKS
        self.num_blocks = block_sizes.size
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
        """The blocks of the windows with positions [start, stop) of the stream, in their order."""
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
