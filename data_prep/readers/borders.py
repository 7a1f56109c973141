r"""Finds places to cut a large file between two documents, so that several ranks can read it.

Plain files of lines can be cut at the lines that begin a document, parquet at its row groups, and a
multistream dump of Wikipedia at its bzip2 streams, each of which contains whole pages. Other
compressed files cannot be cut.
"""

import bisect
import bz2
import contextlib
import functools
import itertools
import mmap
import re
from collections.abc import Callable, Iterator

from data_prep.inputs import InputPart
from data_prep.readers import mediawiki, parquet
from data_prep.readers.source import magic_bytes
from dist_bert.common.packed import is_packed

# Layout -> what precedes a document; the document begins where the match ends.
_BEFORE_DOCUMENT = {
    "jsonl": rb"\n",
    "sentences": rb"\n",
    "blank_line": rb"\n[ \t\r]*\n",
    "lines": rb"\n[ \t\r]*\n",
    "wikitext": rb"\n[ \t\r]*\n(?=[ \t]*= [^=\n][^\n]* =[ \t\r]*\n)",
    "wikiextractor": rb"\n(?=<doc )",
    "mediawiki": rb"\n[ \t]*(?=<page>)",
}
_BZIP2_STREAM = re.compile(rb"(?=BZh[1-9]1AY&SY)")  # byte-aligned only where a stream begins
_PACKED_BLOCK_BYTES = 1 << 20  # a bzip2 stream yields nothing before a whole block is read
_HEAD_BYTES = 1 << 10  # of an unpacked stream, enough to see the start of a page
_MOST_STREAMS_TRIED = 16  # parallel compressors cut anywhere: no stream begins with a page


def cut(file: InputPart, layout: str, part_bytes: int) -> list[InputPart]:
    """Cuts a file into parts of about the same size, if its format allows it.

    Args:
        file: whole.
        layout: of its contents, not "auto".
        part_bytes: target size; documents are never cut, so parts can be larger.

    Returns:
        The parts in their order; the whole file if it cannot be cut.
    """
    borders = [0]
    with _border_finder(file.path, layout) as next_border:
        while (border := next_border(borders[-1] + part_bytes)) is not None:
            borders.append(border)
    stops = [*borders[1:], file.bytes]
    return [
        InputPart(file.path, start, stop - start, file.modified_ns)
        for start, stop in zip(borders, stops, strict=True)
    ]


@contextlib.contextmanager
def _border_finder(path: str, layout: str) -> Iterator[Callable[[int], int | None]]:
    """A function from a byte of the file to the next border at or after it, None if none."""
    magic = magic_bytes(path)
    if magic.startswith(b"PAR1"):
        # With other layouts, documents span row groups.
        is_by_row = layout in ("parquet", "sentences")
        starts = parquet.row_group_starts(path)[1:] if is_by_row else []
        yield lambda offset: next(iter(starts[bisect.bisect_left(starts, offset) :]), None)
    elif magic.startswith(b"BZh") and layout == "mediawiki":
        with _mapped(path) as data:
            yield functools.partial(_next_stream, data)
    elif is_packed(magic) or layout not in _BEFORE_DOCUMENT:
        yield lambda offset: None
    else:
        pattern = re.compile(_BEFORE_DOCUMENT[layout])
        with _mapped(path) as data:
            yield functools.partial(_next_match, pattern, data)


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[mmap.mmap]:
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        yield data


def _next_match(pattern: re.Pattern[bytes], data: mmap.mmap, offset: int) -> int | None:
    found = pattern.search(data, offset)
    return found.end() if found and found.end() < len(data) else None


def _next_stream(data: mmap.mmap, offset: int) -> int | None:
    """The next bzip2 stream that begins with a page, as nearly all do in most dumps."""
    streams = _BZIP2_STREAM.finditer(data, offset)
    for found in itertools.islice(streams, _MOST_STREAMS_TRIED):
        packed = data[found.start() : found.start() + _PACKED_BLOCK_BYTES]
        with contextlib.suppress(OSError):  # not a stream, but the same bytes by chance inside one
            if mediawiki.begins_with_page(bz2.BZ2Decompressor().decompress(packed, _HEAD_BYTES)):
                return found.start()
    return None
