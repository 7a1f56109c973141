"""One training at a time in a folder: a lock that ends with the process that holds it.

A POSIX lock on RUN/lock (fcntl's byte ranges): NFS, Lustre, GPFS, BeeGFS and CephFS carry it
between hosts, and the kernel, or the file server, takes it back when its holder has gone. What the
file says is for the message to others. Not for: a preparation's folder, which one host uses.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.run_dir import LOCK_NAME
from dist_bert.common.errors import UserError
from dist_bert.distributed.rank_log import now

_LOG = logging.getLogger("dist_bert")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """The right to write in a folder; of one process, whatever it forks."""

    def __init__(self, folder: str | Path) -> None:
        """Takes it, and says in the file who has it.

        No other code may open the file in this process: closing it would give up the lock.

        Args:
            folder: of a run, or of several ones; is made where it is missing.

        Raises:
            UserError: another process has it; names its host and process.
            OSError: the file cannot be written.
        """
        path = Path(folder) / LOCK_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - until `release`
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX has both for "another one has it"
            holder = _holder(path.read_bytes())
            self._file.close()
            raise UserError(
                f"--output_dir {folder}: another training is writing there ({holder}); wait for it,"
                " end it, or give another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _LOG.warning(
                "%s: its file system has no locks (%s), so nothing keeps a second training out",
                folder,
                error.strerror,
            )
        own = {"host": platform.node(), "process": os.getpid(), "since": now()}
        with contextlib.suppress(OSError):  # of a full disk: the lock is what counts
            self._file.truncate(0)
            self._file.write(f"{json.dumps(own)}\n".encode())

    def release(self) -> None:
        """Gives it up; the file stays, empty."""
        self._file.truncate(0)
        self._file.close()


def _holder(written: bytes) -> str:
    """Who has a lock, by what its file says."""
    try:
        holder: dict[str, Any] = json.loads(written)
        return "process {process} on {host}, since {since}".format(**holder)
    except (ValueError, TypeError, KeyError):  # just taken, or on a full disk
        return "it does not say which"
