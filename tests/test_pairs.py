"""Pairs: equal to a literal rewrite of the classic script with the same draws, and no text lost."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.pairs import Documents, Pairs, assemble, draw_pairs
from dist_bert.hashing import below, hash64, uniform

Row = tuple[list[int], list[int], bool, int, int, int]


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
        Rows (A, B, is_random_next, index of A's and of B's document, first sentence), and the
        truncated tokens, dropped sentences and dropped tokens of the own text.
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
            bool(pairs.is_random_next[n]),
            int(pairs.document_a[n]),
            int(pairs.document_b[n]),
            int(pairs.first_sentence[n]),
        )
        for n in range(len(pairs))
    ]


@pytest.mark.parametrize("case", range(60))
def test_equals_the_classic_script(case: int) -> None:
    rng = np.random.default_rng(case)
    lengths = random_lengths(
        rng, int(rng.integers(1, 9)), int(rng.integers(1, 13)), int(rng.integers(1, 17))
    )
    documents = make_documents(lengths, rng.permutation(1_000)[: len(lengths)])
    settings: dict[str, Any] = {
        "max_tokens": int(rng.integers(2, 41)),
        "short_sequence_prob": float(rng.choice([0.0, 0.1, 1.0])),
        "seed": case,
        "copy": int(rng.integers(0, 3)),
    }
    pairs, losses = draw_pairs(documents, **settings)
    expected_rows, expected_losses = literal_pairs(documents, **settings)
    assert rows_of(documents, pairs) == expected_rows
    counts = [
        losses.num_truncated_tokens,
        losses.num_dropped_sentences,
        losses.num_dropped_tokens,
    ]
    assert counts == expected_losses


@pytest.mark.parametrize("num_documents", [1, 2, 31])
def test_no_text_is_lost_and_no_pair_is_too_long(num_documents: int) -> None:
    rng = np.random.default_rng(num_documents)
    documents = make_documents(random_lengths(rng, num_documents, 40, 19))
    max_tokens = 29
    pairs, losses = draw_pairs(
        documents, max_tokens=max_tokens, short_sequence_prob=0.1, seed=3, copy=1
    )
    seen = np.zeros(documents.tokens.size, int)
    for a, b, is_random, document_a, document_b, _ in rows_of(documents, pairs):
        assert a and b and len(a) + len(b) <= max_tokens
        assert is_random == (document_a != document_b)
        seen[np.array(a) - 100] += 1
        if not is_random:
            seen[np.array(b) - 100] += 1
    assert seen.max() == 1
    assert (seen == 0).sum() == losses.num_truncated_tokens + losses.num_dropped_tokens


def test_an_exact_small_case() -> None:
    """One document, one target: the second sentence must follow the first."""
    documents = make_documents([[3, 4]])
    pairs, losses = draw_pairs(documents, max_tokens=13, short_sequence_prob=0.0, seed=0, copy=0)
    assert rows_of(documents, pairs) == [([100, 101, 102], [103, 104, 105, 106], False, 0, 0, 0)]
    assert (losses.num_truncated_tokens, losses.num_dropped_sentences) == (0, 0)


def test_documents_of_one_sentence_take_b_from_others_only() -> None:
    documents = make_documents([[length] for length in (3, 5, 2, 7, 4)])
    pairs, losses = draw_pairs(documents, max_tokens=13, short_sequence_prob=0.0, seed=1, copy=0)
    assert pairs.is_random_next.all() and len(pairs) == 5
    assert (pairs.document_a != pairs.document_b).all()
    assert losses.num_dropped_sentences == 0


def test_a_single_document_has_true_pairs_only_and_drops_chunks_of_one_sentence() -> None:
    documents = make_documents([[2, 3, 11, 5, 6, 13, 1]])
    pairs, losses = draw_pairs(documents, max_tokens=10, short_sequence_prob=0.0, seed=1, copy=0)
    # Chunks: [2 3 11], [5 6], [13], [1]
    assert not pairs.is_random_next.any()
    assert pairs.first_sentence.tolist() == [0, 3]
    assert (losses.num_dropped_sentences, losses.num_dropped_tokens) == (2, 14)
    assert losses.num_truncated_tokens == (2 + 3 + 11 - 10) + (5 + 6 - 10)


def test_other_documents_and_sides_of_truncation_are_drawn_evenly() -> None:
    documents = make_documents([[9] * 2_000, [9], [9], [9]])
    pairs, _ = draw_pairs(documents, max_tokens=13, short_sequence_prob=0.0, seed=5, copy=0)
    random = pairs.take(np.flatnonzero(pairs.is_random_next & (pairs.document_a == 0)))
    counts = np.bincount(random.document_b, minlength=4)
    assert counts[0] == 0
    assert abs(counts[1:] / counts.sum() - 1 / 3).max() < 0.08  # 700 draws, sigma 0.018
    front = random.a_start % 9  # tokens cut in front: 0, 1 or 2 of A's 9
    assert abs(np.bincount(front)[:3] / front.size - 1 / 3).max() < 0.08


def test_share_of_random_next_and_of_short_targets() -> None:
    rng = np.random.default_rng(11)
    documents = make_documents(random_lengths(rng, 900, 50, 41))
    pairs, _ = draw_pairs(documents, max_tokens=125, short_sequence_prob=0.1, seed=2, copy=0)
    assert 0.48 < pairs.is_random_next.mean() < 0.56
    lengths = (pairs.a_stop - pairs.a_start) + (pairs.b_stop - pairs.b_start)
    assert lengths.max() == 125
    without, _ = draw_pairs(documents, max_tokens=125, short_sequence_prob=0.0, seed=2, copy=0)
    assert len(pairs) > 1.02 * len(without)


def test_draws_depend_on_seed_and_copy_and_not_on_the_other_documents() -> None:
    lengths = random_lengths(np.random.default_rng(3), 23, 30, 17)
    documents = make_documents(lengths)

    def drawn(documents: Documents, seed: int = 1, copy: int = 0) -> list[Row]:
        pairs, _ = draw_pairs(
            documents, max_tokens=37, short_sequence_prob=0.1, seed=seed, copy=copy
        )
        return rows_of(documents, pairs)

    assert drawn(documents) == drawn(documents)
    assert drawn(documents) != drawn(documents, seed=2)
    assert drawn(documents) != drawn(documents, copy=1)
    alone = make_documents(lengths[:5])  # the first documents keep their tokens and ids
    own = [row for row in drawn(documents) if row[3] < 5]
    assert [(a, is_random, first) for a, _, is_random, _, _, first in own if not is_random] == [
        (a, is_random, first) for a, _, is_random, _, _, first in drawn(alone) if not is_random
    ]


def test_assemble_puts_special_ids_around_the_segments() -> None:
    documents = make_documents(random_lengths(np.random.default_rng(4), 11, 12, 9))
    pairs, _ = draw_pairs(documents, max_tokens=21, short_sequence_prob=0.1, seed=2, copy=0)
    pairs = pairs.take(np.arange(len(pairs))[::-2])
    original_ids, num_tokens, segment_b_start = assemble(documents, pairs, cls_id=2, sep_id=3)
    rows = rows_of(documents, pairs)
    assert original_ids.shape == (len(rows), num_tokens.max())
    assert original_ids.dtype == documents.tokens.dtype
    for n, (a, b, *_) in enumerate(rows):
        padding = [0] * (original_ids.shape[1] - num_tokens[n])
        assert original_ids[n].tolist() == [2, *a, 3, *b, 3, *padding]
        assert original_ids[n, segment_b_start[n]] == b[0]


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
