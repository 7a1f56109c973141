"""Reads a labelled file as text: unpacked, decoded, with plain line ends.

Labelled sets fit into memory. Not for: pretraining text, which does not (`data_prep.readers`).
"""

import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

from dist_bert.common import packed
from dist_bert.common.errors import UserError

_MAX_BYTES = 2 << 30  # unpacked; the examples of so much text take several times the memory
_CHUNK_BYTES = 1 << 20
# First bytes -> what a file is that is no text, whatever its encoding.
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"PAR1": "a parquet file",
}
_NUM_TELLING = 100  # lines
_LONGEST_SHOWN = 60  # characters
_PACKED_SUFFIXES = {".gz", ".bz2", ".xz", ".zst"}
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # escapes can write one, UTF-8 cannot


def read_text(path: str) -> str:
    r"""The text of a file, with "\n" at the end of a line, without byte-order marks.

    A lone carriage return ends a line if most lines end so; otherwise it is part of a text.

    Raises:
        UserError: it cannot be read, is cut off, is too large, is not UTF-8 or is empty.
    """
    data = _unpacked_bytes(path)
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


def _unpacked_bytes(path: str) -> bytes:
    """All bytes of a file, packed or not."""
    chunks = []
    left = _MAX_BYTES
    try:
        with open(path, "rb") as file:
            magic = file.read(packed.MAGIC_BYTES)
            file.seek(0)
            stream = packed.unpacked(file, magic)
            for chunk in iter(functools.partial(stream.read, _CHUNK_BYTES), b""):
                chunks.append(chunk)
                left -= len(chunk)
                if left < 0:
                    raise UserError(
                        f"{path}: holds more than {_MAX_BYTES >> 20:,} MiB of text, and a labelled"
                        " set is read as a whole; give a part of it"
                    )
    except packed.DamagedError as error:
        raise UserError(f"{path}: is damaged or cut off ({error}); fetch it again") from None
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: is packed by zstd, which the package zstandard reads; install it: pip install"
            " zstandard"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a file"
        ) from None
    return b"".join(chunks)


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
