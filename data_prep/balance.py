"""Balances the pair labels: exactly as many pairs of one label as of the other, no text left out.

sop: labels are assigned by rank of the coin. nsp: a random pair leaves its unused sentences to the
next chunk, so its coin decides which chunks follow. A search finds a threshold of the coins that
yields a few random pairs too many; each of the surplus becomes a true pair of its own text, cut in
two. Chunks of a single sentence must be random; where they are more than half of all, some are cut.

Numpy only. Letters: N chunks.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from data_prep.chunks import Chunks, Spans, chain, cut_in_two
from data_prep.clauses import PieceBorders
from data_prep.documents import Documents
from dist_bert.common.hashing import hash64, uniform

_MOST_PASSES = 12  # over the chain; three are usual
_MOST_SURPLUS = 2.0**-8  # of the pairs: few enough to correct by cutting
_FIRST_SLOPE = 2.3  # a flipped coin turns a true pair random and adds some pairs of either kind


def balancing_threshold(chunks: Chunks, known: NDArray[np.int64]) -> float:
    """A threshold of the coins that makes as many pairs random as true, or a few more random.

    Found by the secant method, bracketed by the last values found too low and too high. 0 if random
    pairs are the majority even when no coin selects one.

    Args:
        chunks: at every sentence, of more than one document.
        known: (N + 1,) tokens that are not unknown pieces, before each sentence. Chunks without
            one become no pairs.
    """
    low, high, threshold, last = 0.0, 1.0, 0.5, 0.5
    least, best = len(chunks.stop) + 1, 1.0
    excess = last_excess = 0.0
    for _ in range(_MOST_PASSES):
        following = np.where(chunks.coin < threshold, chunks.split, chunks.stop)
        met = chain(following)
        coins = chunks.coin[met[known[met] < known[following[met]]]]
        surplus = 2 * int(np.count_nonzero(coins < threshold)) - coins.size
        if 0 <= surplus < least:
            least, best = surplus, threshold
        wanted = _MOST_SURPLUS * coins.size / 2
        if 0 <= surplus <= max(2 * wanted, 1) or (surplus > 0 and threshold == 0.0):
            break
        last_excess, excess = excess, surplus - wanted
        low, high = (low, threshold) if excess > 0 else (threshold, high)
        slope = _FIRST_SLOPE * max(int(np.count_nonzero(coins >= 0)), 1)
        if threshold != last and excess != last_excess:
            slope = (excess - last_excess) / (threshold - last)
        last, guess = threshold, threshold - excess / slope
        threshold = guess if low < guess < high else 0.0 if guess <= 0 else (low + high) / 2
    return best


def exactly_half(
    spans: Spans, documents: Documents, borders: PieceBorders, objective: str
) -> tuple[Spans, int]:
    """The same text in pairs, exactly half of them with the label 1.

    Where that is impossible (a shard of one document in nsp, pairs of a single token), the
    remaining pairs stay unchanged.

    Args:
        spans: pairs; of nsp, at least as many random ones as true ones.
        documents: that contain the spans.
        borders: of the pieces.
        objective: nsp or sop.

    Returns:
        The spans, and the number of cuts inside sentences.
    """
    if objective == "sop":
        num_cuts = 0
        if len(spans) % 2:
            spans, num_cuts = _with_two_for_one(spans, documents, borders)
        label = np.zeros(len(spans), np.bool_)
        label[np.argsort(spans.coin, kind="stable")[: len(spans) // 2]] = True
        return dataclasses.replace(spans, label=label), num_cuts
    surplus = 2 * int(np.count_nonzero(spans.label)) - len(spans)
    if surplus <= 0:
        return spans, 0
    candidates = _candidates(spans, documents)
    chosen = candidates[: surplus // 2]
    spans, num_cuts = _made_true(spans, documents, borders, chosen)
    if surplus % 2:
        others = candidates[surplus // 2 :]
        long_enough = others[(spans.stop - spans.start)[others] >= 3]
        if long_enough.size:
            spans, num_more = _with_a_true_end(spans, documents, borders, long_enough[:1])
        else:
            spans, num_more = _with_two_for_one(spans, documents, borders)
        num_cuts += num_more
    return spans, num_cuts


def _candidates(spans: Spans, documents: Documents) -> NDArray[np.int64]:
    """Random pairs whose own text can be cut: those of several sentences first, then by hash."""
    random = np.flatnonzero(spans.label & (spans.stop - spans.start >= 2))
    offsets = documents.sentence_offsets
    next_sentence = offsets[np.searchsorted(offsets, spans.start[random], "right")]
    is_one_sentence = next_sentence >= spans.stop[random]
    return random[np.lexsort((hash64("surplus", spans.name[random]), is_one_sentence))]


def _made_true(
    spans: Spans, documents: Documents, borders: PieceBorders, chosen: NDArray[np.int64]
) -> tuple[Spans, int]:
    """Turns random pairs into true ones: their A is cut into A and B."""
    few = spans.take(chosen)
    cut, is_inside = cut_in_two(documents, borders, few.start, few.stop, few.name)
    split, label = spans.split.copy(), spans.label.copy()
    split[chosen], label[chosen] = cut, False
    return dataclasses.replace(spans, split=split, label=label), int(is_inside.sum())


def _with_a_true_end(
    spans: Spans, documents: Documents, borders: PieceBorders, chosen: NDArray[np.int64]
) -> tuple[Spans, int]:
    """Splits the end of A off a random pair into a separate true pair."""
    few = spans.take(chosen)
    cut, is_inside = cut_in_two(documents, borders, few.start, few.stop, few.name)
    cut = np.minimum(cut, few.stop - 2)  # leaves a token for each segment
    split, stop = spans.split.copy(), spans.stop.copy()
    split[chosen] = stop[chosen] = cut
    ends, num_more = _new_spans(few, documents, borders, cut)
    whole = dataclasses.replace(spans, split=split, stop=stop)
    return whole.with_more(ends), int(is_inside.sum()) + num_more


def _with_two_for_one(
    spans: Spans, documents: Documents, borders: PieceBorders
) -> tuple[Spans, int]:
    """Cuts a pair of two segments, and of four tokens or more, into two pairs."""
    is_long = np.flatnonzero((spans.stop - spans.start >= 4) & (spans.split < spans.stop))
    if not is_long.size:
        return spans, 0
    chosen = is_long[[np.argmin(hash64("surplus", spans.name[is_long]))]]
    few = spans.take(chosen)
    cut, is_inside = cut_in_two(documents, borders, few.start, few.stop, few.name)
    cut = np.clip(cut, few.start + 2, few.stop - 2)
    begins, num_more = _new_spans(few, documents, borders, few.start, cut)
    ends, num_others = _new_spans(few, documents, borders, cut)
    rest = spans.take(np.delete(np.arange(len(spans)), chosen))
    return rest.with_more(begins).with_more(ends), int(is_inside.sum()) + num_more + num_others


def _new_spans(
    spans: Spans,
    documents: Documents,
    borders: PieceBorders,
    start: NDArray[np.int64],
    stop: NDArray[np.int64] | None = None,
) -> tuple[Spans, int]:
    """True pairs from part of some spans, with new draws, and the number of cuts in sentences."""
    stop = spans.stop if stop is None else stop
    name = hash64("part", spans.name, start)
    split, is_inside = cut_in_two(documents, borders, start, stop, name)
    made = dataclasses.replace(
        spans,
        start=start,
        split=split,
        stop=stop,
        label=np.zeros(len(spans), np.bool_),
        coin=uniform("is_random_next", name),
        name=name,
    )
    return made, int(is_inside.sum())
