"""Readers: every layout gives its documents, whatever the packing; what is bad is named."""

import bz2
import contextlib
import gzip
import itertools
import json
import lzma
import re
import sys
import tarfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus import read_sentences
from data_prep.inputs import InputPart, whole_file
from data_prep.prepare_config import FORMATS, TextConfig
from data_prep.readers import detect_layout, lines, parquet, read_documents
from data_prep.readers.detect import is_sentences
from data_prep.readers.docstrings import docstrings_of
from data_prep.readers.records import document_of
from data_prep.readers.source import Document, RecordTally, Source
from dist_bert.common.errors import UserError
from tests.support.corpus import chinese_sentences, english_sentences

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"  # real text, where there is any
TEXT = "First line.\nSecond line: 中文。\n\nA new paragraph."


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_rows(path: Path, rows_by_group: list[list[Any]], **columns: Any) -> Path:
    """A parquet file with row groups of texts; `columns` are others, a value for all rows each."""
    arrow, arrow_parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tables = [
        arrow.table({**{name: [v] * len(rows) for name, v in columns.items()}, "text": rows})
        for rows in rows_by_group
    ]
    with arrow_parquet.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return path


def source_of(path: Path, max_bad_share: float = 0.0, **fields: str) -> Source:
    part = whole_file(str(path))
    return Source(part, RecordTally(str(path), max_bad_share), **fields)


def read(path: Path, layout: str, **fields: Any) -> list[str]:
    return [text for text, _ in read_documents(source_of(path, **fields), layout)]


def documents_of(path: Path, layout: str = "auto") -> list[tuple[str, list[str]]]:
    """Texts and sentences as a token store gets them."""
    part = whole_file(str(path))
    return list(read_sentences(part, TextConfig(format=layout), RecordTally(part.path, 0.0)))


def sentences_of(path: Path, layout: str = "auto") -> list[list[str]]:
    return [sentences for _, sentences in documents_of(path, layout)]


def real(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip("the shared data are not on this machine")
    return path


def characters(texts: Iterable[str]) -> str:
    """All characters but white space and those of no width: what must not get lost."""
    return "".join("".join(texts).translate(dict.fromkeys((0x200B, 0xFEFF))).split())


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", TEXT), "text") == [TEXT]
    assert read(write(tmp_path / "b.txt", ""), "text") == [""]


@pytest.mark.parametrize("layout", ["text", "blank_line", "lines", "sentences", "jsonl"])
def test_marks_and_line_ends_do_not_matter(tmp_path: Path, layout: str) -> None:
    text = json.dumps({"text": TEXT}) + "\n" if layout == "jsonl" else TEXT
    expected = read(write(tmp_path / "plain", text), layout)
    variant = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    assert read(write(tmp_path / "windows", variant), layout) == expected
    assert len(expected) == (2 if layout in ("blank_line", "lines") else 1)
    assert characters(expected) == characters([TEXT])


def test_blank_lines_end_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\none\ntwo\n \t\n\n\nthree\n\nfour")
    assert read(path, "blank_line") == ["one\ntwo", "three", "four"]


def test_one_sentence_a_line_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "One. Still one\nTwo\n\nThree\n")
    assert sentences_of(path, "lines") == [["One. Still one", "Two"], ["Three"]]
    assert sentences_of(path, "sentences") == [["One. Still one", "Two", "Three"]]
    assert sentences_of(path, "blank_line") == [["One.", "Still one", "Two"], ["Three"]]


def test_lines_without_documents_are_cut_into_documents(tmp_path: Path) -> None:
    size = lines.SENTENCES_A_DOCUMENT
    texts = [f"Sentence {n}. Still {n}" for n in range(2 * size + 3)]
    path = write(tmp_path / "a.txt", "\n".join(texts[:5]) + "\n\n \n" + "\n".join(texts[5:]))
    documents = sentences_of(path, "sentences")
    assert [len(sentences) for sentences in documents] == [size, size, 3]
    assert list(itertools.chain(*documents)) == texts


