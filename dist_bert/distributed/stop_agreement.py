"""No rank stops alone: what one of them noted, all learn at the same boundary.

By an all-reduce of one integer on the CPU, in a gloo group of its own: it runs while the device
computes, and no step waits for the device because of it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


class Agreement:
    """Agrees on the reason to stop; every call is made by all ranks together."""

    def __init__(self, noted: Callable[[], int]) -> None:
        """Makes the group.

        Args:
            noted: gives the number of this rank's reason to stop; 0 = none.
        """
        self._noted = noted
        self._group = dist.new_group(backend="gloo")
        self._number = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None
        self.reason = 0  # the highest number that any rank had noted; once set, it stays

    def begin(self) -> None:
        """Starts to ask, without waiting."""
        self._number[0] = max(self.reason, self._noted())
        self._work = dist.all_reduce(
            self._number, dist.ReduceOp.MAX, group=self._group, async_op=True
        )

    def end(self) -> int:
        """Waits for the answer; returns the agreed `reason`."""
        assert self._work is not None, "end() without begin()"
        self._work.wait()
        self._work = None
        self.reason = int(self._number[0])
        return self.reason

    def until_stop(self, items: Iterable[Item]) -> Iterator[Item]:
        """Passes items on until all ranks agree to stop; each rank must have equally many."""
        for item in items:
            self.begin()
            yield item
            if self.end():
                return
