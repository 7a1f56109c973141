"""Pairs of segments: next sentence (nsp), sentence order (sop), or single segments (none).

All are made of chunks (`data_prep.chunks`): sentences of one document up to a target length, each
sentence at most half a pair long. A chunk is used as follows:

- nsp (Devlin et al. 2019, section 3.1 and A.2): split at a random sentence into A and B. In 50 %,
  or where the chunk has one sentence, B comes from another document and the unused sentences are
  put back.
- sop (Lan et al. 2020, ALBERT, section 3.1): split at a random sentence; in 50 % A and B are
  swapped. A chunk has two sentences, or the only sentence of a document is cut in two.
- none (Liu et al. 2019, RoBERTa, section 4.2, DOC-SENTENCES): the whole chunk is A, there is no B.

Every token of a document is in one A or in one B of the same document. nsp has two options, which
together make it `create_instances_from_document` of google-research/bert,
create_pretraining_data.py: a chunk includes the sentence that reaches its target and is then
truncated, which loses a tenth of the text; and the coin alone decides the labels, which makes a
little more than half of the pairs random. Three differences are deliberate:

- The target length is drawn for every chunk, not once per document, so the share of short sequences
  is the configured one, and no whole book is cut into tiny pieces.
- If a pair is too long, the split of the excess between front and back of a segment is uniform; the
  original coin per token nearly always takes half from either end.
- The other document is drawn among all others, not by up to ten attempts.

Numpy only. Letters: N pairs, D documents, B pairs of a block, S longest sample in tokens.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from data_prep.balance import balancing_threshold, exactly_half
from data_prep.chunks import Chunks, Spans, chain, chunk_at_every_sentence, cut_in_two, fill, fit
from data_prep.clauses import PieceBorders
from data_prep.documents import Documents
from dist_bert.common.hashing import below
from dist_bert.data.masking import NUM_SPECIAL_IDS

_MIN_TOKENS = 2  # one for each segment
_MOST_DRAWS = 8  # of a random B that fits: a true B fits, so its end must not reveal the label


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Columns of N pairs; a segment is a range of `Documents.tokens`, A is never empty."""

    a_start: NDArray[np.int64]
    a_stop: NDArray[np.int64]
    b_start: NDArray[np.int64]  # b_stop if there is no B
    b_stop: NDArray[np.int64]
    next_sentence_label: NDArray[np.bool_]  # B is random (nsp), A and B are swapped (sop)
    document_a: NDArray[np.int64]  # index into the shard's documents
    document_b: NDArray[np.int64]
    name: NDArray[np.uint64]  # unique hash of seed, copy, document and place in it

    def __len__(self) -> int:
        return self.a_start.size

    def take(self, indices: NDArray[np.integer]) -> "Pairs":
        """The pairs at these indices, in their order."""
        return Pairs(*(getattr(self, f.name)[indices] for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class PairLosses:
    """Text of the documents that is lost or changed in the pairs."""

    num_truncated_tokens: int  # cut from pairs that were too long; not counting a random B's
    num_dropped_sentences: int  # alone in their chunk, although a B is needed
    num_dropped_tokens: int  # of those sentences, and of chunks of unknown pieces alone
    num_cuts_in_sentences: int  # segment ends inside a sentence that is too long or alone


def draw_pairs(
    documents: Documents,
    *,
    objective: str,
    max_tokens: int,
    short_sequence_prob: float,
    balance: bool,
    truncate: bool,
    borders: PieceBorders,
    seed: int,
    copy: int,
) -> tuple[Pairs, PairLosses]:
    """Cuts the documents of a shard into pairs, in the order of the text.

    A random B comes from another document of the same shard. With a single document, there is none
    and all pairs are true.

    Args:
        documents: of the shard.
        objective: nsp, sop, or none for samples of a single segment.
        max_tokens: most tokens of A and B together, at least 2.
        short_sequence_prob: share of chunks with a random shorter target, 0 to 1.
        balance: makes the label of exactly half of the pairs 1; without it, the label is 1 with
            50 % probability, and in nsp for all chunks of one sentence. No effect for none.
        truncate: nsp only: cuts off tokens beyond the length, and leaves long sentences whole.
        borders: of the pieces.
        seed: of the data set.
        copy: number of the pass over the corpus; every copy has different pairs.

    Returns:
        The pairs, each with a token to predict, and the text that is in none of them. Every other
        token is in one A or in one B of the same document.
    """
    assert max_tokens >= _MIN_TOKENS and (objective == "nsp" or not truncate)
    num_sentences = documents.sentence_offsets.size
    if not truncate:
        most = max_tokens if objective == "none" else max_tokens // 2
        documents = documents.with_short_sentences(most, borders)
    num_cuts = documents.sentence_offsets.size - num_sentences
    chunks = chunk_at_every_sentence(
        documents,
        objective,
        max_tokens,
        short_sequence_prob,
        is_filled=truncate,
        seed=seed,
        copy=copy,
    )
    has_others = documents.document_ids.size > 1
    balance = balance and objective != "none" and (objective == "sop" or has_others)
    known = np.concatenate(([0], np.cumsum(documents.tokens >= NUM_SPECIAL_IDS)))
    threshold = 0.5
    if balance and objective == "nsp":
        threshold = balancing_threshold(chunks, known[documents.sentence_offsets])
    spans = _spans(documents, chunks, objective, threshold)
    if objective != "none" and not truncate:
        spans, num_more = _with_two_segments(spans, documents, borders, objective)
        num_cuts += num_more
    is_random = spans.label & (objective == "nsp")
    is_pair = is_random | (spans.split < spans.stop) | (objective == "none")
    is_kept = is_pair & (known[spans.start] < known[spans.stop])
    num_tokens = spans.stop - spans.start
    kept = spans.take(is_kept)
    if balance:
        kept, num_more = exactly_half(kept, documents, borders, objective)
        num_cuts += num_more
    pairs, num_truncated = _pairs(documents, objective, max_tokens, truncate, kept)
    # Few, if any: a chunk with a known piece may be cut into pairs, or truncated, without it.
    is_known = (known[pairs.a_start] < known[pairs.a_stop]) | (
        known[pairs.b_start] < known[pairs.b_stop]
    )
    return pairs.take(np.flatnonzero(is_known)), PairLosses(
        num_truncated_tokens=num_truncated,
        num_dropped_sentences=int(np.count_nonzero(~is_pair)),
        num_dropped_tokens=int(num_tokens[~is_kept].sum() + _num_own(pairs)[~is_known].sum()),
        num_cuts_in_sentences=num_cuts,
    )


def assemble(
    documents: Documents, pairs: Pairs, cls_id: int, sep_id: int
) -> tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64]]:
    """The samples [CLS] A [SEP] B [SEP] of some pairs, or [CLS] A [SEP] if there is no B.

    Args:
        documents: source of the pairs.
        pairs: B of them, in the order of the rows.
        cls_id: id of [CLS].
        sep_id: id of [SEP].

    Returns:
        original_ids: (B, S) 0-padded, S the longest sample, dtype of the documents' tokens.
        num_tokens: (B,) lengths with special tokens.
        segment_b_start: (B,) index of B's first token; `num_tokens` if there is no B.
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


def _spans(documents: Documents, chunks: Chunks, objective: str, threshold: float) -> Spans:
    """The chunks on the chain, in tokens, each with a label."""
    label = chunks.coin < threshold
    # With a random B, the sentences after the split go to the next chunk.
    stop = np.where(label & (objective == "nsp"), chunks.split, chunks.stop)
    met = chain(stop)
    offsets = documents.sentence_offsets
    return Spans(
        start=offsets[chunks.first[met]],
        split=offsets[chunks.split[met]],
        stop=offsets[stop[met]],
        label=label[met] & (objective != "none"),
        document=chunks.document[met],
        target=chunks.target[met],
        coin=chunks.coin[met],
        name=chunks.name[met],
    )


def _with_two_segments(
    spans: Spans, documents: Documents, borders: PieceBorders, objective: str
) -> tuple[Spans, int]:
    """Cuts the sentence of chunks with one sentence and no random B; also returns their number."""
    is_alone = (spans.split == spans.stop) & (spans.stop - spans.start >= 2)
    alone = np.flatnonzero(is_alone & ~(spans.label & (objective == "nsp")))
    split = spans.split.copy()
    split[alone], _ = cut_in_two(
        documents, borders, spans.start[alone], spans.stop[alone], spans.name[alone]
    )
    return dataclasses.replace(spans, split=split), alone.size


def _pairs(
    documents: Documents, objective: str, max_tokens: int, truncate: bool, spans: Spans
) -> tuple[Pairs, int]:
    """Turns spans into pairs; also returns how many of the spans' own tokens are truncated."""
    a_start, a_stop, b_start, b_stop = spans.start, spans.split, spans.split, spans.stop
    document_b = spans.document
    if objective == "nsp":
        b_start, b_stop, document_b = b_start.copy(), b_stop.copy(), document_b.copy()
        random = np.flatnonzero(spans.label)
        b_start[random], b_stop[random], document_b[random] = _draw_random_next(
            documents, spans.take(random), max_tokens, truncate
        )
    elif objective == "sop":
        a_start, b_start = np.where(spans.label, (b_start, a_start), (a_start, b_start))
        a_stop, b_stop = np.where(spans.label, (b_stop, a_stop), (a_stop, b_stop))
    num_a, num_b = a_stop - a_start, b_stop - b_start
    left_a, left_b = _truncated(num_a, num_b, max_tokens)
    if not truncate:  # A, and a true B, fit by themselves
        left_a, left_b = num_a, np.minimum(num_b, max_tokens - num_a)
    a_start = a_start + below(num_a - left_a + 1, "front of A", spans.name)
    b_start = b_start + below(num_b - left_b + 1, "front of B", spans.name)
    pairs = Pairs(
        a_start=a_start,
        a_stop=a_start + left_a,
        b_start=b_start,
        b_stop=b_start + left_b,
        next_sentence_label=spans.label,
        document_a=spans.document,
        document_b=document_b,
        name=spans.name,
    )
    is_own = document_b == spans.document
    return pairs, int((num_a - left_a).sum() + (num_b - left_b)[is_own].sum())