WIKITEXT = """\x20
 = Cable @-@ knit =\x20

 Wool of 1 @,@ 000 sheep @,@ 0 @.@ 5 kg <unk> a well @-@ known @-@ knit . Twice = 2 .\x20
 Second paragraph of 1932 @,@\x20

 = = History = =\x20

 = = = Early = = =\x20

 Given by a formula\x20
 = 1 / s and a nominal k =\x20
 2 .\x20

 = Homarus gammarus =\x20

 = = Only headings = =\x20

"""
WIKITEXT_TEXTS = [
    [
        "Cable-knit",
        "Wool of 1,000 sheep,0.5 kg <unk> a well-known-knit . Twice = 2 .",
        "Second paragraph of 1932,",
        "History",
        "Early",
        "Given by a formula",
        "= 1 / s and a nominal k =",
        "2 .",
    ],
    ["Homarus gammarus", "Only headings"],
]


def test_wikitext_documents_begin_at_titles(tmp_path: Path) -> None:
    expected = ["\n\n".join(paragraphs) for paragraphs in WIKITEXT_TEXTS]
    path = write(tmp_path / "wiki.tokens", WIKITEXT)
    assert read(path, "wikitext") == read(path, "auto") == expected
    assert read(write(tmp_path / "b", "before\n" + WIKITEXT), "wikitext") == ["before", *expected]
    windows = write(tmp_path / "c", "\ufeff" + WIKITEXT.replace("\n", "\r\n"))
    assert read(windows, "auto") == expected


def test_text_lines_come_from_parquet_rows_too(tmp_path: Path) -> None:
    rows = [line + "\n" if line.strip() else "" for line in WIKITEXT.split("\n")]
    path = write_rows(tmp_path / "a", [rows[:7], rows[7:]])
    assert read(path, "auto") == ["\n\n".join(paragraphs) for paragraphs in WIKITEXT_TEXTS]
    path = write_rows(tmp_path / "b", [["One. Still one", "Two\r\nThree"], ["", "Four"]])
    assert sentences_of(path, "lines") == [["One. Still one", "Two", "Three"], ["Four"]]
    assert sentences_of(path, "sentences") == [["One. Still one", "Two", "Three", "Four"]]


def test_large_text_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_DOCUMENT", 24)
    text = "One.\n\nTwo.\n \nThree\nis.\nFour.\n" + "no end " * 4 + "中文没有空格的地方" * 2
    expected = [
        "One.\n\nTwo.\n \n", "Three\nis.\nFour.\n", "no end no end no end ", "no end ",
        "中文没有空格的", "地方中文没有空", "格的地方",
    ]  # fmt: skip
    assert read(write(tmp_path / "a", text), "text") == expected
    assert read(write(tmp_path / "b", "x" * 24), "text") == ["x" * 24]
    monkeypatch.setattr(lines, "MAX_DOCUMENT", 11)
    for layout in ("blank_line", "sentences", "wikitext"):
        path = write(tmp_path / "c", "aaaa\nbbbb\ncccc\n" + "d" * 13 + "\neeee")
        texts = read(path, layout)
        assert characters(texts) == "aaaabbbbcccc" + "d" * 13 + "eeee"
        assert len(texts) >= 4


@pytest.mark.parametrize("limit", range(4, 40))
def test_pieces_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(lines, "MAX_DOCUMENT", limit)
    for line_end in ("\n", "\r\n", "\r"):
        text = "Ein Wört.\n\n\nA ß\n中文中文中文中文\n \t\nmore\n😀😀😀😀😀😀😀 end\n\n\nlast"
        path = write(tmp_path / "a", b"\xef\xbb\xbf" + text.replace("\n", line_end).encode())
        texts = read(path, "text")
        assert "".join(texts) == text
        assert max(len(text.encode()) for text in texts) <= limit
        data = path.read_bytes() + line_end.encode() + b"bad \xff here"
        with pytest.raises(UserError, match=f"byte {data.index(255, 3)} is not UTF-8"):
            read(write(tmp_path / "b", data), "text")


