"""What a reader reads: a file or a part of it, unpacked and decoded, with its faults counted.

Bad input is named with file and byte. What is bad in few places (see `Tally`) is passed over; a
file that is cut off or cannot be read never is.

A new compression is a row in `_OPENERS`. Not for: layouts (the other modules of this package).
"""

import bz2
import contextlib
import dataclasses
import functools
import gzip
import io
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from data_prep.inputs import InputPart
from dist_bert.errors import UserError

BOM = b"\xef\xbb\xbf"
_MAGIC_BYTES = 8
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # escapes can write one, UTF-8 cannot
_ENOUGH_BAD = 100  # records: beyond the share after so many, a file is not read to its end
_BUFFER_BYTES = 1 << 20
_MAX_LINE_BYTES = 256 << 20  # memory is bounded: a JSON object of a whole book takes 1 % of it

_ZSTD_CHUNK_BYTES = 1 << 14  # packed: a chunk is unpacked whole, text to some 100 KB
_ZSTD_WINDOW_BYTES = 1 << 31  # `zstd --long=31` reaches back so far; the default is 1 << 27

_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


class Document(NamedTuple):
    """A document as a reader yields it."""

    text: str  # with "\n" line ends
    language: str = ""  # that the record names, as it writes it; empty where it names none


class Tally:
    """What was left out of one file or part, and what was bad in it.

    A record is what the layout is made of: a line, a JSON object, a page, a row, a member.
    """

    def __init__(self, path: str, max_bad_share: float) -> None:
        """Counts for a file of which this share of the records may be bad."""
        self.num_records = 0
        self.drops: Counter[str] = Counter()  # documents left out, by reason
        self.bad: Counter[str] = Counter()  # bad records, by reason
        self.removed: Counter[str] = Counter()  # characters taken out of the text, by kind
        self.first_bad = ""
        self._path = path
        self._max_bad_share = max_bad_share

    def count_bad(self, reason: str, problem: str) -> None:
        """Counts a bad record.

        Args:
            reason: a word for the manifest.
            problem: where it is, what is wrong and what to do, for the one line that a user sees.

        Raises:
            UserError: too many are bad.
        """
        self.bad[reason] += 1
        self.first_bad = self.first_bad or problem
        if self.bad.total() >= _ENOUGH_BAD:
            self.check()

    def check(self) -> None:
        """Ends the count of a file.

        Raises:
            UserError: more records are bad than allowed.
        """
        num_bad = self.bad.total()
        if num_bad > self._max_bad_share * self.num_records:
            raise UserError(
                f"{self._path}: {self.first_bad} ({num_bad:,} of {self.num_records:,} records are"
                f" bad, --max_bad_share {self._max_bad_share:g} allows fewer)"
            )


@dataclasses.dataclass(frozen=True)
class Source:
    """A file or part of one, and how it is read."""

    part: InputPart
    tally: Tally
    text_field: str = ""  # of JSON lines or parquet; empty = the usual ones
    language_field: str = ""

    @property
    def path(self) -> str:
        """Of the file."""
        return self.part.path

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes, unpacked if they are compressed; several members or frames read as one.

        Raises:
            UserError: the file cannot be read, or is cut off.
        """
        try:
            with open(self.path, "rb") as file:
                opener = _opener(file.read(_MAGIC_BYTES))
                file.seek(self.part.start)
                raw = io.BufferedReader(_Limited(file, self.part.bytes), _BUFFER_BYTES)
                with self._unpacked(raw, opener) as stream:
                    try:
                        yield stream
                    except _DAMAGED as error:
                        raise self._damaged(stream, error) from None
                    except OSError as error:
                        if error.errno is not None:
                            raise
                        raise self._damaged(stream, error) from None  # bz2's own
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None

    def _unpacked(self, raw: IO[bytes], opener: Callable[[Any], Any] | None) -> IO[bytes]:
        try:
            return opener(raw) if opener else raw
        except ModuleNotFoundError:
            raise missing_package(self.path, "packed by zstd", "zstandard") from None

    def _damaged(self, stream: IO[bytes], error: Exception) -> UserError:
        return UserError(
            f"{self.path}: is damaged or cut off behind unpacked byte {stream.tell():,} ({error});"
            " fetch it again"
        )

    def lines(self) -> Iterator[str]:
        """Decoded lines with their line feed.

        Raises:
            UserError: a line is too long to be one.
        """
        offset = self.part.start  # of an unpacked file; only such ones and bzip2 have parts
        with self.open() as file:
            for line in iter(functools.partial(file.readline, _MAX_LINE_BYTES), b""):
                if len(line) == _MAX_LINE_BYTES:
                    raise UserError(
                        f"{self.path}: the line at byte {offset:,} is longer than"
                        f" {_MAX_LINE_BYTES >> 20} MiB; give --format for another layout"
                    )
                self.tally.num_records += 1
                if offset == 0 and line.startswith(BOM):
                    line, offset = line[len(BOM) :], len(BOM)
                yield self.decode(line, offset)
                offset += len(line)

    def decode(self, data: bytes, offset: int) -> str:
        """UTF-8 to text with plain line feeds.

        Args:
            data: of one record, which counts as bad if it is not UTF-8.
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
    """The next bytes of a file, up to a number of them."""

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


class _ZstdFrames(io.RawIOBase):
    """What the frames of a zstd file hold, one after another.

    zstandard's own readers take the end of a file that is cut off for the end of the frame.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Reads from a file of frames.

        Raises:
            ModuleNotFoundError: zstandard is not installed.
        """
        import zstandard

        self._file = file
        self._errors = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame: Any = None  # that has begun and not ended
        self._packed = b""  # of the next frame
        self._unpacked = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            packed = self._packed or self._file.read(_ZSTD_CHUNK_BYTES)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                self._unpacked = memoryview(self._frame.decompress(packed))
            except self._errors as error:
                raise OSError(str(error)) from None
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        data = self._unpacked[: len(buffer)]
        buffer[: len(data)] = data
        self._unpacked = self._unpacked[len(data) :]
        self._position += len(data)
        return len(data)


def _open_zstd(file: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_ZstdFrames(file), _BUFFER_BYTES)


# First bytes of a compressed file -> what opens it.
_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
    # Frames to skip: pzstd's files begin with one.
    **{bytes([0x50 + i]) + b"\x2a\x4d\x18": _open_zstd for i in range(16)},
}


def magic_bytes(path: str) -> bytes:
    """The first bytes of a file, which tell what it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(_MAGIC_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def is_packed(magic: bytes) -> bool:
    """Whether a file with these first bytes is compressed."""
    return _opener(magic) is not None


def _opener(magic: bytes) -> Callable[[Any], Any] | None:
    return next((o for known, o in _OPENERS.items() if magic.startswith(known)), None)


def normal_line_ends(text: str) -> str:
    r"""Text with "\n" for "\r\n" and "\r"."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def whole_characters(text: str) -> str:
    """Text that UTF-8 can write: halves of characters, which only escapes can make, replaced."""
    return _HALF_CHARACTER.sub("\ufffd", text)


def missing_package(path: str, what: str, package: str) -> UserError:
    """The error for an optional dependency that is not there."""
    return UserError(
        f"{path}: is {what}, which the package {package} reads; install it: pip install {package}"
    )
