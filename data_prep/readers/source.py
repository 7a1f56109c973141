"""The source of a reader: a file or a part of it, unpacked and decoded; counts its bad records.

Bad input is named with file and byte. What is bad in few places (see `RecordTally`) is passed over;
a file that is cut off or cannot be read never is.

Not for: unpacking (`dist_bert.common.packed`), or layouts (the other modules of this package).
"""

import contextlib
import dataclasses
import functools
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from data_prep.inputs import InputPart
from dist_bert.common import packed
from dist_bert.common.errors import UserError

BOM = b"\xef\xbb\xbf"
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # escapes can encode one, UTF-8 cannot
_ENOUGH_BAD = 100  # records: if the share is exceeded after this many, reading stops
_BUFFER_BYTES = 1 << 20
# Memory is bounded for any file contents. Limits of a record (a line, a member, a page, a row),
# where a JSON object of a whole book takes 1 %; and of a document where text can be cut: bytes of a
# whole file, characters of other layouts.
MAX_RECORD_BYTES = 256 << 20
MAX_DOCUMENT = 16 << 20


class Document(NamedTuple):
    """A document as a reader yields it."""

    text: str  # with "\n" line ends
    language: str = ""  # as the record spells it; empty if it names none


class RecordTally:
    """What was left out of one file or part, and what was bad in it.

    A record is the unit of the layout: a line, a JSON object, a page, a row, a member.
    """

    def __init__(self, path: str, max_bad_share: float) -> None:
        """Counts for a file with this allowed share of bad records."""
        self.num_records = 0
        self.drops: Counter[str] = Counter()  # documents left out, by reason
        self.bad: Counter[str] = Counter()  # bad records, by reason
        self.mended: Counter[str] = Counter()  # places where non-text bytes were removed
        self.removed: Counter[str] = Counter()  # characters removed from the text, by kind
        self.first_bad = ""
        self._path = path
        self._max_bad_share = max_bad_share

    def count_bad(self, reason: str, problem: str) -> None:
        """Counts a bad record.

        Args:
            reason: key for the manifest.
            problem: place, problem and remedy, for the message to the user.

        Raises:
            UserError: too many are bad.
        """
        self.bad[reason] += 1
        self.first_bad = self.first_bad or _printable(problem)
        if self.bad.total() >= _ENOUGH_BAD:
            self.check()

    def count_mended(self, reason: str, number: int) -> None:
        """Counts places where non-text bytes were removed, possibly none."""
        if number:
            self.mended[reason] += number

    def check(self) -> None:
        """Checks the final counts of a file.

        Raises:
            UserError: more records are bad than allowed.
        """
        num_bad = self.bad.total()
        if num_bad > self._max_bad_share * self.num_records:
            raise UserError(
                f"{self._path}: {self.first_bad} ({num_bad:,} of {self.num_records:,} records are"
                f" bad, more than --max_bad_share {self._max_bad_share:g} allows)"
            )