def test_json_lines_take_the_field_that_is_there(tmp_path: Path) -> None:
    rows = [{"id": 1, "content": "c"}, {"text": "t", "content": "no"}, {"text": ""}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(path, "jsonl") == ["c", "t", ""]
    path = write(tmp_path / "a.jsonl", '{"id": "x"}\n{"text": "", "content": ""}')
    with pytest.raises(UserError, match=r"a\.jsonl: line 2: has no text under id; .*text, content"):
        read(path, "jsonl", text_field="id")


def test_line_ends_inside_json_are_normal(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a\r\nb\rc"}))
    assert read(path, "jsonl") == ["a\nb\nc"]


@pytest.mark.parametrize(
    ("fields", "names", "expected"),
    [
        ({"text": "t", "language": "en", "lang": "de"}, {}, ("t", "en")),
        ({"text": "t", "language": None, "lang": "de"}, {}, ("t", "de")),
        ({"text": "t", "metadata": {"identification": {"label": "zh"}}}, {}, ("t", "zh")),
        ({"text": "t", "metadata": {"identification": None}}, {}, ("t", "")),
        ({"text": "t", "metadata": "identification"}, {}, ("t", "")),
        ({"text": "t", "lang": ["en"]}, {}, ("t", "")),
        ({"text": "t", "lang": "en", "l": "fr"}, {"language_field": "l"}, ("t", "fr")),
        ({"text": "t", "a": {"b": {"c": "fr"}}}, {"language_field": "a.b.c"}, ("t", "fr")),
        ({"text": "no", "raw": {"body": "b"}}, {"text_field": "raw.body"}, ("b", "")),
        ({"raw.body": "dot", "raw": {"body": "b"}}, {"text_field": "raw.body"}, ("dot", "")),
        ({"text": "", "content": "c"}, {}, ("", "")),
        ({"text": None, "content": "c"}, {}, None),
        ({"text": 3}, {}, None),
        ({"raw": {}}, {"text_field": "raw.body"}, None),
        ({}, {}, None),
    ],
)
def test_records_name_text_and_language(
    tmp_path: Path, fields: dict[str, Any], names: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    source = source_of(write(tmp_path / "a", ""), **names)
    assert document_of(fields, source) == (Document(*expected) if expected else None)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json", "is not JSON"),
        ('{"text": "cut o', "is not JSON"),
        ("[1]", "is a list; expected JSON lines"),
        ('[{"text": "x"}]', "is a list; expected JSON lines"),
        ('{"text": 3}', "has no text"),
        ("{}", "--text_field"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "good"}\n' + line)
    with pytest.raises(UserError, match=f"a.jsonl: line 2: .*{problem}"):
        read(path, "jsonl")


@pytest.mark.parametrize("value", [[{"text": "x"}, {"text": "y"}], {"data": [{"text": "x"}]}])
@pytest.mark.parametrize("indent", [2, None])
def test_one_json_value_is_not_json_lines(tmp_path: Path, value: Any, indent: int | None) -> None:
    path = write(tmp_path / "a.json", json.dumps(value, indent=indent))
    with pytest.raises(UserError) as error:
        read(path, "auto")
    has_list = isinstance(value, list)
    expected = r"has no text" if not (has_list or indent) else r"expected JSON lines.*jq -c"
    assert re.search(rf"a\.json: line 1: .*{expected}", str(error.value))
    assert "\n" not in str(error.value)


def test_lines_of_a_part_are_named_by_its_place(tmp_path: Path) -> None:
    data = '{"text": "before"}\n{"text": "good"}\nbad'
    path = write(tmp_path / "a.jsonl", data)
    part = InputPart(str(path), 19, len(data) - 19, 0)
    tally = RecordTally(part.path, 1.0)
    assert list(read_documents(Source(part, tally), "jsonl")) == [Document("good")]
    assert tally.first_bad.startswith("line 2 after byte 19: is not JSON")


WIKI = """<doc id="1" url="?curid=1" title="Cable &amp; Wireless">
Cable &amp; Wireless

A firm of &lt;old&gt; times. It had ships.

History.
It began in 1852.
</doc>
<doc id="2" url="?curid=2" title="A redirect">
A redirect


</doc>
<doc id="3" url="https://x/wiki?curid=3" title="No title line">
Its text begins at once.
</doc>
"""


@pytest.mark.parametrize("layout", ["wikiextractor", "auto"])
def test_wikiextractor_documents_lose_their_title_and_nothing_else(
    tmp_path: Path, layout: str
) -> None:
    documents = documents_of(write(tmp_path / "wiki_00", WIKI), layout)
    assert [text for text, _ in documents] == [
        "A firm of <old> times. It had ships.\n\nHistory.\n\nIt began in 1852.",
        "Its text begins at once.",
    ]
    assert documents[0][1] == [
        "A firm of <old> times.",
        "It had ships.",
        "History.",
        "It began in 1852.",
    ]


def test_a_wikiextractor_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "wiki_00", WIKI[: -len("</doc>\n")])
    with pytest.raises(UserError, match="ends inside the document 'No title line'"):
        read(path, "wikiextractor")


def test_half_characters_are_replaced(tmp_path: Path) -> None:
    rows = r'{"text": "a \ud800 b \ud83d\ude00"}'
    assert read(write(tmp_path / "a", rows), "jsonl") == ["a \ufffd b 😀"]
    module = write(tmp_path / "a.py", r'''"""a \ud800 b"""''')
    assert read(module, "python_docs") == ["a \ufffd b"]


@pytest.mark.parametrize("packer", [gzip, bz2, lzma])
def test_packed_files_are_told_by_their_bytes(tmp_path: Path, packer: Any) -> None:
    halves = TEXT.encode()[:20], TEXT.encode()[20:]
    path = write(tmp_path / "no_suffix", b"".join(packer.compress(half) for half in halves))
    assert read(path, "text") == [TEXT], "several members are one file"
    assert detect_layout(str(path)) == "text"
    with pytest.raises(UserError, match=r"no_suffix: is damaged or cut off"):
        read(write(path, path.read_bytes()[:-9]), "text")


@pytest.mark.parametrize("layout", ["text", "blank_line", "jsonl"])
def test_bad_utf8_is_named_by_file_and_byte(tmp_path: Path, layout: str) -> None:
    good = '{"text": "fine"}\n' if layout == "jsonl" else "fine\n\n中文\n"
    data = good.encode() + b"bad \xff here"
    for path in (
        write(tmp_path / "a", data),
        write(tmp_path / "b", gzip.compress(data)),
        write(tmp_path / "c", data.replace(b"\n", b"\r\n")),
    ):
        offset = len(good.encode()) + 4 + (good.count("\n") if path.name == "c" else 0)
        with pytest.raises(UserError, match=f"{path.name}: byte {offset} is not UTF-8"):
            read(path, layout)


def test_a_byte_order_mark_counts_in_the_place_of_a_bad_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"\xef\xbb\xbfab \xff")
    with pytest.raises(UserError, match="byte 6 is not UTF-8"):
        read(path, "text")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    pytest.importorskip("pyarrow")
    for layout in ("text", "lines", "jsonl", "parquet", "auto"):
        source = Source(InputPart(path, 0, 9, 0), RecordTally(path, 0.0))
        with pytest.raises(UserError, match="none: cannot be read"):
            list(read_documents(source, layout))


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a", [["a\r\nb", ""], ["c"]], language="en", id=7)
    documents = list(read_documents(source_of(path), "auto"))
    assert documents == [Document("a\nb", "en"), Document("", "en"), Document("c", "en")]
    path = write_rows(tmp_path / "b", [["a"]], raw={"body": "inner", "meta": {"lang": "fr"}})
    source = source_of(path, text_field="raw.body", language_field="raw.meta.lang")
    assert list(read_documents(source, "parquet")) == [Document("inner", "fr")]


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a", [["a", "b"], ["c", None, "d"], ["e"]], id=7)
    source = source_of(path)
    assert [text for text, _ in read_documents(source, "parquet")] == ["a", "b", "c", "d", "e"]
    assert (source.tally.num_records, source.tally.drops) == (6, {"null": 1})

    arrow = pytest.importorskip("pyarrow")
    wrong = arrow.array([b"good", b"bad \xff", None]).view(arrow.string())
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.table({"content": wrong}), path, store_schema=False
    )
    source = source_of(path, max_bad_share=1.0)
    assert [text for text, _ in read_documents(source, "parquet")] == ["good", "bad \ufffd"]
    assert (source.tally.bad, source.tally.drops) == ({"not_utf8": 1}, {"null": 1})
    assert source.tally.first_bad == "row 2: content is not UTF-8"


