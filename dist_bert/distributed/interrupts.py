"""Reasons to stop before the last step: signals, the time limit, a launcher that is gone, a save.

Here they are only noted, by one process for itself; all ranks agree on them at the next step
boundary (`dist_bert.distributed.agreement`). No torch: signals are caught from the first
second on.
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

INTERRUPTED_EXIT_CODE = 85  # saved, and to be started again; free in sysexits.h and in shells
FAULT_EXIT_CODE = 1

# A rank notes the number of its reason; where ranks noted several, the highest is told.
REASONS = (
    *("", "max_minutes are over", "the launcher is gone"),
    *("SIGUSR1", "SIGHUP", "SIGTERM", "SIGINT"),
    "a checkpoint could not be written",  # noted by the threads that write; ends in an error
)
SAVE_FAILED = len(REASONS) - 1
_LAUNCHER_GONE = REASONS.index("the launcher is gone")

_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo's
_POLL_SECONDS = 0.5
_ORPHAN_SECONDS = 7.0  # from the launcher's end to this process's: a small model can save
_STOPPING_ORPHAN_SECONDS = 300.0  # the same where it had been asked to stop before


class Interrupts:
    """What asks this process to stop."""

    def __init__(self, max_minutes: float = 0.0) -> None:
        """Starts the clock.

        Args:
            max_minutes: from now to the request to stop; 0 = no limit.
        """
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self._noted = 0

    @property
    def noted(self) -> int:
        """Number of the reason to stop in `REASONS`; 0 = none."""
        return self._noted or int(time.monotonic() >= self._deadline)

    def catch_signals(self) -> None:
        """Turns SIGTERM, SIGUSR1 and the first SIGINT into notes, even where they were ignored.

        SIGHUP, of a terminal or an ssh session that is gone, is noted too, unless it was ignored:
        that is what nohup is for. The second SIGINT ends the process at once, whatever it is doing.
        """
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            signal.signal(getattr(signal, name), self._note_signal)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note_signal)

    def follow_launcher(self) -> None:
        """Ends this process soon after the launcher that started it, if one did."""
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
        end_at_once(f"the launcher is gone, and this process did not stop within {seconds:.0f} s")


def end_at_once(message: str) -> NoReturn:
    """Ends the process from any thread, past whatever hangs, with a line that names the rank."""
    try:
        last_words(f"error: rank {os.environ.get('RANK', '0')}: {message}")
    finally:
        os._exit(FAULT_EXIT_CODE)


def end_with_error(error: Exception) -> NoReturn:
    """Shows an error and ends the process at once, which ends the other ranks' waiting for it.

    An ordinary exit would first wait for threads and collectives that never end. A rank that only
    lost another one tells so in a line: the other one's traceback is what to read. So does one that
    met a full disk, or a file that the system refuses; the traceback is in its log.
    """
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_PEER):
        end_at_once(
            "lost another rank: its own error stands above, unless it was killed"
            f" ({str(error).splitlines()[0]})"
        )
    text = "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, OSError) and error.filename:  # of the file system: the file tells enough
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
    """Parent of a process; None where it is gone or there is no /proc."""
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
