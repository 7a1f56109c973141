"""Reads WikiExtractor's files: `<doc ...>`, one paragraph per line, `</doc>`; not valid XML.

The dialects differ in the attributes (without a title in old versions, with others after it in
Wikicorpus), in the place of a tag on its line, and in a byte-order mark before each concatenated
file. A tag is never text; text outside documents is bad.
"""

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

from data_prep.readers.source import MAX_DOCUMENT, Document, Source
from dist_bert.common.errors import UserError

# Valid attributes; with quotes inside quotes; with "<" or ">" as well. No title of Wikipedia has
# the latter two.
_START = re.compile(
    r"<doc((?:\s+[\w:.-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*\s*|\s[^<>]*?|\s(?:(?!<doc).)*[\"'])(/?)>",
    re.IGNORECASE,
)
_END = re.compile(r"</doc\s*>", re.IGNORECASE)
_UNFINISHED = re.compile(r"<doc(?:\s[^>]*)?$", re.IGNORECASE)
_TITLE = re.compile(
    r"\stitle\s*=\s*(?:\"(.*?)\"|'(.*?)')(?=\s+[\w:.-]+\s*=|\s*$)", re.IGNORECASE | re.DOTALL
)
_MOST_TAG_LINES = 8
_OTHER_TAG = re.compile(r"<[/?!]?[\w-][^<>]*>$")  # around all documents, in some collections
_LAST_LINE = "ENDOFARTICLE."  # of Wikicorpus' documents


class _Tag(NamedTuple):
    is_start: bool
    is_end: bool
    title: str = ""


def wikiextractor(source: Source) -> Iterator[Document]:
    """Yields documents with their paragraphs, unescaped.

    The first line repeats the title and is skipped; a redirect is then empty.

    Raises:
        UserError: the file ends inside a document.
    """
    behind = f" after byte {source.part.start:,}" if source.part.start else ""
    document: _OpenDocument | None = None
    for number, line in _whole_tags(source.lines()):
        place = f"line {number:,}{behind}"
        for piece in _pieces(line):
            if isinstance(piece, str):
                if document is not None:
                    yield from document.add(piece)
                elif _OTHER_TAG.match(piece):
                    source.tally.drops["other_tag"] += 1
                else:
                    source.tally.count_bad("outside", f"{place} is outside of <doc> and </doc>")
                continue
            if piece.is_start and document is not None:
                source.tally.count_bad(
                    "no_end", f"{place}: <doc> inside the document {document.title!r}"
                )
                yield from document.end()
            if piece.is_start:
                document = _OpenDocument(piece.title)
            elif document is None:
                source.tally.count_bad("outside", f"{place}: </doc> ends no document")
            if piece.is_end and document is not None:
                yield from document.end()
                document = None
    if document is not None and source.ends_file:
        raise UserError(
            f"{source.path}: ends inside the document {document.title!r}; fetch the file again"
        )
    if document is not None:  # treated like a missing end elsewhere
        source.tally.count_bad("no_end", f"document {document.title!r} has no </doc>")
        yield from document.end()


class _OpenDocument:
    """A document that has not ended yet."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._paragraphs: list[str] = []
        self._num_characters = 0
        self._is_first = True  # paragraph; the title does not count

    def add(self, line: str) -> Iterator[Document]:
        """Adds a paragraph; yields a part when the document is too long."""
        text = html.unescape(line)
        if self._is_first and text == self.title:
            self._is_first = False
            return
        if self._paragraphs and self._num_characters + len(text) > MAX_DOCUMENT:
            yield Document("\n\n".join(self._paragraphs))
            self._paragraphs, self._num_characters = [], 0
        self._is_first = False
        self._paragraphs.append(text)
        self._num_characters += len(text)

    def end(self) -> Iterator[Document]:
        """Yields the document, or the rest of it."""
        if self._paragraphs[-1:] == [_LAST_LINE]:
            self._paragraphs.pop()
        yield Document("\n\n".join(self._paragraphs))


def _whole_tags(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; lines that share a tag are joined."""
    number = 0
    for line in lines:
        number += 1
        first = number
        if "<" in line and _UNFINISHED.match(_trimmed(line)):
            while number - first + 1 < _MOST_TAG_LINES and ">" not in line:
                following = next(lines, None)
                if following is None:
                    break
                number += 1
                line = f"{line.rstrip()} {following}"
        yield first, line


def _pieces(line: str) -> Iterator[str | _Tag]:
    """The tags and the texts of a line, without surrounding blanks."""
    rest = _trimmed(line)
    while "<" in rest:
        start = _START.match(rest) or _late_start(rest)
        end = _END.search(rest)
        found = min(filter(None, (start, end)), key=re.Match.start, default=None)
        if found is None:
            break
        if text := _trimmed(rest[: found.start()]):
            yield text
        yield _start_tag(found) if found is start else _Tag(is_start=False, is_end=True)
        rest = _trimmed(rest[found.end() :])
    if rest:
        yield rest


def _late_start(line: str) -> re.Match[str] | None:
    """A tag after a text whose end tag is missing; not `<doc>` as a word of a text."""
    found = _START.search(line)
    return found if found and found[1].strip() and found.end() == len(line) else None


def _start_tag(found: re.Match[str]) -> _Tag:
    title = _TITLE.search(found[1])
    name = html.unescape((title[1] or title[2] or "") if title else "")
    return _Tag(is_start=True, is_end=bool(found[2]), title=name)


def _trimmed(text: str) -> str:
    """Text without surrounding white space and byte-order marks."""
    return text.strip().strip("\ufeff").strip()