def test_a_part_of_a_parquet_file_has_the_row_groups_that_begin_in_it(tmp_path: Path) -> None:
    arrow, arrow_parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    groups = [[f"{group} {row} " + "x" * 99 for row in range(3 + group)] for group in range(5)]
    path = write_rows(tmp_path / "a", groups, id="i")
    starts = parquet.row_group_starts(str(path))
    size = path.stat().st_size
    assert starts[0] == 4 and len(starts) == 5 and starts == sorted(starts)

    def rows_of(start: int, stop: int) -> list[str]:
        source = Source(InputPart(str(path), start, stop - start, 0), RecordTally("a", 0.0))
        return list(parquet.text_rows(source))

    assert rows_of(0, size) == list(itertools.chain(*groups))
    stops = [*starts[1:], size]
    assert [rows_of(*part) for part in zip([0, *starts[1:]], stops, strict=True)] == groups
    assert rows_of(starts[1] + 1, starts[3] + 1) == groups[2] + groups[3]
    assert rows_of(starts[4] + 1, size) == []
    wrong = arrow.array([b"a" * 99, b"b" * 99, b"\xff"])
    arrow_parquet.write_table(arrow.table({"text": wrong}), tmp_path / "b", row_group_size=1)
    start = parquet.row_group_starts(str(tmp_path / "b"))[1]
    part = InputPart(str(tmp_path / "b"), start, path.stat().st_size - start, 0)
    with pytest.raises(UserError, match="row 3: text is not UTF-8"):
        list(read_documents(Source(part, RecordTally("b", 0.0)), "parquet"))


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("body", r"has no column body; .*--text_field \(id, raw, text\)"),
        ("raw.x", r"has no column raw\.x; .*--text_field"),
        ("text.x", r"has no column text\.x; .*--text_field"),
        ("id", r"column id is of type int64, not string; .*--text_field"),
    ],
)
def test_a_missing_column_is_one_line_that_lists_them(
    tmp_path: Path, field: str, problem: str
) -> None:
    path = write_rows(tmp_path / "a", [["a"]], id=7, raw={"body": "inner"})
    with pytest.raises(UserError, match=f"a: {problem}"):
        read(path, "parquet", text_field=field)


