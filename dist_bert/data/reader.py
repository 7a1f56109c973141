"""Random access to the samples of shards, at the speed of copying their bytes.

Not for: the order in which training reads them (`dist_bert.data.pretraining_batches`).
"""

import abc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.data.sample_rules import check_ranges
from dist_bert.data.shard_format import (
    FIELD_SHAPES,
    BlockRecord,
    DamagedBlockError,
    Manifest,
    ShardFile,
)
from dist_bert.data.shard_source import ShardSource

Columns = dict[str, NDArray[Any]]
Memory = dict[str, NDArray[np.uint8]]  # of columns, reused: new pages cost as much as filling them

# Of a split, each an open file, of which `ulimit -n` often allows 1,024. Training reads the blocks
# of a window of 64 (`dist_bert.data.pretraining_batches`) again and again, which lie in as many
# shards at most.
MAX_MAPPED_SHARDS = 256


class BlockReader(abc.ABC):
    """Random access to samples in blocks, by the number of the block and the row in it.

    Attributes:
        blocks: all of them, in their order.
        block_sizes: samples of each.
        num_samples: of all blocks.
        has_pairs: whether samples have a segment B, and thus a next-sentence loss.
    """

    def __init__(self, blocks: list[BlockRecord], has_pairs: bool) -> None:
        """Takes the blocks."""
        self.blocks = blocks
        self.block_sizes = np.array([block.num_samples for block in blocks])
        self.num_samples = int(self.block_sizes.sum())
        self.has_pairs = has_pairs

    @abc.abstractmethod
    def sample_numbers(
        self, blocks: NDArray[np.integer], rows: NDArray[np.integer]
    ) -> NDArray[np.int64]:
        """The samples' numbers in the data set's stored order, which identify samples in hashes."""

    @abc.abstractmethod
    def expect(self, blocks: NDArray[np.integer]) -> None:
        """Announces the blocks to be read next, in this order, so that a cache can prefetch."""

    @abc.abstractmethod
    def type_of(self, field: str) -> np.dtype[Any]:
        """Dtype of one field."""

    @abc.abstractmethod
    def release(self, used: NDArray[np.integer]) -> None:
        """Lets a cache evict copies, except those with the given blocks (in their order)."""

    @abc.abstractmethod
    def block(self, block: int) -> Columns:
        """The fields of one block, as views.

        Raises:
            UserError: it is damaged, or a sample of it is out of range.
        """

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
        """The given samples' fields, block by block: the fastest order of reading.

        Args:
            blocks: of the samples.
            rows: in their blocks.
            memory: for the columns; the next call with it overwrites them.
            fields: to read.

        Returns:
            The columns, 0-padded to the widest block's width, and the sample of each of their rows.

        Raises:
            UserError: a block is damaged, or a sample of it is out of range.
        """
        used = np.unique(blocks)
        self.release(used)
        run = np.searchsorted(used, blocks).astype(np.uint16)  # sorted by radix: 10 times as fast
        assert used.size <= 1 << 16
        order = np.argsort(run, kind="stable")
        rows_of_run = np.split(rows[order], np.cumsum(np.bincount(run))[:-1])
        columns = {}
        for field in fields:
            widest = max(self.blocks[block].shape(field)[1:] for block in used)
            shape = (rows.size, *widest)
            columns[field] = _array_in(memory, field, shape, self.type_of(field))
        start = 0
        for block, chosen in zip(used, rows_of_run, strict=True):
            views = self.block(int(block))  # one at a time: they may lie in any number of shards
            for field, column in columns.items():
                part, target = views[field], column[start : start + chosen.size]
                if part.shape[1:] == target.shape[1:] and part.dtype == target.dtype:
                    # `take` is twice as fast as an index; without "clip" it would be buffered
                    part.take(chosen, axis=0, out=target, mode="clip")
                else:
                    width = math.prod(part.shape[1:])
                    flat = target.reshape(chosen.size, -1)
                    flat[:, :width] = part.take(chosen, axis=0).reshape(chosen.size, -1)
                    flat[:, width:] = 0
            start += chosen.size
        return columns, order


