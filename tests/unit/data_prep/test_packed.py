"""Packed files: all streams of a file are read, or an error says where it is damaged."""

import bz2
import gzip
import io
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data_prep.inputs import whole_file
from data_prep.readers import read_documents
from data_prep.readers.source import RecordTally, Source
from dist_bert.common.errors import UserError
from dist_bert.common.packed import DamagedError, unpacked
from tests.support.corpus import english_sentences

Pack = Callable[[bytes], bytes]


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACKERS: dict[str, Pack] = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd
}  # fmt: skip
PARTS = [" ".join(english_sentences(9, seed)).encode() + b"\n" for seed in range(3)]
TEXT = b"".join(PARTS)
all_packers = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


def read(data: bytes) -> bytes:
    return unpacked(io.BytesIO(data), data[:8]).read()


@all_packers
@pytest.mark.parametrize("padding", [b"", bytes(4), bytes(512), bytes(200_000)])
def test_all_streams_are_read_with_zeros_behind_them(pack: Pack, padding: bytes) -> None:
    assert read(b"".join(pack(part) + padding for part in PARTS)) == TEXT
    assert read(pack(b"") + padding + pack(TEXT)) == TEXT
    assert read(pack(b"") + padding) == b""


@all_packers
@pytest.mark.parametrize("foreign", [b"more", b"\0\0more", b"BZ", b"{}\n", *map(zstd, PARTS[:1])])
def test_what_is_behind_a_stream_and_is_none_is_damage(pack: Pack, foreign: bytes) -> None:
    first = pack(PARTS[0]) + pack(PARTS[1])
    if pack is zstd and foreign.startswith(b"\x28"):
        foreign = gzip.compress(b"other")
    start = len(first) + len(foreign) - len(foreign.lstrip(b"\0"))
    for data in (first + foreign, first + foreign + pack(PARTS[2])):
        stream = unpacked(io.BytesIO(data), data[:8])
        with pytest.raises(DamagedError, match=f"the stream that begins at byte {start:,}"):
            stream.read()
        with pytest.raises(DamagedError):  # not the end of the file
            stream.read()


@all_packers
def test_damage_is_an_error_wherever_it_is_or_loses_nothing(pack: Pack) -> None:
    streams = [pack(part) for part in PARTS]
    data = b"".join(streams)
    second = len(streams[0])
    num_errors = 0
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        try:
            text = unpacked(io.BytesIO(damaged), data[:8]).read()
        except DamagedError as error:
            num_errors += 1
            if second <= place < second + len(streams[1]):
                assert f"begins at byte {second:,}" in str(error)
        else:
            assert text == TEXT, f"byte {place} of {len(data)}"  # in gzip: the time in a header
    assert num_errors > 0.9 * len(data)
    for length in range(8, len(data)):
        if length not in (second, second + len(streams[1])):
            with pytest.raises(DamagedError):
                read(data[:length])


@all_packers
def test_documents_behind_the_damage_are_not_lost_in_silence(tmp_path: Path, pack: Pack) -> None:
    """As pbzip2 packs, and as Wikipedia's multistream dumps: several streams, one damaged."""
    lines = [f'{{"text": "document {number}"}}\n'.encode() for number in range(1_000)]
    streams = [pack(b"".join(lines[i : i + 250])) for i in range(0, 1_000, 250)]
    path = tmp_path / "many.jsonl"
    whole = b"".join(streams)
    path.write_bytes(whole)
    source = Source(whole_file(str(path)), RecordTally(str(path), 0.001))
    assert len(list(read_documents(source, "auto"))) == 1_000
    start = len(streams[0] + streams[1])
    path.write_bytes(whole[:start] + b"X" + whole[start + 1 :])
    source = Source(whole_file(str(path)), RecordTally(str(path), 0.001))
    with pytest.raises(UserError, match=rf"stream that begins at byte {start:,}: .*fetch it again"):
        list(read_documents(source, "auto"))


LIMIT_BYTES = 256 << 20
UNPACK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
from dist_bert.common.packed import unpacked
with open(sys.argv[1], "rb") as file:
    magic = file.read(8)
    file.seek(0)
    stream = unpacked(file, magic)
    num_bytes = 0
    while data := stream.read(1 << 16):
        num_bytes += len(data)
print(num_bytes)
"""


@all_packers
def test_a_bomb_is_unpacked_in_bounded_memory(tmp_path: Path, pack: Pack) -> None:
    num_bytes = 512 << 20
    bomb = tmp_path / "bomb"
    bomb.write_bytes(pack(bytes(num_bytes)))
    assert bomb.stat().st_size < num_bytes // 900
    ended = subprocess.run(
        [sys.executable, "-c", UNPACK, str(bomb), str(LIMIT_BYTES)], capture_output=True, text=True
    )
    assert (ended.stdout, ended.stderr) == (f"{num_bytes}\n", "")
