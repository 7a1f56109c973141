"""Ends a process without progress, after printing the stacks of all its threads.

A Python thread watches. If the interpreter is blocked, the C timer of `faulthandler` is the
fallback, which only prints the stacks.
"""

import faulthandler
import os
import sys
import threading
import time

from dist_bert.distributed.interrupts import end_at_once
from dist_bert.distributed.rank_log import last_words, show_stacks

_BACKSTOP = 1.5  # times the limit, when faulthandler's own timer ends the process


class Watchdog:
    """Requires a beat at least every `minutes`."""

    def __init__(self, minutes: float) -> None:
        """Starts watching.

        Args:
            minutes: longest time between two beats; 0 = off.
        """
        self._seconds = 60 * minutes
        self._last_beat = time.monotonic()
        self._doing = "starting"
        self._is_stopped = threading.Event()
        if minutes:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str) -> None:
        """Reports progress, and the work that starts now."""
        self._last_beat = time.monotonic()
        self._doing = doing

    def stop(self) -> None:
        """Stops watching."""
        self._is_stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while True:
            idle = time.monotonic() - self._last_beat
            if idle > self._seconds:
                self._end(idle)
            faulthandler.dump_traceback_later(
                _BACKSTOP * self._seconds - idle, exit=True, file=sys.__stderr__ or 2
            )
            if self._is_stopped.wait(min(self._seconds / 10, 5.0)):
                faulthandler.cancel_dump_traceback_later()
                return

    def _end(self, idle_seconds: float) -> None:
        rank = os.environ.get("RANK", "0")
        last_words(f"rank {rank}: stacks of all threads while {self._doing}:")
        show_stacks()
        end_at_once(
            f"no progress for {idle_seconds / 60:.2g} minutes (watchdog_minutes ="
            f" {self._seconds / 60:.2g}) while {self._doing}; the stacks above show where it is"
        )
