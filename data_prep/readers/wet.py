"""Common Crawl's WET files: a record is the text of a web page. Not for: WARC, which holds HTML."""

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any

from data_prep.readers.source import Document, Source, missing_package
from dist_bert.errors import UserError

_LANGUAGE = "WARC-Identified-Content-Language"  # "eng,fra": the first has the most text


def wet(source: Source) -> Iterator[Document]:
    """A `conversion` record is a document; other records are counted, but for the file's head."""
    with source.open() as file:
        for record, offset in _records(source, file):
            source.tally.num_records += 1
            data = record.raw_stream.read()
            length = record.rec_headers.get_header("Content-Length")
            if record.rec_type is None or length != str(len(data)):
                raise _cut_off(source, f"the record at unpacked byte {offset:,} has no end")
            if record.rec_type == "conversion":
                text = source.decode(data, offset)
                languages = record.rec_headers.get_header(_LANGUAGE) or ""
                yield Document(text, languages.split(",")[0].strip())
            elif record.rec_type != "warcinfo":
                source.tally.drops["other_record"] += 1


def _records(source: Source, file: IO[bytes]) -> Iterator[tuple[Any, int]]:
    """Records, each with the first byte of what it holds."""
    try:
        from warcio.archiveiterator import WARCIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ModuleNotFoundError:
        raise missing_package(source.path, "a WET file", "warcio") from None
    archive = WARCIterator(file)
    is_empty = True
    while True:
        try:
            # It prints what follows a record of another length than stated, and reads on.
            with contextlib.redirect_stderr(io.StringIO()):
                record = next(archive, None)
        except ArchiveLoadFailed as error:
            raise _cut_off(source, str(error)) from None
        if archive.err_count:
            raise _cut_off(source, "a record is longer than it says")
        if record is None:
            break
        is_empty = False
        yield record, archive.fh.tell() - archive.reader.rem_length()
    file.read(1)  # warcio takes the end of a cut-off gzip member for the file's: raises again
    if is_empty:
        raise _cut_off(source, "it has no record")


def _cut_off(source: Source, problem: str) -> UserError:
    return UserError(f"{source.path}: is cut off or no WET file: {problem}; fetch it again")
