"""Makes all ranks agree on one rank's reason to stop, or its error, so that none stops alone.

A reason to stop takes an all-reduce of one integer on the CPU, in a separate gloo group: it runs
while the device computes, and does not make a step wait for the device.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dist_bert.common.errors import UserError

Item = TypeVar("Item")


class StopAgreement:
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


@contextlib.contextmanager
def all_ranks_agree(
    what: str, partial: Path | None = None, group: dist.ProcessGroup | None = None
) -> Iterator[None]:
    """Makes all ranks leave a block together, with the first rank's error if there is any.

    Args:
        what: could not be done; starts the message.
        partial: folder that is removed after an error.
        group: of the exchange; None = the default one.

    Raises:
        UserError: on all ranks, if any meets one or an error from the file system.
    """
    problem = ""
    try:
        yield
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    except UserError as error:
        problem = str(error)
    if first := first_problem(problem, group):
        if partial is not None and dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{what}: {first}")


def first_problem(problem: str, group: dist.ProcessGroup | None = None) -> str:
    """What the first rank with a problem has, told to all; empty if none has any."""
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem, group=group)
    return next(filter(None, problems), "")
