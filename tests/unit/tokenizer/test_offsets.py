"""Pieces and where they come from in the text as given; the pieces of words."""

import random
from typing import Any

import numpy as np
import pytest
import sentencepiece

from dist_bert.huggingface.tokenizer import ODD_TEXTS
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.sentence_pieces import SPACE
from dist_bert.tokenizer.tokenizer import UNK_ID, Tokenizer, train_tokenizer
from tests.support.corpus import chinese_sentences, english_sentences

SENTENCES = english_sentences(700, seed=1) + chinese_sentences(300, seed=2)
UNSEEN = english_sentences(200, seed=3) + chinese_sentences(200, seed=4)
KINDS = [
    ("unigram", 0, 0, "nmt_nfkc"),
    ("unigram", 1, 1, "nfkc"),
    ("bpe", 1, 0, "nmt_nfkc"),
    ("bpe", 0, 1, "nmt_nfkc"),
    ("unigram", 0, 0, "identity"),
    ("bpe", 0, 1, "rules"),
]
RULES = "41\t61\nbd\t31 2f 32\n65 301\te9\n1\t\n2026\t2e 2e 2e\n3000\t20\n200b\t20\n"


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of both kinds, cased and uncased, without and with bytes, with every kind of rules."""
    kind, lower_case, byte_fallback, normalization = request.param
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "rules").write_text(RULES)
    config = TokenizerConfig(
        vocab_size=640,
        model_type=kind,
        lower_case=bool(lower_case),
        byte_fallback=bool(byte_fallback),
        normalization=str(folder / "rules") if normalization == "rules" else normalization,
    )
    return Tokenizer(train_tokenizer(SENTENCES, folder, config))


def mixtures(count: int) -> list[str]:
    """Texts whose neighbouring characters come from anywhere."""
    rng = random.Random(5)
    characters = "".join(ODD_TEXTS) + "  \u200b\x01▁" * 20 + "½㎏ﬁﷺ¨e\u0301ﾊﾟ" * 5
    return [
        "".join(
            rng.choice([rng.choice(characters), rng.choice(UNSEEN)[: rng.randrange(9)]])
            for _ in range(rng.randrange(30))
        )
        for _ in range(count)
    ]


def needs_nfkc(tokenizer: Tokenizer) -> None:
    if tokenizer.encode("Ａ") != tokenizer.encode("A"):
        pytest.skip("what is expected here is NFKC")


def written(tokenizer: Tokenizer, ids: list[int]) -> list[str | None]:
    """What pieces say; None of those that do not: unknown ones and bytes."""
    first = tokenizer.num_reserved_pieces
    return [tokenizer.piece(i).replace(SPACE, "") if i >= first else None for i in ids]


def test_every_visible_character_is_in_the_stretch_of_its_pieces(tokenizer: Tokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    num_exact = 0
    for text in [*UNSEEN, " ".join(UNSEEN), *ODD_TEXTS, *mixtures(1_500)]:
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        assert offsets.shape == (len(ids), 2) and offsets.dtype == np.int64
        assert (np.diff(offsets, axis=0) >= 0).all(), text
        assert (offsets[:, 0] <= offsets[:, 1]).all()
        assert not len(ids) or (offsets[0, 0] >= 0 and offsets[-1, 1] <= len(text))
        covered = np.zeros(len(text), np.bool_)
        stretches = offsets.tolist()
        for begin, end in stretches:
            covered[begin:end] = True
            assert text[begin:end] == text[begin:end].strip()
        for character, is_covered in zip(text, covered.tolist(), strict=True):
            visible = processor.normalize(character).strip(SPACE)
            assert is_covered or not visible or character.isspace(), (text, character)
        # What stands alone in its stretch is that stretch, normalised; what shares it, a part.
        bounds = [(0, 0), *stretches, (len(text), len(text))]
        for place, piece in enumerate(written(tokenizer, ids)):
            begin, end = stretches[place]
            normalised = processor.normalize(text[begin:end]).replace(SPACE, "")
            if piece is None:
                continue
            if bounds[place][1] <= begin and end <= bounds[place + 2][0]:
                assert piece == normalised, (text, place)
                num_exact += 1
            else:
                assert piece in normalised, (text, place)
    assert num_exact > 30_000


@pytest.mark.parametrize(
    "text,expected",
    [
        ("  The  lamp ", ["The", "lamp"]),
        ("Ｔｈｅ lamp", ["Ｔｈｅ", "lamp"]),
        ("\u200bThe\u200b\x01 lamp\x01", ["The", "lamp"]),
        ("The \U00020000 lamp", ["The", "\U00020000", "lamp"]),
        ("The 👍🏽\u00a0lamp", ["The", "👍🏽", "lamp"]),
        ("The e\u0323\u0301 lamp", ["The", "e\u0323\u0301", "lamp"]),
        ("\x85\ufeff \u2028", []),
    ],
)
def test_stretches_by_hand(tokenizer: Tokenizer, text: str, expected: list[str]) -> None:
    """Joined where one ends as the next begins: the same for every way to cut words."""
    needs_nfkc(tokenizer)
    _, offsets = tokenizer.encode_with_offsets(text)
    joined: list[list[int]] = []
    for begin, end in offsets.tolist():
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        elif end > begin:
            joined.append([begin, end])
    assert [text[begin:end] for begin, end in joined if end > begin] == expected


def test_pieces_that_spell_one_character_have_all_of_it(tokenizer: Tokenizer) -> None:
    needs_nfkc(tokenizer)
    num_shared = 0
    for text in ("The ½", "The \U00020000", "The ㎏", "The ﷺ", "The …"):
        _, offsets = tokenizer.encode_with_offsets(text)
        stretches = offsets[offsets[:, 1] > 4].tolist()
        assert stretches and all(stretch == [4, 5] for stretch in stretches), text
        num_shared += len(stretches) > 1
    assert num_shared >= 3


def test_white_space_has_no_stretch(tokenizer: Tokenizer) -> None:
    ids, offsets = tokenizer.encode_with_offsets("灯笼  Ж")
    spaces = [place for place, index in enumerate(ids) if tokenizer.piece(index) == SPACE]
    assert spaces and all(begin == end for begin, end in offsets[spaces].tolist())
    assert offsets[-1].tolist() == [4, 5]


def sentence(rng: random.Random) -> tuple[list[str], list[bool]]:
    """Words and marks, some of them without a space before."""
    text = " ".join(rng.sample(UNSEEN, 3)).replace("，", ",")
    words, spaces_before = [], []
    for part in text.split():
        begin = 0
        while begin < len(part):
            end = begin + rng.choice([1, 2, len(part), len(part), len(part)])
            words.append(part[begin:end])
            spaces_before.append(begin == 0)
            begin = end
    return words, spaces_before


def words_that_are_the_text(tokenizer: Tokenizer) -> tuple[int, int]:
    """Pieces of words are those of their text where no piece spans two; how often that was seen.

    Returns:
        Such texts, and words in them without a space before.
    """
    rng = random.Random(7)
    num_equal = num_inside = 0
    for _ in range(300):
        words, spaces_before = sentence(rng)
        encoded = tokenizer.encode_words(words, spaces_before)
        assert len(encoded) == len(words) and all(encoded)
        text, borders = "", []
        for word, is_spaced in zip(words, spaces_before, strict=True):
            text += " " * (is_spaced and bool(text))
            borders.append(len(text))
            text += word
        ids, offsets = tokenizer.encode_with_offsets(text)
        stretches = offsets.tolist()
        if not any(begin < border < end for border in borders for begin, end in stretches):
            assert [i for word_ids in encoded for i in word_ids] == ids, text
            num_equal += 1
            num_inside += spaces_before.count(False)
    return num_equal, num_inside


def test_words_are_the_text_where_no_piece_spans_two(tokenizer: Tokenizer) -> None:
    num_equal, num_inside = words_that_are_the_text(tokenizer)
    assert num_equal > 10 and num_inside > 10, "not vacuous"


def test_a_word_is_cut_as_it_stands(tokenizer: Tokenizer) -> None:
    words = ["The", "lamp", ".", "The", "lamp", "lamp"]
    encoded = tokenizer.encode_words(words, [False, True, False, True, True, False])
    assert encoded[0] == encoded[3] == tokenizer.encode("The"), "the first as if behind a space"
    assert encoded[1] == encoded[4] == tokenizer.encode("lamp")
    assert not any(tokenizer.piece(i).startswith(SPACE) for i in encoded[2] + encoded[5])
    assert [tokenizer.decode(ids) for ids in encoded][2] == "."


def test_every_word_has_a_piece(tokenizer: Tokenizer) -> None:
    needs_nfkc(tokenizer)
    nothing = ["\u200b", "lamp", "\x01", "\ufeff", "Ж", "Ж"]
    encoded = tokenizer.encode_words(nothing, [True, True, False, True, False, False])
    assert [ids == [UNK_ID] for ids in encoded[:4]] == [True, False, True, True]
    assert encoded[4] == encoded[5] == tokenizer.encode_inside_word("Ж")
    assert tokenizer.encode_words([], []) == []
    with pytest.raises(ValueError, match="zip"):
        tokenizer.encode_words(["lamp"], [])
