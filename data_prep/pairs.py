"""Sentence pairs for next-sentence prediction (Devlin et al. 2019, section 3.1 and A.2).

The semantics are those of `create_instances_from_document` in google-research/bert,
create_pretraining_data.py: fill a chunk with sentences of one document up to a target length, and
split it at a random sentence into A and B. With 50 %, or where the chunk has one sentence, take B
from another document and put the unused sentences back. Deliberately different:

- The target length is drawn for every chunk, not once for every document, so the share of short
  sequences is the one asked for, and no whole book is cut into tiny pieces.
- A chunk's draws are named by its first sentence. What follows a sentence is then known for all
  sentences at once, and cutting a shard into chunks is following one chain of indices.
- Where a pair is too long, the split of the excess between front and back of a segment is uniform;
  the classic coin for each single token nearly always takes half from either end.
- The other document is drawn among all others, instead of tried for ten times.

Numpy only. Letters: N pairs, D documents, B pairs of a block, S longest sample in tokens.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from dist_bert.hashing import below, hash64, uniform

NUM_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]

_MIN_TARGET_TOKENS = 2  # one token for each segment


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """The documents of one shard, back to back. No document, and no sentence, is empty."""

    tokens: NDArray[np.integer]  # piece ids of all documents
    sentence_offsets: NDArray[np.int64]  # (sentences + 1,) into tokens
    document_offsets: NDArray[np.int64]  # (D + 1,) into sentences
    document_ids: NDArray[np.integer]  # (D,) global, no id twice

    def __post_init__(self) -> None:
        for offsets in (self.sentence_offsets, self.document_offsets):
            assert offsets[0] == 0 and np.all(np.diff(offsets) > 0)
        assert self.sentence_offsets[-1] == self.tokens.size
        assert self.document_offsets[-1] == self.sentence_offsets.size - 1
        assert self.document_ids.size == self.document_offsets.size - 1
        assert np.unique(self.document_ids).size == self.document_ids.size


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Columns of N pairs; a segment is a range of `Documents.tokens` and never empty."""

    a_start: NDArray[np.int64]
    a_stop: NDArray[np.int64]
    b_start: NDArray[np.int64]
    b_stop: NDArray[np.int64]
    is_random_next: NDArray[np.bool_]
    document_a: NDArray[np.int64]  # index into the shard's documents
    document_b: NDArray[np.int64]
    first_sentence: NDArray[np.int64]  # of the chunk, counted in document A

    def __len__(self) -> int:
        return self.a_start.size

    def take(self, indices: NDArray[np.integer]) -> "Pairs":
        """The pairs of these indices, in their order."""
        return Pairs(*(getattr(self, f.name)[indices] for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class PairLosses:
    """Text of the documents that is in no pair."""

    num_truncated_tokens: int  # cut from pairs that were too long; those of a random B not counted
    num_dropped_sentences: int  # chunks of one sentence, where no other document can follow
    num_dropped_tokens: int  # of those sentences


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """Columns of chunks, in sentences of the shard: A is [first, split), a true B [split, stop)."""

    first: NDArray[np.int64]
    split: NDArray[np.int64]
    stop: NDArray[np.int64]
    document: NDArray[np.int64]
    target: NDArray[np.int64]  # tokens that A and B together aim at
    is_random_next: NDArray[np.bool_]
    name: NDArray[np.uint64]  # hash that all further draws start from

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> "_Chunks":
        """The chunks of these indices, or where a mask is true."""
        return _Chunks(*(getattr(self, f.name)[indices] for f in dataclasses.fields(self)))


def draw_pairs(
    documents: Documents, *, max_tokens: int, short_sequence_prob: float, seed: int, copy: int
) -> tuple[Pairs, PairLosses]:
    """Cuts the documents of a shard into pairs, in the order of the text.

    A random B comes from another document of the same shard. With a single document there is none:
    all pairs are true ones, and chunks of one sentence are dropped.

    Args:
        documents: of the shard.
        max_tokens: most tokens of A and B together (sequence length less 3), at least 2.
        short_sequence_prob: share of chunks with a random shorter target, 0 to 1.
        seed: of the data set.
        copy: number of the pass over the corpus; every copy has pairs of its own.

    Returns:
        The pairs, and what of the text is in none of them. Every other token is in one A or true B.
    """
    assert max_tokens >= _MIN_TARGET_TOKENS
    chunks = _chunk_at_every_sentence(documents, max_tokens, short_sequence_prob, seed, copy)
    chunks = chunks.take(_chain(np.where(chunks.is_random_next, chunks.split, chunks.stop)))
    has_b = chunks.is_random_next | (chunks.split < chunks.stop)
    offsets = documents.sentence_offsets
    dropped_tokens = offsets[chunks.stop[~has_b]] - offsets[chunks.first[~has_b]]
    chunks = chunks.take(has_b)

    b_first, b_stop, document_b = chunks.split.copy(), chunks.stop.copy(), chunks.document.copy()
    random = np.flatnonzero(chunks.is_random_next)
    b_first[random], b_stop[random], document_b[random] = _draw_random_next(
        documents, chunks.take(random)
    )
    num_a = offsets[chunks.split] - offsets[chunks.first]
    num_b = offsets[b_stop] - offsets[b_first]
    left_a, left_b = _fit(num_a, num_b, max_tokens)
    a_start = offsets[chunks.first] + below(num_a - left_a + 1, "front of A", chunks.name)
    b_start = offsets[b_first] + below(num_b - left_b + 1, "front of B", chunks.name)
    pairs = Pairs(
        a_start=a_start,
        a_stop=a_start + left_a,
        b_start=b_start,
        b_stop=b_start + left_b,
        is_random_next=chunks.is_random_next,
        document_a=chunks.document,
        document_b=document_b,
        first_sentence=chunks.first - documents.document_offsets[chunks.document],
    )
    num_truncated = (num_a - left_a).sum() + (num_b - left_b)[~chunks.is_random_next].sum()
    return pairs, PairLosses(int(num_truncated), dropped_tokens.size, int(dropped_tokens.sum()))


def assemble(
    documents: Documents, pairs: Pairs, cls_id: int, sep_id: int
) -> tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64]]:
    """The samples [CLS] A [SEP] B [SEP] of some pairs.

    Args:
        documents: that the pairs were drawn from.
        pairs: B of them, in the order of the rows.
        cls_id: id of [CLS].
        sep_id: id of [SEP].

    Returns:
        original_ids: (B, S) 0-padded, S the longest sample, dtype of the documents' tokens.
        num_tokens: (B,) lengths with special tokens.
        segment_b_start: (B,) index of B's first token.
    """
    segment_b_start = pairs.a_stop - pairs.a_start + 2
    num_tokens = segment_b_start + (pairs.b_stop - pairs.b_start) + 1
    rows = np.arange(len(pairs))
    original_ids = np.zeros((rows.size, num_tokens.max(initial=0)), documents.tokens.dtype)
    original_ids[:, 0] = cls_id
    original_ids[rows, segment_b_start - 1] = sep_id
    original_ids[rows, num_tokens - 1] = sep_id
    ranges = (pairs.a_start, pairs.a_stop, pairs.b_start, pairs.b_stop, segment_b_start)
    numbers = zip(*(column.tolist() for column in ranges), strict=True)
    for row, (a_start, a_stop, b_start, b_stop, place_b) in zip(original_ids, numbers, strict=True):
        # Two copies a sample: as fast as a gather by (B, S) indices at length 128, twice at 512.
        row[1 : 1 + a_stop - a_start] = documents.tokens[a_start:a_stop]
        row[place_b : place_b + b_stop - b_start] = documents.tokens[b_start:b_stop]
    return original_ids, num_tokens, segment_b_start


