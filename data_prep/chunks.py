"""Chunks: runs of sentences of one document, up to a target length, which become pairs.

The target length is drawn for every chunk. A chunk's draws are seeded by its first sentence, so the
chunk that would start at each sentence is computed for all sentences at once; cutting a shard into
chunks then follows one chain of indices. Not for: using the chunks (`data_prep.pairs`).

Numpy only. Letters: N chunks, D documents.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from data_prep.clauses import PieceBorders, best_cuts
from data_prep.documents import Documents
from dist_bert.common.hashing import below, hash64, uniform

_MIN_TARGET_TOKENS = 2  # one token for each segment
_MIN_PART = 4  # each part of a cut range has at least a quarter of it


@dataclasses.dataclass(frozen=True, eq=False)
class Chunks:
    """Columns of chunks, in sentences of the shard, split into [first, split) and [split, stop)."""

    first: NDArray[np.int64]
    split: NDArray[np.int64]
    stop: NDArray[np.int64]
    document: NDArray[np.int64]  # index into the shard's documents
    target: NDArray[np.int64]  # target number of tokens of A and B together
    coin: NDArray[np.float64]  # label 1 if below a threshold; -1 = always 1, 1 = never
    name: NDArray[np.uint64]  # hash that seeds all further draws

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> "Chunks":
        """The chunks at these indices, or where a mask is true."""
        return Chunks(*(getattr(self, f.name)[indices] for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """Columns of N chunks, in tokens of the shard: segments [start, split) and [split, stop).

    If a chunk has only one segment, `split` equals `stop`.
    """

    start: NDArray[np.int64]
    split: NDArray[np.int64]
    stop: NDArray[np.int64]
    label: NDArray[np.bool_]
    document: NDArray[np.int64]
    target: NDArray[np.int64]
    coin: NDArray[np.float64]
    name: NDArray[np.uint64]

    def __len__(self) -> int:
        return self.start.size

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> "Spans":
        """The spans at these indices, or where a mask is true."""
        return Spans(*(getattr(self, f.name)[indices] for f in dataclasses.fields(self)))

    def with_more(self, others: "Spans") -> "Spans":
        """These and others, in the order of the text."""
        columns = (f.name for f in dataclasses.fields(self))
        joint = Spans(*(np.concatenate((getattr(self, c), getattr(others, c))) for c in columns))
        return joint.take(np.argsort(joint.start, kind="stable"))


def chunk_at_every_sentence(
    documents: Documents,
    objective: str,
    max_tokens: int,
    short_sequence_prob: float,
    *,
    is_filled: bool,
    seed: int,
    copy: int,
) -> Chunks:
    """The chunk that would begin at each sentence of the shard, if the chain of chunks reaches it.

    Args:
        documents: of the shard.
        objective: nsp, sop or none.
        max_tokens: of a pair.
        short_sequence_prob: share of chunks with a shorter target.
        is_filled: a chunk includes the sentence that reaches its target; otherwise it ends before
            the sentence that exceeds it, unless that is its first.
        seed: of the data set.
        copy: number of the pass over the corpus.
    """
    num_sentences = np.diff(documents.document_offsets)
    document = np.repeat(np.arange(num_sentences.size), num_sentences)
    first = np.arange(document.size)
    in_document = first - documents.document_offsets[document]
    name = hash64(hash64("chunk", seed, copy, documents.document_ids)[document], in_document)

    short = _MIN_TARGET_TOKENS + below(max_tokens - _MIN_TARGET_TOKENS + 1, "target", name)
    is_short = uniform("is_short", name) < short_sequence_prob
    target = np.where(is_short, short, max_tokens)
    if is_filled:
        stop = fill(documents, first, document, target)
    else:
        stop = fit(documents, first, document, target, least=2 if objective == "sop" else 1)
    if objective == "none":
        split = stop
    else:
        split = first + 1 + below(np.maximum(stop - first - 1, 1), "split", name)
    coin = uniform("is_random_next", name)
    if objective == "nsp":
        coin[split == stop] = -1.0  # no next sentence: B must be random
        if num_sentences.size == 1:
            coin[:] = 1.0  # no other document: B cannot be random
    return Chunks(first, split, stop, document, target, coin, name)


def fill(
    documents: Documents,
    first: NDArray[np.int64],
    document: NDArray[np.int64],
    num_wanted: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where to stop so that the sentences from `first` on reach the wanted number of tokens.

    At least one sentence, and none beyond the end of the document.
    """
    offsets = documents.sentence_offsets
    stop = np.searchsorted(offsets, offsets[first] + num_wanted)
    return np.clip(stop, first + 1, documents.document_offsets[document + 1])


def fit(
    documents: Documents,
    first: NDArray[np.int64],
    document: NDArray[np.int64],
    num_wanted: NDArray[np.int64],
    least: int,
) -> NDArray[np.int64]:
    """Where to stop so that the sentences from `first` on do not exceed the wanted tokens.

    At least 1 or 2 sentences where the document has them, and none beyond its end. With 2, a chunk
    that would leave a single sentence to the next gives up its last one, if it has three.
    """
    offsets, end = documents.sentence_offsets, documents.document_offsets[document + 1]
    stop = np.searchsorted(offsets, offsets[first] + num_wanted, "right") - 1
    stop = np.clip(stop, first + least, end)
    if least == 2:
        stop -= (end - stop == 1) & (stop - first > 2)
    return stop


def chain(following: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices 0, following[0], following[following[0]], ... up to the end of `following`."""
    steps: list[int] = following.tolist()  # lists are faster to step through
    indices: list[int] = []
    index = 0
    append, end = indices.append, len(steps)
    while index < end:
        append(index)
        index = steps[index]
    return np.array(indices, np.int64)


def cut_in_two(
    documents: Documents,
    borders: PieceBorders,
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    name: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Cuts ranges of two or more tokens in two: between sentences, or inside a single one.

    Args:
        documents: that contain the ranges.
        borders: of the pieces.
        start: first token of each.
        stop: index after the last one.
        name: hash that seeds the draw of the border.

    Returns:
        Where the second part of each begins, and whether that is inside a sentence.
    """
    offsets = documents.sentence_offsets
    first = np.searchsorted(offsets, start, "right")
    num_borders = np.searchsorted(offsets, stop) - first
    cut = offsets[first + below(np.maximum(num_borders, 1), "border", name)]
    is_inside = num_borders < 1
    inside, num_tokens = start[is_inside], (stop - start)[is_inside]
    least = np.maximum(num_tokens // _MIN_PART, 1)
    cut[is_inside] = inside + best_cuts(
        documents.tokens, inside, least, num_tokens - least, borders
    )
    return cut, is_inside
