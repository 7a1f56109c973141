"""Finds exact duplicates among all documents of a store, in bounded memory, on any number of ranks.

    hashes of all units --by ranges of hashes--> ranges/first-00003.npy: documents to keep

Of documents with equal text, the first in the order of the corpus is kept. Documents that differ
but share a 64-bit hash would be taken for duplicates; the expected number of such pairs in a
billion documents is 0.03.

Letters: D documents of the store, R ranges.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.mapping import map_array
from data_prep.token_store import TokenStore
from dist_bert.common import files

_RANGE_DOCUMENTS = 1 << 21  # on average: 16 MB of hashes


def num_ranges(num_documents: int) -> int:
    """R: into how many ranges the hashes of D documents are divided, one per work item."""
    return -(-num_documents // _RANGE_DOCUMENTS)


def write_first_documents(folder: Path, store: TokenStore, index: int) -> None:
    """Writes the numbers of the documents of one range that no duplicate precedes, ascending.

    Args:
        folder: receives the file of this range.
        store: of all documents.
        index: of the range, 0 to R - 1.
    """
    hashes, numbers = [], []
    for unit, first in zip(store.units, store.first_document[:-1], strict=True):
        in_range = np.flatnonzero(_range_of(unit.document_hashes, store) == np.uint64(index))
        # Repetitions inside a unit are removed first: a very frequent text takes no memory.
        distinct, place = np.unique(unit.document_hashes[in_range], return_index=True)
        hashes.append(distinct)
        numbers.append(in_range[place] + first)
    _, place = np.unique(np.concatenate(hashes), return_index=True)  # the first of equal ones
    with files.whole_file(_path(folder, index)) as file:
        np.save(file, np.sort(np.concatenate(numbers)[place]))


class FirstDocuments:
    """The documents that no duplicate precedes: all files of `write_first_documents`."""

    def __init__(self, folder: Path, store: TokenStore) -> None:
        """Maps the files; reads nothing yet."""
        count = num_ranges(int(store.first_document[-1]))
        self._numbers = [map_array(_path(folder, i)) for i in range(count)]

    def between(self, first: int, stop: int) -> NDArray[np.int64]:
        """Their numbers from `first` to below `stop`, ascending."""
        parts = []
        for numbers in self._numbers:
            begin, end = np.searchsorted(numbers, (first, stop))
            parts.append(numbers[begin:end])
        return np.sort(np.concatenate(parts))


def _range_of(hashes: NDArray[np.uint64], store: TokenStore) -> NDArray[np.uint64]:
    count = np.uint64(num_ranges(int(store.first_document[-1])))
    return ((hashes >> np.uint64(32)) * count) >> np.uint64(32)


def _path(folder: Path, index: int) -> Path:
    return folder / f"first-{index:05d}.npy"
