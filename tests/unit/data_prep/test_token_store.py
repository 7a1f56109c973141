"""The token store: documents come out of it as the tokenizer sees them, and units are made once."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.corpus import read_sentences
from data_prep.inputs import InputPart, find_inputs
from data_prep.prepare_config import PrepareConfig, TextConfig
from data_prep.readers.source import RecordTally
from data_prep.token_store import (
    TokenStore,
    Unit,
    UnitRecord,
    content_hash,
    is_unit,
    make_unit,
    read_record,
    unit_fingerprint,
    unit_folder,
)
from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.support.corpus import chinese_sentences, documents, english_sentences, write_text_files
from tests.support.published import byte_level_tokenizer, write_byte_level

NUM_FILES = 53
CONFIG = TextConfig(format="text")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    sentences = english_sentences(900, seed=1) + chinese_sentences(300, seed=2)
    folder = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer(train_tokenizer(sentences, folder, TokenizerConfig(vocab_size=601)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[InputPart]:
    folder = tmp_path_factory.mktemp("text")
    write_text_files(folder, NUM_FILES)
    return find_inputs([str(folder / "*.txt")])


def write(path: Path, text: str) -> InputPart:
    path.write_text(text, encoding="utf-8")
    return find_inputs([str(path)])[0]


def make(
    folder: Path,
    parts: list[InputPart],
    tokenizer: Tokenizer,
    config: TextConfig = CONFIG,
    max_bad_share: float = 0.0,
) -> UnitRecord:
    return make_unit(folder, parts, config, tokenizer, max_bad_share=max_bad_share, breathe=print)


def read(part: InputPart) -> list[tuple[str, list[str]]]:
    return list(read_sentences(part, CONFIG, RecordTally(part.path, 0.0)))


def store_of(
    folder: Path, units: list[list[InputPart]], tokenizer: Tokenizer
) -> tuple[TokenStore, list[UnitRecord]]:
    records = [make(unit_folder(folder, u), files, tokenizer) for u, files in enumerate(units)]
    return TokenStore(folder, [r.num_documents for r in records]), records


def test_a_unit_holds_what_the_tokenizer_gives(
    tmp_path: Path, inputs: list[InputPart], tokenizer: Tokenizer
) -> None:
    folder = unit_folder(tmp_path, 12)
    record = make(folder, inputs, tokenizer)
    unit = Unit(folder)
    assert folder.name == "unit-00012"
    assert unit.ids.dtype == np.uint16 and unit.ids.size == record.num_tokens
    expected = [pair for part in inputs for pair in read(part)]
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


def test_byte_level_pieces_get_the_spaces_between_sentences(tmp_path: Path) -> None:
    write_byte_level(tmp_path / "published", byte_level_tokenizer())
    pieces = Tokenizer(tmp_path / "published/tokenizer.json")
    text = "The lamp is old. It stands there. Nobody knows."
    part = write(tmp_path / "text", text)
    folder = unit_folder(tmp_path, 1)
    assert make(folder, [part], pieces).num_sentences == 3
    assert pieces.decode(np.load(folder / "ids.npy").tolist()) == text


def test_the_record_names_its_inputs(
    tmp_path: Path, inputs: list[InputPart], tokenizer: Tokenizer
) -> None:
    record = make(tmp_path / "unit", inputs[:7], tokenizer)
    assert json.loads((tmp_path / "unit" / "unit.json").read_text())["inputs"] == record.inputs
    assert [i["path"] for i in record.inputs] == [f.path for f in inputs[:7]]
    assert all(i["documents"] == 1 and len(i["sha256"]) == 64 for i in record.inputs)


def test_batches_of_text_do_not_show(
    tmp_path: Path,
    inputs: list[InputPart],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / "one", inputs, tokenizer)
    monkeypatch.setattr("data_prep.token_store._BATCH_CHARACTERS", 101)
    make(tmp_path / "many", inputs, tokenizer)
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
    tmp_path: Path, inputs: list[InputPart], tokenizer: Tokenizer, unit_size: int
) -> None:
    units = [inputs[i : i + unit_size] for i in range(0, NUM_FILES, unit_size)]
    store, _ = store_of(tmp_path, units, tokenizer)
    assert store.first_document[-1] == NUM_FILES
    chosen = np.array([0, 3, 4, 5, 17, 29, 30, 31, NUM_FILES - 1])
    gathered = store.gather(chosen)
    assert gathered.document_ids.tolist() == chosen.tolist()
    for place, number in enumerate(chosen):
        ((_, sentences),) = read(inputs[number])
        first, stop = gathered.document_offsets[place : place + 2]
        offsets = gathered.sentence_offsets[first : stop + 1]
        found = [gathered.tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        assert found == [tokenizer.encode(s) for s in sentences]


def test_a_unit_is_named_by_all_that_it_is_made_from(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "unit"
    part = write(tmp_path / "a.txt", "A first text. It is here.")
    wanted = unit_fingerprint([part], CONFIG, tokenizer.fingerprint)
    assert not is_unit(folder)
    made = make(folder, [part], tokenizer)
    assert is_unit(folder) and read_record(folder) == made and made.fingerprint == wanted
    assert made.tokenizer == tokenizer.fingerprint
    of_shards = PrepareConfig(format="text", sequence_length=512, copies=3)
    assert unit_fingerprint([part], of_shards, tokenizer.fingerprint) == wanted, "serves any shards"
    others = [
        unit_fingerprint([part], TextConfig(format="lines"), tokenizer.fingerprint),
        unit_fingerprint([part], TextConfig("text", repair_unicode=True), tokenizer.fingerprint),
        unit_fingerprint([part], CONFIG, "another"),
        unit_fingerprint([part, part], CONFIG, tokenizer.fingerprint),
        unit_fingerprint([dataclasses.replace(part, start=1)], CONFIG, tokenizer.fingerprint),
    ]
    later = write(tmp_path / "a.txt", "A later text. It is here.")
    others.append(unit_fingerprint([later], CONFIG, tokenizer.fingerprint))
    assert len({wanted, *others}) == 7
    assert make(folder, [later], tokenizer).fingerprint == others[-1], "what was there is replaced"


def test_bad_records_are_counted_and_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"Fine.\n" * 10)
    (tmp_path / "b.txt").write_bytes(b"Fine.\n" * 18 + b"Not \xff fine.\n" * 2)
    parts = find_inputs([str(tmp_path / "*.txt")])
    record = make(tmp_path / "unit", parts, tokenizer, max_bad_share=0.1)
    assert record.bad_records == {"not_utf8": 2}
    assert record.first_bad.startswith(f"{tmp_path}/b.txt: byte 112 is not UTF-8")
    with pytest.raises(UserError, match=r"b\.txt: byte 112 .* \(2 of 21 records are bad"):
        make(tmp_path / "unit", parts, tokenizer, max_bad_share=0.09)
    assert read_record(tmp_path / "unit") == record, "a failure harms nothing"


def test_a_bad_record_of_any_name_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A record's keys may be half characters and line ends, which no file and no line holds."""
    lines = ['{"text": "Fine."}', '{"\\ud800\\n\u00e9": "Bad."}']
    part = write(tmp_path / "a.jsonl", "\n".join(lines))
    config = dataclasses.replace(CONFIG, format="jsonl")
    record = make(tmp_path / "unit", [part], tokenizer, config, max_bad_share=0.5)
    assert record.first_bad.endswith("--text_field (\\ud800\\n\u00e9)")
    assert read_record(tmp_path / "unit") == record


