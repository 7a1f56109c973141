"""Draws masks for the masked-LM objective (Devlin et al. 2019, section 3.1), for whole blocks.

Units are masked together: single tokens, whole words, or spans of either (Joshi et al. 2020,
SpanBERT, section 3.1).

Preparation draws the masks that a shard stores, training draws fresh ones; both call `draw_masks`.
Every choice is a hash of the sample's key and the position, so a sample gets the same masks in any
batch and under any padding. Numpy only: no Python loop over samples or tokens.

The number of masked tokens of a sample is decided once, by `num_to_mask` at preparation, and
stored; fresh masks keep it, or scale it (`rescaled_num_masked`), so the shards alone determine the
number of predictions of any global batch.

Letters: B samples, S padded length in tokens, P most predictions of a sample, V pieces of the
vocabulary, R samples whose last unit does not fit, N masked tokens of the batch.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.hashing import hash32_grid, hash64, uniform

NUM_SPECIAL_IDS = 5  # [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4: never masked, never drawn

_SHARE_REPLACED_BY_MASK = 0.8  # of the masked tokens; Devlin et al. 2019, section 3.1
_SHARE_REPLACED_BY_RANDOM = 0.1  # the rest keep their piece
_TILE_SAMPLES = 256  # processed together: fits the cache, with little padding
_LAST = np.uint32(0xFFFFFFFF)  # order of tokens that must not be chosen


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MaskingVocabulary:
    """The properties of the tokenizer that masking needs."""

    vocab_size: int  # V; above num_reserved_pieces
    num_reserved_pieces: int  # ids below it are never drawn as replacements; at least 5
    word_starts: NDArray[np.bool_] | None = None  # (V,); None masks single tokens
    word_ends: NDArray[np.bool_] | None = None  # (V,) behind which any piece begins a word
    mean_span_length: float = 0.0  # tokens of a masked span; 0 = no spans, or > 1
    mask_id: int = 4  # replaces 80 % of the masked tokens

    def __post_init__(self) -> None:
        assert NUM_SPECIAL_IDS <= self.num_reserved_pieces < self.vocab_size
        for table in (self.word_starts, self.word_ends):
            assert table is None or table.shape == (self.vocab_size,)

    @functools.cached_property
    def breaks_word(self) -> NDArray[np.bool_]:
        """(V,) whether a word ends before the piece: the piece begins a word, or is special."""
        assert self.word_starts is not None
        return self.word_starts | (np.arange(self.vocab_size) < NUM_SPECIAL_IDS)


def is_maskable(
    original_ids: NDArray[np.integer], num_tokens: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Which tokens may be masked: all except special ones and padding.

    Args:
        original_ids: (B, S) piece ids.
        num_tokens: (B,) real lengths; any ids after them are padding.

    Returns:
        (B, S).
    """
    columns = np.arange(original_ids.shape[1])
    return (original_ids >= NUM_SPECIAL_IDS) & (columns < num_tokens[:, None])


