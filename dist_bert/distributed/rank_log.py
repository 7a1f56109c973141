"""The log of one rank: RUN/logs/rank-00003.log, appended to at every start.

It has the rank's warnings, errors with traceback, and the stacks of all threads on a fatal signal
(SIGSEGV, SIGABRT and the like). There is one global log per process, like stderr: code that ends
the process from any thread needs it. Output of C libraries to stderr is not in it.
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
_early: list[bytes] = []  # messages before the file was opened
_descriptor: int | None = None  # stays open until the process ends, for its last message


def open_rank_log(folder: Path) -> None:
    """Opens the log of this rank, with a line about the start; called on every rank.

    Args:
        folder: of the logs of all ranks, on a shared file system; need not exist.
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
    """Logs a text with time and host; buffers it until the file is open."""
    line = f"{now()} {platform.node()} {redacted(text)}\n".encode()
    if _descriptor is None:
        _early.append(line)
    else:
        _write(line)


def last_words(text: str) -> None:
    """Writes to stderr and the log why this process is about to end; works from any thread."""
    with contextlib.suppress(OSError):
        os.write(2, f"{redacted(text)}\n".encode())
    # A hanging file system may be the reason: it must not delay the exit.
    writing = threading.Thread(target=keep, args=(text,), daemon=True)
    writing.start()
    writing.join(_PATIENCE_SECONDS)


def show_stacks() -> None:
    """Writes the stacks of all threads of this process to stderr and the log."""
    for descriptor in (2, _descriptor):
        if descriptor is not None:
            faulthandler.dump_traceback(file=descriptor, all_threads=True)


def now() -> str:
    """The time (UTC) in the format of all logs of a run."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(data: bytes) -> None:
    # A full disk ends a run with the message of a failed save, not of a failed warning.
    with contextlib.suppress(OSError):
        assert _descriptor is not None
        os.write(_descriptor, data)
