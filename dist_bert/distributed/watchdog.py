"""Ends a process without progress, after printing the stacks of all its threads.

A Python thread watches. If the interpreter is blocked, the C timer of `faulthandler` is the
fallback, which only prints the stacks.

Two activities have limits: the run's, whose beats may come from any thread that works for it, and
the writing of a checkpoint meanwhile (`dist_bert.checkpoint.writer`).
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from dist_bert.distributed.interrupts import end_at_once
from dist_bert.distributed.rank_log import last_words, show_stacks

START, STEP, SAVE = "start_minutes", "watchdog_minutes", "save_minutes"  # settings: the limits
_BACKSTOP = 1.5  # times the limit, when faulthandler's own timer ends the process
_SLACK_SECONDS = 30.0  # more, for threads that wait for a core on a busy machine


class Watchdog:
    """Requires a beat of the run within a limit, and every checkpoint written within another."""

    def __init__(self, limits: Mapping[str, float] | None = None) -> None:
        """Starts watching, with the limit of the start.

        Args:
            limits: `START`, `STEP` and `SAVE` in minutes; 0 or missing = off.
        """
        self._seconds = {name: 60.0 * (limits or {}).get(name, 0.0) for name in (START, STEP, SAVE)}
        self._limit = START
        # When it began, what it is, and its limit; one tuple, because threads read it.
        self._run = (time.monotonic(), "starting", START)
        self._writing: tuple[float, str, str] | None = None
        self._is_stopped = threading.Event()
        if any(self._seconds.values()):
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str) -> None:
        """Reports progress, and the work that starts now."""
        self._run = (time.monotonic(), doing, self._limit)

    def use(self, limit: str) -> None:
        """Takes another limit, from the next beat on: `START`, `STEP` or `SAVE`."""
        self._limit = limit

    @contextlib.contextmanager
    def waiting_for_save(self, doing: str) -> Iterator[None]:
        """Watches over a wait for the writing of one checkpoint."""
        before = self._limit
        self.use(SAVE)
        self.beat(doing)
        yield
        self.use(before)
        self.beat(f"after {doing}")

    @contextlib.contextmanager
    def writing(self, doing: str) -> Iterator[None]:
        """Watches over the writing of one checkpoint during the run; called by the writing thread.

        The whole of it is limited, whatever progress it makes.
        """
        self._writing = (time.monotonic(), doing, SAVE)
        yield
        self._writing = None

    def stop(self) -> None:
        """Stops watching."""
        self._is_stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while True:
            left = math.inf  # until faulthandler's timer must end the process
            for since, doing, limit in filter(None, (self._run, self._writing)):
                seconds, idle = self._seconds[limit], time.monotonic() - since
                if seconds and idle > seconds:
                    self._end(idle, doing, limit)
                if seconds:
                    left = min(left, _BACKSTOP * seconds + _SLACK_SECONDS - idle)
            if left < math.inf:
                faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or 2)
            else:
                faulthandler.cancel_dump_traceback_later()
            shortest = min(filter(None, self._seconds.values()))
            if self._is_stopped.wait(min(shortest / 10, 5.0)):
                faulthandler.cancel_dump_traceback_later()
                return

    def _end(self, idle_seconds: float, doing: str, limit: str) -> None:
        # The report has time of its own, but not without end: its file system may hang.
        faulthandler.dump_traceback_later(_SLACK_SECONDS, exit=True, file=sys.__stderr__ or 2)
        rank = os.environ.get("RANK", "0")
        last_words(f"rank {rank}: stacks of all threads while {doing}:")
        show_stacks()
        end_at_once(
            f"no progress for {idle_seconds / 60:.2g} minutes ({limit} ="
            f" {self._seconds[limit] / 60:.2g}) while {doing}; the stacks above show where it is"
        )
