"""SentencePiece models made elsewhere: the same pieces of every text, under BERT's ids."""

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from dist_bert.common.errors import UserError
from dist_bert.huggingface.tokenizer import ODD_TEXTS, compare, fast_tokenizer, read_model
from dist_bert.tokenizer.config import SPECIAL_PIECES
from dist_bert.tokenizer.special_pieces import with_special_pieces
from dist_bert.tokenizer.tokenizer import Tokenizer
from tests.support.corpus import chinese_sentences, english_sentences

SENTENCES = english_sentences(700, seed=1) + chinese_sentences(300, seed=2)
UNSEEN = english_sentences(400, seed=3) + chinese_sentences(400, seed=4)
SYMBOLS = ["(", ")", "-", ".", "–", "£", "lamp", "lampoon"]  # ALBERT's, and some of several letters
TEXTS = [
    *UNSEEN,
    *ODD_TEXTS,
    *(f"({text[:-1]}), lampoons - {text}–£3. lamp" for text in UNSEEN[::7]),
    "lamplampoo lampoonlamp Lamp ..( . ). \u2026 1.5 a-b",
]
# What trainers are told elsewhere, and which line of ours says what about each special piece.
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
ALBERT = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "default": ({}, ["added", "was <unk> 0", "was <s> 1", "was </s> 2", "added"]),
    "t5": (T5, ["was <pad> 0", "was <unk> 2", "added", "was </s> 1", "added"]),
    "albert": (
        {**ALBERT, "control_symbols": [*SPECIAL_PIECES[2:]], "user_defined_symbols": SYMBOLS},
        ["was <pad> 0", "was <unk> 1", "was [CLS] 2", "was [SEP] 3", "was [MASK] 4"],
    ),
    "albert-spelt": (
        {**ALBERT, "user_defined_symbols": [*SPECIAL_PIECES[2:], *SYMBOLS]},
        [
            "was <pad> 0",
            "was <unk> 1",
            "was [CLS] 2; text that spells it no longer gets its id",
            "was [SEP] 3; text that spells it no longer gets its id",
            "was [MASK] 4; text that spells it no longer gets its id",
        ],
    ),
    "xlm-r": (
        {"control_symbols": ["<pad>", "<mask>"], "byte_fallback": True},
        ["was <pad> 3", "was <unk> 0", "was <s> 1", "was </s> 2", "was <mask> 4"],
    ),
    "xlnet": (
        {"control_symbols": ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]},
        ["was <pad> 5", "was <unk> 0", "was <cls> 3", "was <sep> 4", "was <mask> 6"],
    ),
    "tutorial": (  # all five as symbols, beside the default's
        {"user_defined_symbols": [*SPECIAL_PIECES]},
        [
            "was [PAD] 3; text that spells it no longer gets its id",
            "was <unk> 0",
            "was [CLS] 5; text that spells it no longer gets its id",
            "was [SEP] 6; text that spells it no longer gets its id",
            "was [MASK] 7; text that spells it no longer gets its id",
        ],
    ),
    "html": (  # what someone made a piece of text stays one
        {**T5, "user_defined_symbols": ["<s>", "<mask>"]},
        ["was <pad> 0", "was <unk> 2", "added", "was </s> 1", "added"],
    ),
    "deberta": (
        {
            "pad_id": 0,
            "bos_id": 1,
            "eos_id": 2,
            "unk_id": 3,
            "pad_piece": "[PAD]",
            "bos_piece": "[CLS]",
            "eos_piece": "[SEP]",
            "unk_piece": "[UNK]",
        },
        ["was [PAD] 0", "was [UNK] 3", "was [CLS] 1", "was [SEP] 2", "added"],
    ),
    "named": (
        {"bos_piece": "<begin>", "eos_piece": "<end>", "pad_piece": "<fill>", "pad_id": 3},
        ["was <fill> 3", "was <unk> 0", "was <begin> 1", "was <end> 2", "added"],
    ),
    "bpe": (
        {"model_type": "bpe", "byte_fallback": True},
        ["added", "was <unk> 0", "was <s> 1", "was </s> 2", "added"],
    ),
}
LEFT_OUT = {
    "xlnet": "<s> 1, </s> 2, <eod> 7, <eop> 8",
    "tutorial": "<s> 1, </s> 2, [UNK] 4",
}


def train(**settings: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, minloglevel=2,
        **{"vocab_size": 640, **settings},
    )  # fmt: skip
    return model.getvalue()


def nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


