"""Small files that would take much memory or for ever: each is read, or refused in one line.

Every file is read in a process of its own that may take only so much memory.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import zstandard

from data_prep.inputs import whole_file
from data_prep.readers import read_documents
from data_prep.readers.source import RecordTally, Source
from dist_bert.common.errors import UserError
from tests.support.memory_limit import read_within

MIB = 1 << 20
SMALL = 256 * MIB  # what is refused by what it says of itself is not read at all
RECORD = 900 * MIB  # a record of 256 MiB as bytes and as text
MUCH = b"word " * (MIB // 5)


def pack(path: Path, pieces: Iterable[tuple[bytes, int]]) -> Path:
    """Writes pieces, each repeated, as zstd: gigabytes become kilobytes."""
    with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for data, times in pieces:
            for _ in range(times):
                writer.write(data)
    assert path.stat().st_size < MIB
    return path


@pytest.fixture(scope="module")
def members() -> bytes:
    """Six members of gzip that hold 100 MiB each."""
    return gzip.compress(MUCH * 100) * 6


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_what_is_packed_twice_is_refused(
    members: bytes, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    """A few kilobytes of 600 MB; warcio would unpack the inner ones, and has no limit."""
    path = tmp_path / "a"
    path.write_bytes(pack(members))
    assert path.stat().st_size < 20_000
    for layout in ("wet", "auto", "tar"):
        assert "is packed twice; unpack it once" in read_within(path, layout, SMALL).problem


def test_a_packed_text_may_begin_as_a_packed_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bz2.compress(b"BZh is how a text may begin.\n"))
    assert read_within(path, "text", SMALL)[::2] == (1, "")


# tar


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


END = bytes(2 * tarfile.BLOCKSIZE)
GOOD = header("good.txt", 4) + padded(b"good")


def sparse(real_size: int, blocks: list[tuple[int, int]], data: bytes) -> bytes:
    """A member with holes as old GNU tars write it, with at most four blocks of data."""
    block = bytearray(header("holes.txt", len(data), tarfile.GNUTYPE_SPARSE))
    for number, (offset, num_bytes) in enumerate(blocks):
        at = 386 + 24 * number
        block[at : at + 24] = b"%011o\0%011o\0" % (offset, num_bytes)
    block[483:495] = tarfile.itn(real_size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + padded(data)


def pax(attributes: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    data = b""
    for name, value in attributes.items():
        record = f" {name}={value}\n".encode()
        length = len(record)
        while len(str(length)) + len(record) != length:
            length = len(str(length)) + len(record)
        data += str(length).encode() + record
    return header("attributes", len(data), kind) + padded(data)


def test_a_member_with_holes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(sparse(2_000, [(10, 5), (1_000, 6)], b"first second"[:5] + b"second") + END)
    (document,) = read_documents(Source(whole_file(str(path)), RecordTally("a", 0.0)), "tar")
    assert len(document.text) == 2_000
    assert document.text.replace("\0", "") == "firstsecond"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (sparse(4 << 30, [(0, 4)], b"text"), "member holes.txt is longer than 256 MiB"),
        (sparse(1 << 40, [(0, 4)], b"text"), "member holes.txt is longer than 256 MiB"),
        (sparse(-1, [(0, 4)], b"text"), "not a tar file"),
        (pax({"GNU.sparse.map": "a,b"}) + GOOD, "not a tar file: bad header"),
        (pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + GOOD, "not a tar file"),
        (pax({"GNU.sparse.size": "many"}) + GOOD, "not a tar file: bad header"),
        (pax({"size": "-5"}) + GOOD, "not a tar file"),
        (pax({"size": str(1 << 90)}) + GOOD, "longer than 256 MiB"),
        (header("a.bin", 1 << 62) + GOOD, "not a tar file: it ends inside a member"),
        (pax({"comment": "x"}) * 5_000 + GOOD, "a member has more than 16 headers"),
        ((header("x", 9, tarfile.GNUTYPE_LONGNAME) + padded(b"long name")) * 5_000 + GOOD,
         "a member has more than 16 headers"),
    ],
)  # fmt: skip
def test_hostile_headers_are_one_line(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "a.tar"
    for before in (b"", GOOD):
        path.write_bytes(before + data + END)
        with pytest.raises(UserError, match=rf"a\.tar: .*{problem}") as raised:
            list(read_documents(Source(whole_file(str(path)), RecordTally("a", 0.0)), "tar"))
        assert "\n" not in str(raised.value)


def test_a_long_member_is_refused(tmp_path: Path) -> None:
    size = 300 * MIB
    pieces = [(GOOD + header("a.txt", size), 1), (bytes(MIB), 300), (END, 1)]
    found = read_within(pack(tmp_path / "a", pieces), "tar", SMALL)
    assert (found.num_documents, "member a.txt is longer than" in found.problem) == (1, True)
    skipped = [(header("a.bin", size), 1), (bytes(MIB), 300), (GOOD + END, 1)]
    found = read_within(pack(tmp_path / "b", skipped), "tar", SMALL)
    assert (found.num_documents, found.problem) == (1, "")


def test_the_longest_member_is_read(tmp_path: Path) -> None:
    pieces = [(header("a.txt", 256 * MIB), 1), (b"x" * MIB, 256), (END, 1)]
    found = read_within(pack(tmp_path / "a", pieces), "tar", RECORD)
    assert (found.num_characters, found.problem) == (256 * MIB, "")


@pytest.mark.parametrize(
    ("before", "filling", "problem"),
    [
        (header("x", 1 << 30, tarfile.GNUTYPE_LONGNAME), b"x" * MIB, "headers of a member take"),
        (header("x", 1 << 30, tarfile.XHDTYPE), b"x" * MIB, "headers of a member take"),
        (b"", b"".join(pax({f"k{n}": "x" * 9_000}, tarfile.XGLTYPE) + GOOD for n in range(200)),
         "headers for all members take too much"),
        (header("{}.json", 100 * MIB), (MUCH + b"    ")[:MIB] * 100 + header("{}.json", 100 * MIB),
         "the data of"),
    ],
    ids=["long name", "attributes", "attributes of all", "one key"],
)  # fmt: skip
def test_what_a_tar_may_pile_up(
    tmp_path: Path, before: bytes, filling: bytes, problem: str
) -> None:
    times = (300 * MIB) // len(filling)
    path = pack(tmp_path / "a", [(before, 1), (filling, max(times, 4)), (END, 1)])
    found = read_within(path, "tar", RECORD)
    assert problem in found.problem


# WET


def test_a_long_record_is_refused(tmp_path: Path) -> None:
    for length in (1 << 30, 10**30):
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {length}\r\n\r\n".encode()
        path = pack(tmp_path / "a", [(head, 1), (MUCH, 258)])
        found = read_within(path, "wet", SMALL)
        assert f"the record at unpacked byte {len(head)} is longer than 256" in found.problem


@pytest.mark.parametrize(
    "head", [b"WARC/1.0\r\nName: ", b"WARC/1.0", b"WARC/1.0\r\nA: b\r\n" * 60_000]
)
def test_headers_without_end_are_refused(tmp_path: Path, head: bytes) -> None:
    found = read_within(pack(tmp_path / "a", [(head, 1), (b"x" * MIB, 300)]), "wet", SMALL)
    assert "is cut off or not a WET file: the headers of a record are longer" in found.problem


# MediaWiki

PAGE = b"<mediawiki>\n<page><title>A</title><ns>0</ns><revision><text>"


@pytest.mark.parametrize(
    ("before", "filling"),
    [
        (PAGE, MUCH),
        (PAGE, b"<a>" * 1_000),
        (b"<mediawiki>", b"<a/>" * 1_000),
        (b"<mediawiki><page a='", MUCH),
        (b"<mediawiki><!--", MUCH),
    ],
    ids=["text", "depth", "elements", "attribute", "comment"],
)
def test_a_page_without_end_is_refused(tmp_path: Path, before: bytes, filling: bytes) -> None:
    path = pack(tmp_path / "a", [(before, 1), (filling, (300 * MIB) // len(filling))])
    found = read_within(path, "mediawiki", SMALL)
    assert "a page of it is longer than 16 MiB" in found.problem


def test_a_long_page_is_bad(tmp_path: Path) -> None:
    end = b"</text></revision></page></mediawiki>"
    path = pack(tmp_path / "a", [(PAGE, 1), (MUCH, 5), (end, 1)])
    assert "page 'A': is longer than 4 MiB" in read_within(path, "mediawiki", SMALL).problem
    found = read_within(path, "mediawiki", SMALL, max_bad_share=1.0)
    assert (found.num_documents, found.bad) == (0, {"too_long": 1})


def test_entities_do_not_grow(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    dump = f'<!DOCTYPE mediawiki [<!ENTITY e0 "word ">{entities}]>\n'.encode() + PAGE + b"&e11;"
    path = pack(tmp_path / "a", [(dump + b"</text></revision></page></mediawiki>", 1)])
    found = read_within(path, "auto", SMALL)
    assert "is cut off or not well-formed XML: limit on input amplification" in found.problem


# Lines and texts


@pytest.mark.parametrize("layout", ["jsonl", "blank_line", "wikiextractor", "wikitext"])
def test_a_long_line_is_refused(tmp_path: Path, layout: str) -> None:
    path = pack(tmp_path / "a", [(b'{"text": "', 1), (MUCH, 258)])
    assert "a: line 1 at byte 0 is longer than" in read_within(path, layout, RECORD).problem


def test_texts_without_end_come_in_pieces(tmp_path: Path) -> None:
    num_bytes = 300 * len(MUCH)
    path = pack(tmp_path / "a", [(MUCH, 300)])
    found = read_within(path, "text", SMALL)
    assert (found.num_documents > 17, found.num_characters) == (True, num_bytes)
    for layout, before in (("wikiextractor", b"<doc>\n"), ("wikitext", b""), ("blank_line", b"")):
        path = pack(tmp_path / "b", [(before, 1), (MUCH + b"\n", 300)])
        found = read_within(path, layout, SMALL)
        assert found.num_documents > 16
        assert ("ends inside the document" in found.problem) == (layout == "wikiextractor")


def test_padding_takes_no_memory(tmp_path: Path) -> None:
    row = json.dumps({"text": "one"}).encode() + b"\n"
    path = pack(tmp_path / "a", [(row, 1), (bytes(MIB), 300)])
    found = read_within(path, "jsonl", RECORD)
    assert (found.num_documents, found.problem) == (1, "")
    path = pack(tmp_path / "b", [(b"A text.\n", 1), (bytes(MIB), 300)])
    found = read_within(path, "text", SMALL)
    assert (found.num_documents, found.num_characters, found.problem) == (1, 8, "")


def test_a_module_without_end_is_dropped(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.py", [(b'"""' + MUCH, 300)])
    found = read_within(path, "python_docs", SMALL)
    assert (found.num_documents, found.problem) == (0, "")


def test_an_archive_can_be_written_by_hand(tmp_path: Path) -> None:
    """What the tests above change is right to begin with."""
    with tarfile.open(fileobj=io.BytesIO(pax({"path": "b.txt"}) + GOOD + END)) as archive:
        assert archive.getnames() == ["b.txt"]
