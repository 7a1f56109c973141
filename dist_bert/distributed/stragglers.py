"""Finds the rank that the others wait for, by each rank's own work in a log interval.

A step takes the same time on every rank, since they wait for each other in the collectives; the
time between these distinguishes them.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

SLOW_FACTOR = 1.2  # computing time over the median of all ranks; equal GPUs differ by a few percent
WAIT_SHARE = 0.2  # of the interval that a rank waits longer for data than the median rank
NUM_INTERVALS = 3  # in a row, before a rank is reported


@dataclasses.dataclass(frozen=True)
class Interval:
    """One log interval; the sequences have a value for each rank."""

    compute_seconds: Sequence[float]  # in forward passes; all 0 if these include collectives
    data_wait_seconds: Sequence[float]
    num_steps: int
    seconds: float

    @property
    def slowest(self) -> tuple[int, float]:
        """The rank that computes longest, and its time over the median; 0.0 if unknown."""
        rank = _highest(self.compute_seconds)
        median = statistics.median(self.compute_seconds)
        return rank, self.compute_seconds[rank] / median if median else 0.0

    @property
    def hungriest(self) -> tuple[int, float]:
        """The rank that waits longest for data, and its share of the interval."""
        rank = _highest(self.data_wait_seconds)
        return rank, self.data_wait_seconds[rank] / self.seconds

    @property
    def median_wait(self) -> float:
        """The share of the interval that the median rank waits for data."""
        return statistics.median(self.data_wait_seconds) / self.seconds

    def metrics(self) -> dict[str, float]:
        """The metrics of docs/architecture.md."""
        rank, share = self.slowest
        values = {"ranks/worst_data_wait_fraction": self.hungriest[1]}
        if share:
            values["ranks/slowest_rank"] = rank
            values["ranks/slowest_share"] = share
            median = statistics.median(self.compute_seconds)
            values["ranks/median_compute_seconds"] = median / self.num_steps
        return values


class Stragglers:
    """Reports, once, a rank that is slow for several log intervals in a row."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Starts without slow ranks.

        Args:
            hosts: name of each rank's host.
        """
        self._hosts = hosts
        self._slow, self._hungry = _Streak(), _Streak()

    def named(self, interval: Interval) -> Iterator[str]:
        """Messages to log after this interval."""
        rank, share = interval.slowest
        if self._slow.is_long(rank, share > SLOW_FACTOR):
            yield (
                f"rank {rank} on {self._hosts[rank]} is slow: its forward passes took {share:.2f}"
                f" times the median of all ranks, above {SLOW_FACTOR:g} for {NUM_INTERVALS} log"
                " intervals in a row; all ranks wait for it"
            )
        rank, share = interval.hungriest
        if self._hungry.is_long(rank, share > interval.median_wait + WAIT_SHARE):
            yield (
                f"rank {rank} on {self._hosts[rank]} waits for data: {share:.0%} of the time, the"
                f" median rank {interval.median_wait:.0%}, for {NUM_INTERVALS} log intervals in a"
                " row; all ranks wait for it"
            )


class _Streak:
    """Number of consecutive intervals with the same slow rank."""

    def __init__(self) -> None:
        self._rank, self._length = -1, 0

    def is_long(self, rank: int, is_behind: bool) -> bool:
        """Counts an interval; True when the streak reaches `NUM_INTERVALS`."""
        if not is_behind:
            self._length = 0
            return False
        self._length = self._length + 1 if rank == self._rank else 1
        self._rank = rank
        return self._length == NUM_INTERVALS


def _highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