@dataclasses.dataclass(frozen=True)
class Source:
    """A file or part of one, and how to read it."""

    part: InputPart
    tally: RecordTally
    text_field: str = ""  # of JSON lines or parquet; empty = the usual ones
    language_field: str = ""

    @property
    def path(self) -> str:
        """Path of the file."""
        return self.part.path

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes, unpacked if they are packed; several members or frames are concatenated.

        Raises:
            UserError: the file cannot be read, is packed twice, or is cut off or damaged.
        """
        try:
            with open(self.path, "rb") as file:
                magic = file.read(packed.MAGIC_BYTES)
                file.seek(self.part.start)
                raw = io.BufferedReader(_Limited(file, self.part.bytes), _BUFFER_BYTES)
                stream = self._unpacked(raw, magic)
                try:
                    if stream is not raw:
                        self._check_inside(stream)
                    yield stream
                except packed.DamagedError as error:
                    raise UserError(
                        f"{self.path}: is damaged or cut off after unpacked byte"
                        f" {stream.tell():,} ({error}); fetch it again"
                    ) from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None

    def _unpacked(self, raw: IO[bytes], magic: bytes) -> IO[bytes]:
        try:
            return packed.unpacked(raw, magic, self.part.start)
        except ModuleNotFoundError:
            raise missing_package(self.path, "packed by zstd", "zstandard") from None

    def _check_inside(self, stream: Any) -> None:
        """Refuses what is packed twice, which warcio would unpack once more, without a limit."""
        magic = stream.peek(packed.MAGIC_BYTES)[: packed.MAGIC_BYTES]
        if packed.is_packed(magic) and not magic.isascii():  # a text may begin as bzip2 does
            raise UserError(f"{self.path}: is packed twice; unpack it once")

    @property
    def ends_file(self) -> bool:
        """Whether the part extends to the end of the file."""
        return self.part.start + self.part.bytes >= os.path.getsize(self.path)

    def lines(self) -> Iterator[str]:
        """Decoded lines with their line feed, without what `unpadded` removes.

        Raises:
            UserError: a line is too long.
        """
        offset = self.part.start  # of an unpacked file; only these and bzip2 have parts
        with self.open() as file:
            lines = iter(functools.partial(file.readline, MAX_RECORD_BYTES), b"")
            for number, line in enumerate(lines, 1):
                start, text = self.unpadded(line, offset)
                if len(line) == MAX_RECORD_BYTES and not line.endswith((b"\n", b"\0")):
                    place = f"line {number:,}" if self.part.start == 0 else "the line"
                    raise UserError(
                        f"{self.path}: {place} at byte {offset:,} is longer than"
                        f" {MAX_RECORD_BYTES >> 20} MiB; --format text takes a file in pieces"
                    )
                offset += len(line)
                if text:
                    self.tally.num_records += 1
                    yield self.decode(text, start)

    def unpadded(self, data: bytes, offset: int) -> tuple[int, bytes]:
        """Bytes without the byte-order marks and zeros around them; counts these.

        Byte-order marks are where a file begins, also one appended to another. Zeros fill a block
        that was never written, usually the last.

        Args:
            data: one line, or a piece of a file.
            offset: of `data` in the unpacked file.

        Returns:
            Offset of the rest in the file, and the rest, which is empty if all is padding.
        """
        rest = data
        if data.startswith((b"\0", BOM)):
            rest = data.lstrip(b"\0")
            num_marks = 0
            while rest.startswith(BOM):
                rest, num_marks = rest[len(BOM) :], num_marks + 1
            self.tally.count_mended("padding", data.startswith(b"\0"))
            self.tally.count_mended("byte_order_mark", max(num_marks - (offset == 0), 0))
        start = offset + len(data) - len(rest)
        if rest.endswith(b"\0"):
            self.tally.count_mended("padding", 1)
            rest = rest.rstrip(b"\0")
        return start, rest

    def decode(self, data: bytes, offset: int) -> str:
        """UTF-8 to text with plain line feeds.

        Args:
            data: of one record; counts as bad if it is not UTF-8.
            offset: of `data` in the unpacked file.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            self.tally.count_bad(
                "not_utf8",
                f"byte {offset + error.start} is not UTF-8 ({error.reason}); convert the file to"
                " UTF-8 or leave it out",
            )
            text = data.decode(errors="replace")
        return normal_line_ends(text)


class _Limited(io.RawIOBase):
    """The next bytes of a file, up to a limit."""

    def __init__(self, file: IO[bytes], num_bytes: int) -> None:
        self._file = file
        self._left = num_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def magic_bytes(path: str) -> bytes:
    """The first bytes of a file, which identify its format.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(packed.MAGIC_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def normal_line_ends(text: str) -> str:
    r"""Text with "\n" for "\r\n" and "\r"."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def whole_characters(text: str) -> str:
    """Text valid in UTF-8: lone surrogates, which only escapes can produce, are replaced."""
    return _HALF_CHARACTER.sub("\ufffd", text)


def _printable(text: str) -> str:
    """One line that any file can hold: keys of JSON and names in a tar may be any characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def too_long(path: str, record: str, max_bytes: int = MAX_RECORD_BYTES) -> UserError:
    """The error for a record that would take more memory than a record may."""
    return UserError(
        f"{path}: {record} is longer than {max_bytes >> 20} MiB; split its text, or leave the file"
        " out"
    )


def missing_package(path: str, what: str, package: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(
        f"{path}: is {what}, which needs the package {package}; install it: pip install {package}"
    )
