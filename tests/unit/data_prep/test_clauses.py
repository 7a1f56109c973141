"""Long sentences: cut at a clause mark, else a space, else a character, and nothing lost."""

import random
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.clauses import MOST_CHARACTERS, PieceBorders, best_cuts, cut_texts, cuts_of_long
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.support.corpus import chinese_sentences, english_sentences
from tests.support.published import byte_level_tokenizer, write_byte_level


def test_short_sentences_are_left_alone() -> None:
    sentences = ["One.", "x" * MOST_CHARACTERS]
    assert cut_texts(sentences) is sentences
    assert cut_texts([]) == []


@pytest.mark.parametrize(
    ("unit", "end"),
    [
        ("word and word, ", ","),
        ("word 1,000 word (and so), ", "),"),
        ("word and word ", "d"),
        ("คำและคำ ", "ำ"),
        ("字字字字字字，", "，"),
        ("字字字字字字", "字"),
        ("བོད་ཡིག་", "་"),
        ("ቃልና፡ቃል፣", "፣"),
        ("ខ្មែរ\u200bអក្សរ\u200b", "\u200b"),
        ("क्षत्रिय", ""),
        ("e\u0301", "\u0301"),
    ],
)
def test_the_best_border_is_taken(unit: str, end: str) -> None:
    text = (unit * 2_000).strip()
    pieces = cut_texts(["Before.", text, "Behind."])
    assert (pieces[0], pieces[-1]) == ("Before.", "Behind.")
    pieces = pieces[1:-1]
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(piece) <= MOST_CHARACTERS for piece in pieces)
    assert min(map(len, pieces)) >= MOST_CHARACTERS // 4 - 1  # less the space behind
    assert all(piece.endswith(end) for piece in pieces)
    assert not any(piece[0] in "\u0301\u094d\u093f" for piece in pieces), "inside a character"


def test_no_character_is_lost_and_time_is_linear() -> None:
    rng = random.Random(1)
    for _ in range(30):
        text = "".join(rng.choices("ab 中,。 \u200c\u0301་،1", k=rng.randrange(9_000))).strip()
        pieces = cut_texts([text])
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(0 < len(piece) <= MOST_CHARACTERS for piece in pieces)
    start = time.process_time()
    assert len(cut_texts(["x" * 1_000_000])) == 1_000
    assert cut_texts([" " * 1_000_000 + "x"]) == ["x"]
    assert time.process_time() - start < 20


# Pieces: 0 in a word, 1 begins one, 2 a comma, 3 a byte that continues, 4 an ideographic comma.
BORDERS = PieceBorders(
    ends=np.array([0, 0, 1, 0, 3], np.uint8), starts=np.array([1, 2, 1, 0, 1], np.uint8)
)


@pytest.mark.parametrize(
    ("tokens", "least", "most", "expected"),
    [
        ([1, 1, 1, 1, 1, 1], 1, 4, 4),  # the last one
        ([1, 1, 2, 1, 1, 1], 1, 4, 3),  # behind a comma
        ([1, 1, 2, 0, 1, 0], 1, 5, 4),  # a comma inside a number is none
        ([1, 0, 4, 0, 1, 0], 1, 5, 3),  # but one of a script without spaces is
        ([1, 1, 2, 1, 0, 0], 4, 5, 5),  # out of reach
        ([1, 0, 0, 0, 3, 3], 1, 5, 3),  # not inside a character
        ([1, 0, 0, 0, 3, 3], 4, 5, 5),  # unless it must be
    ],
)
def test_tokens_are_cut_at_the_last_best_border(
    tokens: list[int], least: int, most: int, expected: int
) -> None:
    around = np.array([0, *tokens, 0])
    cut = best_cuts(around, np.array([1]), np.array([least]), np.array([most]), BORDERS)
    assert cut.tolist() == [expected]


def test_long_sentences_of_tokens_come_in_pieces_of_a_quarter_or_more() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 400, 300)
    offsets = np.cumsum([0, *lengths])
    tokens = rng.integers(0, 5, offsets[-1])
    cuts = cuts_of_long(tokens, offsets, 40, BORDERS)
    pieces = np.diff(np.sort(np.concatenate((offsets, cuts))))
    assert pieces.max() <= 40
    is_cut = np.isin(np.arange(300), np.searchsorted(offsets, cuts, "right") - 1)
    assert np.array_equal(is_cut, lengths > 40)
    borders = np.sort(np.concatenate((offsets, cuts)))
    for i in np.flatnonzero(is_cut):
        own = borders[(borders >= offsets[i]) & (borders <= offsets[i + 1])]
        assert np.diff(own).min() >= 10
    assert cuts_of_long(tokens, offsets, 400, BORDERS).size == 0


def test_pieces_of_a_tokenizer_know_their_borders(tmp_path: Path) -> None:
    sentences = english_sentences(900, seed=1) + chinese_sentences(300, seed=2)
    config = TokenizerConfig(vocab_size=901, byte_fallback=True, character_coverage=1.0)
    tokenizer = Tokenizer(train_tokenizer(sentences, tmp_path, config))
    borders = PieceBorders.of(tokenizer)
    found = {
        tokenizer.piece(i): (int(borders.ends[i]), int(borders.starts[i]))
        for i in range(tokenizer.vocab_size)
    }
    assert found[","] == (1, 1)  # NFKC makes the ideographic one of it
    assert found["。"] == (3, 1)
    assert found["▁The"] == found["灯笼"] == (0, 2)
    assert found["s"] == (0, 1)
    assert found["<0xE4>"] == (0, 1) and found["<0x80>"] == (0, 0)
    text = "The lamp, the lamp of the captain\U0001f600"  # four bytes
    ids = np.array(tokenizer.encode(text))
    quality = borders.quality(ids[:-1], ids[1:]).tolist()
    assert quality[-3:] == [0, 0, 0] and quality.count(0) == 3
    assert [i for i, value in enumerate(quality) if value == 3] == [
        len(tokenizer.encode("The lamp,")) - 1
    ]


def test_no_character_is_cut_between_its_bytes(tmp_path: Path) -> None:
    write_byte_level(tmp_path, byte_level_tokenizer())
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    borders = PieceBorders.of(tokenizer)
    ids = np.array(tokenizer.encode("The le, the\U0001f600 le"))
    pieces = ["The", "▁", "le", ",", "▁the", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "▁", "le"]
    assert [tokenizer.piece(i) for i in ids.tolist()] == pieces
    assert borders.quality(ids[:-1], ids[1:]).tolist() == [2, 1, 1, 3, 0, 0, 0, 0, 2, 1]