def _chunk_at_every_sentence(
    documents: Documents, max_tokens: int, short_sequence_prob: float, seed: int, copy: int
) -> _Chunks:
    """The chunk that would begin at each sentence of the shard, if the chain of chunks comes by."""
    num_sentences = np.diff(documents.document_offsets)
    document = np.repeat(np.arange(num_sentences.size), num_sentences)
    first = np.arange(document.size)
    in_document = first - documents.document_offsets[document]
    name = hash64(hash64("chunk", seed, copy, documents.document_ids)[document], in_document)

    short = _MIN_TARGET_TOKENS + below(max_tokens - _MIN_TARGET_TOKENS + 1, "target", name)
    is_short = uniform("is_short", name) < short_sequence_prob
    target = np.where(is_short, short, max_tokens)
    stop = _fill(documents, first, document, target)
    is_single = stop - first == 1
    split = first + 1 + below(np.maximum(stop - first - 1, 1), "split", name)
    is_random_next = is_single | (uniform("is_random_next", name) < 0.5)
    is_random_next &= num_sentences.size > 1
    return _Chunks(first, split, stop, document, target, is_random_next, name)


def _fill(
    documents: Documents,
    first: NDArray[np.int64],
    document: NDArray[np.int64],
    num_wanted: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where to stop so that the sentences from `first` on have the wanted tokens.

    At least one sentence, and none beyond the end of the document.
    """
    offsets = documents.sentence_offsets
    stop = np.searchsorted(offsets, offsets[first] + num_wanted)
    return np.clip(stop, first + 1, documents.document_offsets[document + 1])


def _chain(following: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices 0, following[0], following[following[0]], ... up to the end of `following`."""
    steps, chain, index = following.tolist(), [], 0  # lists are faster to step through
    while index < len(steps):
        chain.append(index)
        index = steps[index]
    return np.array(chain, np.int64)


def _draw_random_next(
    documents: Documents, chunks: _Chunks
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Segments B from other documents, as many tokens as A leaves of the target.

    Returns:
        First sentence, stop sentence and document of each.
    """
    starts = documents.document_offsets
    document = below(starts.size - 2, "document", chunks.name)
    document += document >= chunks.document  # skips the own one
    num_sentences = starts[document + 1] - starts[document]
    first = starts[document] + below(num_sentences, "sentence", chunks.name)
    offsets = documents.sentence_offsets
    num_tokens_a = offsets[chunks.split] - offsets[chunks.first]
    return first, _fill(documents, first, document, chunks.target - num_tokens_a), document


def _fit(
    num_a: NDArray[np.int64], num_b: NDArray[np.int64], max_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is left of A and B when tokens go one by one from the longer, from B where they tie."""
    left_a = np.minimum(num_a, np.maximum(max_tokens - num_b, (max_tokens + 1) // 2))
    return left_a, np.minimum(num_b, max_tokens - left_a)
