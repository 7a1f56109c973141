r"""Layouts made of lines of text, and the file that is one text.

The lines are those of a text file or the rows of a parquet file: the public copies of WikiText and
BookCorpus have a line a row. A document of more than `_MAX_DOCUMENT` comes as several, so that
memory stays bounded and no text is lost.
"""

import html
import re
from collections.abc import Iterable, Iterator
from typing import IO

from data_prep.readers import parquet
from data_prep.readers.source import BOM, Document, Source, normal_line_ends
from dist_bert.errors import UserError

# Where no line says that a document ends: so many that few samples meet the border that is none, so
# few that a small corpus still has other documents to take NSP's random next sentences from.
SENTENCES_A_DOCUMENT = 512

_MAX_DOCUMENT = 16 << 20  # bytes of a whole file, characters of other layouts
# Ends of a piece, best first: behind a blank line, a line, white space, a character. A "\r" that
# may have its "\n" in the next piece stays with it.
_CUTS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (rb".*\n[ \t\r]*\n", rb".*\n", rb".*\s(?=[^\n])", rb".+(?=[^\x80-\xbf])", rb".+")
)
_DOC_START = re.compile(r'<doc .*title="(.*)">')
_HEADING = re.compile(r"(=(?: =)*) (.+) \1$")
_ESCAPED = re.compile(r" @([-,.])@ ")


def whole_file(source: Source) -> Iterator[Document]:
    """A file is a document."""
    offset = 0
    with source.open() as file:
        for piece in _pieces(file):
            yield Document(_decoded(piece, offset, source))
            offset += len(piece)


def blank_line(source: Source) -> Iterator[Document]:
    """Documents between blank lines."""
    lines = text_lines(source)
    return _gathered((line if line.strip() else None for line in lines), "\n")


def sentences(source: Source) -> Iterator[Document]:
    """Lines without borders between documents: `SENTENCES_A_DOCUMENT` are taken for one."""
    return _gathered(_borders_at_intervals(text_lines(source)), "\n")


def wikitext(source: Source) -> Iterator[Document]:
    """Documents under ` = Title = `, one paragraph a line, as the WikiText corpora have them.

    Titles and section headings are paragraphs without their marks. ` @-@ `, ` @,@ ` and ` @.@ `
    are what they stand for; `<unk>` stays.
    """
    return _gathered(_borders_at_titles(text_lines(source)), "\n\n")


def text_lines(source: Source) -> Iterator[str]:
    """Lines without their ends: of a text file, or the rows of a parquet file.

    Raises:
        UserError: the file cannot be read.
    """
    is_parquet = parquet.is_parquet(source.path)
    for line in parquet.text_rows(source) if is_parquet else source.lines():
        yield from line.rstrip("\n").split("\n")  # a row, or a lone "\r", can hold several


def wikiextractor(source: Source) -> Iterator[Document]:
    """Documents between `<doc ...>` and `</doc>`: no XML, one paragraph a line, escaped like HTML.

    The first line repeats the title and is left out; what is left of a redirect is empty.
    """
    title: str | None = None  # of the document that is being read
    paragraphs: list[str] = []
    for line in source.lines():
        if title is None and (start := _DOC_START.match(line)):
            title, paragraphs = html.unescape(start[1]), []
        elif title is not None and line.rstrip() == "</doc>":
            yield Document("\n\n".join(paragraphs[paragraphs[:1] == [title] :]))
            title = None
        elif title is not None and (text := html.unescape(line.strip())):
            paragraphs.append(text)
    if title is not None:
        raise UserError(f"{source.path}: ends inside the document {title!r}; fetch the file again")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """All bytes, in pieces of at most `_MAX_DOCUMENT`; at least one piece."""
    data = b""
    while block := file.read(_MAX_DOCUMENT + 1 - len(data)):
        data += block
        if len(data) > _MAX_DOCUMENT:
            found = (cut.match(data, 0, _MAX_DOCUMENT) for cut in _CUTS)
            end = next(match.end() for match in found if match)
            yield data[:end]
            data = data[end:]
    yield data


def _decoded(data: bytes, offset: int, source: Source) -> str:
    """Text of a piece, line by line where something is wrong, so that a line is a record."""
    if offset == 0 and data.startswith(BOM):
        data, offset = data[len(BOM) :], len(BOM)
    source.tally.num_records += data.count(b"\n") + 1
    try:
        return normal_line_ends(data.decode())
    except UnicodeDecodeError:
        decoded = []
        for line in data.splitlines(keepends=True):
            decoded.append(source.decode(line, offset))
            offset += len(line)
        return "".join(decoded)


def _gathered(lines: Iterable[str | None], joint: str) -> Iterator[Document]:
    """Documents of the lines between `None`s."""
    gathered: list[str] = []
    num_characters = 0
    for line in lines:
        if gathered and (line is None or num_characters + len(line) > _MAX_DOCUMENT):
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
