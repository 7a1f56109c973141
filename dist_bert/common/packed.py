"""Unpacks gzip, bzip2, xz and zstd, detected by their first bytes, as one stream of bytes.

A packed file is a sequence of streams (gzip calls them members, zstd frames), maybe with zeros
after one of them, left by tapes and block devices. The standard library's own readers silently end
at the first unknown part. Here, that is an error with its offset. Memory is bounded, however much a
small file unpacks to.

Not for: the meaning of the bytes.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

MAGIC_BYTES = 8  # of a file, enough to detect its format

_READ_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 18  # unpacked at a time
_BUFFER_BYTES = 1 << 20
# A block of 128 KiB that repeats one byte takes 4 bytes, and zstandard unpacks all of its input:
# 32 MiB at most.
_ZSTD_READ_BYTES = 1 << 10
# The window of `zstd --long=31`, which the Pushshift dumps need; the default is 1 << 27. xz has
# windows, too, up to 64 MiB in its presets.
_WINDOW_BYTES = 1 << 31
_GZIP = 16 + zlib.MAX_WBITS  # header and checksums of gzip around the deflated bytes


class DamagedError(Exception):
    """A packed file is cut off, damaged or followed by other data; names problem and offset."""


class _Stream(Protocol):
    """A decompressor of one stream, like those of the standard library."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether more packed bytes are needed for more output."""

    @property
    def unused_data(self) -> bytes:
        """The packed bytes after the end of the stream."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpacks about `max_length` bytes."""


class _GzipMember:
    """A member of a gzip file, with the methods of bzip2's and xz's decompressors."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        unpacked = self._member.decompress(self._member.unconsumed_tail + data, max_length)
        self.needs_input = not self._member.unconsumed_tail and len(unpacked) < max_length
        return unpacked


class _ZstdFrame:
    """A frame of a zstd file, likewise; the size of its input bounds that of its output."""

    needs_input = True

    def __init__(self) -> None:
        """Begins a frame.

        Raises:
            ModuleNotFoundError: zstandard is not installed.
        """
        import zstandard

        self._error = zstandard.ZstdError
        self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        try:
            return self._frame.decompress(data)
        except self._error as error:
            raise OSError(str(error)) from None


def _xz_stream() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW_BYTES)


_STREAM_ERRORS = (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError)
# First bytes of a file -> what unpacks a stream of it.
_STREAMS: dict[bytes, Callable[[], _Stream]] = {
    b"\x1f\x8b": _GzipMember,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": _xz_stream,
    b"\x28\xb5\x2f\xfd": _ZstdFrame,
    # Frames to skip: pzstd's files begin with one.
    **{bytes([0x50 + i]) + b"\x2a\x4d\x18": _ZstdFrame for i in range(16)},
}


def is_packed(magic: bytes) -> bool:
    """Whether a file with these first bytes is packed."""
    return _stream_of(magic) is not None


def unpacked(file: IO[bytes], magic: bytes, start: int = 0) -> IO[bytes]:
    """The contents of a file: all of its streams, concatenated, or the file itself.

    Reading raises `DamagedError`, on every call, where the file is damaged. `tell` counts unpacked
    bytes.

    Args:
        file: at the beginning of a stream.
        magic: the first bytes of the file.
        start: of the stream in the file, for messages.

    Raises:
        ModuleNotFoundError: zstandard is needed and not installed.
    """
    new_stream = _stream_of(magic)
    if new_stream is None:
        return file
    new_stream()  # raises here if it cannot
    chunk_bytes = _ZSTD_READ_BYTES if new_stream is _ZstdFrame else _READ_BYTES
    return io.BufferedReader(
        _Unpacked(_Packed(file, start, chunk_bytes), new_stream), _BUFFER_BYTES
    )


def _stream_of(magic: bytes) -> Callable[[], Any] | None:
    return next((new for known, new in _STREAMS.items() if magic.startswith(known)), None)


class _Packed:
    """Packed bytes, in pieces."""

    def __init__(self, file: IO[bytes], start: int, chunk_bytes: int) -> None:
        self.offset = start  # in the file, of what is read next
        self._file = file
        self._chunk_bytes = chunk_bytes

    def read(self) -> bytes:
        """Reads the next piece; it is empty at the end of the file."""
        data = self._file.read(self._chunk_bytes)
        self.offset += len(data)
        return data

    def behind_padding(self, data: bytes) -> bytes:
        """The bytes after the zeros at the beginning of `data`, which was read last."""
        while not (data := data.lstrip(b"\0")):
            if not (data := self.read()):
                break
        return data


def _pieces(packed: _Packed, new_stream: Callable[[], _Stream]) -> Iterator[bytes]:
    """Unpacked pieces; none is empty."""
    data = packed.read()
    while data:
        start = packed.offset - len(data)
        stream = new_stream()
        while not stream.eof:
            if stream.needs_input and not data and not (data := packed.read()):
                raise DamagedError(f"the stream that begins at byte {start:,} has no end")
            try:
                piece = stream.decompress(data, _CHUNK_BYTES)
            except _STREAM_ERRORS as error:
                reason = str(error) or type(error).__name__
                raise DamagedError(f"the stream that begins at byte {start:,}: {reason}") from None
            data = b""
            if piece:
                yield piece
        data = packed.behind_padding(stream.unused_data)


class _Unpacked(io.RawIOBase):
    """A sequence of streams as a file."""

    def __init__(self, packed: _Packed, new_stream: Callable[[], _Stream]) -> None:
        self._pieces = _pieces(packed, new_stream)
        self._piece = memoryview(b"")
        self._position = 0
        self._error: DamagedError | None = None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._error is not None:  # some callers treat an error as the end, and read again
            raise self._error
        if not self._piece:
            try:
                self._piece = memoryview(next(self._pieces, b""))
            except DamagedError as error:
                self._error = error
                raise
        data = self._piece[: len(buffer)]
        buffer[: len(data)] = data
        self._piece = self._piece[len(data) :]
        self._position += len(data)
        return len(data)
