"""How far a stage of the preparation is: a bar on a terminal, else a line every few seconds."""

import sys
import time

_LINE_INTERVAL_SECONDS = 5.0


class Progress:
    """Progress of one stage, told by rank 0."""

    def __init__(self, stage: str, noun: str, num_items: int, num_bytes: int) -> None:
        """Starts the clock.

        Args:
            stage: what is being done.
            noun: what the items are, in the plural.
            num_items: number of all items.
            num_bytes: size of all items, which the rate and the remaining time are counted in.
        """
        self._title = f"{stage:<8}"
        self._noun = noun
        self._num_items = num_items
        self._num_bytes = num_bytes
        self._items = self._bytes = 0
        self._start = self._last_line = time.monotonic()
        self._is_terminal = sys.stdout.isatty()

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

    def _print(self, now: float, end: str) -> None:
        seconds = max(now - self._start, 1e-9)
        remaining = seconds * (self._num_bytes - self._bytes) / max(self._bytes, 1)
        share = self._items / self._num_items
        bar = f"[{'#' * int(20 * share):<20}] " if self._is_terminal else ""
        ending = f"{seconds:.1f} s" if share == 1 else f"{remaining:.0f} s left"
        line = (
            f"{self._title} {bar}{self._items:,}/{self._num_items:,} {self._noun}"
            f"  {self._bytes / seconds / 1e6:.1f} MB/s  {ending}"
        )
        print(f"{line:<79}" if self._is_terminal else line, end=end, flush=True)