def test_damaged_parquet_and_missing_packages_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a", [["text " * 99] * 9, ["more"]], id=7)
    data = path.read_bytes()
    damaged = data[:60] + bytes(60) + data[120:]
    for wrong in (data[:-9], data[: len(data) // 2], damaged):
        with pytest.raises(UserError, match=r"b: is damaged, cut off .*; fetch it") as error:
            read(write(tmp_path / "b", wrong), "parquet")
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for layout in ("parquet", "auto", "wikitext"):
        with pytest.raises(UserError, match=r"a: is a parquet file, .*pip install pyarrow"):
            read(path, layout)


def blocks(sizes: Iterable[int], make: Callable[[int, int], list[str]]) -> str:
    """One sentence a line, a blank line between documents of so many sentences."""
    return "\n\n".join("\n".join(make(size, seed)) for seed, size in enumerate(sizes)) + "\n"


SENTENCES = english_sentences(400, 7)
POEM = (
    "The lantern waits beside the gate,\nthe river will not stay;\n"
    "the captain says it is too late,\nand looks the other way.\n\n"
)
CLEAR = {
    "jsonl": ['\ufeff\n {"text": "x"}\n', '{"id":1}', '[{"a": 1}', '{\n  "text" : "x"', '[\n{"a":'],
    "wikiextractor": ["\n" + WIKI, '\ufeff<doc id="1" url="u" title="t">\nx\n</doc>'],
    "mediawiki": [
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">\n',
        '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<!-- a -->\n<mediawiki>',
        '<?xml version="1.0"?>\n<!DOCTYPE mediawiki SYSTEM "export.dtd">\n<mediawiki>',
        "<!DOCTYPE mediawiki [\n<!ELEMENT page ANY>\n]>\n<!-- b -->\n<mediawiki>",
    ],
    "wet": ["WARC/1.0\r\nWARC-Type: warcinfo\r\n", "WARC/1.1\r\nWARC-Type: conversion\r\n"],
    "wikitext": [WIKITEXT, " = Title = \n", " \n\n = C = D = \n\n text \n"],
    "lines": [
        blocks([5, 9, 4], english_sentences),
        blocks([12, 2, 6, 30], chinese_sentences),
        blocks([500] * 9, english_sentences).replace("\n", "\r\n"),
        blocks([8, 8, 8], english_sentences).replace(".\n", "\n", 2),
    ],
    "text": [
        "",
        "x",
        "{not json}",
        '{ "quoted" words',
        "[1] A note.",
        " = = Section = = \n\n text",
        "= Title =\n\ntext",
        " = 1 + 1\n",
        "<document>",
        "<?xml version='1.0'?>\n<html>",
        "About <mediawiki> dumps",
        "\n".join(SENTENCES),
        "\n\n".join(SENTENCES),
        "\n\n".join(" ".join(SENTENCES[i : i + 5]) for i in range(0, 400, 5)),
        "\n\n".join("\n".join([" ".join(SENTENCES[i : i + 3])] * 4) for i in range(0, 400, 3)),
        "\n\n".join(textwrap.fill(" ".join(SENTENCES[i : i + 9]), 67) for i in range(0, 400, 9)),
        POEM * 30,
        "\n\n".join("\n".join(f"“{s}”" for s in SENTENCES[i : i + 9]) for i in range(0, 400, 9)),
        "\n\n".join("\n".join(f"TOM: {s}" for s in SENTENCES[i : i + 9]) for i in range(0, 400, 9)),
        "\n\n".join("\n".join(f"- {s}" for s in SENTENCES[i : i + 9]) for i in range(0, 400, 9)),
        blocks([2, 2, 2], english_sentences),
        "Title\n\nOne sentence.\nAnother one.\n\nThe last one.\n",
        "int a;\nint b;\nint c;\n\n" * 30,
        "".join(chinese_sentences(900, 3)),
        "\n\n".join("".join(chinese_sentences(6, seed)) for seed in range(40)),
    ],
}


@pytest.mark.parametrize(
    ("layout", "text"), [(layout, text) for layout, texts in CLEAR.items() for text in texts]
)
def test_layouts_are_detected_by_content(tmp_path: Path, layout: str, text: str) -> None:
    path = write(tmp_path / "name.jsonl", text)
    assert detect_layout(str(path)) == layout
    packed = write(tmp_path / "name.wet", gzip.compress(text.encode()))
    assert detect_layout(str(packed)) == layout


def test_lists_of_sentences_are_told_from_books(tmp_path: Path) -> None:
    def looks(text: str) -> bool:
        return is_sentences(str(write(tmp_path / "a", text)))

    assert looks("\n".join(SENTENCES)) and looks("\n".join(SENTENCES[:12]))
    assert looks("\n".join(chinese_sentences(40, 1)))
    assert not looks("\n".join(SENTENCES[:11]))
    assert not looks("\n".join(" ".join(SENTENCES[i : i + 5]) for i in range(0, 400, 5)))
    assert not looks(textwrap.fill(" ".join(SENTENCES), 67))
    assert not looks(POEM * 30) and not looks("int a;\nint b;\n" * 40) and not looks("")


def test_python_tar_and_utf16_dumps_are_detected(tmp_path: Path) -> None:
    assert detect_layout(str(write(tmp_path / "d.py", "x = 1"))) == "python_docs"
    dump = '<?xml version="1.0" encoding="UTF-16"?>\n<mediawiki version="0.10">'
    for encoding in ("utf-16-le", "utf-16-be", "utf-8"):
        for data in (dump.encode(encoding), ("\ufeff" + dump).encode(encoding)):
            assert detect_layout(str(write(tmp_path / "e", bz2.compress(data)))) == "mediawiki"
    for mode in ("w", "w:gz", "w:xz"):
        path = tmp_path / "text.tar"
        with tarfile.open(path, mode) as tar:
            tar.addfile(info := tarfile.TarInfo("a.txt"), BytesIO(bytes(info.size)))
        assert detect_layout(str(path)) == "tar"


def test_rows_are_told_apart(tmp_path: Path) -> None:
    def layout(rows: list[Any], **columns: Any) -> str:
        return detect_layout(str(write_rows(tmp_path / "a", [rows], **columns)))

    sentences = [s.lower().replace(",", " ,").replace(".", " .") for s in SENTENCES]
    assert layout(sentences) == layout(SENTENCES) == "sentences"
    assert layout(chinese_sentences(40, 1)) == "sentences"
    assert layout([*sentences[:30], "", *sentences[30:]]) == "sentences"
    assert layout(SENTENCES, id=3) == "parquet", "rows with a key are documents"
    assert layout(sentences[:5]) == "parquet", "too few to tell"
    documents = [" ".join(sentences[i : i + 9]) for i in range(0, 400, 9)]
    assert layout(documents) == "parquet"
    assert layout([re.sub("[.?!]", ";", d) for d in documents]) == "parquet", "long sentences"
    assert layout([s.replace(" the ", "\n") for s in sentences]) == "parquet"
    assert layout(["".join(chinese_sentences(5, seed)) for seed in range(40)]) == "parquet"
    assert layout(["", " = Title = \n", "", " text \n"]) == "wikitext"
    assert layout(["", " = = Section = = \n", "", " text \n"]) == "parquet"
    assert layout([None, "a"]) == "parquet"


@pytest.mark.parametrize("layout", FORMATS)
def test_every_format_has_its_reader(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path / "a", "x")
    with contextlib.suppress(UserError):  # most layouts take "x" for a fault
        read(path, layout)


REAL_COUNTS: dict[str, tuple[str, int]] = {
    "format-samples/wikiextractor-json_wiki_00": ("jsonl", 100),
    "format-samples/c4-train.00000-of-00001.json.gz": ("jsonl", 60),
    "format-samples/multi-member.jsonl.gz": ("jsonl", 100),
    "format-samples/oscar-zh_meta_part_1.jsonl.zst": ("jsonl", 40),
    "format-samples/pile-00.jsonl.zst": ("jsonl", 60),
    "format-samples/wikipedia_train-00000-of-00001.parquet": ("parquet", 100),
    "format-samples/bookcorpus_train-00000-of-00001.parquet": ("sentences", 3),
    "format-samples/bert-one-sentence-per-line.txt": ("lines", 20),
    "pretrain/wikitext2/valid.txt.gz": ("wikitext", 60),
    "pretrain/zh-law.jsonl.gz": ("jsonl", 1_387),
    "pretrain/zh-books.jsonl.gz": ("jsonl", 1_963),
}


@pytest.mark.parametrize("name", REAL_COUNTS)
def test_real_files_lose_no_text(name: str) -> None:
    path = real(name)
    layout, num_documents = REAL_COUNTS[name]
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    if path.suffix == ".zst":
        pytest.importorskip("zstandard")
    assert detect_layout(str(path)) == layout
    documents = documents_of(path)
    assert len(documents) == num_documents
    expected = texts_of(path)
    if layout in ("jsonl", "parquet"):
        assert [characters(s) for _, s in documents] == [characters([t]) for t in expected]
    else:
        assert characters(s for _, sentences in documents for s in sentences) == characters(
            expected
        )


def texts_of(path: Path) -> list[str]:
    """The texts of a real file, read in another way."""
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path, columns=["text"])
        return table.column("text").to_pylist()
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    if "wikitext" in str(path):
        return [without_marks(line) for line in data.decode().split("\n")]
    if "json" not in path.name:
        return [data.decode()]
    records = [json.loads(line) for line in data.splitlines()]
    return [record.get("text", record.get("content")) for record in records]


def without_marks(line: str) -> str:
    if is_heading := re.fullmatch(r" (= )+(.*?) (= )+\n?", line):
        line = is_heading[2]
    for mark in "-,.":
        line = line.replace(f" @{mark}@ ", mark)
    return line


def test_real_wikitext_rows() -> None:
    path = real("format-samples/wikitext_train-00000-of-00001.parquet")
    rows = texts_of(path)
    assert len(rows) == 491
    titles = [row for row in rows if row.startswith(" = ") and not row.startswith(" = = ")]
    documents = documents_of(path)
    assert [text.split("\n")[0] for text, _ in documents] == [t[3:-4] for t in titles]
    assert len(documents) == len(titles) > 10
    sentences = [s for _, sentences in documents for s in sentences]
    assert characters(sentences) == characters(map(without_marks, rows))


def test_real_languages() -> None:
    path = real("format-samples/oscar-zh_meta_part_1.jsonl.zst")
    pytest.importorskip("zstandard")
    documents = read_documents(source_of(path), "auto")
    assert {language for _, language in documents} == {"zh"}


def test_real_books_are_text() -> None:
    books = sorted(real("pretrain/en-books").glob("*.txt.gz"))
    assert len(books) == 80
    assert {detect_layout(str(book)) for book in books} == {"text"}
    for book in books[::13]:
        ((_, sentences),) = documents_of(book)
        words = gzip.decompress(book.read_bytes()).decode("utf-8-sig").split()
        assert " ".join(sentences).split() == words, book.name


@pytest.mark.parametrize(
    ("folder", "num_documents", "num_empty"),
    [("en-wiki/AA", 77_074, 48_317), ("zh-wiki/AA", 29_359, 11_755)],
)
def test_real_wikipedia_files(folder: str, num_documents: int, num_empty: int) -> None:
    files = sorted(real(f"pretrain/{folder}").glob("wiki_*.gz"))
    lengths = [len(text) for file in files for text in read(file, "auto")]
    assert len(lengths) == num_documents
    assert lengths.count(0) == num_empty


MODULE = '''
"""Module.

    Indented.
"""
import nothing_that_exists
raise SystemExit("never run")

def f():
    """Function é."""
    if True:
        class Inner:
            r"""Raw \\d."""
    else:
        x = """no docstring"""

class C:
    """Class.

    Title
    -----
    Text.

    >>> example()
    1

    More.
    """
    async def g(self):
        """Later."""
        try:
            pass
        except ValueError:
            def h(): """Deep."""

def without(): return """no"""
'''


def test_docstrings_come_in_the_order_of_the_source() -> None:
    texts = docstrings_of(MODULE.encode())
    assert [text.split("\n")[0] for text in texts] == [
        "Module.", "Function é.", "Raw \\d.", "Class.", "Later.", "Deep.",
    ]  # fmt: skip
    assert texts[0] == "Module.\n\nIndented."
    assert texts[3].split() == ["Class.", "Title", "Text.", "More."], "no rule line, no example"


def test_a_module_is_a_document_and_the_rest_is_counted(tmp_path: Path) -> None:
    drops: Counter[str] = Counter()
    files = {
        "good.py": MODULE.encode(),
        "latin.py": b'# -*- coding: latin-1 -*-\n"""caf\xe9."""\n',
        "python2.py": b'"""x"""\nprint "no"',
        "binary.py": b'"""\xff\xfe\x00',
        "null.py": b'"""a"""\0',
        "plain.py": b"x = 1",
        "undocumented.py": b'x = """text"""',
    }
    found = {}
    for name, data in files.items():
        path = write(tmp_path / name, data)
        source = source_of(path)
        found[name] = [text for text, _ in read_documents(source, "python_docs")]
        drops += source.tally.drops
    assert {name: len(texts) for name, texts in found.items() if texts} == {
        "good.py": 1,
        "latin.py": 1,
    }
    assert found["latin.py"] == ["café."]
    assert found["good.py"][0].startswith("Module.\n\nIndented.\n\nFunction é.")
    assert drops == {"not_python": 3, "no_docstring": 2}


def test_a_line_without_end_is_an_error_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.readers.source.MAX_RECORD_BYTES", 1 << 10)
    path = write(tmp_path / "a", b"fine\n" + b"x" * 5_000)
    with pytest.raises(UserError, match=r"a: line 2 at byte 5 is longer than"):
        read(path, "jsonl")
