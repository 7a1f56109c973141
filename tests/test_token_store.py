"""The token store: documents come out of it as the tokenizer sees them, and units are made once."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.inputs import InputFile, find_inputs, plan_units
from data_prep.readers import read_sentences
from data_prep.token_store import (
    TextSettings,
    TokenStore,
    Unit,
    UnitRecord,
    content_hash,
    make_unit,
    unit_folder,
)
from dist_bert.errors import UserError
from dist_bert.tokenizer import Tokenizer, train_tokenizer
from dist_bert.tokenizer_config import TokenizerConfig
from tests.corpus import chinese_sentences, documents, english_sentences, write_text_files

NUM_FILES = 53
SETTINGS = TextSettings("text", "", "fingerprint")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    sentences = english_sentences(900, seed=1) + chinese_sentences(300, seed=2)
    folder = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer(train_tokenizer(sentences, folder, TokenizerConfig(vocab_size=601)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[InputFile]:
    folder = tmp_path_factory.mktemp("text")
    write_text_files(folder, NUM_FILES)
    return find_inputs([str(folder / "*.txt")])


def write(path: Path, text: str) -> InputFile:
    path.write_text(text, encoding="utf-8")
    return find_inputs([str(path)])[0]


def store_of(
    folder: Path, units: list[list[InputFile]], tokenizer: Tokenizer
) -> tuple[TokenStore, list[UnitRecord]]:
    records = [
        make_unit(unit_folder(folder, u), files, SETTINGS, tokenizer)
        for u, files in enumerate(units)
    ]
    return TokenStore(folder, [r.num_documents for r in records]), records


def test_a_unit_holds_what_the_tokenizer_gives(
    tmp_path: Path, inputs: list[InputFile], tokenizer: Tokenizer
) -> None:
    folder = unit_folder(tmp_path, 12)
    record = make_unit(folder, inputs, SETTINGS, tokenizer)
    unit = Unit(folder)
    assert folder.name == "unit-00012"
    assert unit.ids.dtype == np.uint16 and unit.ids.size == record.num_tokens
    expected = [(t, s) for f in inputs for t, s in read_sentences(f.path, "text")]
    assert record.num_documents == len(expected) == NUM_FILES
    assert record.num_sentences == sum(len(s) for _, s in expected)
    assert record.text_bytes == sum(f.bytes for f in inputs)
    assert record.num_single_sentence_documents == sum(len(s) == 1 for _, s in expected) > 0
    for d, (text, sentences) in enumerate(expected):
        first, stop = unit.document_offsets[d : d + 2]
        assert stop - first == len(sentences)
        for i, sentence in enumerate(sentences, first):
            ids = unit.ids[unit.sentence_offsets[i] : unit.sentence_offsets[i + 1]]
            assert ids.tolist() == tokenizer.encode(sentence)
        assert unit.document_hashes[d] == content_hash(text.encode())


def test_the_record_names_its_inputs(
    tmp_path: Path, inputs: list[InputFile], tokenizer: Tokenizer
) -> None:
    record = make_unit(tmp_path / "unit", inputs[:7], SETTINGS, tokenizer)
    assert json.loads((tmp_path / "unit" / "unit.json").read_text())["inputs"] == record.inputs
    assert [i["path"] for i in record.inputs] == [f.path for f in inputs[:7]]
    assert all(i["documents"] == 1 and len(i["sha256"]) == 64 for i in record.inputs)


def test_batches_of_text_do_not_show(
    tmp_path: Path,
    inputs: list[InputFile],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_unit(tmp_path / "one", inputs, SETTINGS, tokenizer)
    monkeypatch.setattr("data_prep.token_store._BATCH_CHARACTERS", 101)
    make_unit(tmp_path / "many", inputs, SETTINGS, tokenizer)
    for file in sorted((tmp_path / "one").iterdir()):
        assert (tmp_path / "many" / file.name).read_bytes() == file.read_bytes(), file.name


def test_empty_documents_and_sentences_are_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ignored = "\u200b\u200b"  # the normaliser leaves nothing of a zero-width space
    assert tokenizer.encode(ignored) == []
    texts = ["", f"One here.\n\n{ignored}\n\nTwo here.", " \n\n ", ignored, "Last one."]
    files = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    store, (record,) = store_of(tmp_path / "store", [files], tokenizer)
    assert record.drops == {"empty": 3}
    assert (record.num_documents, record.num_sentences) == (2, 3)
    assert [i["documents"] for i in record.inputs] == [0, 1, 0, 0, 1]
    assert store.units[0].document_hashes[1] == content_hash(b"Last one.")
    store.gather(np.arange(2))  # asserts that no document and no sentence is empty


def test_a_unit_without_documents_can_be_opened(tmp_path: Path, tokenizer: Tokenizer) -> None:
    units = [[write(tmp_path / "a", "")], [write(tmp_path / "b", "Some text.")]]
    store, _ = store_of(tmp_path / "store", units, tokenizer)
    assert store.units[0].ids.size == 0 and store.units[0].document_offsets.tolist() == [0]
    assert store.gather(np.array([0])).tokens.tolist() == tokenizer.encode("Some text.")


@pytest.mark.parametrize("unit_size", [1, 5, NUM_FILES])
def test_documents_are_gathered_by_their_numbers(
    tmp_path: Path, inputs: list[InputFile], tokenizer: Tokenizer, unit_size: int
) -> None:
    units = [inputs[i : i + unit_size] for i in range(0, NUM_FILES, unit_size)]
    store, _ = store_of(tmp_path, units, tokenizer)
    assert store.first_document[-1] == NUM_FILES
    chosen = np.array([0, 3, 4, 5, 17, 29, 30, 31, NUM_FILES - 1])
    gathered = store.gather(chosen)
    assert gathered.document_ids.tolist() == chosen.tolist()
    for place, number in enumerate(chosen):
        ((_, sentences),) = read_sentences(inputs[number].path, "text")
        first, stop = gathered.document_offsets[place : place + 2]
        offsets = gathered.sentence_offsets[first : stop + 1]
        found = [gathered.tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        assert found == [tokenizer.encode(s) for s in sentences]


def test_a_finished_unit_is_kept_only_for_the_same_input(
    tmp_path: Path, inputs: list[InputFile], tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "unit"
    file = write(tmp_path / "a.txt", "A first text. It is here.")
    first = make_unit(folder, [file], SETTINGS, tokenizer)
    made = os.stat(folder / "ids.npy").st_ctime_ns
    assert make_unit(folder, [file], SETTINGS, tokenizer) == first
    assert os.stat(folder / "ids.npy").st_ctime_ns == made, "kept"
    for settings in (TextSettings("lines", "", "fingerprint"), TextSettings("text", "", "other")):
        assert make_unit(folder, [file], settings, tokenizer).fingerprint != first.fingerprint
    assert os.stat(folder / "ids.npy").st_ctime_ns != made
    changed = write(tmp_path / "a.txt", "A later text. It is here, too.")
    assert make_unit(folder, [changed], SETTINGS, tokenizer).num_tokens != first.num_tokens


def test_a_failing_unit_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = write(tmp_path / "a.txt", "Fine.")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    bad = find_inputs([str(tmp_path / "b.txt")])[0]
    with pytest.raises(UserError, match=r"b\.txt: byte 0"):
        make_unit(tmp_path / "store" / "unit", [good, bad], SETTINGS, tokenizer)
    assert not list((tmp_path / "store").iterdir())


def test_equal_texts_have_equal_hashes() -> None:
    texts = {" ".join(s).encode() for s in documents(3_000, seed=9)}
    hashes = np.array([content_hash(t) for t in texts], np.uint64)
    assert content_hash(b"a") == content_hash(b"a")
    assert np.unique(hashes).size == len(texts) > 2_000
    shares = np.bincount((hashes >> np.uint64(61)).astype(np.int64), minlength=8) / len(texts)
    assert np.all(np.abs(shares - 1 / 8) < 0.03), "uniform: the split is made by them"


def test_small_files_share_units_and_large_ones_have_their_own() -> None:
    small = [InputFile(f"{i:05d}", 1_000, 0) for i in range(8_000)]
    units = plan_units(small)
    assert [f for unit in units for f in unit] == small, "in order, none lost"
    assert 20 <= len(units) <= 80
    mixed = plan_units([InputFile("a", 10, 0), InputFile("b", 50 << 20, 0), InputFile("c", 10, 0)])
    assert [[f.path for f in unit] for unit in mixed] == [["a"], ["b"], ["c"]]
    assert plan_units([InputFile("empty", 0, 0)]) == [[InputFile("empty", 0, 0)]]
    huge = [InputFile(f"{i:06d}", 1 << 30, 0) for i in range(20_000)]
    assert len(plan_units(huge)) <= 3 * 8_192, "a rank can map all units"
