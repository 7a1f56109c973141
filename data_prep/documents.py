"""The documents of one shard as arrays of tokens.

Letters: D documents.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from data_prep.clauses import PieceBorders, cuts_of_long


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """The documents of one shard, concatenated. No document and no sentence is empty."""

    tokens: NDArray[np.integer]  # piece ids of all documents
    sentence_offsets: NDArray[np.int64]  # (sentences + 1,) into tokens
    document_offsets: NDArray[np.int64]  # (D + 1,) into sentences
    document_ids: NDArray[np.integer]  # (D,) global and unique

    def __post_init__(self) -> None:
        for offsets in (self.sentence_offsets, self.document_offsets):
            assert offsets[0] == 0 and np.all(np.diff(offsets) > 0)
        assert self.sentence_offsets[-1] == self.tokens.size
        assert self.document_offsets[-1] == self.sentence_offsets.size - 1
        assert self.document_ids.size == self.document_offsets.size - 1
        assert np.unique(self.document_ids).size == self.document_ids.size

    def with_short_sentences(self, most_tokens: int, borders: PieceBorders) -> "Documents":
        """The same text, with every sentence of more than `most_tokens` cut into several."""
        cuts = cuts_of_long(self.tokens, self.sentence_offsets, most_tokens, borders)
        if not cuts.size:
            return self
        offsets = np.sort(np.concatenate((self.sentence_offsets, cuts)), kind="stable")
        starts = self.sentence_offsets[self.document_offsets]
        return dataclasses.replace(
            self, sentence_offsets=offsets, document_offsets=np.searchsorted(offsets, starts)
        )
