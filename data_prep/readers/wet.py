"""Reads Common Crawl's WET files: a record is the text of a web page. Not for: WARC (HTML)."""

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any

from data_prep.readers.source import MAX_RECORD_BYTES, Document, Source, missing_package, too_long
from dist_bert.common.errors import UserError

_MAX_HEADER_BYTES = 1 << 20
_MOST_DIGITS = 18  # of a length in bytes
# Raised by warcio, besides its own errors, for invalid headers.
_BAD_HEADER = (ValueError, IndexError, KeyError, AttributeError, TypeError)
_LANGUAGE = "WARC-Identified-Content-Language"  # "eng,fra": the first has the most text


def wet(source: Source) -> Iterator[Document]:
    """Yields each `conversion` record as a document; counts others, except the file's head.

    Raises:
        UserError: the file is cut off or not a WET file, or a record is too long.
    """
    with source.open() as file:
        for record, offset in _records(source, file):
            source.tally.num_records += 1
            stated = record.rec_headers.get_header("Content-Length") or ""
            if record.rec_type is None or not (stated.isascii() and stated.isdigit()):
                raise _cut_off(source, f"the record at unpacked byte {offset:,} has no length")
            if len(stated) > _MOST_DIGITS or int(stated) > MAX_RECORD_BYTES:
                raise too_long(source.path, f"the record at unpacked byte {offset:,}")
            data = record.raw_stream.read()
            if len(data) != int(stated):
                raise _cut_off(source, f"the record at unpacked byte {offset:,} has no end")
            if record.rec_type == "conversion":
                text = source.decode(data, offset)
                languages = record.rec_headers.get_header(_LANGUAGE) or ""
                yield Document(text, languages.split(",")[0].strip())
            elif record.rec_type != "warcinfo":
                source.tally.drops["other_record"] += 1


def _records(source: Source, file: IO[bytes]) -> Iterator[tuple[Any, int]]:
    """Records, each with the offset of its contents."""
    try:
        from warcio.archiveiterator import WARCIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ModuleNotFoundError:
        raise missing_package(source.path, "a WET file", "warcio") from None
    limited = _LimitedHeaders(file)
    archive = WARCIterator(limited, no_record_parse=True)  # records contain text, not HTTP
    is_empty = True
    while True:
        try:
            # It prints the data after a record of a wrong length, and continues.
            with contextlib.redirect_stderr(io.StringIO()), limited.headers():
                record = next(archive, None)
                if record is None:
                    # It ignores that a gzip file is cut off: this read raises the error again.
                    limited.read(1)
        except (ArchiveLoadFailed, *_BAD_HEADER) as error:
            raise _cut_off(source, str(error)) from None
        if archive.err_count:
            raise _cut_off(source, "a record is longer than its stated length")
        if record is None:
            break
        is_empty = False
        yield record, archive.fh.tell() - archive.reader.rem_length()
    if is_empty:
        raise _cut_off(source, "it has no record")


class _LimitedHeaders:
    """A file that raises an error if the headers of a record do not end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left: int | None = None  # bytes, while headers are read

    def read(self, size: int) -> bytes:
        """Reads more bytes.

        Raises:
            ValueError: headers are too long.
        """
        if self._left is not None and self._left < 0:
            raise ValueError(f"the headers of a record are longer than {_MAX_HEADER_BYTES:,} bytes")
        data = self._file.read(size)
        if self._left is not None:
            self._left -= len(data)
        return data

    def tell(self) -> int:
        """Number of bytes read so far."""
        return self._file.tell()

    @contextlib.contextmanager
    def headers(self) -> Iterator[None]:
        """Limits the bytes read in the block."""
        self._left = _MAX_HEADER_BYTES
        yield
        self._left = None


def _cut_off(source: Source, problem: str) -> UserError:
    problem = " ".join(problem.split())
    return UserError(f"{source.path}: is cut off or not a WET file: {problem}; fetch it again")
