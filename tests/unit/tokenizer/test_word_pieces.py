"""Word pieces behind the tokenizer's interface: published rules, our ids, no special id by text."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_bert.common.errors import UserError
from dist_bert.huggingface.tokenizer import ODD_TEXTS, renumbered
from dist_bert.tokenizer.tokenizer import MASK_ID, UNK_ID, Tokenizer
from tests.support.corpus import chinese_sentences, english_sentences
from tests.support.published import SURPLUS_ROWS, fast_tokenizer, published_vocabulary
from tests.unit.tokenizer.test_offsets import mixtures, words_that_are_the_text

UNSEEN = english_sentences(300, seed=3) + chinese_sentences(300, seed=4)
TEXTS = [*UNSEEN, " ".join(UNSEEN), *ODD_TEXTS, *mixtures(800)]
RULES: dict[str, dict[str, Any]] = {
    "uncased": {"lower_case": True},
    "cased": {"lower_case": False},
    "accents": {"lower_case": True, "strip_accents": False},
    "unsplit": {"lower_case": True, "handle_chinese_chars": False},
}


@pytest.fixture(scope="module", params=RULES)
def published(request: pytest.FixtureRequest) -> Any:
    rules = RULES[request.param]
    return fast_tokenizer(published_vocabulary(rules["lower_case"]), **rules)


@pytest.fixture(scope="module")
def tokenizer(published: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    fast, _ = renumbered(published, published.get_vocab_size() + SURPLUS_ROWS, "published")
    path.write_text(fast.to_str(), "utf-8")
    return Tokenizer(path)


def test_ids_are_the_published_ones_renumbered(tokenizer: Tokenizer, published: Any) -> None:
    num_pieces = published.get_vocab_size()
    _, order = renumbered(published, num_pieces + SURPLUS_ROWS, "published")
    assert order[:6] == [0, 100, 101, 102, 103, 1]
    assert order[5:] == [i for i in range(num_pieces + SURPLUS_ROWS) if i not in order[:5]]
    assert tokenizer.vocab_size == num_pieces and tokenizer.kind == "WordPiece"
    assert tokenizer.num_reserved_pieces == 5 + 120, "unused pieces are no replacement"
    for text in TEXTS:
        expected = published.encode(text, add_special_tokens=False).ids
        assert [order[i] for i in tokenizer.encode(text)] == expected, text
    for index in (UNK_ID, MASK_ID, 5, 124, 125, num_pieces - 1):
        assert tokenizer.piece(index) == published.id_to_token(order[index])


def test_rows_of_no_piece_come_last() -> None:
    """A vocab.txt with a line twice leaves the id of the first one without a piece."""
    pieces = {"the": 0, "[MASK]": 1, "[UNK]": 2, "[SEP]": 4, "##s": 5, "[CLS]": 6, "[PAD]": 7}
    published = fast_tokenizer([], lower_case=True)
    published.model = type(published.model)(pieces, unk_token="[UNK]")
    fast, order = renumbered(published, 9, "published")
    assert order == [7, 2, 6, 4, 1, 0, 5, 3, 8]
    assert fast.get_vocab()["##s"] == 6 and fast.get_vocab_size() == 7


def test_batches_are_the_single_texts_on_one_core(tokenizer: Tokenizer) -> None:
    ids, offsets = tokenizer.encode_batch(TEXTS[:700])
    for text, begin, end in zip(TEXTS, offsets[:-1], offsets[1:], strict=False):
        assert ids[begin:end].tolist() == tokenizer.encode(text)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert tokenizer.encode_batch([])[1].tolist() == [0]


def test_text_never_yields_a_special_id(tokenizer: Tokenizer) -> None:
    spelt = "[MASK] [SEP] [CLS] [PAD] x[MASK]y [unused7] ## ##s"
    for text in [spelt, *TEXTS]:
        reserved = {i for i in tokenizer.encode(text) if i < tokenizer.num_reserved_pieces}
        assert reserved <= {UNK_ID}, text


def test_masks_are_put_where_they_are_written(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_mask("The old [MASK] un[MASK]ed 昨天[MASK]")
    parts = ["The old", "un", "ed 昨天", ""]
    expected = [i for part in parts for i in (*tokenizer.encode(part), MASK_ID)][:-1]
    assert ids == expected, "as transformers: what is behind a mask is a word of its own"


def test_every_visible_character_is_in_the_stretch_of_its_pieces(
    tokenizer: Tokenizer, published: Any
) -> None:
    num_exact = 0
    for text in TEXTS:
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        assert offsets.shape == (len(ids), 2) and (np.diff(offsets, axis=0) >= 0).all()
        covered = np.zeros(len(text), np.bool_)
        for index, (begin, end) in zip(ids, offsets.tolist(), strict=True):
            assert begin < end <= len(text)
            assert text[begin:end] == text[begin:end].strip(), text
            covered[begin:end] = True
            surface = published.normalizer.normalize_str(text[begin:end]).strip()
            if index != UNK_ID and surface == tokenizer.piece(index).removeprefix("##"):
                num_exact += 1
        for place in np.flatnonzero(~covered).tolist():  # white space, and what is removed
            character = text[place]
            left = published.normalizer.normalize_str(f"a{character}a").replace(" ", "")
            assert character.isspace() or left == "aa", (text, character)
    assert num_exact > 15_000


def test_an_accent_behind_a_letter_is_in_its_stretch(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "e", "é"]
    (tmp_path / "file").write_text(fast_tokenizer(pieces, lower_case=True).to_str())
    tokenizer = Tokenizer(tmp_path / "file")
    ids, offsets = tokenizer.encode_with_offsets("The  é E\u0301\u0323, \u0301")
    assert [tokenizer.piece(i) for i in ids] == ["the", "e", "e", "[UNK]"]
    assert offsets.tolist() == [[0, 3], [5, 6], [7, 10], [10, 11]]


def test_words_are_the_text_where_no_piece_spans_two(tokenizer: Tokenizer) -> None:
    num_equal, num_inside = words_that_are_the_text(tokenizer)
    assert num_equal > 4 and num_inside, "not vacuous"
    assert tokenizer.encode_words(["\u200b", "lamp"], [True, True])[0] == [UNK_ID]
    joined = tokenizer.encode_words(["lam", "p", ",", "the"], [True, False, False, False])
    assert tokenizer.piece(joined[1][0]) == "##p"
    assert joined[3] == tokenizer.encode("the"), "behind a mark a word begins"
    assert tokenizer.encode_inside_word(" the") == tokenizer.encode("the")
    with pytest.raises(ValueError, match="zip"):
        tokenizer.encode_words(["lamp"], [])


def test_decoded_text_has_the_same_ids(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        again = tokenizer.decode([2, *ids, 3, 0]).replace("[UNK]", "\u20b6")  # in no vocabulary
        assert tokenizer.encode(again) == ids, text


def test_words_begin_where_they_do_not_go_on(tokenizer: Tokenizer) -> None:
    starts = {tokenizer.piece(i): bool(s) for i, s in enumerate(tokenizer.word_starts)}
    assert starts["the"] and starts["天"] and starts[","] and not starts["##s"]
    assert starts.keys() >= {"[MASK]", "[unused3]"} and len(starts) == tokenizer.vocab_size
    texts = [tokenizer.text_of(i) for i in (*tokenizer.encode("the lamps,"), MASK_ID)]
    assert "".join(texts) == " the lamps,[MASK]"
    vocabulary = tokenizer.masking_vocabulary(whole_words=True, mean_span_length=0.0)
    assert vocabulary.num_reserved_pieces == 125


def test_words_are_found(tokenizer: Tokenizer) -> None:
    text = "He said: the old lamp's lamplight"
    place = tokenizer.find_word(text, "lamp")
    assert place is not None and place.parts[1:] == (" lamp", "'s lamplight")
    pieces = [tokenizer.piece(i) for i in tokenizer.encode(text)[place.begin : place.end]]
    assert "".join(piece.removeprefix("##") for piece in pieces) == "lamp"
    assert tokenizer.find_word(text, "lam") is None
    assert tokenizer.find_word("lamp", "\ufeff") is None, "normalisation leaves nothing of it"
    unknown = tokenizer.find_word("the \u20b6\u20b6 lamp", "\u20b6\u20b6")
    assert unknown is not None and unknown.parts == ("the", " \u20b6\u20b6", " lamp")


def test_other_kinds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s"]
    good = json.loads(fast_tokenizer(pieces, lower_case=True).to_str())

    def refusal(**changes: Any) -> str:
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(UserError) as caught:
            Tokenizer(path)
        assert "\n" not in str(caught.value) and str(caught.value).startswith("--tokenizer")
        return str(caught.value)

    model = good["model"]
    published = {piece: index for index, piece in enumerate(["the", *pieces[:5]])}
    unigram = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0, "byte_fallback": False}
    assert "is of kind Unigram" in refusal(model=unigram)
    assert "must be WordPiece with ##" in refusal(model={**model, "continuing_subword_prefix": "@"})
    assert "splits words with Whitespace" in refusal(pre_tokenizer={"type": "Whitespace"})
    assert "splits words with NoneType" in refusal(pre_tokenizer=None)
    assert "its unknown piece is '[PAD]'" in refusal(model={**model, "unk_token": "[PAD]"})
    found = refusal(model={**model, "vocab": published})
    assert "its first pieces are the [PAD]" in found and "launch/import_model.py" in found
    assert "must be 0, 1, 2, ..." in refusal(model={**model, "vocab": {**model["vocab"], "a": 9}})
    assert "is not a tokenizer.json" in refusal(model=None)
    monkeypatch.setitem(sys.modules, "dist_bert.tokenizer.word_pieces", None)
    assert "is a tokenizer.json, which needs the package" in refusal()
