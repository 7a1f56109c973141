"""Which document goes into which shard: split by content, permuted by seed, cut into runs.

    all documents --hash of the text--> train | validation --permuted by seed--> runs, one a shard

A document and its duplicates have one hash, so they are never on both sides, and the split is the
same for every seed. Memory does not grow with the number of documents: hashes are read from the
store.

Letters: U units, N documents of a split, S shards of a split.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from data_prep.token_store import TokenStore
from dist_bert.hashing import permuted

_MIN_SPLIT_TEXTS = 2  # a random next segment needs another document
_MIN_SHARD_DOCUMENTS = 8  # it comes from the same shard, which should leave it a choice


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One side of the split and how it is dealt to shards."""

    name: str
    hash_limit: int  # validation is below it, train is not
    first_document: NDArray[np.int64]  # (U + 1,) documents of this split before each unit
    num_shards: int

    @property
    def num_documents(self) -> int:
        """N."""
        return int(self.first_document[-1])

    def documents(self, shard: int, store: TokenStore, seed: int) -> NDArray[np.int64]:
        """Numbers of a shard's documents, ascending.

        Args:
            shard: 0 to S - 1.
            store: that the documents are in.
            seed: names the permutation.
        """
        begin, end = (s * self.num_documents // self.num_shards for s in (shard, shard + 1))
        places = permuted(np.arange(begin, end), self.num_documents, "deal", seed, self.name)
        places.sort()
        cuts = np.searchsorted(places, self.first_document)
        numbers = []
        for u in np.flatnonzero(np.diff(cuts)):
            is_below = store.units[u].document_hashes < np.uint64(self.hash_limit)
            in_split = np.flatnonzero(is_below == (self.name == "validation"))
            in_unit = in_split[places[cuts[u] : cuts[u + 1]] - self.first_document[u]]
            numbers.append(in_unit + store.first_document[u])
        return np.concatenate(numbers)


def split_documents(
    store: TokenStore, validation_share: float, documents_per_shard: float
) -> tuple[Split, Split]:
    """Divides a store into train and validation.

    Validation takes the documents whose hash is below its share of all hashes. Where fewer than two
    different texts fall to it, the two with the smallest hashes make it up, if that leaves two
    others; else, and with a share of 0, it stays empty.

    Args:
        store: of the whole corpus.
        validation_share: of the documents, 0 to below 1.
        documents_per_shard: wanted size of a shard; in a small corpus there are more in fewer
            shards.

    Returns:
        train, validation.
    """
    limit = _hash_limit(store, validation_share)
    num_below = [np.count_nonzero(u.document_hashes < np.uint64(limit)) for u in store.units]
    validation = np.concatenate(([0], np.cumsum(num_below, dtype=np.int64)))
    splits = []
    for name, first in (("train", store.first_document - validation), ("validation", validation)):
        num_documents = int(first[-1])
        num_shards = round(num_documents / max(documents_per_shard, _MIN_SHARD_DOCUMENTS))
        splits.append(Split(name, limit, first, max(num_shards, min(num_documents, 1))))
    return splits[0], splits[1]


def _hash_limit(store: TokenStore, validation_share: float) -> int:
    limit = int(validation_share * 2**64)
    if not limit:
        return 0
    smallest = _smallest_hashes(store, 2 * _MIN_SPLIT_TEXTS)
    if sum(value < limit for value in smallest) >= _MIN_SPLIT_TEXTS:
        return limit
    return smallest[_MIN_SPLIT_TEXTS - 1] + 1 if len(smallest) == 2 * _MIN_SPLIT_TEXTS else 0


def _smallest_hashes(store: TokenStore, count: int) -> list[int]:
    """The `count` smallest different hashes of a store, ascending; fewer if it has fewer."""
    smallest = np.zeros(0, np.uint64)
    for unit in store.units:
        hashes = unit.document_hashes
        if smallest.size == count:
            hashes = hashes[hashes < smallest[-1]]
        smallest = np.unique(np.concatenate((smallest, hashes)))[:count]
    return [int(value) for value in smallest]
