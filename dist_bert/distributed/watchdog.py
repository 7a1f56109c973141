"""Ends a process that has stopped making progress, after showing where each of its threads is.

A thread of Python watches; in case something holds the interpreter, a timer of C's in
`faulthandler` stands behind it, which shows the stacks alone.
"""

import faulthandler
import os
import sys
import threading
import time

from dist_bert.distributed.interrupts import end_at_once
from dist_bert.distributed.rank_log import last_words, show_stacks

_BACKSTOP = 1.5  # limits after which faulthandler's own timer ends the process


class Watchdog:
    """Wants a beat within every `minutes`."""

    def __init__(self, minutes: float) -> None:
        """Starts to watch.

        Args:
            minutes: longest time between two beats; 0 = never mind.
        """
        self._seconds = 60 * minutes
        self._last_beat = time.monotonic()
        self._doing = "starting"
        self._is_stopped = threading.Event()
        if minutes:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str) -> None:
        """Tells that there is progress, and what begins now."""
        self._last_beat = time.monotonic()
        self._doing = doing

    def stop(self) -> None:
        """Ends the watch."""
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
