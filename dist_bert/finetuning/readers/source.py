"""Reads a labelled file as text: unpacked, decoded, with plain line ends.

Labelled sets fit into memory. Not for: pretraining text, which does not (`data_prep.readers`).
"""

import bz2
import gzip
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_bert.common.errors import UserError


def _streams(new_decompressor: Callable[[], Any]) -> Callable[[bytes], bytes]:
    """Unpacks concatenated streams, with zeros as padding after any of them.

    `bz2.decompress` and `lzma.decompress` end silently at a damaged stream after the first one.
    """

    def unpack(data: bytes) -> bytes:
        parts = []
        while data:
            decompressor = new_decompressor()
            parts.append(decompressor.decompress(data))
            if not decompressor.eof:
                raise EOFError("it ends inside a stream")
            data = decompressor.unused_data.lstrip(b"\0")
        return b"".join(parts)

    return unpack


# First bytes of a packed file -> function that unpacks it, including several members.
_UNPACKERS = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": _streams(bz2.BZ2Decompressor),
    b"\xfd7zXZ\x00": _streams(lzma.LZMADecompressor),
}
# First bytes -> kind of a file that is not text in any encoding.
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"PAR1": "a parquet file",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
}
_DAMAGED = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)
_NUM_TELLING = 100  # lines
_LONGEST_SHOWN = 60  # characters
_PACKED_SUFFIXES = {".gz", ".bz2", ".xz"}
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # escapes can encode one, UTF-8 cannot


def read_text(path: str) -> str:
    r"""The text of a file, with "\n" at the end of a line, without byte-order marks.

    A lone carriage return ends a line if most lines end so; otherwise it is part of a text.

    Raises:
        UserError: it cannot be read, is cut off, is not UTF-8 or is empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a file"
        ) from None
    unpack = next((u for magic, u in _UNPACKERS.items() if data.startswith(magic)), None)
    if unpack is not None:
        try:
            data = unpack(data)
        except _DAMAGED as error:
            raise UserError(f"{path}: is damaged or cut off ({error}); fetch it again") from None
    told = next((kind for magic, kind in _NO_TEXT.items() if data.startswith(magic)), None)
    if told is not None:
        raise UserError(f"{path}: is {told}; write its rows as CSV or JSON lines")
    data = data.rstrip(b"\0")  # padding of an incomplete copy
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + len(data) - len(error.object)
        line = data.count(b"\n", 0, start) + 1
        raise UserError(
            f"{path}, line {line:,}: byte {start:,} is not UTF-8 ({error.reason}); convert the"
            " file to UTF-8 (iconv -f ENCODING -t UTF-8)"
        ) from None
    if not text.strip():
        raise UserError(f"{path}: is empty; give another file")
    text = text.replace("\r\n", "\n")
    if text.count("\r") > text.count("\n"):
        text = text.replace("\r", "\n")
    return text.replace("\n\ufeff", "\n")  # of concatenated files


def lines_of(text: str) -> list[str]:
    """The lines of a text; a line end at the end of the text adds no empty line."""
    lines = text.split("\n")  # not `splitlines`: U+2028 and the like occur inside texts
    return lines if lines[-1] else lines[:-1]


def suffix_of(path: str) -> str:
    """The suffix that shows a file's layout: ".csv" of "train.csv.gz"."""
    suffixes = [s for s in Path(path).suffixes if s not in _PACKED_SUFFIXES]
    return suffixes[-1].lower() if suffixes else ""


def first_lines(text: str) -> list[str]:
    """The lines that show a layout: the first ones that are not blank."""
    return list(itertools.islice(filter(str.strip, lines_of(text)), _NUM_TELLING))


def is_json(text: str, path: str) -> bool:
    """Whether a text contains JSON objects, by most of its first lines or by the file name."""
    lines = first_lines(text)
    if suffix_of(path) == ".jsonl" or 2 * sum(map(_is_object, lines)) > len(lines):
        return True
    return _whole_rows(text) is not None


def json_records(text: str, path: str) -> list[tuple[str, dict[str, Any] | None]]:
    """Objects of a file with their places: one per line, a list, or {"data": [...]}.

    Anything other than an object is None.
    """
    rows = _whole_rows(text)
    if rows is not None:
        return [(f"{path}, [{number}]", _object(row)) for number, row in enumerate(rows)]
    return [
        (f"{path}, line {number}", json_object(line))
        for number, line in enumerate(lines_of(text), 1)
        if line.strip()
    ]


def json_object(line: str) -> dict[str, Any] | None:
    """The JSON object of a line, None if it has other contents."""
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError):
        return None


def whole_characters(text: str) -> str:
    """Text valid in UTF-8, of the same length: lone surrogates are replaced."""
    return _HALF_CHARACTER.sub("\ufffd", text)


def shown(text: str) -> str:
    """A name from a file for messages: on one line, and only its beginning if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_SHOWN else line[:_LONGEST_SHOWN] + "..."


def _is_object(line: str) -> bool:
    return json_object(line) is not None


def _object(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    return {whole_characters(name): field for name, field in value.items()}


def _whole_rows(text: str) -> list[Any] | None:
    """The rows of a text that is one JSON value: a list of objects, or an object with these."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    rows = value.get("data") if isinstance(value, dict) else value
    return rows if isinstance(rows, list) and any(isinstance(row, dict) for row in rows) else None
