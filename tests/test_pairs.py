"""Pairs: equal to literal rewrites of the recipes with the same draws, and no text lost."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.pairs import Documents, PairLosses, Pairs, assemble, draw_pairs
from dist_bert.hashing import below, hash64, uniform

Row = tuple[list[int], list[int], bool, int, int, int]
OBJECTIVES = ("nsp", "sop", "none")


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
        Rows (A, B, label, index of A's and of B's document, first sentence), and the truncated
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
                    rows.append((a, b, is_random, index, document_b, first))
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
            int(pairs.first_sentence[n]),
        )
        for n in range(len(pairs))
    ]


def literal_chunks(
    documents: Documents, least: int, settings: dict[str, Any]
) -> list[tuple[int, int, list[list[int]], Any]]:
    """Chunks of whole sentences that fit the target: document, first sentence, sentences, name."""
    tokens, offsets = documents.tokens.tolist(), documents.sentence_offsets.tolist()
    max_tokens = settings["max_tokens"]
    chunks = []
    for index, (begin, end) in enumerate(itertools.pairwise(documents.document_offsets)):
        sentences = [tokens[i:j] for i, j in itertools.pairwise(offsets[begin : end + 1])]
        if least == 1:  # any sentence must fit by itself
            pieces = [
                [t[i : i + max_tokens] for i in range(0, len(t), max_tokens)] for t in sentences
            ]
            sentences = list(itertools.chain(*pieces))
        document_id = int(documents.document_ids[index])
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
            if least == 2 and len(sentences) - stop == 1:
                stop = stop - 1 if stop - i > 2 else len(sentences)
            chunks.append((index, i, sentences[i:stop], name))
            i = stop
    return chunks


def literal_sop(documents: Documents, settings: dict[str, Any]) -> tuple[list[Row], list[int]]:
    """As `literal_pairs`, for the order of two segments."""
    rows: list[Row] = []
    losses = [0, 0, 0]
    for index, first, sentences, name in literal_chunks(documents, 2, settings):
        if len(sentences) == 1:
            losses[1] += 1
            losses[2] += len(sentences[0])
            continue
        split = 1 + int(below(len(sentences) - 1, "split", name))
        parts = [list(itertools.chain(*part)) for part in (sentences[:split], sentences[split:])]
        is_swapped = bool(uniform("is_random_next", name) < 0.5)
        a, b = parts[::-1] if is_swapped else parts
        num_a, num_b = literal_truncation(len(a), len(b), settings["max_tokens"])
        losses[0] += len(a) - num_a + len(b) - num_b
        a, b = cut(a, num_a, ("front of A", name)), cut(b, num_b, ("front of B", name))
        rows.append((a, b, is_swapped, index, index, first))
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
    plain = {"short_sequence_prob": 0.0, "balance": False, "seed": 0, "copy": 0}
    return draw_pairs(documents, objective=objective, **{**plain, **settings})


def losses_of(losses: PairLosses) -> list[int]:
    assert losses.num_dropped_pairs == 0
    return [losses.num_truncated_tokens, losses.num_dropped_sentences, losses.num_dropped_tokens]


@pytest.mark.parametrize("case", range(60))
def test_equals_the_classic_script(case: int) -> None:
    documents, settings = make_case(case)
    pairs, losses = draw(documents, "nsp", **settings)
    expected_rows, expected_losses = literal_pairs(documents, **settings)
    assert rows_of(documents, pairs) == expected_rows
    assert losses_of(losses) == expected_losses


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
    expected: list[Row] = [
        (list(itertools.chain(*sentences)), [], False, index, index, first)
        for index, first, sentences, _ in literal_chunks(documents, 1, settings)
    ]
    assert rows_of(documents, pairs) == expected
    assert losses_of(losses) == [0, 0, 0]
    assert [token for a, *_ in expected for token in a] == documents.tokens.tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("num_documents", [1, 2, 31])
def test_no_text_is_lost_and_no_pair_is_too_long(
    num_documents: int, balance: bool, objective: str
) -> None:
    rng = np.random.default_rng(num_documents)
    documents = make_documents(random_lengths(rng, num_documents, 40, 19))
    max_tokens = 29
    pairs, losses = draw(
        documents,
        objective,
        max_tokens=max_tokens,
        short_sequence_prob=0.1,
        balance=balance,
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
    assert (seen == 0).sum() == losses.num_truncated_tokens + losses.num_dropped_tokens


def test_an_exact_small_case() -> None:
    """One document, one target: the second sentence must follow the first."""
    documents = make_documents([[3, 4]])
    pairs, losses = draw(documents, "nsp", max_tokens=13)
    assert rows_of(documents, pairs) == [([100, 101, 102], [103, 104, 105, 106], False, 0, 0, 0)]
    assert (losses.num_truncated_tokens, losses.num_dropped_sentences) == (0, 0)


def test_documents_of_one_sentence_take_b_from_others_only() -> None:
    documents = make_documents([[length] for length in (3, 5, 2, 7, 4)])
    pairs, losses = draw(documents, "nsp", max_tokens=13, seed=1)
    assert pairs.next_sentence_label.all() and len(pairs) == 5
    assert (pairs.document_a != pairs.document_b).all()
    assert losses.num_dropped_sentences == 0


def test_a_single_document_has_true_pairs_only_and_drops_chunks_of_one_sentence() -> None:
    documents = make_documents([[2, 3, 11, 5, 6, 13, 1]])
    pairs, losses = draw(documents, "nsp", max_tokens=10, seed=1)
    # Chunks: [2 3 11], [5 6], [13], [1]
    assert not pairs.next_sentence_label.any()
    assert pairs.first_sentence.tolist() == [0, 3]
    assert (losses.num_dropped_sentences, losses.num_dropped_tokens) == (2, 14)
    assert losses.num_truncated_tokens == (2 + 3 + 11 - 10) + (5 + 6 - 10)


def test_other_documents_and_sides_of_truncation_are_drawn_evenly() -> None:
    documents = make_documents([[9] * 2_000, [9], [9], [9]])
    pairs, _ = draw(documents, "nsp", max_tokens=13, seed=5)
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


def test_the_order_of_segments_needs_two_sentences_and_leaves_none_alone() -> None:
    settings: dict[str, Any] = {"max_tokens": 9, "seed": 4}
    chunks = {  # sentences -> sentences of each chunk
        (3, 4): [2],
        (3, 3, 3): [3],
        (3, 3, 3, 3): [2, 2],  # three fit, which would leave one
        (3, 3, 3, 3, 3): [3, 2],
        (4, 4, 4): [3],  # two fit: the third is taken in
        (20, 1, 1, 20): [2, 2],  # no chunk of one sentence, however long
    }
    for lengths, sizes in chunks.items():
        documents = make_documents([list(lengths)])
        pairs, losses = draw(documents, "sop", **settings)
        starts = [0, *itertools.accumulate(sizes)]
        assert pairs.first_sentence.tolist() == starts[:-1]
        num_over = sum(max(0, sum(lengths[i:j]) - 9) for i, j in itertools.pairwise(starts))
        assert losses_of(losses) == [num_over, 0, 0]
    documents = make_documents([[5], [3, 2], [7]])
    pairs, losses = draw(documents, "sop", **settings)
    assert pairs.document_a.tolist() == [1]
    assert losses_of(losses) == [0, 2, 12]


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
    is_first = pairs.first_sentence == 0
    assert 0.43 < pairs.next_sentence_label[is_first].mean() < 0.57  # 870 pairs, sigma 0.017


@pytest.mark.parametrize("objective", ["nsp", "sop"])
@pytest.mark.parametrize("seed", range(12))
def test_balanced_pairs_are_random_or_swapped_in_exactly_half(seed: int, objective: str) -> None:
    rng = np.random.default_rng(seed)
    documents = make_documents(random_lengths(rng, int(rng.integers(40, 300)), 50, 41))
    settings: dict[str, Any] = {"max_tokens": 61, "short_sequence_prob": 0.1, "seed": seed}
    pairs, losses = draw(documents, objective, balance=True, **settings)
    assert len(pairs) > 400
    assert 2 * np.count_nonzero(pairs.next_sentence_label) == len(pairs)
    # Pairs are dropped for what no threshold mends: the odd one, rarely a few more.
    assert losses.num_dropped_pairs <= (1 if objective == "sop" else 4)
    own_tokens = losses.num_dropped_tokens
    if objective == "sop":
        plain, plain_losses = draw(documents, objective, **settings)
        assert losses.num_dropped_pairs == len(plain) % 2  # the chunks are the same
        assert losses.num_dropped_sentences == plain_losses.num_dropped_sentences > 0
        own_tokens -= plain_losses.num_dropped_tokens
    assert (own_tokens > 0) == (losses.num_dropped_pairs > 0)
    assert own_tokens <= losses.num_dropped_pairs * (61 + 2 * 41)


def test_what_balance_drops_is_drawn_and_not_always_from_one_end() -> None:
    documents = make_documents([[9]] * 30 + [[5, 5]] * 20)  # 30 pairs can only be random
    places = []
    for seed in range(40):
        pairs, losses = draw(documents, "nsp", max_tokens=10, balance=True, seed=seed)
        assert 2 * np.count_nonzero(pairs.next_sentence_label) == len(pairs) == 40
        assert (losses.num_dropped_pairs, losses.num_dropped_tokens) == (10, 90)
        places += sorted(set(range(30)) - set(pairs.document_a.tolist()))
    assert len(places) == 400
    assert abs(np.mean(places) - 14.5) < 2  # sigma 0.43


@pytest.mark.parametrize("lengths", [[[3], [4], [5]], [[3, 4, 5, 6]]])
def test_where_half_cannot_be_random_nothing_is_left(lengths: list[list[int]]) -> None:
    documents = make_documents(lengths)
    pairs, losses = draw(documents, "nsp", max_tokens=7, balance=True)
    assert len(pairs) == 0
    assert losses.num_dropped_tokens == documents.tokens.size


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
