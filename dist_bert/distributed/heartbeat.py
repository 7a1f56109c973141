"""Notices within a minute that another rank has gone without a word: its host is down or cut off.

A collective waits `timeout_seconds` for such a rank, which must be longer than any save. So every
rank also counts up a number of its own in the process group's key-value store, from a thread: rank
0 watches the numbers of all, and the others watch rank 0's, on whose host the store is.
"""

import threading
import time

import torch.distributed as dist

from dist_bert.distributed.interrupts import end_at_once

_BEATS = 12  # in the time after which a silent rank is taken for gone


class Heartbeat:
    """The thread of one rank; begins when the process group is there."""

    def __init__(self, silence_seconds: float) -> None:
        """Starts to beat and to watch.

        Args:
            silence_seconds: without a beat, after which a rank is taken for gone; 0 = never mind.
        """
        self._silence_seconds = silence_seconds
        self._is_stopped = threading.Event()
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        self._watched = range(1, world_size) if self._rank == 0 else range(1)
        if silence_seconds and world_size > 1:
            # A connection of its own: the main thread's may be waiting for an answer.
            self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._answered = time.monotonic()
            for target in (self._beat, self._watch_store):
                threading.Thread(target=target, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Ends it; all ranks must have done so before any of them leaves."""
        self._is_stopped.set()

    def _beat(self) -> None:
        """Counts up, and watches the counts of others."""
        count = 0
        last: dict[int, tuple[bytes, float]] = {}  # rank -> number, and when it became that
        while not self._is_stopped.is_set():
            count += 1
            try:
                self._store.set(_key(self._rank), str(count))
                values = self._store.multi_get([_key(rank) for rank in self._watched])
            except RuntimeError as error:
                if not self._is_stopped.is_set():
                    self._end(f"rank 0 has closed its store ({error})")
                return
            now = self._answered = time.monotonic()
            for rank, value in zip(self._watched, values, strict=True):
                if last.get(rank, (b"", now))[0] != value:
                    last[rank] = (value, now)
                elif now - last[rank][1] > self._silence_seconds:
                    self._end(f"no sign of life from rank {rank}")
            self._is_stopped.wait(self._silence_seconds / _BEATS)

    def _watch_store(self) -> None:
        """Notices that there is no answer: a call to the store would wait for ever."""
        while not self._is_stopped.wait(self._silence_seconds / _BEATS):
            if time.monotonic() - self._answered > self._silence_seconds:
                self._end("no answer from rank 0's store")

    def _end(self, problem: str) -> None:
        end_at_once(
            f"{problem} within heartbeat_seconds = {self._silence_seconds:g}: its host is down or"
            " cut off, or its process is stopped"
        )


def _key(rank: int) -> str:
    return f"heartbeat of rank {rank}"
