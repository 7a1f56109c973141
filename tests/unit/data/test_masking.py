"""Masks: equal to a slow reference, independent of the batch, and with the stated statistics."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.common.hashing import hash32_grid, hash64
from dist_bert.data.masking import (
    NUM_SPECIAL_IDS,
    MaskingVocabulary,
    draw_masks,
    is_maskable,
    num_to_mask,
    rescaled_num_masked,
    restore,
)

VOCAB_SIZE, NUM_RESERVED = 101, 11
UNK, CLS, SEP, MASK = 1, 2, 3, 4
WORD_STARTS = np.arange(VOCAB_SIZE) % 3 > 0  # two pieces of three begin a word
Array = NDArray[Any]

TOKENS = MaskingVocabulary(vocab_size=VOCAB_SIZE, num_reserved_pieces=NUM_RESERVED)
WORDS = MaskingVocabulary(
    vocab_size=VOCAB_SIZE, num_reserved_pieces=NUM_RESERVED, word_starts=WORD_STARTS
)
TOKEN_SPANS = dataclasses.replace(TOKENS, mean_span_length=3.0)
WORD_SPANS = dataclasses.replace(WORDS, mean_span_length=3.0)
ALL = (TOKENS, WORDS, TOKEN_SPANS, WORD_SPANS)


def make_batch(
    num_samples: int, max_tokens: int, seed: int, rate: float = 0.15
) -> tuple[Array, Array, Array, Array]:
    """Samples [CLS] A [SEP] B [SEP] of random lengths, with a few [UNK]."""
    rng = np.random.default_rng(seed)
    num_tokens = rng.integers(min(7, max_tokens), max_tokens + 1, num_samples)
    ids = rng.integers(NUM_SPECIAL_IDS, VOCAB_SIZE, (num_samples, max_tokens))
    ids[rng.random(ids.shape) < 0.02] = UNK
    for row, length in zip(ids, num_tokens, strict=True):
        row[0], row[rng.integers(2, length - 2)], row[length - 1], row[length:] = CLS, SEP, SEP, 0
    ids = ids.astype(np.uint16)
    keys = hash64("test", seed, np.arange(num_samples))
    num_maskable = is_maskable(ids, num_tokens).sum(axis=1)
    return ids, num_tokens, num_to_mask(num_maskable, rate, keys), keys


def words_of(ids: Array, vocabulary: MaskingVocabulary) -> list[list[int]]:
    """Runs of maskable columns that make a word."""
    words: list[list[int]] = []
    previous_special = True
    for column, piece in enumerate(ids.tolist()):
        if piece >= NUM_SPECIAL_IDS:
            begins = vocabulary.word_starts is None or vocabulary.word_starts[piece]
            if begins or previous_special:
                words.append([])
            words[-1].append(column)
        previous_special = piece < NUM_SPECIAL_IDS
    return words


def spans_of(
    ids: Array, num_masked: int, key: Any, vocabulary: MaskingVocabulary
) -> list[list[int]]:
    """Runs of neighbouring words, each of which begins a new one with the same probability."""
    words = words_of(ids, vocabulary)
    num_maskable = sum(map(len, words))
    length = vocabulary.mean_span_length * (1 - num_masked / num_maskable)
    length *= 1 + (length - 1) / num_masked
    word_length = num_maskable / len(words)
    begins = word_length / max(word_length, length)
    draws = hash32_grid(hash64("span", key[None]), ids.size)[0] / (2**32 - 1)
    spans: list[list[int]] = []
    for word in words:
        if not spans or spans[-1][-1] + 1 != word[0] or draws[word[0]] <= begins:
            spans.append([])
        spans[-1] += word
    return spans


def reference_masks(
    ids: Array, num_tokens: int, num_masked: int, key: Any, vocabulary: MaskingVocabulary
) -> tuple[Array, list[int]]:
    """One sample, word by word, as the docstring of `draw_masks` says it."""
    order = hash32_grid(key[None], ids.size)[0]
    has_spans = vocabulary.mean_span_length > 0
    if has_spans:
        words = spans_of(ids[:num_tokens], num_masked, key, vocabulary)
    else:
        words = words_of(ids[:num_tokens], vocabulary)
    words.sort(key=lambda word: order[word[0]])
    chosen: list[int] = []
    exceeding: list[int] = []
    for index, word in enumerate(words):
        if len(chosen) + len(word) > num_masked:
            exceeding = word
            single_words = [w for w in words[index + 1 :] if len(w) == 1 and not has_spans]
            for single_word in single_words[: num_masked - len(chosen)]:
                chosen += single_word
            break
        chosen += word
    chosen += exceeding[: num_masked - len(chosen)]
    input_ids = ids.copy()
    for column in chosen:
        draw = int(hash64(hash64("replacement", key), column))
        kind, piece = (draw >> 32) / 2**32, draw % 2**32
        if kind < 0.8:
            input_ids[column] = MASK
        elif kind < 0.9:
            input_ids[column] = NUM_RESERVED + (piece * (VOCAB_SIZE - NUM_RESERVED) >> 32)
    return input_ids, sorted(chosen)


@pytest.mark.parametrize("vocabulary", ALL)
@pytest.mark.parametrize("max_tokens,rate", [(7, 0.15), (13, 0.4), (37, 0.15), (61, 0.9)])
def test_equals_the_slow_reference(
    vocabulary: MaskingVocabulary, max_tokens: int, rate: float
) -> None:
    ids, num_tokens, num_masked, keys = make_batch(311, max_tokens, seed=max_tokens, rate=rate)
    input_ids, positions, labels = draw_masks(ids, num_tokens, num_masked, keys, vocabulary)
    assert positions.shape == labels.shape == (311, num_masked.max())
    for b in range(311):
        expected_ids, chosen = reference_masks(
            ids[b], num_tokens[b], num_masked[b], keys[b], vocabulary
        )
        padding = [0] * (positions.shape[1] - len(chosen))
        assert positions[b].tolist() == chosen + padding
        assert labels[b].tolist() == ids[b][chosen].tolist() + padding
        assert input_ids[b].tolist() == expected_ids.tolist()


@pytest.mark.parametrize("vocabulary", ALL)
def test_masks_do_not_depend_on_the_batch_nor_on_the_padding(vocabulary: MaskingVocabulary) -> None:
    ids, num_tokens, num_masked, keys = make_batch(601, 37, seed=1)
    input_ids, positions, labels = draw_masks(ids, num_tokens, num_masked, keys, vocabulary)
    rows = np.random.default_rng(0).permutation(601)[:47]
    wide = np.full((47, 53), 99, np.uint16)  # what lies behind num_tokens may be anything
    wide[:, :37] = ids[rows]
    wide[np.arange(53) >= num_tokens[rows, None]] = 99
    narrow = draw_masks(wide, num_tokens[rows], num_masked[rows], keys[rows], vocabulary)
    width = num_masked[rows].max()
    assert np.array_equal(narrow[1], positions[rows, :width])
    assert np.array_equal(narrow[2], labels[rows, :width])
    is_token = np.arange(37) < num_tokens[rows, None]
    assert np.array_equal(narrow[0][:, :37][is_token], input_ids[rows][is_token])


@pytest.mark.parametrize("vocabulary", ALL)
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_restore_inverts(vocabulary: MaskingVocabulary, dtype: type[np.integer]) -> None:
    ids, num_tokens, num_masked, keys = make_batch(401, 29, seed=2)
    ids, num_masked = ids.astype(dtype), num_masked.astype(np.uint16)  # as stored
    input_ids, positions, labels = draw_masks(ids, num_tokens, num_masked, keys, vocabulary)
    assert input_ids.dtype == labels.dtype == dtype
    assert not np.array_equal(input_ids, ids)
    assert np.array_equal(restore(input_ids, positions, labels, num_masked), ids)


def test_another_key_draws_other_masks_in_equal_number() -> None:
    ids, num_tokens, num_masked, keys = make_batch(5_003, 61, seed=3)
    chosen = []
    for copy in range(2):
        _, positions, _ = draw_masks(ids, num_tokens, num_masked, hash64(keys, copy), TOKENS)
        grid = np.zeros(ids.shape, bool)
        grid[np.arange(5_003)[:, None], positions] = True
        grid[:, 0] = False  # where the padding of `positions` points
        assert np.array_equal(grid.sum(axis=1), num_masked)
        chosen.append(grid)
    overlap = (chosen[0] & chosen[1]).sum() / num_masked.sum()
    assert abs(overlap - 0.15) < 0.01  # independent draws share 15 %; 25,000 tokens, sigma 0.0023


@pytest.mark.parametrize("vocabulary", ALL)
def test_shares_of_masked_tokens_and_of_replacements(vocabulary: MaskingVocabulary) -> None:
    ids, num_tokens, num_masked, keys = make_batch(24_007, 61, seed=4)
    maskable = is_maskable(ids, num_tokens)
    input_ids, positions, labels = draw_masks(ids, num_tokens, num_masked, keys, vocabulary)
    assert num_masked.sum() > 100_000
    # The least of one prediction lifts the share in samples below 7 tokens: 0.02 points here.
    assert abs(num_masked.sum() / maskable.sum() - 0.15) < 0.002

    rows, columns = np.nonzero(np.arange(positions.shape[1]) < num_masked[:, None])
    original, shown = labels[rows, columns], input_ids[rows, positions[rows, columns]]
    assert original.min() >= NUM_SPECIAL_IDS
    is_other = (shown != MASK) & (shown != original)
    by_chance = 0.1 / (VOCAB_SIZE - NUM_RESERVED)  # random pieces that equal the original, roughly
    assert abs((shown == MASK).mean() - 0.8) < 0.005  # sigma 0.0012
    assert abs(is_other.mean() + by_chance - 0.1) < 0.005
    assert abs((shown == original).mean() - by_chance - 0.1) < 0.005

    drawn = np.bincount(shown[is_other], minlength=VOCAB_SIZE)
    assert not drawn[:NUM_RESERVED].any()
    drawn = drawn[NUM_RESERVED:]
    assert chi_square(drawn) < 1.5  # per degree of freedom; 90 of them: sigma 0.15


def chi_square(counts: Array) -> float:
    """Chi-square per degree of freedom against equal expectations."""
    expected = counts.mean()
    return ((counts - expected) ** 2 / expected).sum() / (counts.size - 1)


def test_positions_are_uniform_for_single_tokens() -> None:
    num_samples, max_tokens, num_masked = 20_011, 47, 7
    ids = np.full((num_samples, max_tokens), 77, np.uint16)
    _, positions, _ = draw_masks(
        ids,
        np.full(num_samples, max_tokens),
        np.full(num_samples, num_masked),
        hash64("uniform", np.arange(num_samples)),
        TOKENS,
    )
    # Drawn without replacement: the expected chi-square is 1 - 7/47 = 0.85 with sigma 0.18.
    assert 0.35 < chi_square(np.bincount(positions.ravel(), minlength=max_tokens)) < 1.5
    assert (np.diff(positions.astype(int), axis=1) > 0).all()


def test_positions_are_uniform_for_words_of_one_length() -> None:
    num_samples, num_words = 20_011, 19
    ids = np.tile(np.array([55, 54], np.uint16), (num_samples, num_words))  # 54 continues a word
    _, positions, _ = draw_masks(
        ids,
        np.full(num_samples, 2 * num_words),
        np.full(num_samples, 6),
        hash64("words", np.arange(num_samples)),
        WORDS,
    )
    counts = np.bincount(positions.ravel(), minlength=2 * num_words)
    assert np.array_equal(counts[::2], counts[1::2])
    assert chi_square(counts[::2]) < 1.8  # expected 1 - 3/19 = 0.84, sigma 0.28


def test_words_are_masked_whole_but_for_the_one_that_is_cut() -> None:
    ids, num_tokens, num_masked, keys = make_batch(2_003, 61, seed=5)
    _, positions, _ = draw_masks(ids, num_tokens, num_masked, keys, WORDS)
    num_cut = 0
    for b in range(2_003):
        chosen = set(positions[b, : num_masked[b]].tolist())
        words = words_of(ids[b], WORDS)
        cut = [w for w in words if 0 < len(chosen & set(w)) < len(w)]
        assert len(cut) <= 1
        if cut:  # only where no word of one token is left over
            assert all(len(w) > 1 or w[0] in chosen for w in words)
            num_cut += 1
    assert 0 < num_cut < 200  # rare: a sample has some 30 words, most of them of one token


def test_a_word_ends_at_a_special_token() -> None:
    ids = np.array([[CLS, 54, 54, SEP, 54, UNK, 54, SEP]], np.uint16)  # all pieces continue words
    keys = hash64("special", np.arange(997))
    copies = np.repeat(ids, 997, axis=0)
    _, positions, _ = draw_masks(copies, np.full(997, 8), np.full(997, 2), keys, WORDS)
    found = {tuple(row) for row in positions.tolist()}
    assert found == {(1, 2), (4, 6)}  # a single token never goes with half of the word


def run_lengths(ids: Array, positions: Array, num_masked: Array) -> Array:
    """Lengths of all runs of neighbouring masked tokens."""
    chosen = np.zeros((ids.shape[0], ids.shape[1] + 2), int)  # never masked at either end
    rows, columns = np.nonzero(np.arange(positions.shape[1]) < num_masked[:, None])
    chosen[rows, positions[rows, columns].astype(int) + 1] = 1
    edges = np.diff(chosen.reshape(-1))
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)


def make_text(num_samples: int, num_tokens: int) -> tuple[Array, Array]:
    """Samples [CLS] A [SEP] B [SEP] of one length, without [UNK]."""
    rng = np.random.default_rng(num_tokens)
    ids = rng.integers(NUM_SPECIAL_IDS, VOCAB_SIZE, (num_samples, num_tokens)).astype(np.uint16)
    ids[:, [0, num_tokens // 2, num_tokens - 1]] = CLS, SEP, SEP
    return ids, np.full(num_samples, num_tokens)


def test_a_word_begins_behind_a_piece_that_ends_with_a_space() -> None:
    """Pieces 54 to 57 continue words, but nothing continues 54."""
    tables = dict(word_starts=np.zeros(VOCAB_SIZE, np.bool_), word_ends=np.arange(VOCAB_SIZE) == 54)
    vocabulary = dataclasses.replace(TOKENS, **tables)
    ids = np.array([[CLS, 55, 54, 56, 57, SEP]], np.uint16)
    keys = hash64("spaces", np.arange(97))
    copies = np.repeat(ids, 97, axis=0)
    _, positions, _ = draw_masks(copies, np.full(97, 6), np.full(97, 2), keys, vocabulary)
    assert {tuple(row) for row in positions.tolist()} == {(1, 2), (3, 4)}


@pytest.mark.parametrize(
    "vocabulary,mean,rate",
    [
        (vocabulary, mean, rate)
        for vocabulary in (TOKENS, WORDS)
        for mean in (2.0, 3.0, 5.0)
        for rate in (0.15, 0.4, 0.5)
        if vocabulary is TOKENS or mean * (1 - rate) >= 1.5  # a word has 1.5 tokens
    ],
)
def test_runs_of_masks_have_the_wanted_mean_and_are_geometric(
    vocabulary: MaskingVocabulary, mean: float, rate: float
) -> None:
    vocabulary = dataclasses.replace(vocabulary, mean_span_length=mean)
    ids, num_tokens = make_text(1_501, 512)
    keys = hash64("runs", np.arange(1_501))
    num_masked = num_to_mask(is_maskable(ids, num_tokens).sum(axis=1), rate, keys)
    _, positions, _ = draw_masks(ids, num_tokens, num_masked, keys, vocabulary)
    lengths = run_lengths(ids, positions, num_masked)
    assert lengths.size > 20_000
    assert abs(lengths.mean() - mean) < 0.03 * mean  # sigma 0.007 of it
    if vocabulary.word_starts is None:  # words of several tokens make even lengths likelier
        for length in range(1, 9):
            expected = (1 - 1 / mean) ** (length - 1) / mean
            assert abs((lengths == length).mean() - expected) < 0.05 * expected + 0.004


def test_spans_never_reach_across_a_special_token() -> None:
    vocabulary = dataclasses.replace(TOKENS, mean_span_length=20.0)
    ids = np.array([[CLS, 54, 55, SEP, 56, 57, 58, UNK, 59, SEP]], np.uint16)
    keys = hash64("special", np.arange(997))
    copies = np.repeat(ids, 997, axis=0)
    _, positions, _ = draw_masks(copies, np.full(997, 10), np.full(997, 2), keys, vocabulary)
    found = {tuple(row) for row in positions.tolist()}
    assert {(1, 2), (4, 5)} < found
    # A run ends where its segment does; what is missing comes from another one.
    assert all(b - a == 1 or 8 in (a, b) for a, b in found if (a, b) not in {(2, 4), (6, 8)})


def test_spans_of_words_are_whole_words_but_for_the_last_one() -> None:
    ids, num_tokens, num_masked, keys = make_batch(2_003, 61, seed=6, rate=0.3)
    _, positions, _ = draw_masks(ids, num_tokens, num_masked, keys, WORD_SPANS)
    num_cut = 0
    for b in range(2_003):
        chosen = set(positions[b, : num_masked[b]].tolist())
        words = words_of(ids[b], WORDS)
        num_partial = sum(0 < len(chosen & set(w)) < len(w) for w in words)
        assert num_partial <= 1
        num_cut += num_partial
    assert 0 < num_cut < 800  # a third of the tokens are inside a word


def test_spans_leave_no_place_out() -> None:
    num_samples, num_tokens = 20_011, 47
    ids = np.full((num_samples, num_tokens), 77, np.uint16)
    keys = hash64("uniform", np.arange(num_samples))
    lengths, num_masked = np.full(num_samples, num_tokens), np.full(num_samples, 9)
    _, positions, _ = draw_masks(ids, lengths, num_masked, keys, TOKEN_SPANS)
    shares = np.bincount(positions.ravel(), minlength=num_tokens) / num_samples
    # A span begins at the first token, and the last span is cut behind: so its share is higher.
    assert abs(shares[4:] - 9 / 47).max() < 0.02  # sigma 0.0028


def test_number_to_mask_is_exact_on_average_and_at_least_one() -> None:
    keys = hash64("number", np.arange(40_009))
    for num_maskable in (7, 23, 125):
        numbers = num_to_mask(np.full(keys.size, num_maskable), 0.15, keys)
        assert set(np.unique(numbers)) <= {int(0.15 * num_maskable), int(0.15 * num_maskable) + 1}
        assert abs(numbers.mean() - 0.15 * num_maskable) < 0.0125  # sigma 0.0025
    assert num_to_mask(np.array([0, 1, 3]), 0.15, keys[:3]).tolist() == [0, 1, 1]
    assert num_to_mask(np.array([0, 1, 3]), 1.0, keys[:3]).tolist() == [0, 1, 3]


def test_samples_without_predictions_and_with_all_tokens_masked() -> None:
    ids = np.array([[CLS, UNK, SEP, UNK, SEP], [CLS, 50, SEP, 51, SEP]], np.uint16)
    for vocabulary in ALL:
        for num_masked in ([0, 0], [0, 2]):
            input_ids, positions, labels = draw_masks(
                ids, np.array([5, 5]), np.array(num_masked), hash64(np.arange(2)), vocabulary
            )
            assert np.array_equal(input_ids[0], ids[0])
            assert positions.tolist() == [[0, 0], [1, 3]] if num_masked[1] else positions.size == 0
            assert labels.tolist() == [[0, 0], [50, 51]] if num_masked[1] else labels.size == 0


def test_more_predictions_than_maskable_tokens_is_our_mistake() -> None:
    ids = np.array([[CLS, 50, SEP, 51, SEP]], np.uint16)
    with pytest.raises(AssertionError, match="maskable"):
        draw_masks(ids, np.array([5]), np.array([3]), hash64(np.arange(1)), TOKENS)


# --- rescaled_num_masked


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.2, 0.3, 0.5])
def test_a_rescaled_number_has_the_rate_as_its_mean_and_always_fits(rate: float) -> None:
    num_maskable = np.repeat(np.arange(0, 300), 400)
    keys = hash64("samples", np.arange(num_maskable.size))
    stored = num_to_mask(num_maskable, 0.15, keys)
    rescaled = rescaled_num_masked(stored, 0.15, np.full(keys.size, rate), keys)
    assert (rescaled <= num_maskable).all()
    assert (rescaled[num_maskable > 0] >= 1).all() and not rescaled[num_maskable == 0].any()
    for maskable in (40, 120, 299):
        mean = rescaled[num_maskable == maskable].mean()
        assert mean == pytest.approx(rate * maskable, abs=0.25)  # 4 errors of 400 draws


def test_each_sample_has_a_rate_of_its_own() -> None:
    stored = np.array([20, 20, 20, 1, 0])
    keys = hash64("samples", np.arange(5))
    rates = np.array([0.15, 0.3, 0.075, 0.5, 0.5])
    assert rescaled_num_masked(stored, 0.15, rates, keys).tolist() == [20, 40, 10, 1, 0]
