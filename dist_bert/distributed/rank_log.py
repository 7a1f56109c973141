"""What one rank leaves of itself: RUN/logs/rank-00003.log, appended over all starts.

Its warnings, its errors with traceback, the stacks of all threads on a fatal signal (SIGSEGV,
SIGABRT and the like). A process has one, as it has one stderr: what ends it at once, from any
thread, has no other way to it. What C libraries write to stderr themselves stays there.
"""

import contextlib
import datetime
import faulthandler
import os
import platform
import threading
from pathlib import Path

from dist_bert.common.redaction import redacted

_PATIENCE_SECONDS = 5.0
_early: list[bytes] = []  # what came before there was a file
_descriptor: int | None = None  # stays open until the process ends, for its last words


def open_rank_log(folder: Path) -> None:
    """Begins to write, with a line that tells of the start; on every rank.

    Args:
        folder: of the logs of all ranks, on a file system that they share; need not exist.
    """
    global _descriptor
    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", "0")
    path = folder / f"rank-{int(rank):05d}.log"
    _descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    faulthandler.enable(file=_descriptor)
    keep(f"start of rank {rank} of {os.environ.get('WORLD_SIZE', '1')}, process {os.getpid()}")
    _write(b"".join(_early))
    _early.clear()


def keep(text: str) -> None:
    """Writes with time and host; what comes before there is a file is written when there is."""
    line = f"{now()} {platform.node()} {redacted(text)}\n".encode()
    if _descriptor is None:
        _early.append(line)
    else:
        _write(line)


def last_words(text: str) -> None:
    """Says on stderr and in the file why this process is about to end; works from any thread."""
    with contextlib.suppress(OSError):
        os.write(2, f"{redacted(text)}\n".encode())
    # A file system that hangs may be the very reason: it must not hold up the end.
    writing = threading.Thread(target=keep, args=(text,), daemon=True)
    writing.start()
    writing.join(_PATIENCE_SECONDS)


def show_stacks() -> None:
    """Shows where all threads of this process are, on stderr and in the file."""
    for descriptor in (2, _descriptor):
        if descriptor is not None:
            faulthandler.dump_traceback(file=descriptor, all_threads=True)


def now() -> str:
    """The time (UTC) as all logs of a run have it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(data: bytes) -> None:
    # A full disk ends a run with the message of a save that fails, not with that of a warning.
    with contextlib.suppress(OSError):
        assert _descriptor is not None
        os.write(_descriptor, data)
