"""Units of work: small files together, large ones in parts that end between two documents."""

import bz2
import gzip
import itertools
import json
from pathlib import Path

import pytest

from data_prep import readers
from data_prep.inputs import InputPart, find_inputs
from data_prep.readers import borders
from data_prep.readers.source import RecordTally, Source
from data_prep.work_units import plan_units

PARAGRAPHS = [f"Paragraph {i} of {'many ' * (i % 11)}words.\nIts second line." for i in range(301)]
XML_PAGES = [
    f"  <page>\n    <title>Page {i}</title>\n    <ns>0</ns>\n    <revision>\n"
    f"      <text>Text of page {i}{', more' * (i % 7)}.</text>\n    </revision>\n  </page>\n"
    for i in range(303)
]
XML_START = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">\n'
CORPORA = {
    "jsonl": "".join(json.dumps({"text": p}) + "\n" for p in PARAGRAPHS),
    "blank_line": "\n\n\n".join(PARAGRAPHS),
    "lines": "\r\n \r\n".join(p.replace("\n", "\r\n") for p in PARAGRAPHS),
    "wikitext": "".join(
        f" = Title {i} = \n \n {p} \n \n = = Section = = \n \n" for i, p in enumerate(PARAGRAPHS)
    ),
    "wikiextractor": "".join(
        f'<doc id="{i}" url="" title="Title {i}">\nTitle {i}\n\n{p}\n</doc>\n'
        for i, p in enumerate(PARAGRAPHS)
    ),
    "mediawiki": f"{XML_START}{''.join(XML_PAGES)}</mediawiki>\n",
}


def write(path: Path, data: str | bytes) -> InputPart:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return find_inputs([str(path)])[0]


def read(part: InputPart, layout: str) -> list[str]:
    return [
        d.text for d in readers.read_documents(Source(part, RecordTally(part.path, 0.0)), layout)
    ]


def assert_parts_are_the_file(parts: list[InputPart], file: InputPart) -> None:
    assert parts[0].start == 0 and all(part.bytes > 0 for part in parts)
    for part, following in itertools.pairwise(parts):
        assert part.start + part.bytes == following.start
    assert parts[-1].start + parts[-1].bytes == file.bytes


@pytest.mark.parametrize("layout", CORPORA)
@pytest.mark.parametrize("part_bytes", [1, 99, 1_000, 7_777])
def test_parts_hold_the_same_documents(tmp_path: Path, layout: str, part_bytes: int) -> None:
    file = write(tmp_path / "corpus", CORPORA[layout])
    parts = borders.cut(file, layout, part_bytes)
    assert_parts_are_the_file(parts, file)
    assert len(parts) > min(300, file.bytes // part_bytes // 3)
    assert max(part.bytes for part in parts) < part_bytes + 1_000
    documents = [text for part in parts for text in read(part, layout)]
    assert documents == read(file, layout) and len(documents) in (301, 303)


def test_lines_without_documents_are_cut_anywhere(tmp_path: Path) -> None:
    file = write(tmp_path / "corpus", "".join(f"Sentence {i}.\n" for i in range(2_000)))
    parts = borders.cut(file, "sentences", 5_000)
    assert_parts_are_the_file(parts, file)
    assert len(parts) > 4
    assert " ".join(t for p in parts for t in read(p, "sentences")).split() == (
        Path(file.path).read_text().split()
    )


def test_a_multistream_dump_is_cut_at_its_streams(tmp_path: Path) -> None:
    groups = ["".join(XML_PAGES[i : i + 10]) for i in range(0, 303, 10)]
    streams = [bz2.compress(t.encode()) for t in (XML_START, *groups, "</mediawiki>\n")]
    file = write(tmp_path / "dump.xml.bz2", b"".join(streams))
    parts = borders.cut(file, "mediawiki", 1)
    assert_parts_are_the_file(parts, file)
    assert len(parts) == len(groups) + 1, "a part for every stream with pages; the first has none"
    assert [t for p in parts for t in read(p, "mediawiki")] == read(file, "mediawiki")
    larger = borders.cut(file, "mediawiki", 1_000)
    assert 2 < len(larger) < len(parts)
    assert [t for p in larger for t in read(p, "mediawiki")] == read(file, "mediawiki")


@pytest.mark.parametrize("layout", ["parquet", "sentences", "wikitext"])
def test_parquet_is_cut_at_its_row_groups(tmp_path: Path, layout: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": PARAGRAPHS})
    parquet.write_table(table, tmp_path / "rows", row_group_size=50)
    file = find_inputs([str(tmp_path / "rows")])[0]
    parts = borders.cut(file, layout, 1)
    assert_parts_are_the_file(parts, file)
    assert len(parts) == (1 if layout == "wikitext" else 7)
    texts = [" ".join(read(part, layout)) for part in parts]
    assert " ".join(texts).split() == " ".join(PARAGRAPHS).split()


def test_other_packed_files_and_streams_cut_anywhere_stay_whole(tmp_path: Path) -> None:
    xml = CORPORA["mediawiki"].encode()
    anywhere = b"".join(bz2.compress(xml[i : i + 777]) for i in range(0, len(xml), 777))
    for name, data, layout in (
        ("gz", gzip.compress(CORPORA["jsonl"].encode()), "jsonl"),
        ("bz2", bz2.compress(CORPORA["jsonl"].encode()), "jsonl"),
        ("pbzip2", anywhere, "mediawiki"),
        ("text", CORPORA["blank_line"].encode(), "text"),
        ("one", b"no line end", "jsonl"),
    ):
        file = write(tmp_path / name, data)
        assert borders.cut(file, layout, 1_000) == [file], name


def test_small_files_share_units() -> None:
    small = [InputPart(f"{i:05d}", 0, 1_000, 0) for i in range(8_000)]
    units = plan_units(small, "text")
    assert [f for unit in units for f in unit] == small, "in order, none lost"
    assert 20 <= len(units) <= 80
    empty = InputPart("empty", 0, 0, 0)
    assert plan_units([empty], "text") == [[empty]]


def test_large_files_have_units_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.work_units._MIN_UNIT_BYTES", 1_000)
    small = write(tmp_path / "a.jsonl", CORPORA["jsonl"][:100])
    large = write(tmp_path / "b.jsonl", CORPORA["jsonl"])
    for layout in ("jsonl", "auto"):
        units = plan_units([small, large, small], layout)
        parts = [part for unit in units for part in unit]
        assert parts[0] == parts[-1] == small
        assert_parts_are_the_file(parts[1:-1], large)
        assert 16 <= len(parts) <= 40
    whole = plan_units([small, large, small], "text")
    assert [part for unit in whole for part in unit] == [small, large, small]


def test_there_are_never_too_many_units(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", gzip.compress(b"text")).path
    huge = [InputPart(path, 0, 1 << 30, i) for i in range(20_000)]
    assert len(plan_units(huge, "text")) <= 8_192, "a rank can map all units"
