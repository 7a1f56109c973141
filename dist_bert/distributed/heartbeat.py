"""Detects within a minute that another rank has disappeared: its host is down or disconnected.

A collective waits `timeout_seconds` for such a rank, which must be longer than any save. So a
thread of every rank also increments the rank's counter in the process group's key-value store: rank
0 watches all counters, and the others watch rank 0's, because its host runs the store.
"""

import threading
import time

import torch.distributed as dist

from dist_bert.distributed.interrupts import end_at_once

_BEATS = 12  # per `silence_seconds`


class Heartbeat:
    """The heartbeat thread of one rank; requires the process group."""

    def __init__(self, silence_seconds: float) -> None:
        """Starts sending and watching heartbeats.

        Args:
            silence_seconds: without a beat, after which a rank is lost; 0 = off.
        """
        self._silence_seconds = silence_seconds
        self._is_stopped = threading.Event()
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        self._watched = range(1, world_size) if self._rank == 0 else range(1)
        if silence_seconds and world_size > 1:
            # A separate connection: the main thread's may be waiting for an answer.
            self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._answered = time.monotonic()
            for target in (self._beat, self._watch_store):
                threading.Thread(target=target, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stops it; all ranks must do so before any of them leaves."""
        self._is_stopped.set()

    def _beat(self) -> None:
        """Increments its counter, and watches the others'."""
        count = 0
        last: dict[int, tuple[bytes, float]] = {}  # rank -> count, and time of its last change
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
                    self._end(f"no heartbeat from rank {rank}")
            self._is_stopped.wait(self._silence_seconds / _BEATS)

    def _watch_store(self) -> None:
        """Detects a missing answer: a call to the store would wait forever."""
        while not self._is_stopped.wait(self._silence_seconds / _BEATS):
            if time.monotonic() - self._answered > self._silence_seconds:
                self._end("no answer from rank 0's store")

    def _end(self, problem: str) -> None:
        end_at_once(
            f"{problem} within heartbeat_seconds = {self._silence_seconds:g}: its host is down or"
            " disconnected, or its process is stopped"
        )


def _key(rank: int) -> str:
    return f"heartbeat of rank {rank}"
