"""Reasons to stop before the last step: signals, the time limit, the launcher's exit, failed saves.

Each process only records its own reason here; all ranks agree on one at the next step boundary
(`dist_bert.distributed.agreement`). No torch: signals are caught from the first second on.
"""

import os
import signal
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dist_bert.distributed.rank_log import keep, last_words

INTERRUPTED_EXIT_CODE = 85  # saved, can be resumed; unused in sysexits.h and in shells
FAULT_EXIT_CODE = 1

# A rank records the number of its reason; the highest number of all ranks is reported.
REASONS = (
    *("", "max_minutes reached", "the launcher has exited"),
    *("SIGUSR1", "SIGHUP", "SIGTERM", "SIGINT"),
    "a checkpoint could not be written",  # noted by the threads that write; ends in an error
)
SAVE_FAILED = len(REASONS) - 1
_LAUNCHER_GONE = REASONS.index("the launcher has exited")

_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo's
_POLL_SECONDS = 0.5
_ORPHAN_SECONDS = 7.0  # from the launcher's exit to this process's: a small model can save
_STOPPING_ORPHAN_SECONDS = 300.0  # the same if it had been asked to stop before


class Interrupts:
    """Requests to stop this process."""

    def __init__(self, max_minutes: float = 0.0) -> None:
        """Starts the clock.

        Args:
            max_minutes: from now until the request to stop; 0 = no limit.
        """
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self._noted = 0

    @property
    def noted(self) -> int:
        """Number of the reason to stop in `REASONS`; 0 = none."""
        return self._noted or int(time.monotonic() >= self._deadline)

    def catch_signals(self) -> None:
        """Turns SIGTERM, SIGUSR1 and the first SIGINT into requests, even if they were ignored.

        So is SIGHUP, from a closed terminal or ssh session, unless it was ignored, as nohup does.
        The second SIGINT ends the process immediately.
        """
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            signal.signal(getattr(signal, name), self._note_signal)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note_signal)

    def follow_launcher(self) -> None:
        """Ends this process soon after the exit of the launcher that started it, if any."""
        if "RANK" in os.environ:
            links = _links_to_launcher()
            thread = threading.Thread(target=self._follow, args=(links,), name="launcher watch")
            thread.daemon = True
            thread.start()

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._noted = max(self._noted, REASONS.index(signal.Signals(number).name))

    def _follow(self, links: list[tuple[int, int | None]]) -> None:
        while all(_parent_of(process) == parent for process, parent in links):
            time.sleep(_POLL_SECONDS)
        was_asked = self.noted
        self._noted = max(self._noted, _LAUNCHER_GONE)
        seconds = _ORPHAN_SECONDS
        time.sleep(seconds)
        if was_asked or self._noted > _LAUNCHER_GONE:  # SIGHUP reaches launcher and ranks at once
            seconds = _STOPPING_ORPHAN_SECONDS
            time.sleep(seconds - _ORPHAN_SECONDS)
        end_at_once(
            f"the launcher has exited, and this process did not stop within {seconds:.0f} s"
        )


def end_at_once(message: str) -> NoReturn:
    """Ends the process from any thread, even if others hang, with a line that names the rank."""
    try:
        last_words(f"error: rank {os.environ.get('RANK', '0')}: {message}")
    finally:
        os._exit(FAULT_EXIT_CODE)


def end_with_error(error: Exception) -> NoReturn:
    """Prints an error and ends the process at once, so that the other ranks stop waiting for it.

    A normal exit would first wait for threads and collectives that never end. A rank that only lost
    another one prints one line: the other rank's traceback shows the cause. A full disk, or a file
    that cannot be accessed, is also reported in one line; the traceback is in its log.
    """
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_PEER):
        end_at_once(
            "lost another rank: its own error is above, unless it was killed"
            f" ({str(error).splitlines()[0]})"
        )
    text = "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, OSError) and error.filename:  # of the file system: the file name suffices
        keep(text)
        end_at_once(f"{error.filename}: {error.strerror}")
    last_words(f"error: rank {os.environ.get('RANK', '0')} failed:\n{text}")
    os._exit(FAULT_EXIT_CODE)


def _links_to_launcher() -> list[tuple[int, int | None]]:
    """Pairs of process and parent, from here up to the launcher.

    `deepspeed` starts `deepspeed.launcher.launch`, which starts the ranks and outlives it.
    """
    parent = os.getppid()
    links: list[tuple[int, int | None]] = [(os.getpid(), parent)]
    above = _parent_of(parent)
    if (
        above is not None
        and b"deepspeed" in _command_line(parent)
        and b"deepspeed" in (_command_line(above))
    ):
        links.append((parent, above))
    return links


def _parent_of(process: int) -> int | None:
    """Parent of a process; None if it has exited or there is no /proc."""
    if process == os.getpid():
        return os.getppid()
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1])


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
