"""Pairs of segments: next sentence (nsp), sentence order (sop), or single segments (none).

All fill a chunk with sentences of one document up to a target length. What becomes of it:

- nsp (Devlin et al. 2019, section 3.1 and A.2): split at a random sentence into A and B. With 50 %,
  or where the chunk has one sentence, B comes from another document and the unused sentences are
  put back.
- sop (Lan et al. 2020, ALBERT, section 3.1): split at a random sentence; with 50 % A and B change
  places. A chunk has two sentences or more, and never leaves a single one at the document's end.
- none (Liu et al. 2019, RoBERTa, section 4.2, DOC-SENTENCES): the whole chunk is A, there is no B.

nsp has the semantics of `create_instances_from_document` in google-research/bert,
create_pretraining_data.py. Deliberately different:

- The target length is drawn for every chunk, not once for every document, so the share of short
  sequences is the one asked for, and no whole book is cut into tiny pieces.
- A chunk's draws are named by its first sentence. What follows a sentence is then known for all
  sentences at once, and cutting a shard into chunks is following one chain of indices.
- Where a pair is too long, the split of the excess between front and back of a segment is uniform;
  the classic coin for each single token nearly always takes half from either end.
- The other document is drawn among all others, instead of tried for ten times.

The classic chunk goes on to the sentence that reaches its target, so most pairs are cut to length.
A chunk of sop or none ends before that sentence: only two sentences that are too long are cut.

Numpy only. Letters: N pairs, D documents, B pairs of a block, S longest sample in tokens.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from dist_bert.hashing import below, hash64, uniform

_MIN_TARGET_TOKENS = 2  # one token for each segment
_LEAST_THRESHOLD_STEP = 2.0**-24  # closer than the coins of any two pairs of a shard


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
    """Columns of N pairs; a segment is a range of `Documents.tokens`, A is never empty."""

    a_start: NDArray[np.int64]
    a_stop: NDArray[np.int64]
    b_start: NDArray[np.int64]  # b_stop where there is no B
    b_stop: NDArray[np.int64]
    next_sentence_label: NDArray[np.bool_]  # B is random (nsp), A and B have changed places (sop)
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
    num_dropped_sentences: int  # alone in their chunk, where a B is wanted and nothing can follow
    num_dropped_pairs: int  # left out to have as many pairs of either label
    num_dropped_tokens: int  # of those sentences and pairs, those of a random B not counted


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """Columns of chunks, in sentences of the shard, split into [first, split) and [split, stop)."""

    first: NDArray[np.int64]
    split: NDArray[np.int64]
    stop: NDArray[np.int64]
    document: NDArray[np.int64]
    target: NDArray[np.int64]  # tokens that A and B together aim at
    coin: NDArray[np.float64]  # label 1 if below the threshold; -1 where it must be, 1 if it cannot
    name: NDArray[np.uint64]  # hash that all further draws start from

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> "_Chunks":
        """The chunks of these indices, or where a mask is true."""
        return _Chunks(*(getattr(self, f.name)[indices] for f in dataclasses.fields(self)))


def draw_pairs(
    documents: Documents,
    *,
    objective: str,
    max_tokens: int,
    short_sequence_prob: float,
    balance: bool,
    seed: int,
    copy: int,
) -> tuple[Pairs, PairLosses]:
    """Cuts the documents of a shard into pairs, in the order of the text.

    A random B comes from another document of the same shard. With a single document there is none:
    all pairs are true ones, and chunks of one sentence are dropped.

    Args:
        documents: of the shard.
        objective: nsp, sop, or none for samples of a single segment.
        max_tokens: most tokens of A and B together, at least 2.
        short_sequence_prob: share of chunks with a random shorter target, 0 to 1.
        balance: makes the label of exactly half of the pairs 1, by dropping some; without it the
            label is 1 with 50 %, and for all chunks of one sentence in nsp. Nothing to do for none.
        seed: of the data set.
        copy: number of the pass over the corpus; every copy has pairs of its own.

    Returns:
        The pairs, and what of the text is in none of them. Every other token is in one A or in one
        B of the same document.
    """
    assert max_tokens >= _MIN_TARGET_TOKENS
    if objective == "none":
        documents = _cut_long_sentences(documents, max_tokens)
    chunks = _chunk_at_every_sentence(
        documents, objective, max_tokens, short_sequence_prob, seed, copy
    )
    is_balanced = balance and objective != "none"
    # A random B leaves what follows the split to the next chunk.
    stop_if_labelled = chunks.split if objective == "nsp" else chunks.stop
    threshold = _balancing_threshold(chunks, stop_if_labelled) if is_balanced else 0.5
    stop = np.where(chunks.coin < threshold, stop_if_labelled, chunks.stop)
    chunks = dataclasses.replace(chunks, stop=stop).take(_chain(stop))

    label = chunks.coin < threshold
    is_pair = label | (chunks.split < chunks.stop) | (objective == "none")
    is_kept = _without_surplus(is_pair, label, chunks.name) if is_balanced else is_pair
    offsets = documents.sentence_offsets
    num_tokens = offsets[chunks.stop] - offsets[chunks.first]
    pairs, num_truncated = _segments(
        documents, objective, max_tokens, chunks.take(is_kept), label[is_kept]
    )
    return pairs, PairLosses(
        num_truncated_tokens=num_truncated,
        num_dropped_sentences=int(np.count_nonzero(~is_pair)),
        num_dropped_pairs=int(np.count_nonzero(is_pair & ~is_kept)),
        num_dropped_tokens=int(num_tokens[~is_kept].sum()),
    )


def assemble(
    documents: Documents, pairs: Pairs, cls_id: int, sep_id: int
) -> tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64]]:
    """The samples [CLS] A [SEP] B [SEP] of some pairs, or [CLS] A [SEP] where there is no B.

    Args:
        documents: that the pairs were drawn from.
        pairs: B of them, in the order of the rows.
        cls_id: id of [CLS].
        sep_id: id of [SEP].

    Returns:
        original_ids: (B, S) 0-padded, S the longest sample, dtype of the documents' tokens.
        num_tokens: (B,) lengths with special tokens.
        segment_b_start: (B,) index of B's first token; `num_tokens` where there is no B.
    """
    segment_b_start = pairs.a_stop - pairs.a_start + 2
    num_b = pairs.b_stop - pairs.b_start
    num_tokens = segment_b_start + num_b + (num_b > 0)
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


def _cut_long_sentences(documents: Documents, max_tokens: int) -> Documents:
    """The same text, every sentence of more than `max_tokens` cut into pieces of that length."""
    num_pieces = -(-np.diff(documents.sentence_offsets) // max_tokens)
    first_piece = np.concatenate(([0], np.cumsum(num_pieces)))
    piece = np.arange(first_piece[-1]) - np.repeat(first_piece[:-1], num_pieces)
    starts = np.repeat(documents.sentence_offsets[:-1], num_pieces) + piece * max_tokens
    return dataclasses.replace(
        documents,
        sentence_offsets=np.append(starts, documents.sentence_offsets[-1]),
        document_offsets=first_piece[documents.document_offsets],
    )


def _chunk_at_every_sentence(
    documents: Documents,
    objective: str,
    max_tokens: int,
    short_sequence_prob: float,
    seed: int,
    copy: int,
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
    if objective == "nsp":
        stop = _fill(documents, first, document, target)
    else:
        least = 2 if objective == "sop" else 1
        stop = _fit_sentences(documents, first, document, target, least)
    if objective == "none":
        split = stop
    else:
        split = first + 1 + below(np.maximum(stop - first - 1, 1), "split", name)
    coin = uniform("is_random_next", name)
    if objective == "nsp":
        coin[split == stop] = -1.0  # no next sentence: B must be a random one
        if num_sentences.size == 1:
            coin[:] = 1.0  # no other document: B cannot be
    else:
        coin[split == stop] = 1.0  # no B to change places with
    return _Chunks(first, split, stop, document, target, coin, name)


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


def _fit_sentences(
    documents: Documents,
    first: NDArray[np.int64],
    document: NDArray[np.int64],
    num_wanted: NDArray[np.int64],
    least: int,
) -> NDArray[np.int64]:
    """Where to stop so that the sentences from `first` on have no more than the wanted tokens.

    At least 1 or 2 sentences where the document has them, and none beyond its end. With 2, no chunk
    leaves a single sentence to the next one: it gives up its last sentence, or takes that one in.
    """
    offsets, end = documents.sentence_offsets, documents.document_offsets[document + 1]
    stop = np.searchsorted(offsets, offsets[first] + num_wanted, "right") - 1
    stop = np.clip(stop, first + least, end)
    if least == 2:
        leaves_one = end - stop == 1
        stop += np.where(leaves_one, np.where(stop - first > 2, -1, 1), 0)
    return stop


def _chain(following: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices 0, following[0], following[following[0]], ... up to the end of `following`."""
    steps, chain, index = following.tolist(), [], 0  # lists are faster to step through
    while index < len(steps):
        chain.append(index)
        index = steps[index]
    return np.array(chain, np.int64)


