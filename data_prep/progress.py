"""Progress of a preparation stage: a bar on a terminal, else a line every few seconds."""

import sys
import time

_LINE_INTERVAL_SECONDS = 5.0


class StageProgress:
    """Progress of one stage, told by rank 0."""

    def __init__(self, stage: str, noun: str) -> None:
        """Names the stage, and its items in the plural."""
        self.noun = noun
        self._title = f"{stage:<8}"
        self._is_terminal = sys.stdout.isatty()

    def begin(self, num_items: int, num_done: int, num_bytes: int) -> None:
        """Starts the clock.

        Args:
            num_items: number of all items.
            num_done: those done by an earlier run.
            num_bytes: size of those to do; the unit of the rate and the remaining time.
        """
        self._num_items = num_items
        self._num_bytes = num_bytes
        self._items = num_done
        self._bytes = 0
        self._start = self._last_line = time.monotonic()
        if num_done:
            to_do = num_items - num_done
            print(
                f"{self._title} {num_done:,} {self.noun} done earlier, {to_do:,} to do", flush=True
            )

    def add(self, num_bytes: int) -> None:
        """Counts one finished item."""
        self._items += 1
        self._bytes += num_bytes
        now = time.monotonic()
        if self._items == self._num_items:
            self._print(now, "\n")
        elif self._is_terminal:
            self._print(now, "\r")
        elif now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._last_line = now
            self._print(now, "\n")

    def tick(self, num_bytes: int) -> None:
        """Shows that work goes on inside of an item that takes long; cheap where nothing is due.

        Args:
            num_bytes: of text that is done of the item; its size may be that of a packed file.
        """
        now = time.monotonic()
        if now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._last_line = now
            self._print(now, "\r" if self._is_terminal else "\n", num_bytes)

    def _print(self, now: float, end: str, num_inside: int = 0) -> None:
        seconds = max(now - self._start, 1e-9)
        remaining = seconds * (self._num_bytes - self._bytes) / max(self._bytes, 1)
        share = self._items / self._num_items
        bar = f"[{'#' * int(20 * share):<20}] " if self._is_terminal else ""
        ending = f"{remaining:.0f} s left" if self._bytes else f"{seconds:.0f} s so far"
        ending = f"{seconds:.1f} s" if share == 1 else ending
        inside = f"  {num_inside / 1e6:.1f} MB of the next" if num_inside else ""
        line = (
            f"{self._title} {bar}{self._items:,}/{self._num_items:,} {self.noun}{inside}"
            f"  {(self._bytes + num_inside) / seconds / 1e6:.1f} MB/s  {ending}"
        )
        print(f"{line:<79}" if self._is_terminal else line, end=end, flush=True)
