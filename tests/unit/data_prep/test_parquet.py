"""Parquet: columns of the same name, fields inside of others, bytes, nulls, and bombs."""

import re
from pathlib import Path
from typing import Any

import pytest

from data_prep.inputs import whole_file
from data_prep.readers import parquet, read_documents
from data_prep.readers.source import RecordTally, Source
from dist_bert.common.errors import UserError
from tests.support.memory_limit import read_within

arrow = pytest.importorskip("pyarrow")
arrow_parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: list[tuple[str, Any]], **how: Any) -> Path:
    arrays = [arrow.array(v) if isinstance(v, list) else v for _, v in columns]
    table = arrow.Table.from_arrays(arrays, names=[name for name, _ in columns])
    arrow_parquet.write_table(table, path, **how)
    return path


def read(path: Path, layout: str = "auto", **fields: str) -> tuple[list[str], RecordTally]:
    tally = RecordTally(str(path), 0.0)
    source = Source(whole_file(str(path)), tally, **fields)
    return [document.text for document in read_documents(source, layout)], tally


def test_columns_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [("id", [1, 2]), ("text", ["a", "b"]), ("id", ["x", "y"])])
    assert read(path)[0] == ["a", "b"]
    path = write(tmp_path / "b", [("text", ["a"]), ("text", ["b"]), ("body", ["c"])])
    for layout in ("auto", "lines"):
        with pytest.raises(UserError, match="b: has 2 columns named text; rename all but on"):
            read(path, layout)
    assert read(path, text_field="body")[0] == ["c"]
    path = write(tmp_path / "c", [("lang", ["en"]), ("text", ["a"]), ("lang", ["de"])])
    assert read(path)[0] == ["a"]


@pytest.mark.parametrize("others", [[], [("id", [1, 2, 3, 4])]])
def test_fields_inside_of_others(tmp_path: Path, others: list[tuple[str, Any]]) -> None:
    rows = [{"text": "a", "more": {"body": "b"}}, None, {"text": None, "more": None}, {"text": "c"}]
    path = write(tmp_path / "a", [("doc", rows), *others])
    texts, tally = read(path, text_field="doc.text")
    assert (texts, tally.drops, tally.num_records) == (["a", "c"], {"null": 2}, 4)
    assert read(path, text_field="doc.more.body")[0] == ["b"]
    with pytest.raises(UserError, match=r"column doc is of type struct<.*--text_field \(doc"):
        read(path, text_field="doc")


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "large_string"])
@pytest.mark.parametrize("others", [[], [("id", [1, 2, 3])]])
def test_bytes_are_utf8(tmp_path: Path, kind: str, others: list[tuple[str, Any]]) -> None:
    values = arrow.array(["Ä.", None, "中文"]).cast(getattr(arrow, kind)())
    for column in (values, values.dictionary_encode() if "view" not in kind else values):
        path = write(tmp_path / "a", [("text", column), *others])
        texts, tally = read(path)
        assert (texts, tally.drops) == (["Ä.", "中文"], {"null": 1})
    bad = arrow.array([b"good", b"bad \xff", None])
    path = write(tmp_path / "b", [("text", bad), *others])
    with pytest.raises(UserError, match="b: row 2: text is not UTF-8"):
        read(path)


def test_nulls_are_no_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [("text", [None] * 999 + ["a"]), ("id", list(range(1_000)))])
    texts, tally = read(path)
    assert (texts, tally.drops, tally.bad) == (["a"], {"null": 999}, {})


MIB = 1 << 20


def test_repeated_long_texts_take_bounded_memory(tmp_path: Path) -> None:
    """A few bytes a row repeat one long text."""
    indices = arrow.array([0] * 1_024, arrow.int32())
    column = arrow.DictionaryArray.from_arrays(indices, ["x" * MIB])
    path = write(
        tmp_path / "a",
        [("text", column)],
        compression="zstd",
        dictionary_pagesize_limit=64 * MIB,
        store_schema=False,
    )
    assert path.stat().st_size < MIB // 10
    found = read_within(path, "parquet", 512 * MIB)
    assert (found.num_documents, found.num_characters) == (1_024, 1_024 * MIB)


def test_a_row_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", [("text", ["x" * (257 * MIB)])], compression="zstd")
    found = read_within(path, "parquet", 256 * MIB)
    assert re.search(r"a: one of the rows from 1 on is longer than 256 MiB; split", found.problem)
    monkeypatch.setattr(parquet, "MAX_RECORD_BYTES", 1_000)
    path = write(tmp_path / "b", [("text", ["short"] * 9 + ["x" * 1_001])])
    with pytest.raises(UserError, match="b: row 10 is longer than"):
        read(path)
