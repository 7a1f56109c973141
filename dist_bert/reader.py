"""Random access to the samples of shards, as fast as their bytes can be copied.

Not for: the order in which training reads them (`dist_bert.data`).
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.errors import UserError
from dist_bert.shard_format import FIELD_SHAPES, Manifest, ShardFile

Columns = dict[str, NDArray[Any]]
Memory = dict[str, NDArray[np.uint8]]  # of columns: new pages would cost as much as filling them


class SampleReader:
    """Random access to the samples of one split of a data set.

    Attributes:
        num_samples: of the split.
        blocks: of all shards, in their order.
        shard_of_block: the shard of each.
        block_sizes: samples of each.
        has_pairs: whether samples have a segment B, so that there is a next-sentence loss.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, split: str) -> None:
        """Maps every shard of the split.

        Raises:
            UserError: the split is empty, or a shard is missing or has another size.
        """
        shards = manifest.splits[split]
        if not any(shard.num_samples for shard in shards):
            raise UserError(
                f"{folder}: has no {split} samples; prepare it from more text"
                " (or with another validation_share)"
            )
        self._files = [ShardFile(folder, shard, manifest.field_types) for shard in shards]
        self._types = manifest.field_types
        self.has_pairs = manifest.config["pair_objective"] != "none"
        self.blocks = [block for shard in shards for block in shard.blocks]
        self.shard_of_block = np.repeat(np.arange(len(shards)), [len(s.blocks) for s in shards])
        self.block_sizes = np.array([block.num_samples for block in self.blocks])
        self._first_block = np.searchsorted(self.shard_of_block, np.arange(len(shards)))
        self._first_sample = np.cumsum(self.block_sizes) - self.block_sizes
        self.num_samples = int(self.block_sizes.sum())

    def sample_numbers(
        self, blocks: NDArray[np.integer], rows: NDArray[np.integer]
    ) -> NDArray[np.int64]:
        """The samples' numbers in the data set's order of rest: what names a sample in hashes."""
        return self._first_sample[blocks] + rows

    def gather(
        self,
        blocks: NDArray[np.integer],
        rows: NDArray[np.integer],
        fields: Iterable[str] = tuple(FIELD_SHAPES),
    ) -> Columns:
        """The given samples' fields, in the given order, 0-padded to the widest block's width."""
        columns, order = self.collect(blocks, rows, {}, fields)
        places = inverse(order)
        return {field: column.take(places, axis=0) for field, column in columns.items()}

    def collect(
        self,
        blocks: NDArray[np.integer],
        rows: NDArray[np.integer],
        memory: Memory,
        fields: Iterable[str] = tuple(FIELD_SHAPES),
    ) -> tuple[Columns, NDArray[np.intp]]:
        """The given samples' fields, block by block: the fastest order to read them in.

        Args:
            blocks: of the samples.
            rows: in their blocks.
            memory: that the columns are put into; the next call with it overwrites them.
            fields: wanted.

        Returns:
            The columns, 0-padded to the widest block's width, and which sample each of their rows
            is.
        """
        used = np.unique(blocks)
        run = np.searchsorted(used, blocks).astype(np.uint16)  # sorted by radix: 10 times as fast
        assert used.size <= 1 << 16
        order = np.argsort(run, kind="stable")
        rows_of_run = np.split(rows[order], np.cumsum(np.bincount(run))[:-1])
        views = [self._block(int(block)) for block in used]
        columns = {}
        for field in fields:
            parts = [view[field] for view in views]
            shape = (rows.size, *max(part.shape[1:] for part in parts))
            columns[field] = _array_in(memory, field, shape, self._types.of(field))
            start = 0
            for part, chosen in zip(parts, rows_of_run, strict=True):
                target = columns[field][start : start + chosen.size]
                if part.shape[1:] == shape[1:]:
                    # `take` is twice as fast as an index; without "clip" it would be buffered
                    part.take(chosen, axis=0, out=target, mode="clip")
                else:
                    target[:, : part.shape[1]] = part.take(chosen, axis=0)
                    target[:, part.shape[1] :] = 0
                start += chosen.size
        return columns, order

    def _block(self, block: int) -> Columns:
        shard = self.shard_of_block[block]
        return self._files[shard].block(block - int(self._first_block[shard]))


def inverse(order: NDArray[np.integer]) -> NDArray[np.intp]:
    """Where a permutation of range(N) has each number."""
    places = np.empty(order.size, np.intp)
    places[order] = np.arange(order.size)
    return places


def _array_in(
    memory: Memory, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """An array in the memory of that name, which grows where it is too small."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if name not in memory or memory[name].size < num_bytes:
        memory[name] = np.empty(num_bytes, np.uint8)
    return memory[name][:num_bytes].view(dtype).reshape(shape)
