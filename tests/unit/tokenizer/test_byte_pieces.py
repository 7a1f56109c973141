"""Byte-level BPE behind the tokenizer's interface: published rules, our ids, no special id."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from dist_bert.common.errors import UserError
from dist_bert.huggingface.tokenizer import ODD_TEXTS
from dist_bert.tokenizer.config import SPECIAL_PIECES
from dist_bert.tokenizer.tokenizer import CLS_ID, MASK_ID, UNK_ID, Tokenizer
from tests.support.corpus import chinese_sentences, english_sentences
from tests.support.published import byte_level_tokenizer, write_byte_level
from tests.unit.tokenizer.test_offsets import mixtures, words_that_are_the_text

UNSEEN = english_sentences(100, seed=3) + chinese_sentences(100, seed=4)
TEXTS = [
    *UNSEEN,
    " ".join(UNSEEN),
    *ODD_TEXTS,
    *mixtures(300),
    "  two and   three,\r\n\ttabs\r at   the end  ",
    "|||EMAIL_ADDRESS||| <|endoftext|> [unused3]",
]
PUBLISHED = byte_level_tokenizer()
FIRST = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|padding|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_level(folder, PUBLISHED)
    return Tokenizer(folder / "tokenizer.json")


def test_ids_are_the_published_ones_renumbered(tokenizer: Tokenizer) -> None:
    fast = tokenizers.Tokenizer.from_str(json.dumps(PUBLISHED))
    order = tokenizer.published_ids
    assert order is not None and sorted(order.tolist()) == list(range(677))
    assert [fast.id_to_token(i) for i in order[:14].tolist()] == [
        *FIRST,
        *(f"[unused{number}]" for number in range(7)),
    ]
    assert order[:7].tolist() == [668, 665, 666, 667, 669, 1, 664]
    assert order[14] == 0 and (np.diff(order[14:]) > 0).all(), "the others keep their order"
    assert (tokenizer.vocab_size, tokenizer.num_reserved_pieces) == (677, 14)
    assert tokenizer.kind == "byte-level BPE"
    batch, bounds = tokenizer.encode_batch(TEXTS)
    for text, begin, end in zip(TEXTS, bounds[:-1], bounds[1:], strict=True):
        expected = fast.encode(text, add_special_tokens=False).ids
        assert order[tokenizer.encode_with_mask(text)].tolist() == expected or any(
            name in text for name in SPECIAL_PIECES if name != "[MASK]"
        ), text
        assert batch[begin:end].tolist() == tokenizer.encode(text)


def test_decoded_text_is_the_text(tokenizer: Tokenizer) -> None:
    """Up to NFC; no text spells a special id."""
    for text in [*TEXTS, "[PAD] [UNK] [CLS] [SEP] [MASK]"]:
        ids = tokenizer.encode(text)
        assert min(ids, default=5) >= 5
        assert tokenizer.decode([CLS_ID, *ids, MASK_ID]) == unicodedata.normalize("NFC", text)
    assert tokenizer.decode([UNK_ID]) == "[UNK]"
    assert tokenizer.decode(tokenizer.encode("昨")[:1]) == "\ufffd"


def test_a_mask_takes_the_spaces_before_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "The \t[MASK] lamp \x1c[MASK]"
    expected = [*tokenizer.encode("The"), MASK_ID, *tokenizer.encode(" lamp \x1c"), MASK_ID]
    assert tokenizer.encode_with_mask(text) == expected
    added = [{**token, "lstrip": False} for token in PUBLISHED["added_tokens"]]
    write_byte_level(tmp_path, {**PUBLISHED, "added_tokens": added})
    other = Tokenizer(tmp_path / "tokenizer.json")
    assert other.encode_with_mask("The [MASK]") == [*tokenizer.encode("The "), MASK_ID]


def test_pieces_are_shown_readably(tokenizer: Tokenizer) -> None:
    def shown(text: str) -> list[str]:
        return [tokenizer.piece(i) for i in tokenizer.encode(text)]

    assert shown("The lamp\n") == ["The", "▁l", "a", "mp", "<0x0A>"]
    assert shown("了é") == ["了", "<0xC3>", "<0xA9>"]
    assert shown("a   b") == ["a", "▁▁▁", "b"]
    texts = [tokenizer.text_of(i) for i in tokenizer.encode("The  lamp 了")]
    assert "".join(texts) == "The  lamp 了"


def test_every_visible_character_is_in_the_stretch_of_its_pieces(tokenizer: Tokenizer) -> None:
    num_exact = 0
    for text in TEXTS:
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        assert offsets.shape == (len(ids), 2) and (np.diff(offsets, axis=0) >= 0).all(), text
        covered = np.zeros(len(text), np.bool_)
        for index, (begin, end) in zip(ids, offsets.tolist(), strict=True):
            assert begin <= end <= len(text)
            assert text[begin:end] == text[begin:end].strip(), text
            covered[begin:end] = True
            piece = tokenizer.text_of(index).strip()
            num_exact += bool(piece) and piece == unicodedata.normalize("NFC", text[begin:end])
        blank = [character.isspace() for character in text]
        assert (covered | np.array(blank, np.bool_)).all(), text
    assert num_exact > 5_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  lamp\t", ["The", "l", "a", "mp"]),
        ("le e\u0301 l", ["le", "e\u0301", "e\u0301", "l"]),  # two bytes of one character
        ("a \u1112\u1161\u11ab", ["a", *["\u1112\u1161\u11ab"] * 3]),
        ("\u0958", ["\u0958"] * 6),  # NFC decomposes it
        (" \n ", []),
    ],
)
def test_stretches_by_hand(tokenizer: Tokenizer, text: str, expected: list[str]) -> None:
    _, offsets = tokenizer.encode_with_offsets(text)
    assert [text[begin:end] for begin, end in offsets.tolist() if end > begin] == expected


def test_words_are_the_text_where_no_piece_spans_two(tokenizer: Tokenizer) -> None:
    num_equal, num_inside = words_that_are_the_text(tokenizer)
    assert num_equal > 10 and num_inside > 10, "not vacuous"
    encoded = tokenizer.encode_words(["The", "lamp", ".", "The"], [True, True, False, True])
    assert [tokenizer.decode(ids) for ids in encoded] == ["The", " lamp", ".", " The"]
    assert tokenizer.encode_words([""], [True]) == [[UNK_ID]]


def test_sentences_of_a_document_get_their_spaces_back(tokenizer: Tokenizer) -> None:
    ids, bounds = tokenizer.encode_documents([["The lamp.", "The lamp."], ["昨天。", "了。", "A"]])
    texts = [tokenizer.decode(part) for part in np.split(ids, bounds[1:-1])]
    assert texts == ["The lamp.", " The lamp.", "昨天。", "了。", " A"]


def test_words_begin_with_a_space_or_follow_one(tokenizer: Tokenizer) -> None:
    starts = {tokenizer.piece(i): bool(s) for i, s in enumerate(tokenizer.word_starts)}
    # An ideograph is a word, also of which the first byte alone is in a piece.
    for piece in ("▁l", "▁", "▁▁", "<0x0A>", "了", ",", "<0xE6><0x98>", "<0xE4>"):
        assert starts[piece], piece
    for piece in ("mp", "The", "s", "<0xC3>", "<0x80>", "<0xA9>", "<0xE0>"):
        assert not starts[piece], piece
    vocabulary = tokenizer.masking_vocabulary(whole_words=True, mean_span_length=0.0)
    assert vocabulary.word_ends is not None
    ends = [tokenizer.piece(i) for i in np.flatnonzero(vocabulary.word_ends).tolist()]
    assert {"▁", "▁▁", "<0x09>", "<0x0A>"} <= {*ends} and not {"▁l", "了"} & {*ends}
    single = tokenizer.masking_vocabulary(whole_words=False, mean_span_length=0.0)
    assert (single.word_starts, single.word_ends) == (None, None)


def test_words_are_found(tokenizer: Tokenizer) -> None:
    place = tokenizer.find_word("He said: the lamp's lamplight", "lamp")
    assert place is not None and place.parts == ("He said: the", " lamp", "'s lamplight")
    assert tokenizer.find_word("the lamplight", "lamp") is None
    chinese = tokenizer.find_word("他看见昨天", "看")
    assert chinese is not None and "看" in chinese.parts[1]


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"

    def refusal(**changes: Any) -> str:
        write_byte_level(tmp_path, {**PUBLISHED, **changes})
        with pytest.raises(UserError) as caught:
            Tokenizer(path)
        assert "\n" not in str(caught.value)
        start = f"--tokenizer {path}: "
        assert str(caught.value).startswith(start)
        return str(caught.value).removeprefix(start)

    model, added = PUBLISHED["model"], PUBLISHED["added_tokens"]
    assert refusal(normalizer=None).startswith("its normalizer has type = None, must be 'NFC'")
    assert "its normalizer has type = 'NFKC'" in refusal(normalizer={"type": "NFKC"})
    assert "its pre_tokenizer has type = 'Whitespace'" in refusal(
        pre_tokenizer={"type": "Whitespace"}
    )
    cutter = {**PUBLISHED["pre_tokenizer"], "add_prefix_space": True}
    assert "its pre_tokenizer has add_prefix_space = True" in refusal(pre_tokenizer=cutter)
    assert "its post_processor has type = None" in refusal(post_processor=None)
    template = PUBLISHED["post_processor"]
    short = {**template, "pair": template["pair"][:-1]}
    assert "makes [CLS] A [SEP] B of a pair, must be [CLS] A [SEP] B [SEP]" in refusal(
        post_processor=short
    )
    assert "its model has byte_fallback = True, must be unset" in refusal(
        model={**model, "byte_fallback": True}
    )
    assert "its model has dropout = 0.1" in refusal(model={**model, "dropout": 0.1})
    unknown = {**model, "merges": [["q", "\u4e00"]]}
    assert "is not a tokenizer.json" in refusal(model=unknown), "a merge of no piece"
    without = [token for token in added if token["content"] not in ("[MASK]", "[SEP]")]
    assert "its added_tokens lack [SEP], [MASK]" in refusal(added_tokens=without)
    greedy = [{**token, "rstrip": token["content"] == "[MASK]"} for token in added]
    assert "[MASK] has rstrip = True, must be False" in refusal(added_tokens=greedy)
    holes = {**model, "vocab": {**model["vocab"], "qqqq": 10_000}}
    assert "its ids must be 0, 1, 2, ..." in refusal(model=holes)
    byte = {("Qq" if name == "Q" else name): index for name, index in model["vocab"].items()}
    merges = [pair for pair in model["merges"] if "Q" not in "".join(pair)]
    assert "its vocabulary lacks 1 of the 256 bytes, first 'Q'" in refusal(
        model={**model, "vocab": byte, "merges": merges}
    )