class SampleReader(BlockReader):
    """Random access to the samples of one split of a data set.

    Attributes:
        shard_of_block: the shard of each block.
        beat: called at every progress while waiting for a shard; set by the caller.
    """

    def __init__(
        self,
        place: str | Path | ShardSource,
        manifest: Manifest,
        split: str,
    ) -> None:
        """Looks at every shard of the split, unless they come through a cache.

        Args:
            place: the data set: its folder, or the source of its files.
            manifest: of the data set.
            split: one of `SPLITS`.

        Raises:
            UserError: the split is empty, or a shard is missing or has another size.
        """
        self._source = ShardSource.of(place)
        self._shards = shards = manifest.splits[split]
        if not any(shard.num_samples for shard in shards):
            raise UserError(
                f"{self._source.place}: has no {split} samples; prepare it from more text"
                " (or with another validation_share)"
            )
        blocks = [block for shard in shards for block in shard.blocks]
        super().__init__(blocks, manifest.config["pair_objective"] != "none")
        self.beat: Callable[[str], None] = lambda doing: None
        self._manifest = manifest
        self._types = manifest.field_types
        self._checked: set[int] = set()  # blocks whose samples are in range
        self.shard_of_block = np.repeat(np.arange(len(shards)), [len(s.blocks) for s in shards])
        self._first_block = np.searchsorted(self.shard_of_block, np.arange(len(shards)))
        self._first_sample = np.cumsum(self.block_sizes) - self.block_sizes
        self._files: dict[int, ShardFile] = {}  # of the mapped shards; the last was used last
        if not self._source.is_cached:
            for number in range(len(shards)):
                self._file(number)

    def sample_numbers(
        self, blocks: NDArray[np.integer], rows: NDArray[np.integer]
    ) -> NDArray[np.int64]:
        """The samples' numbers in the data set's stored order, which identify samples in hashes."""
        return self._first_sample[blocks] + rows

    def expect(self, blocks: NDArray[np.integer]) -> None:
        """Announces the blocks to be read next, in this order, so that a cache can prefetch."""
        if self._source.is_cached:
            shards = dict.fromkeys(self.shard_of_block[blocks].tolist())
            self._source.expect([self._shards[shard] for shard in shards])

    def type_of(self, field: str) -> np.dtype[Any]:
        """Dtype of one field."""
        return self._types.of(field)

    def release(self, used: NDArray[np.integer]) -> None:
        """Lets a cache evict copies: unmaps all shards but those of the given blocks."""
        if self._source.evicts:
            shards = set(self.shard_of_block[used].tolist())
            self._files = {shard: file for shard, file in self._files.items() if shard in shards}

    def block(self, block: int) -> Columns:
        """The fields of one block, as views.

        Raises:
            UserError: it is damaged, or a sample of it is out of range.
        """
        shard = int(self.shard_of_block[block])
        index = block - int(self._first_block[shard])
        views = self._whole_block(shard, index)
        if block not in self._checked:
            check_ranges(f"{self._files[shard].path}: block {index}", views, self._manifest)
            self._checked.add(block)
        return views

    def _whole_block(self, shard: int, index: int) -> Columns:
        """Its bytes are those that were written; a copy that has changed is fetched again."""
        try:
            return self._file(shard).block(index)
        except DamagedBlockError:
            if not self._source.is_cached:
                raise
        self._source.discard(self._files.pop(shard))
        return self._file(shard).block(index)

    def _file(self, shard: int) -> ShardFile:
        """A shard, mapped; where there are too many, the one unused for longest is unmapped."""
        file = self._files.pop(shard, None)
        if file is None:
            while len(self._files) >= MAX_MAPPED_SHARDS:
                del self._files[next(iter(self._files))]
            file = self._source.open(self._shards[shard], self._types, self.beat)
        self._files[shard] = file
        return file


class JointReader(BlockReader):
    """Random access to the samples of several data sets, whose blocks are numbered through."""

    def __init__(self, readers: Sequence[SampleReader]) -> None:
        """Takes the readers of each; all of them have pairs, or none."""
        blocks = [block for reader in readers for block in reader.blocks]
        super().__init__(blocks, readers[0].has_pairs)
        self._readers = readers
        sizes = [len(reader.blocks) for reader in readers]
        self._first_blocks = np.concatenate(([0], np.cumsum(sizes)[:-1]))

    def sample_numbers(
        self, blocks: NDArray[np.integer], rows: NDArray[np.integer]
    ) -> NDArray[np.int64]:
        """The samples' numbers, each in its own data set: they do not depend on the others."""
        numbers = np.empty(blocks.size, np.int64)
        for reader, chosen, own in self._by_reader(blocks):
            numbers[chosen] = reader.sample_numbers(own, rows[chosen])
        return numbers

    def expect(self, blocks: NDArray[np.integer]) -> None:
        """Announces the blocks to be read next."""
        for reader, _, own in self._by_reader(blocks):
            reader.expect(own)

    def type_of(self, field: str) -> np.dtype[Any]:
        """The widest dtype of the data sets'."""
        return np.result_type(*(reader.type_of(field) for reader in self._readers))

    def release(self, used: NDArray[np.integer]) -> None:
        """Lets the caches evict copies, except those with the given blocks."""
        for reader, _, own in self._by_reader(used):
            reader.release(own)

    def block(self, block: int) -> Columns:
        """The fields of one block, as views.

        Raises:
            UserError: it is damaged, or a sample of it is out of range.
        """
        number = int(np.searchsorted(self._first_blocks, block, "right") - 1)
        return self._readers[number].block(block - int(self._first_blocks[number]))

    def _by_reader(
        self, blocks: NDArray[np.integer]
    ) -> Iterator[tuple[SampleReader, NDArray[np.bool_], NDArray[np.integer]]]:
        """Each reader, which of the blocks are its, and their numbers there."""
        owners = np.searchsorted(self._first_blocks, blocks, "right") - 1
        for number, reader in enumerate(self._readers):
            chosen = owners == number
            yield reader, chosen, blocks[chosen] - self._first_blocks[number]


def inverse(order: NDArray[np.integer]) -> NDArray[np.intp]:
    """Inverse of a permutation of range(N)."""
    places = np.empty(order.size, np.intp)
    places[order] = np.arange(order.size)
    return places


def _array_in(
    memory: Memory, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """An array in the memory of that name, which grows if it is too small."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if name not in memory or memory[name].size < num_bytes:
        memory[name] = np.empty(num_bytes, np.uint8)
    return memory[name][:num_bytes].view(dtype).reshape(shape)
