"""Every reader with arbitrary bytes and with damaged files: documents, or one line.

A file that is mutated is compared with an independent count of its documents: what is missing must
be counted, or the file refused.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard

from data_prep.inputs import whole_file
from data_prep.prepare_config import FORMATS
from data_prep.readers import borders, detect_layout, read_documents
from data_prep.readers.source import RecordTally, Source
from dist_bert.common.errors import UserError
from tests.support.corpus import english_sentences

hypothesis: Any = pytest.importorskip("hypothesis")
st: Any = pytest.importorskip("hypothesis.strategies")

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"  # real text, where there is any
NUM_DOCUMENTS = 12
SENTENCES = [english_sentences(3, seed) for seed in range(NUM_DOCUMENTS)]
TEXTS = [" ".join(sentences) for sentences in SENTENCES]
LAYOUTS = [layout for layout in FORMATS if layout != "auto"]


class Found(NamedTuple):
    """What came of a file."""

    num_documents: int
    num_told: int  # left out or bad, as the tally counts it
    problem: str


def read(data: bytes, path: Path, layout: str) -> Found:
    """Reads bytes as a layout; fails for any exception that is no `UserError`."""
    path.write_bytes(data)
    tally = RecordTally(str(path), 1.0)
    num_documents, problem = 0, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for document in read_documents(Source(whole_file(str(path)), tally), layout):
                document.text.encode()
                num_documents += 1
    except UserError as error:
        problem = str(error)
        assert "\n" not in problem
        problem.encode()
    return Found(num_documents, tally.drops.total() + tally.bad.total(), problem)


def json_lines() -> bytes:
    return b"".join(json.dumps({"text": text, "id": 7}).encode() + b"\n" for text in TEXTS)


def wikiextractor() -> bytes:
    return "".join(
        f'<doc id="{n}" url="u?{n}" title="Title {n}">\nTitle {n}\n\n{text}\n</doc>\n'
        for n, text in enumerate(TEXTS)
    ).encode()


def mediawiki() -> bytes:
    pages = "".join(
        f"<page><title>T {n}</title><ns>0</ns><revision><text>{text} '''[[a|b]]'''</text>"
        "</revision></page>\n"
        for n, text in enumerate(TEXTS)
    )
    return f"<mediawiki>\n{pages}</mediawiki>\n".encode()


def wet() -> bytes:
    return b"".join(
        b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n"
        % (len(text), text.encode())
        for text in TEXTS
    )


def tar() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as writer:
        for n, text in enumerate(TEXTS):
            info = tarfile.TarInfo(f"{n:03d}ä{'x' * 99 * (n % 3)}.txt")
            info.size = len(text)
            writer.addfile(info, io.BytesIO(text.encode()))
    return archive.getvalue()


def parquet() -> bytes:
    arrow, arrow_parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    table = arrow.table({"text": TEXTS, "id": list(range(NUM_DOCUMENTS))})
    arrow_parquet.write_table(table, file, row_group_size=5, write_page_checksum=True)
    return file.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    "jsonl": json_lines,
    "blank_line": lambda: "\n\n".join(TEXTS).encode(),
    "lines": lambda: "\n\n".join(map("\n".join, SENTENCES)).encode(),
    "wikitext": lambda: "\n".join(f" \n = Title = \n \n {text} \n" for text in TEXTS).encode(),
    "wikiextractor": wikiextractor,
    "mediawiki": mediawiki,
    "wet": wet,
    "tar": tar,
    "parquet": parquet,
    "python_docs": lambda: "".join(f'def f():\n    """{text}"""\n' for text in TEXTS).encode(),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}

# Bytes that layouts are made of, so that arbitrary ones get somewhere.
PIECES = [
    *(b"\n", b"\r\n", b" ", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc3", "é中".encode(), b"Word. "),
    *(b"{", b"}", b'{"text": "a"}', b'{"text":', b"null", b"[", b'"', b"\\ud800", b"1e999"),
    *(b"<doc ", b"<doc>", b"</doc>", b'<doc id="1" title="A">', b"<doc id=\n", b'">', b"title="),
    *(b"<mediawiki>", b"</mediawiki>", b"<page>", b"</page>", b"<text>", b"</text>", b"&#0;"),
    *(b"<revision>", b"</revision>", b"<title>", b"</title>", b"<!DOCTYPE a [", b"<!--", b"{{"),
    *(b"]]", b"[[", b"'''", b"{|", b"|}", b"<ref>", b" = A = \n", b'"""', b"def f(): ", b"\t"),
    *(b"WARC/1.0\r\n", b"WARC-Type: conversion\r\n", b"Content-Length: 3\r\n", b"\r\n\r\n", b"-1"),
    *(b"PAR1", b"BZh9", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", bytes(512)),
]
some_bytes = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=9)), max_size=30).map(
    b"".join
)
fuzzed = hypothesis.settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    derandomize=True,
    database=None,
)


