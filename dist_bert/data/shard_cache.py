"""A node's cache of remote shards: fetched once, shared by its processes, evicted.

The folder is the only state: no process knows of another, any number of ranks and jobs may share
it, and it outlives them.

    SHA256.tar           a whole copy: its name is the sum of its bytes in the manifest
    SHA256.BYTES.part    one that is being fetched, or was when its process was killed
    .lock                held briefly while making room

Locks (flock) show what is in use: exclusive on a `.part` while it is being fetched, shared on a
copy while it is mapped. The kernel releases those of a killed process, and the next one resumes at
the end of its `.part`. A `.part` counts with its final size, so that processes that fetch at the
same time stay within the limit together. Not for: contents of a shard
(`dist_bert.data.shard_format`).
"""

import contextlib
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from dist_bert.common import files
from dist_bert.common.errors import NodeError
from dist_bert.data.remote import Origin, OriginError, Patience
from dist_bert.data.shard_format import ShardRecord

PATIENCE_SECONDS = 300.0  # without a chunk before a run ends; below watchdog_minutes' default
CHUNK_BYTES = 8 << 20  # fetched at a time: the most that a broken connection costs

_GIB = 2**30
_NAME = re.compile(r"[0-9a-f]{64}\.(tar|(?P<bytes>\d+)\.part)")


class _NoRoomError(Exception):
    """Running jobs use the whole allowed size of the folder."""


class _DamagedError(Exception):
    """The fetched bytes do not match the manifest's sum; the message is their sum."""


