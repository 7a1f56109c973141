"""Pairs: equal to literal rewrites of the recipes with the same draws, and no text lost."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.clauses import PieceBorders
from data_prep.documents import Documents
from data_prep.pairs import PairLosses, Pairs, assemble, draw_pairs
from dist_bert.common.hashing import below, hash64, uniform

Row = tuple[list[int], list[int], bool, int, int, int]
OBJECTIVES = ("nsp", "sop", "none")
# Every border is inside a word, so that sentences are cut as late as they may be.
PLAIN = PieceBorders(ends=np.zeros(1_000_000, np.uint8), starts=np.ones(1_000_000, np.uint8))


def make_documents(
    lengths: list[list[int]], document_ids: NDArray[np.int64] | None = None
) -> Documents:
    """Documents of consecutive token numbers, so that a token says where it comes from.

    `lengths`: tokens of each sentence, by document.
    """
    flat = list(itertools.chain.from_iterable(lengths))
    return Documents(
        tokens=np.arange(100, 100 + sum(flat), dtype=np.uint32),
        sentence_offsets=np.cumsum([0, *flat]),
        document_offsets=np.cumsum([0, *map(len, lengths)]),
        document_ids=np.arange(7, 7 + len(lengths)) if document_ids is None else document_ids,
    )


def random_lengths(
    rng: np.random.Generator, num_documents: int, max_sentences: int, max_length: int
) -> list[list[int]]:
    return [
        rng.integers(1, max_length + 1, rng.integers(1, max_sentences + 1)).tolist()
        for _ in range(num_documents)
    ]


def literal_truncation(num_a: int, num_b: int, max_tokens: int) -> tuple[int, int]:
    """`truncate_seq_pair` of the classic script, without the side it takes from."""
    while num_a + num_b > max_tokens:
        if num_a > num_b:
            num_a -= 1
        else:
            num_b -= 1
    return num_a, num_b


def cut(tokens: list[int], length: int, draw: tuple[Any, ...]) -> list[int]:
    front = int(below(len(tokens) - length + 1, *draw))
    return tokens[front : front + length]


def literal_pairs(
    documents: Documents, *, max_tokens: int, short_sequence_prob: float, seed: int, copy: int
) -> tuple[list[Row], list[int]]:
    """`create_instances_from_document` of the classic script, with our draws.

    Returns:
        Rows (A, B, label, index of A's and of B's document, name of the pair), and the truncated
        tokens, dropped sentences and dropped tokens of the own text.
    """
    tokens, offsets = documents.tokens.tolist(), documents.sentence_offsets.tolist()
    sentences = [tokens[i:j] for i, j in itertools.pairwise(offsets)]
    all_documents = [sentences[i:j] for i, j in itertools.pairwise(documents.document_offsets)]
    rows: list[Row] = []
    losses = [0, 0, 0]
    for index, document in enumerate(all_documents):
        document_name = hash64("chunk", seed, copy, int(documents.document_ids[index]))
        chunk: list[list[int]] = []
        i = 0
        while i < len(document):
            if not chunk:
                first = i
                name = hash64(document_name, first)
                target = max_tokens
                if uniform("is_short", name) < short_sequence_prob:
                    target = 2 + int(below(max_tokens - 1, "target", name))
            chunk.append(document[i])
            if i == len(document) - 1 or sum(map(len, chunk)) >= target:
                a_end = 1
                if len(chunk) >= 2:
                    a_end = 1 + int(below(len(chunk) - 1, "split", name))
                a = list(itertools.chain(*chunk[:a_end]))
                b, document_b = list(itertools.chain(*chunk[a_end:])), index
                is_random = len(chunk) == 1 or bool(uniform("is_random_next", name) < 0.5)
                is_random = is_random and len(all_documents) > 1
                if is_random:
                    others = [d for d in range(len(all_documents)) if d != index]
                    document_b = others[int(below(len(others), "document", name))]
                    random_document = all_documents[document_b]
                    b = []
                    start = int(below(len(random_document), "sentence", name))
                    for sentence in random_document[start:]:
                        b += sentence
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - a_end
                if b:
                    num_a, num_b = literal_truncation(len(a), len(b), max_tokens)
                    losses[0] += len(a) - num_a + (0 if is_random else len(b) - num_b)
                    a = cut(a, num_a, ("front of A", name))
                    b = cut(b, num_b, ("front of B", name))
                    rows.append((a, b, is_random, index, document_b, int(name)))
                else:
                    losses[1] += 1
                    losses[2] += len(a)
                chunk = []
            i += 1
    return rows, losses


def rows_of(documents: Documents, pairs: Pairs) -> list[Row]:
    tokens = documents.tokens
    return [
        (
            tokens[pairs.a_start[n] : pairs.a_stop[n]].tolist(),
            tokens[pairs.b_start[n] : pairs.b_stop[n]].tolist(),
            bool(pairs.next_sentence_label[n]),
            int(pairs.document_a[n]),
            int(pairs.document_b[n]),
            int(pairs.name[n]),
        )
        for n in range(len(pairs))
    ]


def literal_sentences(
    documents: Documents, most_tokens: int
) -> Iterator[tuple[int, list[list[int]], Any]]:
    """Sentences of each document, the long ones cut: its index, they, and the document's id."""
    tokens, offsets = documents.tokens.tolist(), documents.sentence_offsets.tolist()
    least = max(most_tokens // 4, 1)
    for index, (begin, end) in enumerate(itertools.pairwise(documents.document_offsets)):
        pieces = []
        for i, j in itertools.pairwise(offsets[begin : end + 1]):
            while j - i > most_tokens:
                size = min(most_tokens, j - i - least)
                pieces.append(tokens[i : i + size])
                i += size
            pieces.append(tokens[i:j])
        yield index, pieces, int(documents.document_ids[index])


def literal_chunks(
    documents: Documents, least: int, most_tokens: int, settings: dict[str, Any]
) -> list[tuple[int, list[list[int]], Any]]:
    """Chunks of whole sentences that fit the target: document, sentences, name."""
    max_tokens = settings["max_tokens"]
    chunks = []
    for index, sentences, document_id in literal_sentences(documents, most_tokens):
        document_name = hash64("chunk", settings["seed"], settings["copy"], document_id)
        i = 0
        while i < len(sentences):
            name = hash64(document_name, i)
            target = max_tokens
            if uniform("is_short", name) < settings["short_sequence_prob"]:
                target = 2 + int(below(max_tokens - 1, "target", name))
            stop = i
            while stop < len(sentences) and (
                stop - i < least or sum(map(len, sentences[i : stop + 1])) <= target
            ):
                stop += 1
            if least == 2 and len(sentences) - stop == 1 and stop - i > 2:
                stop -= 1
            chunks.append((index, sentences[i:stop], name))
            i = stop
    return chunks


def in_two(sentence: list[int]) -> list[list[int]]:
    """A sentence cut as late as it may be."""
    size = len(sentence) - max(len(sentence) // 4, 1)
    return [sentence[:size], sentence[size:]]


def literal_sop(documents: Documents, settings: dict[str, Any]) -> tuple[list[Row], list[int]]:
    """As `literal_pairs`, for the order of two segments."""
    rows: list[Row] = []
    losses = [0, 0, 0]
    for index, sentences, name in literal_chunks(
        documents, 2, settings["max_tokens"] // 2, settings
    ):
        if len(sentences) == 1 and len(sentences[0]) == 1:
            losses[1] += 1
            losses[2] += 1
            continue
        if len(sentences) == 1:
            sentences = in_two(sentences[0])
        split = 1 + int(below(len(sentences) - 1, "split", name))
        parts = [list(itertools.chain(*part)) for part in (sentences[:split], sentences[split:])]
        is_swapped = bool(uniform("is_random_next", name) < 0.5)
        a, b = parts[::-1] if is_swapped else parts
        rows.append((a, b, is_swapped, index, index, int(name)))
    return rows, losses


def fitting(sentences: list[list[int]], num_wanted: int) -> list[list[int]]:
    """As many sentences as have no more than the wanted tokens, one at least."""
    count = 1
    while count < len(sentences) and sum(map(len, sentences[: count + 1])) <= num_wanted:
        count += 1
    return sentences[:count]


def literal_nsp(documents: Documents, settings: dict[str, Any]) -> tuple[list[Row], list[int]]:
    """As `literal_pairs`, but nothing of a document is cut off."""
    max_tokens = settings["max_tokens"]
    cut_up = list(literal_sentences(documents, max_tokens // 2))
    rows: list[Row] = []
    losses = [0, 0, 0]
    for index, sentences, document_id in cut_up:
        document_name = hash64("chunk", settings["seed"], settings["copy"], document_id)
        i = 0
        while i < len(sentences):
            name = hash64(document_name, i)
            target = max_tokens
            if uniform("is_short", name) < settings["short_sequence_prob"]:
                target = 2 + int(below(max_tokens - 1, "target", name))
            chunk = fitting(sentences[i:], target)
            i += len(chunk)
            split = 1 + int(below(max(len(chunk) - 1, 1), "split", name))
            is_random = len(chunk) == 1 or bool(uniform("is_random_next", name) < 0.5)
            if len(cut_up) == 1:
                is_random = False
                if chunk == [chunk[0][:1]]:
                    losses[1] += 1
                    losses[2] += 1
                    continue
                chunk = in_two(chunk[0]) if len(chunk) == 1 else chunk
            a, b = (list(itertools.chain(*part)) for part in (chunk[:split], chunk[split:]))
            document_b = index
            if is_random:
                i -= len(chunk) - split
                others = [d for d in range(len(cut_up)) if d != index]
                for draw in ((name,), *((name, number) for number in range(1, 8))):
                    document_b = others[int(below(len(others), "document", *draw))]
                    drawn = cut_up[document_b][1]
                    drawn = drawn[int(below(len(drawn), "sentence", *draw)) :]
                    if len(drawn[0]) <= max_tokens - len(a):
                        break
                b = list(itertools.chain(*fitting(drawn, target - len(a))))
                b = cut(b, min(len(b), max_tokens - len(a)), ("front of B", name))
            rows.append((a, b, is_random, index, document_b, int(name)))
    return rows, losses


def make_case(case: int) -> tuple[Documents, dict[str, Any]]:
    """Documents and settings of all kinds, some of them extreme."""
    rng = np.random.default_rng(case)
    lengths = random_lengths(
        rng, int(rng.integers(1, 9)), int(rng.integers(1, 13)), int(rng.integers(1, 17))
    )
    documents = make_documents(lengths, rng.permutation(1_000)[: len(lengths)])
    return documents, {
        "max_tokens": int(rng.integers(2, 41)),
        "short_sequence_prob": float(rng.choice([0.0, 0.1, 1.0])),
        "seed": case,
        "copy": int(rng.integers(0, 3)),
    }


def draw(documents: Documents, objective: str, **settings: Any) -> tuple[Pairs, PairLosses]:
    """Pairs of equal targets, unless settings say otherwise."""
    plain = {"short_sequence_prob": 0.0, "balance": False, "truncate": False, "borders": PLAIN}
    return draw_pairs(documents, objective=objective, **{**plain, "seed": 0, "copy": 0, **settings})


def losses_of(losses: PairLosses) -> list[int]:
    return [losses.num_truncated_tokens, losses.num_dropped_sentences, losses.num_dropped_tokens]


@pytest.mark.parametrize("case", range(60))
def test_equals_the_classic_script(case: int) -> None:
    documents, settings = make_case(case)
    pairs, losses = draw(documents, "nsp", truncate=True, **settings)
    expected_rows, expected_losses = literal_pairs(documents, **settings)
    assert rows_of(documents, pairs) == expected_rows
    assert losses_of(losses) == expected_losses


@pytest.mark.parametrize("case", range(60))
def test_what_a_pair_cannot_hold_begins_the_next_one(case: int) -> None:
    documents, settings = make_case(case)
    pairs, losses = draw(documents, "nsp", **settings)
    expected_rows, expected_losses = literal_nsp(documents, settings)
    assert rows_of(documents, pairs) == expected_rows
    assert losses_of(losses) == expected_losses
    own = [a + b if a_of == b_of else a for a, b, _, a_of, b_of, _ in expected_rows]
    if not losses.num_dropped_tokens:
        assert list(itertools.chain(*own)) == documents.tokens.tolist()


@pytest.mark.parametrize("case", range(60))
def test_sentence_order_equals_a_literal_reading(case: int) -> None:
    documents, settings = make_case(case)
    pairs, losses = draw(documents, "sop", **settings)
    expected_rows, expected_losses = literal_sop(documents, settings)
    assert rows_of(documents, pairs) == expected_rows
    assert losses_of(losses) == expected_losses


@pytest.mark.parametrize("case", range(60))
def test_single_segments_equal_a_literal_reading_and_lose_nothing(case: int) -> None:
    documents, settings = make_case(case)
    pairs, losses = draw(documents, "none", **settings)
    chunks = literal_chunks(documents, 1, settings["max_tokens"], settings)
    expected: list[Row] = [
        (list(itertools.chain(*sentences)), [], False, index, index, int(name))
        for index, sentences, name in chunks
    ]
    assert rows_of(documents, pairs) == expected
    assert losses_of(losses) == [0, 0, 0]
    assert [token for a, *_ in expected for token in a] == documents.tokens.tolist()


@pytest.mark.parametrize("objective", [*OBJECTIVES, "truncated nsp"])
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("num_documents", [1, 2, 31])
def test_every_token_is_in_one_pair_and_no_pair_is_too_long(
    num_documents: int, balance: bool, objective: str
) -> None:
    rng = np.random.default_rng(num_documents)
    documents = make_documents(random_lengths(rng, num_documents, 40, 19))
    max_tokens, truncate = 29, objective == "truncated nsp"
    objective = objective.split()[-1]
    pairs, losses = draw(
        documents,
        objective,
        max_tokens=max_tokens,
        short_sequence_prob=0.1,
        balance=balance,
        truncate=truncate,
        seed=3,
        copy=1,
    )
    seen = np.zeros(documents.tokens.size, int)
    for a, b, label, document_a, document_b, _ in rows_of(documents, pairs):
        assert a and bool(b) == (objective != "none") and len(a) + len(b) <= max_tokens
        seen[np.array(a) - 100] += 1
        if document_a == document_b:
            seen[np.array(b, int) - 100] += 1
        expected = {"nsp": document_a != document_b, "sop": b[:1] < a[:1], "none": False}
        assert label == expected[objective]
        assert document_a == document_b or objective == "nsp"
    assert seen.max(initial=0) <= 1
    num_lost = losses.num_truncated_tokens + losses.num_dropped_tokens
    assert (seen == 0).sum() == num_lost
    assert (num_lost > 0) == truncate
    assert np.unique(pairs.name).size == len(pairs)


@pytest.mark.parametrize("objective", ["truncated nsp", *OBJECTIVES])
def test_text_without_a_known_piece_is_in_no_pair(objective: str) -> None:
    """A sample of it would have nothing to predict, which the format refuses."""
    rng = np.random.default_rng(5)
    documents = make_documents(random_lengths(rng, 60, 40, 19))
    document_of = np.repeat(np.arange(60), np.diff(documents.document_offsets))
    is_unknown = np.repeat(document_of % 3 == 0, np.diff(documents.sentence_offsets))
    is_unknown |= rng.random(is_unknown.size) < 0.7  # pieces of a long sentence, too
    documents.tokens[is_unknown] = 1
    truncate, objective = objective == "truncated nsp", objective.split()[-1]
    for seed in range(9):
        pairs, losses = draw(
            documents, objective, max_tokens=5, balance=True, truncate=truncate, seed=seed
        )
        num_own = 0
        for a, b, _, document_a, document_b, _ in rows_of(documents, pairs):
            assert {*a, *b} != {1}
            num_own += len(a) + len(b) * (document_a == document_b)
        num_lost = losses.num_truncated_tokens + losses.num_dropped_tokens
        assert num_own + num_lost == documents.tokens.size and losses.num_dropped_tokens > 0
        if objective != "none" and not truncate:
            assert abs(2 * np.count_nonzero(pairs.next_sentence_label) - len(pairs)) <= 2


def test_an_exact_small_case() -> None:
    """One document, one target: the second sentence must follow the first."""
    documents = make_documents([[3, 4]])
    pairs, losses = draw(documents, "nsp", max_tokens=13)
    [(a, b, *others, _)] = rows_of(documents, pairs)
    assert (a, b, others) == ([100, 101, 102], [103, 104, 105, 106], [False, 0, 0])
    assert (losses.num_truncated_tokens, losses.num_dropped_sentences) == (0, 0)


def test_documents_of_one_sentence_take_b_from_others_only() -> None:
    documents = make_documents([[length] for length in (3, 5, 2, 6, 4)])
    pairs, losses = draw(documents, "nsp", max_tokens=13, seed=1)
    assert pairs.next_sentence_label.all() and len(pairs) == 5
    assert (pairs.document_a != pairs.document_b).all()
    assert losses == PairLosses(0, 0, 0, 0)


def test_a_single_document_has_true_pairs_only() -> None:
    documents = make_documents([[2, 3, 11, 5, 6, 13, 1]])
    pairs, losses = draw(documents, "nsp", max_tokens=10, seed=1, truncate=True)
    # Chunks: [2 3 11], [5 6], [13], [1]
    assert not pairs.next_sentence_label.any()
    assert pairs.a_start.size == 2
    assert (losses.num_dropped_sentences, losses.num_dropped_tokens) == (2, 14)
    assert losses.num_truncated_tokens == (2 + 3 + 11 - 10) + (5 + 6 - 10)
    pairs, losses = draw(documents, "nsp", max_tokens=10, seed=1, balance=True)
    # Sentences 2 3 5 5 1 5 5 1 5 5 3 1, of which 2 3 5 | 5 1 | 5 5 | 1 5 | 5 3 1 fit
    assert not pairs.next_sentence_label.any()
    assert pairs.a_start.tolist() == [0, 10, 16, 26, 32]
    assert losses == PairLosses(0, 0, 0, num_cuts_in_sentences=5)


def test_a_random_b_ends_with_a_sentence_as_a_true_one_does() -> None:
    rng = np.random.default_rng(13)
    documents = make_documents(random_lengths(rng, 500, 50, 31))
    pairs, _ = draw(documents, "nsp", max_tokens=62, seed=2)
    ends = np.isin(pairs.b_stop, documents.sentence_offsets)
    label = pairs.next_sentence_label
    assert ends[~label].all() and ends[label].mean() > 0.99  # else none of eight draws fits
    lengths = pairs.a_stop - pairs.a_start + pairs.b_stop - pairs.b_start
    assert abs(lengths[label].mean() / lengths[~label].mean() - 1) < 0.15


def test_other_documents_and_sides_of_truncation_are_drawn_evenly() -> None:
    documents = make_documents([[9] * 2_000, [9], [9], [9]])
    pairs, _ = draw(documents, "nsp", max_tokens=13, seed=5, truncate=True)
    random = pairs.take(np.flatnonzero(pairs.next_sentence_label & (pairs.document_a == 0)))
    counts = np.bincount(random.document_b, minlength=4)
    assert counts[0] == 0
    assert abs(counts[1:] / counts.sum() - 1 / 3).max() < 0.08  # 700 draws, sigma 0.018
    front = random.a_start % 9  # tokens cut in front: 0, 1 or 2 of A's 9
    assert abs(np.bincount(front)[:3] / front.size - 1 / 3).max() < 0.08


def test_share_of_random_next_and_of_short_targets() -> None:
    rng = np.random.default_rng(11)
    documents = make_documents(random_lengths(rng, 900, 50, 41))
    pairs, _ = draw(documents, "nsp", max_tokens=125, short_sequence_prob=0.1, seed=2)
    assert 0.48 < pairs.next_sentence_label.mean() < 0.56
    lengths = (pairs.a_stop - pairs.a_start) + (pairs.b_stop - pairs.b_start)
    assert lengths.max() == 125
    without, _ = draw(documents, "nsp", max_tokens=125, seed=2)
    assert len(pairs) > 1.02 * len(without)


def test_the_order_of_segments_needs_two_sentences() -> None:
    settings: dict[str, Any] = {"max_tokens": 9, "seed": 4}
    chunks = {  # sentences -> tokens of each chunk
        (3, 4): [7],
        (3, 3, 3): [9],
        (3, 3, 3, 3): [6, 6],  # three fit, which would leave one
        (3, 3, 3, 3, 3): [9, 6],
        (4, 4, 4): [8, 4],  # the last one is cut in two
    }
    for lengths, sizes in chunks.items():
        documents = make_documents([list(lengths)])
        pairs, losses = draw(documents, "sop", **settings)
        num_tokens = pairs.a_stop - pairs.a_start + pairs.b_stop - pairs.b_start
        assert num_tokens.tolist() == sizes
        assert losses == PairLosses(0, 0, 0, num_cuts_in_sentences=int(lengths == (4, 4, 4)))
    documents = make_documents([[4], [3, 2], [1]])
    pairs, losses = draw(documents, "sop", **settings)
    assert pairs.document_a.tolist() == [0, 1]
    assert losses == PairLosses(0, 1, 1, num_cuts_in_sentences=1)


def test_single_segments_end_with_a_sentence_that_fits_and_cut_only_what_cannot() -> None:
    documents = make_documents([[4, 5, 1, 23, 2, 6], [1]])
    pairs, _ = draw(documents, "none", max_tokens=10, balance=True)  # there is nothing to balance
    #   4 5 1 | 10 | 10 | 3 2 | 6 || 1, the sentence of 23 cut
    assert (pairs.a_stop - pairs.a_start).tolist() == [10, 10, 10, 5, 6, 1]
    assert pairs.document_a.tolist() == [0, 0, 0, 0, 0, 1]


def test_half_of_all_pairs_are_swapped() -> None:
    documents = make_documents(random_lengths(np.random.default_rng(7), 900, 50, 41))
    pairs, _ = draw(documents, "sop", max_tokens=125, short_sequence_prob=0.1, seed=2)
    assert len(pairs) > 3_500
    assert 0.47 < pairs.next_sentence_label.mean() < 0.53  # sigma 0.008
    is_first = np.unique(pairs.document_a, return_index=True)[1]
    assert 0.43 < pairs.next_sentence_label[is_first].mean() < 0.57  # 900 pairs, sigma 0.017


@pytest.mark.parametrize("objective", ["nsp", "sop"])
@pytest.mark.parametrize("seed", range(12))
def test_exactly_half_of_balanced_pairs_are_random_or_swapped(seed: int, objective: str) -> None:
    rng = np.random.default_rng(seed)
    documents = make_documents(random_lengths(rng, int(rng.integers(40, 300)), 50, 41))
    settings: dict[str, Any] = {"max_tokens": 61, "short_sequence_prob": 0.1, "seed": seed}
    pairs, losses = draw(documents, objective, balance=True, **settings)
    assert len(pairs) > 400
    assert 2 * np.count_nonzero(pairs.next_sentence_label) == len(pairs)
    assert losses.num_truncated_tokens == 0
    # A single token, alone in its chunk, has no order.
    assert losses.num_dropped_tokens == losses.num_dropped_sentences <= (objective == "sop")
    _, plain_losses = draw(documents, objective, **settings)
    # Few pairs are cut for it, each at most once more than it would be.
    assert losses.num_cuts_in_sentences <= plain_losses.num_cuts_in_sentences + len(pairs) // 100


def test_balanced_pairs_of_the_classic_script_lose_what_exceeds_the_length_alone() -> None:
    documents = make_documents(random_lengths(np.random.default_rng(1), 200, 50, 41))
    pairs, losses = draw(documents, "nsp", max_tokens=61, balance=True, truncate=True)
    assert 2 * np.count_nonzero(pairs.next_sentence_label) == len(pairs) > 400
    assert losses.num_truncated_tokens > 0 == losses.num_dropped_tokens


def test_single_sentences_are_cut_in_two_where_too_many_pairs_would_be_random() -> None:
    documents = make_documents([[9]] * 90 + [[5, 5]] * 20)
    places = []
    for seed in range(40):
        pairs, losses = draw(documents, "nsp", max_tokens=19, balance=True, seed=seed)
        assert 2 * np.count_nonzero(pairs.next_sentence_label) == len(pairs) == 110
        assert losses == PairLosses(0, 0, 0, num_cuts_in_sentences=35)
        assert set(pairs.document_a.tolist()) == set(range(110))
        is_cut = ~pairs.next_sentence_label & (pairs.document_a < 90)
        assert np.all((pairs.a_stop - pairs.a_start)[is_cut] == 7)
        places += pairs.document_a[is_cut].tolist()
    assert len(places) == 35 * 40
    assert abs(np.mean(places) - 44.5) < 3  # drawn, not from one end; sigma 0.7


@pytest.mark.parametrize("lengths", [[[3], [4], [5]], [[2, 2], [9]], [[3] * 5, [2], [3] * 8]])
def test_few_documents_are_balanced_too(lengths: list[list[int]]) -> None:
    documents = make_documents(lengths)
    for seed in range(30):
        pairs, losses = draw(documents, "nsp", max_tokens=17, balance=True, seed=seed)
        assert 2 * np.count_nonzero(pairs.next_sentence_label) == len(pairs) > 0
        assert losses.num_dropped_tokens == losses.num_truncated_tokens == 0
        assert np.unique(pairs.name).size == len(pairs)


def test_an_odd_number_of_swapped_pairs_is_made_even() -> None:
    documents = make_documents([[2, 2], [3, 2], [4, 3]])
    pairs, losses = draw(documents, "sop", max_tokens=9, balance=True)
    assert len(pairs) == 4 and np.count_nonzero(pairs.next_sentence_label) == 2
    tokens = np.concatenate([a + b for a, b, *_ in rows_of(documents, pairs)])
    assert sorted(tokens.tolist()) == documents.tokens.tolist()
    assert np.unique(pairs.name).size == 4 and losses.num_dropped_tokens == 0


def test_draws_depend_on_seed_and_copy_and_not_on_the_other_documents() -> None:
    lengths = random_lengths(np.random.default_rng(3), 23, 30, 17)
    documents = make_documents(lengths)

    def drawn(documents: Documents, objective: str, seed: int = 1, copy: int = 0) -> list[Row]:
        pairs, _ = draw(
            documents, objective, max_tokens=37, short_sequence_prob=0.1, seed=seed, copy=copy
        )
        return rows_of(documents, pairs)

    alone = make_documents(lengths[:5])  # the first documents keep their tokens and ids
    for objective in OBJECTIVES:
        rows = drawn(documents, objective)
        assert drawn(documents, objective) == rows
        assert drawn(documents, objective, seed=2) != rows
        assert drawn(documents, objective, copy=1) != rows
        own = [row for row in rows if row[3] < 5]
        if objective == "nsp":  # a random B is from any document
            own = [row for row in own if not row[2]]
            assert own == [row for row in drawn(alone, objective) if not row[2]]
        else:
            assert own == drawn(alone, objective)


def test_assemble_puts_special_ids_around_the_segments() -> None:
    documents = make_documents(random_lengths(np.random.default_rng(4), 11, 12, 9))
    pairs, _ = draw(documents, "nsp", max_tokens=21, short_sequence_prob=0.1, seed=2)
    pairs = pairs.take(np.arange(len(pairs))[::-2])
    original_ids, num_tokens, segment_b_start = assemble(documents, pairs, cls_id=2, sep_id=3)
    rows = rows_of(documents, pairs)
    assert original_ids.shape == (len(rows), num_tokens.max())
    assert original_ids.dtype == documents.tokens.dtype
    for n, (a, b, *_) in enumerate(rows):
        padding = [0] * (original_ids.shape[1] - num_tokens[n])
        assert original_ids[n].tolist() == [2, *a, 3, *b, 3, *padding]
        assert original_ids[n, segment_b_start[n]] == b[0]


def test_assemble_ends_a_single_segment_with_the_only_separator() -> None:
    documents = make_documents([[3, 2], [4]])
    pairs, _ = draw(documents, "none", max_tokens=6)
    original_ids, num_tokens, segment_b_start = assemble(documents, pairs, cls_id=2, sep_id=3)
    assert original_ids.tolist() == [
        [2, 100, 101, 102, 103, 104, 3],
        [2, 105, 106, 107, 108, 3, 0],
    ]
    assert num_tokens.tolist() == segment_b_start.tolist() == [7, 6]


@pytest.mark.parametrize(
    "sentence_offsets,document_offsets,document_ids",
    [
        ([0, 2, 2, 5], [0, 3], [1]),  # an empty sentence
        ([0, 2, 5], [0, 2, 2], [1, 2]),  # an empty document
        ([0, 2, 5], [0, 1, 2], [1, 1]),  # an id twice
        ([0, 2, 4], [0, 2], [1]),  # tokens of no sentence
    ],
)
def test_broken_documents_are_noticed(
    sentence_offsets: list[int], document_offsets: list[int], document_ids: list[int]
) -> None:
    with pytest.raises(AssertionError):
        Documents(np.arange(5), *map(np.array, (sentence_offsets, document_offsets, document_ids)))
