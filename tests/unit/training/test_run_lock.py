"""The lock of a run's folder: one process has it, and its end, however it ends, gives it up."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.training.run_lock import RunLock

HOLD = (
    "import os, sys, time\n"
    "from dist_bert.training.run_lock import RunLock\n"
    "lock = RunLock(sys.argv[1])\n"
    "if os.fork() == 0:\n"  # what a holder leaves behind does not keep the lock
    "    print(os.getpid(), flush=True)\n"
    "    time.sleep(1_000)\n"
    "time.sleep(1_000)\n"
)


def test_it_keeps_others_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    left_behind = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError) as caught:
            RunLock(folder)
        told = str(caught.value)
        assert told.startswith(f"--output_dir {folder}: another training is writing there (process")
        assert f"process {holder.pid} on {platform.node()}, since 20" in told
        assert "\n" not in told
        with pytest.raises(UserError):
            RunLock(folder)  # the first try has not given it away
        holder.kill()
        holder.wait()
        lock = RunLock(folder)
        assert f'"process": {os.getpid()},' in (folder / "lock").read_text()
        lock.release()
        assert (folder / "lock").read_bytes() == b""
    finally:
        holder.kill()
        os.kill(left_behind, signal.SIGKILL)


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(number: int) -> None:
        def lockf(*arguments: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "lockf", lockf)

    refuse(errno.ENOLCK)
    RunLock(tmp_path).release()
    assert "its file system has no locks" in caplog.text
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        RunLock(tmp_path)
