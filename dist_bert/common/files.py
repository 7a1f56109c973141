"""Atomic file writes: write to a temporary file, fsync, rename. Hashes of files."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_CHUNK_BYTES = 1 << 20
_REMEDIES = {  # of limits, whose error says nothing about the file that met them
    errno.EMFILE: ": raise the limit in the shell that starts this, ulimit -n 65536",
    errno.ENFILE: " on this machine: raise its limit, sysctl fs.file-max",
}
_ESCAPES = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
_MAX_PENDING_BYTES = 64 << 20  # kept while a disk is full: 100,000 steps or more


@contextlib.contextmanager
def whole_path(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; the file appears as `path` when the block ends without an error.

    The temporary name depends on `path` and the process, so two writers of a file never share it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with names_errors(path):
            yield temporary
            fsync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        with contextlib.suppress(OSError):  # of the folder: the error already names it
            temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a binary file that appears as `path` only when the block ends without an error."""
    with whole_path(path) as temporary, open(temporary, "wb") as file:
        yield file


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a folder to write to that becomes `path` when the block ends without an error."""
    path = path.absolute()  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        with names_errors(path):
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)  # an empty folder may exist there
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(path.parent)


@contextlib.contextmanager
def names_errors(path: str | Path) -> Iterator[None]:
    """Adds the file name to errors without one: a full disk does not name the file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def problem(error: OSError) -> str:
    """What an error of the system says, and where a limit was met, how to raise that."""
    return f"{error.strerror}{_REMEDIES.get(error.errno or 0, '')}"


class Appender:
    """A file to append to, for one thread. A full disk delays writes instead of ending the program.

    Data that cannot be written stays in memory, up to a limit, for the next `flush`.
    """

    def __init__(self, path: str | Path) -> None:
        """Does not touch the file yet.

        Args:
            path: of the file, which may exist.
        """
        self._path = path
        self._descriptor: int | None = None
        self._pending = bytearray()
        self.num_dropped = 0  # calls of `write` beyond the memory limit

    def write(self, data: bytes) -> None:
        """Buffers data for the next `flush`."""
        if len(self._pending) + len(data) <= _MAX_PENDING_BYTES:
            self._pending += data
        else:
            self.num_dropped += 1

    def flush(self) -> str:
        """Writes the buffered data; returns the reason if some could not be written, else ""."""
        try:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._descriptor = os.open(self._path, flags, 0o666)
            while self._pending:
                del self._pending[: os.write(self._descriptor, self._pending)]
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        return ""

    def close(self) -> str:
        """Flushes and closes the file; returns the same as `flush`."""
        problem = self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        return problem


def fsync(path: str | Path) -> None:
    """Syncs a file's data, or the names in a folder, to disk: a rename is data of the folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allow_as_usual(path: str | Path) -> None:
    """Gives a file the permissions that `open` gives; safetensors makes it owner-only."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a whole file."""
    with whole_file(path) as file:
        file.write(data)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Writes a whole JSON file; equal values in equal key order give equal bytes."""
    write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode())


def json_line(value: Any) -> str:
    """JSON on one line for every reader, including the line end.

    Unicode's other line separators, at which `str.splitlines` and many tools split, are escaped.
    """
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPES) + "\n"


def sha256_of_file(path: str | Path, start: int = 0, num_bytes: int | None = None) -> str:
    """SHA-256 of a file's bytes, or of a part of them, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    left = os.path.getsize(path) - start if num_bytes is None else num_bytes
    with open(path, "rb") as file:
        file.seek(start)
        while left and (data := file.read(min(left, _CHUNK_BYTES))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form: the order of its keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