def num_to_mask(
    num_maskable: NDArray[np.integer], rate: float, sample_keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Number of tokens of each sample to mask.

    `rate` times the maskable tokens, rounded up or down at random so that the mean is exact, but at
    least one if there are any: a sample without predictions would not contribute to the MLM loss.

    Args:
        num_maskable: (B,) maskable tokens of each sample.
        rate: share to mask, 0 to 1.
        sample_keys: (B,) hashes that name the samples.

    Returns:
        (B,), each between 0 and `num_maskable`.
    """
    rounded = np.floor(rate * num_maskable + uniform("num_to_mask", sample_keys)).astype(np.int64)
    return np.minimum(np.maximum(rounded, 1), num_maskable)


def rescaled_num_masked(
    num_masked: NDArray[np.integer],
    stored_rate: float,
    rates: NDArray[np.float64],
    sample_keys: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Number of tokens of each sample to mask at another rate, told from the stored number alone.

    So the predictions of a whole global batch are known without its tokens. Proportional, rounded
    up or down at random so that the mean is exact. No sample gets more than the maskable tokens
    that it must have: a stored number n = floor(rate * m + u), u < 1, means m > (n - 1) / rate. For
    stored rates of 15 % that limits only samples with one prediction: they keep it.

    Args:
        num_masked: (B,) as `num_to_mask` gave it.
        stored_rate: the rate of that.
        rates: (B,) share to mask of each sample, above 0.
        sample_keys: (B,) hashes that name the draws.

    Returns:
        (B,), at least one where there was one.
    """
    scaled = np.floor(num_masked * (rates / stored_rate) + uniform("rescale", sample_keys))
    most = np.floor((num_masked - 1.0) / stored_rate - 1e-9) + 1
    rescaled = np.minimum(np.maximum(scaled, 1), np.maximum(most, 1)).astype(np.int64)
    return np.where(num_masked > 0, rescaled, 0)


def draw_masks(
    original_ids: NDArray[np.integer],
    num_tokens: NDArray[np.integer],
    num_masked: NDArray[np.integer],
    sample_keys: NDArray[np.uint64],
    vocabulary: MaskingVocabulary,
) -> tuple[NDArray[Any], NDArray[np.uint16], NDArray[Any]]:
    """Masks a batch, with exactly `num_masked` predictions in each sample.

    Single tokens: those with the smallest hashes. Whole words: words in the order of their hashes,
    up to the first that does not fit; the rest is filled with the next words of one token, and only
    if these do not suffice, the word that does not fit is cut. Spans: likewise, but the span that
    does not fit is always cut, so that spans keep their mean length. A masked token becomes [MASK]
    (80 %), a random piece (10 %, by chance the same one), or is kept (10 %).

    Args:
        original_ids: (B, S) piece ids.
        num_tokens: (B,) real lengths.
        num_masked: (B,) predictions of each sample, at most its maskable tokens.
        sample_keys: (B,) hashes that identify the samples, and the draw if there are several.
        vocabulary: of the pieces; determines whether words and spans are masked.

    Returns:
        input_ids: (B, S) with the masks applied, dtype of `original_ids`.
        masked_lm_positions: (B, P) ascending, 0-padded; P is the largest of `num_masked`.
        masked_lm_labels: (B, P) original ids, 0-padded, dtype of `original_ids`.
    """
    chosen = np.zeros(original_ids.shape, np.bool_)
    by_length = np.argsort(num_tokens)
    for begin in range(0, by_length.size, _TILE_SAMPLES):
        rows = by_length[begin : begin + _TILE_SAMPLES]
        width = int(num_tokens[rows[-1]])
        order = hash32_grid(sample_keys[rows], width)  # no number twice in a row
        ids = original_ids[rows, :width]
        maskable = is_maskable(ids, num_tokens[rows])
        has_words, has_spans = vocabulary.word_starts is not None, vocabulary.mean_span_length > 0
        if has_words or has_spans:
            starts = _word_starts(ids, vocabulary) if has_words else np.ones_like(maskable)
            if has_spans:
                keys = hash64("span", sample_keys[rows])
                starts = _span_starts(starts, maskable, num_masked[rows], keys, vocabulary)
            order = _same_within_units(order, starts)
        chosen[rows, :width] = _choose(order, maskable, num_masked[rows], is_cut=has_spans)

    places = np.flatnonzero(chosen)  # (N,) into the B * S tokens
    rows = np.repeat(np.arange(num_masked.size), num_masked)
    assert rows.size == places.size, "num_masked exceeds the maskable tokens of a sample"
    columns = places - rows * original_ids.shape[1]
    labels = original_ids.reshape(-1)[places]
    input_ids = original_ids.copy()
    hashes = hash64(hash64("replacement", sample_keys)[rows], columns)
    input_ids.reshape(-1)[places] = _replacements(labels, hashes, vocabulary)

    is_prediction = _is_prediction(num_masked, int(num_masked.max(initial=0)))  # (B, P)
    masked_lm_positions = np.zeros(is_prediction.shape, np.uint16)
    masked_lm_positions[is_prediction] = columns
    masked_lm_labels = np.zeros(is_prediction.shape, original_ids.dtype)
    masked_lm_labels[is_prediction] = labels
    return input_ids, masked_lm_positions, masked_lm_labels


def restore(
    input_ids: NDArray[np.integer],
    masked_lm_positions: NDArray[np.integer],
    masked_lm_labels: NDArray[np.integer],
    num_masked: NDArray[np.integer],
) -> NDArray[Any]:
    """The original ids of a masked batch: the inverse of `draw_masks`.

    Args:
        input_ids: (B, S) with masks applied.
        masked_lm_positions: (B, P).
        masked_lm_labels: (B, P).
        num_masked: (B,) valid predictions of each sample.

    Returns:
        (B, S), dtype of `input_ids`.
    """
    rows, predictions = np.nonzero(_is_prediction(num_masked, masked_lm_positions.shape[1]))
    original_ids = input_ids.copy()
    original_ids[rows, masked_lm_positions[rows, predictions]] = masked_lm_labels[rows, predictions]
    return original_ids


def _is_prediction(num_masked: NDArray[np.integer], width: int) -> NDArray[np.bool_]:
    """(B, width) which places of the predictions are not padding."""
    return np.arange(width) < num_masked[:, None]


def _word_starts(
    original_ids: NDArray[np.integer], vocabulary: MaskingVocabulary
) -> NDArray[np.bool_]:
    """(B, S) where words begin. A special token is its own word: no word extends across one."""
    starts = vocabulary.breaks_word.take(original_ids)
    starts[:, 1:] |= original_ids[:, :-1] < NUM_SPECIAL_IDS
    if vocabulary.word_ends is not None:
        starts[:, 1:] |= vocabulary.word_ends.take(original_ids[:, :-1])
    starts[:, 0] = True
    return starts


def _span_starts(
    word_starts: NDArray[np.bool_],
    maskable: NDArray[np.bool_],
    num_masked: NDArray[np.integer],
    keys: NDArray[np.uint64],
    vocabulary: MaskingVocabulary,
) -> NDArray[np.bool_]:
    """Where spans begin: at each word's start with the same probability, so lengths are geometric.

    Adjacent masked spans merge into one run. So a span is shorter than the requested run, by the
    share of tokens that are not masked.

    Args:
        word_starts: (B, S) true for all tokens if spans consist of single tokens.
        maskable: (B, S).
        num_masked: (B,).
        keys: (B,) hashes that name the draws.
        vocabulary: gives the mean length of a run.

    Returns:
        (B, S) also true for all tokens that are not maskable and the tokens after them.
    """
    num_maskable = np.maximum(np.count_nonzero(maskable, axis=1), 1)
    num_words = np.maximum(np.count_nonzero(word_starts & maskable, axis=1), 1)
    tokens_per_word = num_maskable / num_words
    tokens_per_span = vocabulary.mean_span_length * (1.0 - num_masked / num_maskable)
    tokens_per_span *= 1.0 + (tokens_per_span - 1.0) / np.maximum(num_masked, 1)  # the last is cut
    begins = tokens_per_word / np.maximum(tokens_per_word, tokens_per_span)
    is_drawn = hash32_grid(keys, maskable.shape[1]) <= (begins * _LAST).astype(np.uint32)[:, None]
    starts = (word_starts & is_drawn) | ~maskable
    starts[:, 1:] |= ~maskable[:, :-1]
    starts[:, 0] = True
    return starts


def _same_within_units(order: NDArray[np.uint32], starts: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """(B, S) order where every token of a unit has the number of the unit's first token."""
    first_of_unit = np.flatnonzero(starts)
    inside = np.flatnonzero(~starts)
    unit_of_inside = inside - np.arange(inside.size) - 1  # half the time of np.cumsum(starts)
    order = order.copy()
    flat = order.reshape(-1)
    flat[inside] = flat[first_of_unit[unit_of_inside]]
    return order


def _choose(
    order: NDArray[np.uint32],
    maskable: NDArray[np.bool_],
    num_masked: NDArray[np.integer],
    is_cut: bool,
) -> NDArray[np.bool_]:
    """Chooses exactly `num_masked` maskable tokens of each sample, the units of lowest order first.

    Args:
        order: (B, S) tokens with equal numbers are a unit; a unit's tokens are adjacent.
        maskable: (B, S) true for all tokens of a unit or for none.
        num_masked: (B,).
        is_cut: cuts the last unit if it does not fit, even if single tokens could replace it.

    Returns:
        (B, S).
    """
    order = order | (maskable.astype(np.uint32) - np.uint32(1))  # faster than np.where: no branches
    last = _smallest(order, num_masked)  # order of the last unit chosen
    chosen = (order <= last[:, None]) & maskable
    chosen[num_masked == 0] = False
    exceeding = np.flatnonzero(np.count_nonzero(chosen, axis=1) > num_masked)
    if exceeding.size:
        chosen[exceeding] = _without_excess(
            order[exceeding], last[exceeding], chosen[exceeding], num_masked[exceeding], is_cut
        )
    return chosen


def _without_excess(
    order: NDArray[np.uint32],
    last: NDArray[np.uint32],
    chosen: NDArray[np.bool_],
    num_masked: NDArray[np.integer],
    is_cut: bool,
) -> NDArray[np.bool_]:
    """For samples whose last unit does not fit: single tokens in its place, or its first tokens.

    Args:
        order: (R, S) as in `_choose`, `_LAST` for tokens that must not be masked.
        last: (R,) order of the unit that does not fit.
        chosen: (R, S) all units up to and including it.
        num_masked: (R,).
        is_cut: does not use single tokens.

    Returns:
        (R, S) with exactly `num_masked` tokens in each row.
    """
    exceeding_unit = chosen & (order == last[:, None])
    chosen = chosen ^ exceeding_unit
    num_missing = num_masked - np.count_nonzero(chosen, axis=1)  # at least 1

    if not is_cut:
        single = (order > last[:, None]) & (order != _LAST)
        single[:, 1:] &= order[:, 1:] != order[:, :-1]
        single[:, :-1] &= order[:, :-1] != order[:, 1:]
        single_order = order | (single.astype(np.uint32) - np.uint32(1))
        chosen |= single & (order <= _smallest(single_order, num_missing)[:, None])
        num_missing = num_masked - np.count_nonzero(chosen, axis=1)  # mostly 0 by now

    first = exceeding_unit.argmax(axis=1)[:, None]
    columns = np.arange(order.shape[1])
    return chosen | ((columns >= first) & (columns < first + num_missing[:, None]))


def _smallest(values: NDArray[np.uint32], ranks: NDArray[np.integer]) -> NDArray[np.uint32]:
    """(B,) the `ranks`-th smallest number of each row, counted from 1.

    By a full sort: at this size as fast as numpy's partition, which takes one rank for all rows.
    """
    columns = np.maximum(ranks, 1) - 1
    return np.sort(values, axis=1)[np.arange(columns.size), columns]


def _replacements(
    labels: NDArray[np.integer], hashes: NDArray[np.uint64], vocabulary: MaskingVocabulary
) -> NDArray[np.integer]:
    """(N,) what masked tokens become: a hash's upper half says how, its lower half which piece."""
    kind = (hashes >> np.uint64(32)).astype(np.uint32)
    num_drawable = np.uint64(vocabulary.vocab_size - vocabulary.num_reserved_pieces)
    drawn = ((hashes & np.uint64(_LAST)) * num_drawable) >> np.uint64(32)
    drawn += np.uint64(vocabulary.num_reserved_pieces)
    becomes_mask = kind < np.uint32(_SHARE_REPLACED_BY_MASK * 2**32)
    is_kept = kind >= np.uint32((_SHARE_REPLACED_BY_MASK + _SHARE_REPLACED_BY_RANDOM) * 2**32)
    result = np.where(is_kept, labels, drawn.astype(labels.dtype))
    result[becomes_mask] = vocabulary.mask_id
    return result
