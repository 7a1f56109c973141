"""The tokenizer: special pieces out of reach of text, equal bytes for equal text, word starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import TokenizerConfig, bare_piece
from dist_bert.tokenizer.tokenizer import (
    CLS_ID,
    MASK_ID,
    PAD_ID,
    SEP_ID,
    UNK_ID,
    Tokenizer,
    train_tokenizer,
)
from tests.support.corpus import chinese_sentences, english_sentences

SENTENCES = english_sentences(2_000, seed=1) + chinese_sentences(500, seed=2)
VOCAB_SIZE = 701


def train(folder: Path, **changes: Any) -> Tokenizer:
    config = TokenizerConfig(**{"vocab_size": VOCAB_SIZE, "character_coverage": 1.0, **changes})
    return Tokenizer(train_tokenizer(SENTENCES, folder, config))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train(tmp_path_factory.mktemp("tokenizer"))


def test_special_pieces_have_the_contracts_ids(tokenizer: Tokenizer) -> None:
    assert (PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID) == (0, 1, 2, 3, 4)
    assert [tokenizer.piece(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.special_ids["[MASK]"] == 4
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert tokenizer.num_reserved_pieces == 5


def test_text_never_yields_a_control_id(tokenizer: Tokenizer) -> None:
    texts = ["[MASK] [SEP] [CLS] [PAD]", "x[MASK]y", "▁[SEP]", "</s> <s> <pad>", "[PAD]" * 50]
    ids, _ = tokenizer.encode_batch(texts)
    assert ids.size > 100
    assert not set(ids.tolist()) & {PAD_ID, CLS_ID, SEP_ID, MASK_ID}


def test_batches_are_the_single_texts_with_offsets(tokenizer: Tokenizer) -> None:
    texts = [*SENTENCES[:37], "", "   ", *SENTENCES[-11:]]
    ids, offsets = tokenizer.encode_batch(texts)
    assert offsets.shape == (len(texts) + 1,) and offsets[0] == 0 and offsets[-1] == ids.size
    for i, text in enumerate(texts):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == tokenizer.encode(text)
    assert offsets[38] == offsets[37], "an empty text has no ids"


def test_batches_beyond_one_call_are_joined(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenizer.encode_batch(SENTENCES[:101])
    monkeypatch.setattr("dist_bert.tokenizer.tokenizer._ENCODE_TEXTS", 7)
    for got, expected in zip(tokenizer.encode_batch(SENTENCES[:101]), whole, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert tokenizer.encode_batch([])[1].tolist() == [0]


def test_known_text_survives_encoding(tokenizer: Tokenizer) -> None:
    for text in (SENTENCES[3], SENTENCES[-3]):
        ids = tokenizer.encode(text)
        assert UNK_ID not in ids
        assert tokenizer.decode([CLS_ID, *ids, SEP_ID, PAD_ID]) == text.replace("，", ",").replace(
            "！", "!"
        ).replace("？", "?").replace("：", ":")  # NFKC


def test_masks_are_put_where_they_are_written(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_mask("The old [MASK] carried[MASK] 安静[MASK]灯笼")
    parts = np.split(ids, np.flatnonzero(np.array(ids) == MASK_ID))
    assert [part[part != MASK_ID].tolist() for part in parts] == [
        tokenizer.encode("The old"),
        tokenizer.encode("carried"),
        tokenizer.encode("安静"),
        [i for i in tokenizer.encode("安静灯笼") if tokenizer.piece(i) in "灯笼"],
    ]
    assert tokenizer.encode_with_mask("no mask") == tokenizer.encode("no mask")
    unknown = tokenizer.encode_with_mask("The [MASK]\U0001f600 lamp")  # directly behind a mask
    assert unknown == [*tokenizer.encode("The"), MASK_ID, UNK_ID, *tokenizer.encode("lamp")]


def test_training_depends_on_the_text_alone(tmp_path: Path) -> None:
    first, second = train(tmp_path / "a"), train(tmp_path / "another" / "folder")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.fingerprint == second.fingerprint
    config = TokenizerConfig(vocab_size=VOCAB_SIZE)
    other = Tokenizer(train_tokenizer(SENTENCES[:-9], tmp_path / "c", config))
    assert other.fingerprint != first.fingerprint


def test_bpe_differs_from_unigram(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bpe = train(tmp_path, model_type="bpe")
    assert [bpe.piece(i) for i in range(VOCAB_SIZE)] != [
        tokenizer.piece(i) for i in range(VOCAB_SIZE)
    ]
    assert bpe.decode(bpe.encode(SENTENCES[0])) == SENTENCES[0]


def test_lower_case_folds_and_cased_does_not(tmp_path: Path, tokenizer: Tokenizer) -> None:
    uncased = train(tmp_path, lower_case=True)
    assert uncased.encode("THE OLD Harbour ＡＢ") == uncased.encode("the old harbour ab")
    assert tokenizer.encode("THE") != tokenizer.encode("the")
    assert tokenizer.encode("ＴＨＥ") == tokenizer.encode("THE"), "NFKC"


def test_bytes_spell_unknown_characters(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert UNK_ID in tokenizer.encode("Ж")
    fallback = train(tmp_path, byte_fallback=True)
    assert fallback.num_reserved_pieces == 5 + 256
    ids = fallback.encode("Ж")
    assert UNK_ID not in ids and fallback.decode(ids) == "Ж"
    starts = fallback.word_starts
    assert fallback.piece(5 + 0x41) == "<0x41>"
    assert [starts[5 + byte] for byte in (0x41, 0x7F, 0x80, 0xBF, 0xC0, 0xE4)] == [
        True, True, False, False, True, True,
    ]  # fmt: skip


def test_word_starts(tokenizer: Tokenizer) -> None:
    starts = {tokenizer.piece(i): bool(s) for i, s in enumerate(tokenizer.word_starts)}
    assert starts["▁The"] and starts["▁"] and starts[","] and starts["."] and starts["灯笼"]
    assert not starts["s"] and not starts["ed"]
    assert tokenizer.word_starts.shape == (VOCAB_SIZE,)


def test_accents_do_not_start_words(tmp_path: Path) -> None:
    text = ["नमस्ते दुनिया यह हिन्दी है", "les élèves à l'école e\u0323\u0301"] * 50
    path = train_tokenizer(text, tmp_path, TokenizerConfig(vocab_size=34, character_coverage=1.0))
    hindi = Tokenizer(path)
    starts = {hindi.piece(i): bool(s) for i, s in enumerate(hindi.word_starts)}
    assert not starts["ि"] and not starts["्"], "a vowel sign belongs to its letter"


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_vocabulary_too_large_names_the_possible_one(tmp_path: Path, model_type: str) -> None:
    with pytest.raises(UserError, match=r"--vocab_size 90000.* at most \d+ pieces") as caught:
        train(tmp_path, vocab_size=90_000, model_type=model_type)
    largest = int(str(caught.value).split("at most ")[1].split()[0])
    assert train(tmp_path, vocab_size=largest, model_type=model_type).vocab_size == largest
    assert "\n" not in str(caught.value)


def test_a_vocabulary_too_small_names_the_characters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--vocab_size 31: .*alone need \d+ pieces"):
        train(tmp_path, vocab_size=31)
    assert not list(tmp_path.iterdir()), "nothing half-written"


@pytest.mark.parametrize("sentences", [[], ["", "  "]])
def test_no_text_is_an_error(tmp_path: Path, sentences: list[str]) -> None:
    with pytest.raises(UserError, match="no sentence"):
        train_tokenizer(sentences, tmp_path, TokenizerConfig(vocab_size=100))


def test_settings_out_of_range_are_all_named() -> None:
    with pytest.raises(UserError, match=r"vocab_size = 200: must be above 261; .*max_sentences"):
        TokenizerConfig(vocab_size=200, byte_fallback=True, max_sentences=-1)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer(tmp_path / "missing.model")
    for content in (b"", b"no model at all" * 9):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(UserError, match="is not a SentencePiece model"):
            Tokenizer(tmp_path / "bad.model")


def test_other_special_pieces_are_refused(tmp_path: Path) -> None:
    models: dict[str, dict[str, Any]] = {
        "foreign": {},
        "user_defined": {  # the right names, but text can reach the mask
            "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "pad_piece": "[PAD]",
            "unk_piece": "[UNK]", "bos_piece": "[CLS]", "eos_piece": "[SEP]",
            "user_defined_symbols": ["[MASK]"],
        },
    }  # fmt: skip
    for name, settings in models.items():
        with open(tmp_path / name, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(SENTENCES), model_writer=file, vocab_size=300,
                minloglevel=2, **settings,
            )  # fmt: skip
        with pytest.raises(UserError, match=r"must be the control pieces \[PAD\]"):
            Tokenizer(tmp_path / name)


def test_a_piece_is_shown_without_its_space_unless_it_is_one() -> None:
    shown = [bare_piece(piece) for piece in ("▁river", "##er", "▁", "<0xE6>")]
    assert shown == ["river", "##er", "▁", "<0xE6>"]