def _num_own(pairs: Pairs) -> NDArray[np.int64]:
    """Tokens of each pair that are in no other one: all but those of a random B."""
    num_b = np.where(pairs.document_a == pairs.document_b, pairs.b_stop - pairs.b_start, 0)
    return pairs.a_stop - pairs.a_start + num_b


def _draw_random_next(
    documents: Documents, spans: Spans, max_tokens: int, truncate: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Segments B from other documents, with the tokens that A leaves of the target.

    Without truncation, a B whose first sentence does not fit is drawn again; if none of eight fits,
    the last one is kept and cut.

    Returns:
        First token, end (exclusive), and document of each.
    """
    starts, offsets = documents.document_offsets, documents.sentence_offsets
    num_a = spans.split - spans.start
    first, document = np.zeros_like(num_a), np.zeros_like(num_a)
    pending = np.arange(len(spans))
    for number in range(1 if truncate else _MOST_DRAWS):
        draw = (spans.name[pending], number) if number else (spans.name[pending],)
        drawn = below(starts.size - 2, "document", *draw)
        drawn += drawn >= spans.document[pending]  # skips its own document
        sentence = starts[drawn] + below(starts[drawn + 1] - starts[drawn], "sentence", *draw)
        first[pending], document[pending] = sentence, drawn
        length = offsets[sentence + 1] - offsets[sentence]
        pending = pending[length > max_tokens - num_a[pending]]
    wanted = spans.target - num_a
    if truncate:
        stop = fill(documents, first, document, wanted)
    else:
        stop = fit(documents, first, document, wanted, least=1)
    return offsets[first], offsets[stop], document


def _truncated(
    num_a: NDArray[np.int64], num_b: NDArray[np.int64], max_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of A and B after removing tokens one by one from the longer, from B if equal."""
    left_a = np.minimum(num_a, np.maximum(max_tokens - num_b, (max_tokens + 1) // 2))
    return left_a, np.minimum(num_b, max_tokens - left_a)