@st.composite
def mutations(draw: Any, data: bytes) -> bytes:
    """Some bytes with places that are changed, cut out, doubled, or filled with something else."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        stop = min(start + draw(st.sampled_from([1, 1, 2, 7, 40, 512, 100_000])), len(data))
        piece = data[start:stop]
        others = [b"", bytes(len(piece)), piece * 2, bytes(b ^ 0x20 for b in piece)]
        new = draw(st.one_of(st.sampled_from(others), st.sampled_from(PIECES), some_bytes))
        data = data[:start] + new + data[stop:]
    return data


@pytest.mark.parametrize("layout", ["auto", *LAYOUTS])
def test_arbitrary_bytes_are_documents_or_one_line(tmp_path: Path, layout: str) -> None:
    @fuzzed
    @hypothesis.given(some_bytes, st.booleans())
    def check(data: bytes, is_python: bool) -> None:
        path = tmp_path / ("a.py" if is_python else "a")
        read(data, path, layout)
        with contextlib.suppress(UserError):
            file = whole_file(str(path))
            if file.bytes:  # as `plan_units` asks for large files
                borders.cut(file, detect_layout(str(path)) if layout == "auto" else layout, 40)

    check()


@pytest.mark.parametrize("layout", WHOLE)
def test_damaged_files_are_documents_or_one_line(tmp_path: Path, layout: str) -> None:
    whole = WHOLE[layout]()
    path = tmp_path / ("a.py" if layout == "python_docs" else "a")
    expected = 1 if layout == "python_docs" else NUM_DOCUMENTS
    packers = {"plain": bytes} if layout == "parquet" else PACKERS  # it packs its columns itself
    for pack in packers.values():
        assert read(pack(whole), path, layout) == (expected, 0, "")
        if layout != "blank_line":  # which content does not tell
            assert read(pack(whole), path, "auto") == (expected, 0, "")

    @fuzzed
    @hypothesis.given(mutations(whole), st.sampled_from(list(packers)))
    def check(data: bytes, packer: str) -> None:
        for asked in (layout, "auto"):
            read(packers[packer](data), path, asked)

    check()


@pytest.mark.parametrize("packer", [name for name in PACKERS if name != "plain"])
def test_damaged_packed_files_lose_nothing_in_silence(tmp_path: Path, packer: str) -> None:
    """Two streams, as parallel packers write; every document has its line."""
    whole = json_lines()
    half = whole.index(b"\n", len(whole) // 2) + 1
    data = PACKERS[packer](whole[:half]) + PACKERS[packer](whole[half:])
    header = 4 if packer == "gz" else 0  # a member's header has no checksum

    @fuzzed
    @hypothesis.given(mutations(data))
    def check(damaged: bytes) -> None:
        hypothesis.assume(damaged[:8] == data[:8])  # else it is another kind of file
        found = read(damaged, tmp_path / "a", "jsonl")
        assert (
            found.problem
            or found.num_documents + found.num_told >= NUM_DOCUMENTS
            or (
                # A stream that is cut out whole leaves a whole file.
                len(damaged) < len(data) - header and found.num_documents in (0, 6, 7, 5)
            )
        )

    check()


MARKS: dict[str, Callable[[str], int]] = {
    # Documents that a damaged file still has, counted by a regular expression.
    "jsonl": lambda text: len(re.findall(r'^\{"text": "[\w .,?!;\'-]*", "id": 7\}$', text, re.M)),
    "wikiextractor": lambda text: len(
        re.findall(r'^<doc id="\d+" url="u\?\d+" title="Title \d+">$(?!\n*</doc)', text, re.M)
    ),
    "wet": lambda text: text.count("WARC-Type: conversion\r\n"),
}


@pytest.mark.parametrize("layout", MARKS)
def test_damaged_files_lose_no_document_in_silence(tmp_path: Path, layout: str) -> None:
    whole = WHOLE[layout]()
    assert MARKS[layout](whole.decode()) == NUM_DOCUMENTS

    @fuzzed
    @hypothesis.given(mutations(whole))
    def check(data: bytes) -> None:
        num_left = MARKS[layout](data.decode(errors="replace"))
        found = read(data, tmp_path / "a", layout)
        assert found.problem or found.num_documents + found.num_told >= num_left

    check()


SAMPLES = sorted((SHARED_DATA / "format-samples").glob("*")) if SHARED_DATA.is_dir() else []


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_damaged_real_files_are_documents_or_one_line(tmp_path: Path, sample: Path) -> None:
    data = sample.read_bytes()
    if len(data) > 1 << 20 and not data.startswith(b"PAR1"):
        data = data[: 1 << 18]

    @hypothesis.settings(fuzzed, max_examples=8)
    @hypothesis.given(mutations(data))
    def check(damaged: bytes) -> None:
        read(damaged, tmp_path / "a", "auto")

    check()