class Foreign:
    """A model of another project, and ours of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        settings, self.said = KINDS[kind]
        self.kind = kind
        self.path = folder / "spiece.model"
        self.path.write_bytes(train(**settings))
        self.original = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        self.tokenizer = Tokenizer(self.path, may_renumber=True)


@pytest.fixture(scope="module", params=KINDS)
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return Foreign(request.param, tmp_path_factory.mktemp("foreign"))


def test_every_text_is_cut_into_the_same_pieces(foreign: Foreign) -> None:
    original, tokenizer = foreign.original, foreign.tokenizer
    unknown = original.id_to_piece(original.unk_id())
    texts = [text for text in TEXTS if not any(piece in nfkc(text) for piece in SPECIAL_PIECES)]
    assert len(texts) > len(TEXTS) - 9
    num_unknown = 0
    for text in texts:
        pieces = [original.id_to_piece(i) for i in original.encode(text)]
        num_unknown += pieces.count(unknown)
        expected = ["[UNK]" if piece == unknown else piece for piece in pieces]
        assert [tokenizer.piece(i) for i in tokenizer.encode(text)] == expected, text
        assert tokenizer.decode(tokenizer.encode(text)) == original.decode(original.encode(text))
    assert num_unknown > 9 or "byte_fallback" in KINDS[foreign.kind][0]


def test_no_text_spells_a_special_piece(foreign: Foreign) -> None:
    for piece in SPECIAL_PIECES:
        assert min(foreign.tokenizer.encode(f"a {piece} b{piece}")) >= 1
        assert len(foreign.tokenizer.encode(piece)) > 1 or piece == "[UNK]"
    assert foreign.tokenizer.encode_with_mask("[MASK]") == [4]


def test_what_became_of_the_special_pieces_is_said(foreign: Foreign) -> None:
    first, *lines = foreign.tokenizer.changes
    assert first == f"{foreign.path}: is from another project; its special pieces get BERT's ids"
    expected = [
        f"  {piece:<6} {i}  {said}"
        for i, (piece, said) in enumerate(zip(SPECIAL_PIECES, foreign.said, strict=True))
    ]
    assert lines[:5] == expected
    left_out = LEFT_OUT.get(foreign.kind)
    assert lines[5:-1] == ([f"  removed: {left_out}: not in texts"] if left_out else [])
    others = foreign.tokenizer.vocab_size - 5
    assert lines[-1] == f"  the other {others} pieces follow; text pieces keep their order"
    gone = left_out.count(",") + 1 if left_out else 0
    gone += sum(" was " in line for line in expected)
    assert others == foreign.original.vocab_size() - gone


def test_what_is_no_text_comes_first(foreign: Foreign) -> None:
    tokenizer = foreign.tokenizer
    num_bytes = 256 * ("byte_fallback" in KINDS[foreign.kind][0])
    assert tokenizer.num_reserved_pieces == 5 + num_bytes
    names = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    assert names[:5] == list(SPECIAL_PIECES) and len(set(names)) == len(names)
    originals = [foreign.original.id_to_piece(i) for i in range(foreign.original.vocab_size())]
    text = [name for name in originals if name in names[5 + num_bytes :]]
    assert names[5 + num_bytes :] == text, "in their order"


def test_the_written_model_is_one_of_ours(foreign: Foreign, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(foreign.tokenizer.content)
    again = Tokenizer(path, may_renumber=True)
    assert again.changes == () and Tokenizer(path).fingerprint == foreign.tokenizer.fingerprint
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id()
    assert ids == (0, 1, 2, 3)
    assert with_special_pieces(foreign.path.read_bytes(), foreign.path).content == again.content


def test_the_export_has_the_same_ids(foreign: Foreign, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(foreign.tokenizer.content)
    proto = read_model(path)
    fast = fast_tokenizer(proto)

    def encode(window: list[str]) -> list[list[int]]:
        return [made.ids for made in fast.encode_batch(window, add_special_tokens=False)]

    result = compare(Tokenizer(path), proto, encode, TEXTS)
    assert result.num_compared + result.num_special == len(TEXTS)
    assert [d for d in result.differences if not d.is_tie] == []
    assert result.num_ties <= 3, "rare"
    assert [fast.token_to_id(piece) for piece in SPECIAL_PIECES] == [0, 1, 2, 3, 4]
    assert json.loads(fast.to_str())["model"]["type"] == (
        "BPE" if foreign.kind == "bpe" else "Unigram"
    )


def test_it_is_renumbered_only_for_new_data(foreign: Foreign) -> None:
    with pytest.raises(UserError, match=r"launch/prepare_shards\.py puts them there") as caught:
        Tokenizer(foreign.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"add_dummy_prefix": False}, "without add_dummy_prefix to"),
        ({"treat_whitespace_as_suffix": True}, "without whitespace before words"),
    ],
)
def test_models_that_hide_where_words_begin_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(train(**settings))
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer(path, may_renumber=True)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"--tokenizer {path}: ")


@pytest.mark.parametrize(
    "settings,missing",
    [
        ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces"),
        (
            {"model_type": "bpe", "user_defined_symbols": ["lamp"]},
            "model_type unigram, which its user-defined symbols need",
        ),
        ({"model_type": "char"}, "model_type unigram or bpe"),
    ],
)
def test_what_cannot_be_exported_is_said_before_it_is_trained_with(
    settings: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(train(**settings))
    tokenizer = Tokenizer(path, may_renumber=True)
    last = tokenizer.changes[-1]
    assert last == f"  launch/export_model.py will reject it: it lacks {missing}"
    path.write_bytes(tokenizer.content)
    with pytest.raises(UserError, match=f"cannot be exported without {missing};"):
        read_model(path)


def test_unused_pieces_go_from_unigram_and_are_refused_of_bpe(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    for kind in ("unigram", "bpe"):
        proto = sentencepiece_model.ModelProto()
        proto.ParseFromString(train(model_type=kind))
        place = next(i for i, piece in enumerate(proto.pieces) if piece.piece == "▁the")
        proto.pieces[place].type = 5
        path.write_bytes(proto.SerializeToString())
        if kind == "bpe":
            with pytest.raises(UserError, match=rf"has unused pieces \(▁the {place}\), which are"):
                Tokenizer(path, may_renumber=True)
            continue
        tokenizer = Tokenizer(path, may_renumber=True)
        original = sentencepiece.SentencePieceProcessor(model_file=str(path))
        assert f"  removed: ▁the {place}: not in texts" in tokenizer.changes
        pieces = [tokenizer.piece(i) for i in tokenizer.encode("the lamp")]
        assert pieces == original.encode("the lamp", out_type=str)
        assert "▁the" not in pieces


@pytest.mark.parametrize("symbols", [["½"], ["a b"], ["▁–"]])
def test_symbols_that_the_library_would_normalise_are_not_exported(
    symbols: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.model"
    model = train(user_defined_symbols=symbols)
    path.write_bytes(with_special_pieces(model, path).content)
    with pytest.raises(UserError, match="without user-defined symbols that normalisation keeps;"):
        read_model(path)