class ShardCache:
    """One process's access to the folder."""

    def __init__(self, origin: Origin, folder: Path, max_bytes: int) -> None:
        """Creates the folder.

        Args:
            origin: of the shards.
            folder: on a local disk: locks and maps on network file systems are slow or missing.
            max_bytes: maximum total size of all copies in the folder; 0 = no limit.

        Raises:
            NodeError: the folder cannot be written to.
        """
        self.folder = folder
        self._origin = origin
        self._max_bytes = max_bytes
        self._expected: list[ShardRecord] = []
        self._thread: threading.Thread | None = None  # while prefetching shards
        self._mutex = threading.Lock()  # of these two
        with self._names_folder():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()

    def path(self, record: ShardRecord) -> Path:
        """Path of the copy of a shard, if it exists."""
        return self.folder / f"{record.sha256}.tar"

    def open(self, record: ShardRecord, beat: Callable[[str], None]) -> IO[bytes]:
        """A shard's copy, fetched if missing; not evicted before it is closed and unmapped.

        Args:
            record: of the shard.
            beat: called with a description at every progress and before every attempt.

        Raises:
            NodeError: the shard is damaged, or was unreachable for too long, or the folder cannot
                be written to.
        """
        with self._names_folder():
            while True:
                self._wait_for(record, beat)
                with contextlib.suppress(FileNotFoundError):  # evicted in between
                    file = self.path(record).open("rb")
                    fcntl.flock(file, fcntl.LOCK_SH)
                    _mark_used(file.fileno())
                    return file

    def discard(self, record: ShardRecord, inode: int) -> None:
        """Removes a copy that has changed on disk, unless another process has replaced it."""
        path = self.path(record)
        with self._lock(), contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()

    def expect(self, records: Sequence[ShardRecord]) -> None:
        """Prefetches shards in a thread, in this order; replaces earlier expectations.

        Failures are left to `open`, which retries. Processes share the work: none fetches a shard
        that another one is fetching.
        """
        missing = []
        for record in records:
            if self._has(record):
                with contextlib.suppress(OSError):
                    _mark_used(self.path(record))  # not evicted for later shards
            else:
                missing.append(record)
        with self._mutex:
            self._expected = missing
            if self._expected and self._thread is None:
                self._thread = threading.Thread(
                    target=self._fetch_ahead, name="shards", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Ends prefetching, after the shard that is being fetched."""
        with self._mutex:
            self._expected = []
            thread = self._thread
        if thread is not None:
            thread.join()

    def missing_bytes(self, records: Sequence[ShardRecord]) -> int:
        """Total size of the shards without a copy."""
        return sum(record.bytes for record in records if not self._has(record))

    def _has(self, record: ShardRecord) -> bool:
        try:
            return self.path(record).stat().st_size == record.bytes
        except FileNotFoundError:
            return False

    def _wait_for(self, record: ShardRecord, beat: Callable[[str], None]) -> None:
        """Returns when a copy exists, fetched by any process."""
        address = self._origin.address(record.file)
        patience = Patience(PATIENCE_SECONDS)
        was_damaged = False
        num_bytes = -1

        def progress(num_fetched: int) -> None:
            nonlocal num_bytes
            beat(f"fetching {address}, {num_fetched:,} of {record.bytes:,} bytes")
            if num_fetched != num_bytes:
                num_bytes = num_fetched
                patience.restart()

        while not self._has(record):
            progress(self._num_fetched(record))
            try:
                if not self._fetch(record, progress, patience.seconds_left):
                    patience.look_again(f"{address}: the process fetching it makes no progress")
            except _DamagedError as error:
                if was_damaged:
                    raise NodeError(
                        f"{address}: is damaged, even after fetching it again: its sha256 is"
                        f" {error}, the manifest says {record.sha256}; copy or prepare this shard"
                        " again"
                    ) from None
                was_damaged = True
            except (OriginError, _NoRoomError) as error:
                patience.wait(str(error))

    def _fetch(
        self,
        record: ShardRecord,
        progress: Callable[[int], None],
        seconds_left: Callable[[], float] = lambda: PATIENCE_SECONDS,
    ) -> bool:
        """One attempt, which resumes where an earlier one ended.

        Args:
            record: of the shard.
            progress: called with the number of bytes fetched, after each chunk.
            seconds_left: for the next chunk.

        Returns:
            False if another process is fetching it.

        Raises:
            OriginError: the origin cannot be read at the moment.
            _NoRoomError: there is no room at the moment.
            _DamagedError: the bytes do not match the manifest; they are removed.
        """
        with self._own_part(record) as part:
            if part is None:
                return self._has(record)
            position = part.seek(0, os.SEEK_END)
            while position < record.bytes:
                stop = min(position + CHUNK_BYTES, record.bytes)
                left = seconds_left()
                data = self._origin.read(record.file, position, stop, left, record.bytes)
                if len(data) < stop - position:
                    raise OriginError(
                        f"{self._origin.address(record.file)}: ends at byte"
                        f" {position + len(data):,} of {record.bytes:,}"
                    )
                part.write(data)
                part.flush()
                position += len(data)
                progress(position)
            found = files.sha256_of_file(part.name)
            if found != record.sha256:
                os.unlink(part.name)
                raise _DamagedError(found)
            os.fsync(part.fileno())
            os.replace(part.name, self.path(record))
            files.fsync(self.folder)
        return True

    @contextlib.contextmanager
    def _own_part(self, record: ShardRecord) -> Iterator[IO[bytes] | None]:
        """The unfinished copy, locked; None if another process has it, or has just finished it."""
        path = self._part_path(record)
        with self._lock():
            if not path.exists():
                self._make_room(record)
            part = path.open("ab")
            if not (_try_lock(part) and _is_at(part, path)):
                part.close()
            elif self._has(record):
                part.close()
                path.unlink()
        if part.closed:
            yield None
        else:
            with part:
                yield part

    def _make_room(self, record: ShardRecord) -> None:
        """Evicts the least recently opened copies, but none in use."""
        if not self._max_bytes:
            return
        sizes: dict[Path, int] = {}
        ages = []
        for path in self.folder.iterdir():
            if name := _NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # a `.part` that is now a copy
                    status = path.stat()
                    sizes[path] = int(name["bytes"] or status.st_size)
                    ages.append((status.st_mtime_ns, path))
        excess = sum(sizes.values()) + record.bytes - self._max_bytes
        for _, path in sorted(ages):
            if excess <= 0:
                return
            if _try_to_remove(path):
                excess -= sizes[path]
        if excess > 0:
            raise _NoRoomError(
                f"--local_cache {self.folder}: no room for {record.file}: running jobs use all of"
                f" local_cache_gib = {self._max_bytes / _GIB:.3g}: increase it"
            )

    def _fetch_ahead(self) -> None:
        while True:
            with self._mutex:
                if not self._expected:
                    self._thread = None
                    return
                record = self._expected.pop(0)
            try:
                self._fetch(record, lambda num_bytes: None)
            except (OriginError, _NoRoomError, _DamagedError, OSError):
                with self._mutex:
                    self._expected = []  # the process that needs one retries and reports

    def _part_path(self, record: ShardRecord) -> Path:
        return self.folder / f"{record.sha256}.{record.bytes}.part"

    def _num_fetched(self, record: ShardRecord) -> int:
        try:
            return self._part_path(record).stat().st_size
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Prevents all other processes from making room and from starting a copy."""
        with open(self.folder / ".lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _names_folder(self) -> Iterator[None]:
        """Turns errors of the local disk into `NodeError`s; the origin's are not `OSError`s."""
        try:
            yield
        except OSError as error:
            raise NodeError(
                f"--local_cache {self.folder}: cannot be used ({error.strerror}): give a folder on"
                " a local disk with room for the shards, or limit its size with local_cache_gib"
            ) from None


def _mark_used(file: Path | int) -> None:
    """Makes it the last one to be evicted; the kernel's own clock ticks only 250 times a second."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file still has this path: a previous lock owner may have renamed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_to_remove(path: Path) -> bool:
    """Removes a file, unless it is in use."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # renamed meanwhile
        if _try_lock(file):
            path.unlink()
            return True
    return False
