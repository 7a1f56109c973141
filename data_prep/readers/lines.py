r"""Reads layouts made of lines of text, and files that are one document.

The lines are those of a text file or the rows of a parquet file: the public copies of WikiText and
BookCorpus have one line per row. A document longer than `MAX_DOCUMENT` is yielded as several, so
that memory stays bounded and no text is lost.
"""

import re
from collections.abc import Iterable, Iterator
from typing import IO

from data_prep.readers import parquet
from data_prep.readers.source import BOM, MAX_DOCUMENT, Document, Source, normal_line_ends

# Without lines that end a document: enough that few samples meet the artificial border, few enough
# that a small corpus still has other documents for NSP's random next sentences.
SENTENCES_A_DOCUMENT = 512

# Ends of a piece, best first: after a blank line, a line, white space, a character. A "\r" whose
# "\n" may be in the next piece goes into that piece.
_CUTS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (rb".*\n[ \t\r]*\n", rb".*\n", rb".*\s(?=[^\n])", rb".+(?=[^\x80-\xbf])", rb".+")
)
_JOINED_MARK = b"\n" + BOM  # of a file appended to another
_HEADING = re.compile(r"(=(?: =)*) (.+) \1$")
_ESCAPED = re.compile(r" @([-,.])@ ")


def whole_file(source: Source) -> Iterator[Document]:
    """A file is a document."""
    offset = 0
    with source.open() as file:
        for piece in _pieces(file):
            if not piece or piece.strip(b"\0"):
                yield Document(_decoded(piece, offset, source))
            else:
                source.tally.count_mended("padding", 1)
            offset += len(piece)


def blank_line(source: Source) -> Iterator[Document]:
    """Documents between blank lines."""
    lines = text_lines(source)
    return _gathered((line if line.strip() else None for line in lines), "\n")


def sentences(source: Source) -> Iterator[Document]:
    """Lines without borders between documents: `SENTENCES_A_DOCUMENT` lines form one."""
    return _gathered(_borders_at_intervals(text_lines(source)), "\n")


def wikitext(source: Source) -> Iterator[Document]:
    """Documents under ` = Title = `, one paragraph per line, as in the WikiText corpora.

    Titles and section headings become paragraphs without their marks. ` @-@ `, ` @,@ ` and ` @.@ `
    are replaced by the original character; `<unk>` is kept.
    """
    return _gathered(_borders_at_titles(text_lines(source)), "\n\n")


def text_lines(source: Source) -> Iterator[str]:
    """Lines without their line ends: of a text file, or the rows of a parquet file.

    Raises:
        UserError: the file cannot be read.
    """
    is_parquet = parquet.is_parquet(source.path)
    for line in parquet.text_rows(source) if is_parquet else source.lines():
        yield from line.rstrip("\n").split("\n")  # a row, or a line with "\r", can hold several


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """All bytes, in one or more pieces of at most `MAX_DOCUMENT`."""
    data = b""
    while block := file.read(MAX_DOCUMENT + 1 - len(data)):
        data += block
        if len(data) > MAX_DOCUMENT:
            found = (cut.match(data, 0, MAX_DOCUMENT) for cut in _CUTS)
            end = next(match.end() for match in found if match)
            yield data[:end]
            data = data[end:]
    yield data


def _decoded(data: bytes, offset: int, source: Source) -> str:
    """Text of a piece; on an error, decoded line by line, so that a line is a record."""
    offset, data = source.unpadded(data, offset)
    source.tally.num_records += data.count(b"\n") + 1
    if _JOINED_MARK in data:
        source.tally.count_mended("byte_order_mark", data.count(_JOINED_MARK))
        return "".join(_decoded_lines(data, offset, source)).replace("\n\ufeff", "\n")
    try:
        return normal_line_ends(data.decode())
    except UnicodeDecodeError:
        return "".join(_decoded_lines(data, offset, source))


def _decoded_lines(data: bytes, offset: int, source: Source) -> Iterator[str]:
    for line in data.splitlines(keepends=True):
        yield source.decode(line, offset)
        offset += len(line)


def _gathered(lines: Iterable[str | None], joint: str) -> Iterator[Document]:
    """Documents of the lines between `None`s."""
    gathered: list[str] = []
    num_characters = 0
    for line in lines:
        if gathered and (line is None or num_characters + len(line) > MAX_DOCUMENT):
            yield Document(joint.join(gathered))
            gathered, num_characters = [], 0
        if line is not None:
            gathered.append(line)
            num_characters += len(line) + len(joint)
    if gathered:
        yield Document(joint.join(gathered))


def _borders_at_intervals(lines: Iterable[str]) -> Iterator[str | None]:
    number = 0
    for line in lines:
        if line.strip():
            yield line
            number += 1
            if number % SENTENCES_A_DOCUMENT == 0:
                yield None


def _borders_at_titles(lines: Iterable[str]) -> Iterator[str | None]:
    is_behind_blank = True  # elsewhere, ` = x = ` is a piece of a formula
    for line in lines:
        text = _ESCAPED.sub(r"\1", line).strip()
        heading = _HEADING.match(text) if is_behind_blank else None
        if heading and heading[1] == "=":
            yield None
        if text:
            yield heading[2] if heading else text
        is_behind_blank = not text
