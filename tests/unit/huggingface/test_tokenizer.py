"""The exported tokenizer: the same ids as SentencePiece's, on plain text and on odd one."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from dist_bert.common.errors import UserError
from dist_bert.huggingface.tokenizer import (
    ODD_TEXTS,
    Comparison,
    compare,
    fast_tokenizer,
    read_model,
)
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import MASK_ID, Tokenizer, train_tokenizer
from tests.support.corpus import chinese_sentences, english_sentences

SENTENCES = english_sentences(700, seed=1) + chinese_sentences(300, seed=2)
UNSEEN = english_sentences(1_500, seed=3) + chinese_sentences(1_500, seed=4)
REAL_TEXT = Path(__file__).parents[4] / "shared/data/pretrain"  # real text, where there is any
KINDS = [(kind, case, spelt) for kind in ("unigram", "bpe") for case in (0, 1) for spelt in (0, 1)]


def train(folder: Path, sentences: list[str], **settings: Any) -> Tokenizer:
    return Tokenizer(train_tokenizer(sentences, folder, TokenizerConfig(**settings)))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of both kinds, cased and uncased, without and with bytes for unknown characters."""
    kind, lower_case, byte_fallback = request.param
    return train(
        tmp_path_factory.mktemp("tokenizer"), SENTENCES, vocab_size=640, model_type=kind,
        lower_case=bool(lower_case), byte_fallback=bool(byte_fallback),
    )  # fmt: skip


def compared(tokenizer: Tokenizer, texts: list[str]) -> Comparison:
    proto = read_model(tokenizer.path)
    fast = fast_tokenizer(proto)

    def encode(window: list[str]) -> list[list[int]]:
        return [made.ids for made in fast.encode_batch(window, add_special_tokens=False)]

    return compare(tokenizer, proto, encode, texts)


def test_ids_are_the_same_on_text_and_on_odd_text(tokenizer: Tokenizer) -> None:
    joined = [" ".join(UNSEEN[i : i + 7]) for i in range(0, len(UNSEEN), 7)]
    masked = [text.replace("the", "[MASK]").replace("了", "[MASK]") for text in UNSEEN[::5]]
    upper = [text.upper() for text in UNSEEN[::5]]
    texts = [*UNSEEN, *joined, *masked, *upper, *ODD_TEXTS]
    result = compared(tokenizer, texts)
    assert (result.num_compared, result.num_special) == (len(texts), 0)
    assert [d for d in result.differences if not d.is_tie] == []
    assert result.num_ties <= 3, "rare"


def test_pairs_get_special_ids_and_segments_and_come_back_as_text(tokenizer: Tokenizer) -> None:
    fast = fast_tokenizer(read_model(tokenizer.path))
    first, second = UNSEEN[0], UNSEEN[-1]
    pair = fast.encode(first, second)
    ours = tokenizer.encode(first), tokenizer.encode(second)
    assert pair.ids == [2, *ours[0], 3, *ours[1], 3]
    assert pair.type_ids == [0] * (len(ours[0]) + 2) + [1] * (len(ours[1]) + 1)
    assert fast.encode(first).ids == [2, *ours[0], 3]
    assert fast.decode(pair.ids[: len(ours[0]) + 1]) == tokenizer.decode(ours[0])
    assert fast.token_to_id("[MASK]") == MASK_ID
    assert fast.get_vocab_size() == tokenizer.vocab_size


def test_every_letter_with_every_accent_keeps_it(tmp_path: Path) -> None:
    """The library's table look-up by itself drops accents, SentencePiece none.

    One differs: the library composes what has a letter of its own in lower case only.
    """
    tokenizer = train(tmp_path, SENTENCES, vocab_size=640, lower_case=True, byte_fallback=True)
    letters = "ABCXYZabcxyzßΑΩЖЯжяＡａｶﾊ①ªカか"
    accents = [chr(code) for code in range(0x300, 0x330)] + ["\uff9e", "\uff9f", "\u3099"]
    result = compared(tokenizer, [f"a{x}{y}b" for x in letters for y in accents])
    assert result.num_compared == len(letters) * 51
    assert [difference.text for difference in result.differences] == ["aY\u030ab"]


def test_a_text_that_spells_a_special_piece_is_left_out(tmp_path: Path) -> None:
    tokenizer = train(tmp_path, SENTENCES, vocab_size=640)
    result = compared(tokenizer, ["a [CLS] b", "[SEP]", "[PAD]x", "[UNK]", "[MASK]", "plain"])
    assert result == Comparison(2, 4, [])


def test_differences_are_found_and_ties_told_apart(tmp_path: Path) -> None:
    tokenizer = train(tmp_path, SENTENCES, vocab_size=640)
    proto = read_model(tokenizer.path)
    ids = {proto.pieces[i].piece: i for i in range(tokenizer.vocab_size)}
    the, space, (t, h, e) = ids["▁the"], ids["▁"], (ids[letter] for letter in "the")
    for fast_ids, is_tie in (([space, t, h, e], False), ([the, the], False), ([], False)):
        result = compare(tokenizer, proto, lambda _, ids=fast_ids: [ids], ["the"])  # type: ignore[misc]
        assert result.differences == [("the", [the], fast_ids, is_tie)]
        assert result.num_ties == 0
    pieces = [proto.pieces[i] for i in (space, t, h, e)]
    proto.pieces[the].score = sum(piece.score for piece in pieces) * (1 + 1e-7)
    result = compare(tokenizer, proto, lambda _: [[space, t, h, e]], ["the"])
    assert result.num_ties == 1, "another cut of equal likelihood"


def test_models_with_other_rules_are_refused(tmp_path: Path) -> None:
    tokenizer = train(tmp_path, SENTENCES, vocab_size=640)
    proto = read_model(tokenizer.path)
    proto.pieces[7].type = 5  # unused: no text finds it
    (tmp_path / "unused.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="without further pieces only of text and bytes;"):
        read_model(tmp_path / "unused.model")
    proto.pieces[7].type, proto.pieces[7].piece = 4, "--"  # user-defined: it is never merged
    proto.trainer_spec.model_type = 2  # BPE
    (tmp_path / "symbols.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="without model_type unigram, which its user-defined"):
        read_model(tmp_path / "symbols.model")
    with open(tmp_path / "other.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_writer=file, vocab_size=500, minloglevel=2,
            normalization_rule_name="identity", add_dummy_prefix=False,
        )  # fmt: skip
    with pytest.raises(UserError, match="without add_dummy_prefix;"):
        read_model(tmp_path / "other.model")


@pytest.mark.skipif(not REAL_TEXT.is_dir(), reason="no real text on this machine")
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_ids_are_the_same_on_real_text(kind: str, tmp_path: Path) -> None:
    lines = []
    for path in ("en-wiki/AA/wiki_07.gz", "zh-wiki/AA/wiki_07.gz"):
        lines += gzip.decompress((REAL_TEXT / path).read_bytes()).decode().split("\n")[:3_000]
    training = [line.strip() for line in lines[::3] if line.strip()]
    tokenizer = train(tmp_path, training, vocab_size=5_000, model_type=kind)
    result = compared(tokenizer, lines)
    assert result.num_compared > 5_000
    assert [d for d in result.differences if not d.is_tie] == []
