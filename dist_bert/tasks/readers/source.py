"""A labelled file as text: unpacked, decoded, with plain line ends.

Labelled sets fit into memory. Not for: pretraining text, which does not (`data_prep.readers`).
"""

import bz2
import gzip
import itertools
import json
import lzma
import re
import zlib
from pathlib import Path
from typing import Any

from dist_bert.errors import UserError

# First bytes of a packed file -> what unpacks it, several members too.
_UNPACKERS = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
_DAMAGED = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)
_NUM_TELLING = 100  # lines
_PACKED_SUFFIXES = {".gz", ".bz2", ".xz"}
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # escapes can write one, UTF-8 cannot


def read_text(path: str) -> str:
    r"""The text of a file, "\n" for "\r\n", without a byte-order mark.

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
    return text.replace("\r\n", "\n")


def lines_of(text: str) -> list[str]:
    """The lines of a text; the end of the last one makes no further line."""
    lines = text.split("\n")  # not `splitlines`: U+2028 and its like stand inside of texts
    return lines if lines[-1] else lines[:-1]


def suffix_of(path: str) -> str:
    """The suffix that tells a file's layout: ".csv" of "train.csv.gz"."""
    suffixes = [s for s in Path(path).suffixes if s not in _PACKED_SUFFIXES]
    return suffixes[-1].lower() if suffixes else ""


def first_lines(text: str) -> list[str]:
    """The lines that tell a layout: the first ones that are more than white space."""
    return list(itertools.islice(filter(str.strip, lines_of(text)), _NUM_TELLING))


def is_json_lines(text: str, path: str) -> bool:
    """Whether a text is an object a line, by its first one or by the name of the file."""
    return suffix_of(path) == ".jsonl" or json_object(first_lines(text)[0]) is not None


def json_object(line: str) -> dict[str, Any] | None:
    """The JSON object that a line holds, None if it holds something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def whole_characters(text: str) -> str:
    """Text that UTF-8 can write, of the same length: halves of characters are replaced."""
    return _HALF_CHARACTER.sub("\ufffd", text)
