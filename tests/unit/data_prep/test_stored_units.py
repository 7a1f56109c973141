"""A token store is not believed: sums, damage and other tokenizers, without a whole preparation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.inputs import InputPart, find_inputs
from data_prep.mpi_ranks import connect
from data_prep.prepare_config import TextConfig
from data_prep.stored_units import damage, require_own_tokenizer, sound_units
from data_prep.token_store import UnitRecord, make_unit, read_record, unit_folder
from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.support.corpus import english_sentences, write_text_files

CONFIG = TextConfig(format="text")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    sentences = english_sentences(900, seed=1)
    return Tokenizer(train_tokenizer(sentences, folder, TokenizerConfig(vocab_size=301)))


@pytest.fixture
def parts(tmp_path: Path) -> list[InputPart]:
    write_text_files(tmp_path / "text", 7)
    return find_inputs([str(tmp_path / "text" / "*.txt")])


@pytest.fixture
def record(tmp_path: Path, parts: list[InputPart], tokenizer: Tokenizer) -> UnitRecord:
    """Of the only unit in the store `tmp_path`."""
    return make_unit(
        unit_folder(tmp_path, 0), parts, CONFIG, tokenizer, max_bad_share=0, breathe=print
    )


def flip_ids(folder: Path) -> None:
    ids = np.load(folder / "ids.npy", mmap_mode="r+")
    ids[:100] ^= 1


def cut_ids(folder: Path) -> None:
    data = (folder / "ids.npy").read_bytes()
    (folder / "ids.npy").write_bytes(data[: len(data) // 2])


def empty_offsets(folder: Path) -> None:
    (folder / "sentence_offsets.npy").write_bytes(b"")


def remove_hashes(folder: Path) -> None:
    (folder / "document_hashes.npy").unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (flip_ids, "ids.npy has changed since it was written (sha256)"),
        (cut_ids, "ids.npy has changed since it was written (sha256)"),
        (empty_offsets, "sentence_offsets.npy has changed since it was written (sha256)"),
        (remove_hashes, "document_hashes.npy is missing"),
    ],
)
def test_damaged_units_are_named_and_not_used(
    change: Callable[[Path], None],
    expected: str,
    tmp_path: Path,
    record: UnitRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = unit_folder(tmp_path, 0)
    assert len(record.sha256) == 4 and damage(folder) == ""
    change(folder)
    assert damage(folder) == f"{folder}/{expected}"
    with connect() as ranks:
        assert sound_units(ranks, [folder], [record.fingerprint], [7]) == {}
    assert capsys.readouterr().out == (
        f"token store: 1 units are damaged and are encoded again: {folder}/{expected}\n"
    )


def test_sound_units_are_used_and_others_are_told(
    tmp_path: Path, record: UnitRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [unit_folder(tmp_path, 0), unit_folder(tmp_path, 1)]
    with connect() as ranks:
        assert sound_units(ranks, folders, [record.fingerprint, "?"], [7, 9]) == {0: record}
        assert capsys.readouterr().out == "", "a unit that is not there is nothing to tell"
        assert sound_units(ranks, folders, ["another", "?"], [7, 9]) == {}
    assert capsys.readouterr().out == (
        "token store: 1 units were made from other text or with other settings and are encoded"
        f" again: {folders[0]}\n"
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace('"num_tokens": ', '"num_tokens": 1'), r"has changed .*\(sum\)"),
        (lambda text: text[:-20], "is not valid JSON"),
        (lambda text: json.dumps({**json.loads(text), "new": 1}), "by another version"),
        (lambda text: '{"fingerprint": "that of version 3"}', "by another version"),
    ],
)
def test_a_record_is_as_it_was_written_or_of_no_use(
    change: Callable[[str], str],
    expected: str,
    tmp_path: Path,
    record: UnitRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = unit_folder(tmp_path, 0)
    path = folder / "unit.json"
    assert read_record(folder) == record
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=rf"unit-00000/unit\.json.* {expected}"):
        read_record(folder)
    with connect() as ranks:
        assert sound_units(ranks, [folder], [record.fingerprint], [7]) == {}
    told = capsys.readouterr().out
    assert told.startswith(f"token store: 1 units cannot be used and are encoded again: {path}")
    require_own_tokenizer(tmp_path, "another")  # it is of no use to that one either


def test_units_of_another_tokenizer_are_not_replaced(tmp_path: Path, record: UnitRecord) -> None:
    require_own_tokenizer(tmp_path / "missing", "another")
    require_own_tokenizer(tmp_path, record.tokenizer)
    expected = rf"encoded with another tokenizer \({record.tokenizer[:12]} there, another asked for"
    with pytest.raises(UserError, match=expected):
        require_own_tokenizer(tmp_path, "another")