@pytest.mark.parametrize("text", ["Some text that has grown.", "Other text"])
def test_a_file_that_changes_in_between_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, text: str
) -> None:
    other, part = write(tmp_path / "a.txt", "Other."), write(tmp_path / "b.txt", "Some text.")
    os.utime(part.path, ns=(7, 7))
    part = find_inputs([part.path])[0]
    make(tmp_path / "unit", [other, part], tokenizer)
    Path(part.path).write_text(text)
    with pytest.raises(UserError, match=r"b\.txt: has changed while this preparation was running"):
        make(tmp_path / "new", [other, part], tokenizer)
    assert not (tmp_path / "new").exists()


def test_long_work_can_be_left(tmp_path: Path, tokenizer: Tokenizer) -> None:
    part = write(tmp_path / "a.txt", "Some text.")

    def breathe(num_bytes: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        make_unit(
            tmp_path / "store" / "unit", [part], CONFIG, tokenizer, max_bad_share=0, breathe=breathe
        )
    assert not list((tmp_path / "store").iterdir())


def test_a_failing_unit_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = write(tmp_path / "a.txt", "Fine.")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    bad = find_inputs([str(tmp_path / "b.txt")])[0]
    with pytest.raises(UserError, match=r"b\.txt: byte 0"):
        make(tmp_path / "store" / "unit", [good, bad], tokenizer)
    assert not list((tmp_path / "store").iterdir())


def test_equal_texts_have_equal_hashes() -> None:
    texts = {" ".join(s).encode() for s in documents(3_000, seed=9)}
    hashes = np.array([content_hash(t) for t in texts], np.uint64)
    assert content_hash(b"a") == content_hash(b"a")
    assert np.unique(hashes).size == len(texts) > 2_000
    shares = np.bincount((hashes >> np.uint64(61)).astype(np.int64), minlength=8) / len(texts)
    assert np.all(np.abs(shares - 1 / 8) < 0.03), "uniform: the split is made by them"
