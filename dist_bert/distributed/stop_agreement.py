"""Makes all ranks agree on a reason to stop at the same step boundary, so that none stops alone.

Uses an all-reduce of one integer on the CPU, in a separate gloo group: it runs while the device
computes, and does not make a step wait for the device.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


class Agreement:
    """Agrees on the reason to stop; all ranks must make every call together."""

    def __init__(self, noted: Callable[[], int]) -> None:
        """Makes the group.

        Args:
            noted: returns the number of this rank's reason to stop; 0 = none.
        """
        self._noted = noted
        self._group = dist.new_group(backend="gloo")
        self._number = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None
        self.reason = 0  # the highest number of any rank; does not change once set

    def begin(self) -> None:
        """Starts the exchange, without waiting."""
        self._number[0] = max(self.reason, self._noted())
        self._work = dist.all_reduce(
            self._number, dist.ReduceOp.MAX, group=self._group, async_op=True
        )

    def end(self) -> int:
        """Waits for the result; returns the agreed `reason`."""
        assert self._work is not None, "end() without begin()"
        self._work.wait()
        self._work = None
        self.reason = int(self._number[0])
        return self.reason

    def until_stop(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields items until all ranks agree to stop; each rank must have the same number."""
        for item in items:
            self.begin()
            yield item
            if self.end():
                return
