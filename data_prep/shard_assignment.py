"""Assigns documents to shards: split by content, permuted by seed, cut into runs.

    all documents --hash of the text--> train | validation --permuted by seed--> runs, one a shard

A document and its duplicates share one hash, so they are never in both splits, and the split is the
same for every seed. The documents of each split are listed once, unit by unit, in memory-mapped
files; so neither the memory nor the work per shard grows with the number of documents.

Letters: U units, D documents of a unit, N documents of a split, S shards of a split.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.duplicates import FirstDocuments
from data_prep.mapping import map_array
from data_prep.token_store import TokenStore
from dist_bert.common import files
from dist_bert.common.hashing import permuted

_MIN_SPLIT_TEXTS = 2  # a random next segment comes from another document
_MIN_SHARD_DOCUMENTS = 8  # it comes from the same shard, which should offer a choice


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """Numbers of documents of a unit in each split."""

    num_validation: int
    num_train: int


def hash_limit(store: TokenStore, validation_share: float) -> int:
    """Documents whose hash is below this limit are held out.

    Two texts are held out if the share is fewer, or would leave fewer than two different ones for
    training; none where there are not four.

    Args:
        store: of all documents.
        validation_share: of all hashes, 0 to below 1.
    """
    limit = int(validation_share * 2**64)
    if not limit:
        return 0
    smallest = store.smallest_hashes(2 * _MIN_SPLIT_TEXTS)
    if smallest.size < 2 * _MIN_SPLIT_TEXTS:
        return 0
    least = int(smallest[_MIN_SPLIT_TEXTS - 1]) + 1
    limit = max(limit, least)
    is_enough_left = store.smallest_hashes(_MIN_SPLIT_TEXTS, limit).size == _MIN_SPLIT_TEXTS
    return limit if is_enough_left else least


def list_documents(
    folder: Path, store: TokenStore, unit: int, limit: int, first_documents: FirstDocuments | None
) -> SplitCounts:
    """Writes the documents of a unit that are held out, followed by those to train on.

    Args:
        folder: receives the file of this unit.
        store: of all documents.
        unit: its number, 0 to U - 1.
        limit: see `hash_limit`.
        first_documents: those to keep when deduplicating; None keeps all.
    """
    first, stop = (int(n) for n in store.first_document[unit : unit + 2])
    kept = np.arange(stop - first)  # (D,) or fewer
    if first_documents is not None:
        kept = first_documents.between(first, stop) - first
    is_held_out = store.units[unit].document_hashes[kept] < np.uint64(limit)
    with files.whole_file(_path(folder, unit)) as file:
        np.save(file, np.concatenate((kept[is_held_out], kept[~is_held_out])).astype(np.uint32))
    num_validation = int(np.count_nonzero(is_held_out))
    return SplitCounts(num_validation, kept.size - num_validation)


class Split:
    """One split and its assignment to shards."""

    def __init__(
        self, name: str, folder: Path, counts: Sequence[SplitCounts], documents_per_shard: float
    ) -> None:
        """Opens one split of the files that `list_documents` wrote.

        Args:
            name: train or validation.
            folder: of the files.
            counts: of the U units.
            documents_per_shard: target size of a shard; a small corpus has fewer, larger shards.
        """
        self.name = name
        self._folder = folder
        before = [c.num_validation if name == "train" else 0 for c in counts]
        sizes = [c.num_train if name == "train" else c.num_validation for c in counts]
        self._lists: dict[int, NDArray[np.uint32]] = {}
        self._skip = np.array(before)  # (U,) entries of the other split in each file
        self._first = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))  # (U + 1,)
        num_shards = round(self.num_documents / max(documents_per_shard, _MIN_SHARD_DOCUMENTS))
        self.num_shards = max(num_shards, min(self.num_documents, 1))

    @property
    def num_documents(self) -> int:
        """N."""
        return int(self._first[-1])

    def documents(self, shard: int, store: TokenStore, seed: int, copy: int) -> NDArray[np.int64]:
        """Numbers of a shard's documents, ascending.

        Args:
            shard: 0 to S - 1.
            store: that contains the documents.
            seed: of the permutation.
            copy: number of the pass over the documents; each has its own permutation.
        """
        begin, end = (s * self.num_documents // self.num_shards for s in (shard, shard + 1))
        places = permuted(np.arange(begin, end), self.num_documents, "deal", seed, copy, self.name)
        places.sort()
        cuts = np.searchsorted(places, self._first)
        numbers = []
        for u in np.flatnonzero(np.diff(cuts)):
            in_list = places[cuts[u] : cuts[u + 1]] - self._first[u] + self._skip[u]
            numbers.append(self._listed(int(u))[in_list] + store.first_document[u])
        return np.concatenate(numbers)

    def _listed(self, unit: int) -> NDArray[np.uint32]:
        if unit not in self._lists:
            self._lists[unit] = map_array(_path(self._folder, unit))
        return self._lists[unit]


def _path(folder: Path, unit: int) -> Path:
    return folder / f"documents-{unit:05d}.npy"
