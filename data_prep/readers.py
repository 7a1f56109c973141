r"""Documents out of files: one generator per layout, streaming, compressed or not.

A document is a `str` with "\n" line ends. Bad input is named with file and byte. Not for: finding
the files (`data_prep.inputs`) or the rules for sentences (`data_prep.sentences`).

A new layout is a function from a path to documents and a row in `_READERS`; a new compression is a
row in `_OPENERS`.
"""

import bz2
import gzip
import html
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from data_prep.docstrings import docstrings_of
from data_prep.sentences import split_lines, split_sentences
from dist_bert.errors import UserError

AUTO = "auto"
_JSON_FIELDS = ("text", "content")  # in order of preference, when no field is named
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")  # escapes can write half a character, UTF-8 cannot
_DOC_START = re.compile(r'<doc .*title="(.*)">')
_PEEK_BYTES = 1 << 16  # of a file, enough to tell its layout

_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def read_documents(
    path: str | Path, layout: str, text_field: str = "", drops: Counter[str] | None = None
) -> Iterator[str]:
    """Yields the documents of one file in their order.

    Args:
        path: of a file, plain or compressed (told by its first bytes, not by its name).
        layout: one of `prepare_config.FORMATS` except "auto"; see `detect_layout`.
        text_field: of JSON lines; empty means the first of `text`, `content` that a line has.
        drops: counts what is left out, by reason.

    Raises:
        UserError: the file cannot be read, is cut off, is not UTF-8 or not in this layout; names
            the byte (of the unpacked file) or the line.
    """
    drops = Counter() if drops is None else drops
    try:
        if layout == "jsonl":
            yield from _json_lines(path, text_field)
        else:
            yield from _READERS[layout](path, drops)
    except _DAMAGED as error:
        raise UserError(f"{path}: is damaged or cut off ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_sentences(
    path: str | Path, layout: str, text_field: str = "", drops: Counter[str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yields the documents of one file as `read_documents` does, each with its sentences.

    The layout may be "auto".
    """
    layout = detect_layout(path) if layout == AUTO else layout
    split = split_lines if layout == "lines" else split_sentences
    for text in read_documents(path, layout, text_field, drops):
        yield text, split(text)


def detect_layout(path: str | Path) -> str:
    """The layout of a file: "python_docs" by its name, else by its first line, else "text".

    Raises:
        UserError: the file cannot be read.
    """
    if Path(path).suffix == ".py":
        return "python_docs"
    try:
        with open_unpacked(path) as file:
            head = file.read(_PEEK_BYTES).removeprefix(_BOM).lstrip()
    except (*_DAMAGED, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if head.startswith(b"<doc "):
        return "wikiextractor"
    return "jsonl" if re.match(rb'\{[ \t]*"', head) else "text"


def open_unpacked(path: str | Path) -> IO[bytes]:
    """Opens a file for reading, unpacked if it is compressed; several members read as one."""
    with open(path, "rb") as file:
        head = file.read(8)
    opener = next((o for magic, o in _OPENERS.items() if head.startswith(magic)), None)
    stream: IO[bytes] = opener(path) if opener else open(path, "rb")  # noqa: SIM115 - returned
    return stream


def _whole_file(path: str | Path, drops: Counter[str]) -> Iterator[str]:
    with open_unpacked(path) as file:
        yield _decode(path, file.read().removeprefix(_BOM))


def _blank_line(path: str | Path, drops: Counter[str]) -> Iterator[str]:
    """Documents between blank lines."""
    lines: list[str] = []
    for line in _lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


def _json_lines(path: str | Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{where}: is not JSON ({error}); give --format for another layout"
            ) from None
        fields = record if isinstance(record, dict) else {}
        names = (text_field,) if text_field else _JSON_FIELDS
        text = next((fields[name] for name in names if name in fields), None)
        if not isinstance(text, str):
            raise UserError(
                f"{where}: has no text under {' or '.join(names)}; name its field with --text_field"
                f" ({', '.join(fields) or 'it has none'})"
            )
        yield _SURROGATE.sub("\ufffd", _normal_line_ends(text))


def _wikiextractor(path: str | Path, drops: Counter[str]) -> Iterator[str]:
    """Documents between `<doc ...>` and `</doc>`: no XML, one paragraph a line, escaped like HTML.

    The first line repeats the title and is left out; what is left of a redirect is empty.
    """
    title: str | None = None  # of the document that is being read
    paragraphs: list[str] = []
    for line in _lines(path):
        if title is None and (start := _DOC_START.match(line)):
            title, paragraphs = html.unescape(start[1]), []
        elif title is not None and line.rstrip() == "</doc>":
            yield "\n\n".join(paragraphs[paragraphs[:1] == [title] :])
            title = None
        elif title is not None and (text := html.unescape(line.strip())):
            paragraphs.append(text)
    if title is not None:
        raise UserError(f"{path}: ends inside the document {title!r}; fetch the file again")


def _python_docs(path: str | Path, drops: Counter[str]) -> Iterator[str]:
    """One document per module: its docstrings. What Python cannot parse is counted, not fatal."""
    with open_unpacked(path) as file:
        source = file.read()
    try:
        docstrings = docstrings_of(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all of them mean: not parsable
        drops["not_python"] += 1
        return
    if docstrings:
        yield _SURROGATE.sub("\ufffd", "\n\n".join(docstrings))
    else:
        drops["no_docstring"] += 1


def _lines(path: str | Path) -> Iterator[str]:
    """Decoded lines with their line feed."""
    offset = 0
    with open_unpacked(path) as file:
        for line in file:
            text = _decode(path, line if offset else line.removeprefix(_BOM), offset)
            offset += len(line)
            yield text


def _decode(path: str | Path, data: bytes, offset: int = 0) -> str:
    """UTF-8 to text with plain line feeds; `offset` is that of `data` in the unpacked file."""
    try:
        return _normal_line_ends(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {offset + error.start} is not UTF-8 ({error.reason}); convert the"
            " file to UTF-8 or leave it out"
        ) from None


def _normal_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


_READERS: dict[str, Callable[[str | Path, Counter[str]], Iterator[str]]] = {
    "text": _whole_file,
    "blank_line": _blank_line,
    "lines": _blank_line,  # documents end alike; `read_sentences` knows that a line is a sentence
    "wikiextractor": _wikiextractor,
    "python_docs": _python_docs,
}