def _balancing_threshold(chunks: _Chunks, stop_if_labelled: NDArray[np.int64]) -> float:
    """The threshold of the coins that makes the label of half of the pairs 1, or nearly so.

    By bisection: a threshold decides which chunks are met, so none follows from the coins alone.

    Args:
        chunks: at every sentence.
        stop_if_labelled: where the next chunk begins if the label is 1, else it is `stop`.
    """
    columns = (chunks.coin, chunks.split, chunks.stop, stop_if_labelled)
    coins, splits, stops, stops_if_labelled = (column.tolist() for column in columns)
    low, high = 0.0, 1.0
    least, best = len(stops) + 1, 0.5
    while least > 1 and high - low > _LEAST_THRESHOLD_STEP:
        threshold = (low + high) / 2
        index = surplus = 0
        while index < len(stops):
            if coins[index] < threshold:
                surplus += 1
                index = stops_if_labelled[index]
            else:
                surplus -= splits[index] < stops[index]
                index = stops[index]
        if surplus > 0:
            high = threshold
        else:
            low = threshold
        if abs(surplus) < least:
            least, best = abs(surplus), threshold
    return best


def _without_surplus(
    is_pair: NDArray[np.bool_], label: NDArray[np.bool_], name: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Which of the pairs to keep, so that the label of exactly half is 1; dropped ones by hash."""
    surplus = 2 * np.count_nonzero(is_pair & label) - np.count_nonzero(is_pair)
    candidates = np.flatnonzero(is_pair & (label == (surplus > 0)))
    dropped = candidates[np.argsort(hash64("surplus", name[candidates]))[: abs(surplus)]]
    is_kept = is_pair.copy()
    is_kept[dropped] = False
    return is_kept


def _segments(
    documents: Documents,
    objective: str,
    max_tokens: int,
    chunks: _Chunks,
    label: NDArray[np.bool_],
) -> tuple[Pairs, int]:
    """The pairs that chunks become, and how many of the chunks' own tokens are cut from them."""
    a_first, a_stop, b_first, b_stop = chunks.first, chunks.split, chunks.split, chunks.stop
    document_b = chunks.document
    if objective == "nsp":
        b_first, b_stop, document_b = b_first.copy(), b_stop.copy(), document_b.copy()
        random = np.flatnonzero(label)
        b_first[random], b_stop[random], document_b[random] = _draw_random_next(
            documents, chunks.take(random)
        )
    elif objective == "sop":
        a_first, b_first = np.where(label, (b_first, a_first), (a_first, b_first))
        a_stop, b_stop = np.where(label, (b_stop, a_stop), (a_stop, b_stop))
    offsets = documents.sentence_offsets
    num_a, num_b = offsets[a_stop] - offsets[a_first], offsets[b_stop] - offsets[b_first]
    left_a, left_b = _fit(num_a, num_b, max_tokens)
    a_start = offsets[a_first] + below(num_a - left_a + 1, "front of A", chunks.name)
    b_start = offsets[b_first] + below(num_b - left_b + 1, "front of B", chunks.name)
    pairs = Pairs(
        a_start=a_start,
        a_stop=a_start + left_a,
        b_start=b_start,
        b_stop=b_start + left_b,
        next_sentence_label=label,
        document_a=chunks.document,
        document_b=document_b,
        first_sentence=chunks.first - documents.document_offsets[chunks.document],
    )
    is_own = document_b == chunks.document
    return pairs, int((num_a - left_a).sum() + (num_b - left_b)[is_own].sum())


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
