"""The MPI ranks of a preparation: the only home of mpi4py.

Work is a list of items with sizes. Every rank computes the same static hand-out and does its part;
rank 0 hears of each finished item, so it can tell the progress, and of mistakes, which end all
ranks together. No result depends on the number of ranks. Ranks that wait sleep: a spinning MPI call
would take a core from those that work.
"""

import contextlib
import heapq
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from dist_bert.errors import UserError

T = TypeVar("T")

_ORDERS, _RESULTS = 1, 2  # message tags: from rank 0 to another one, and back
_POLL_SECONDS = 0.01


class Ranks:
    """This rank and its peers. All ranks call the same methods in the same order."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that speaks."""
        return self.rank == 0

    def share(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank.

        Raises:
            UserError: on all ranks, if `make` raises one.
        """
        if not self.is_first:
            heard: T = self._hear()
            return heard
        value, problem = _attempt(make)
        self._tell(value, problem)
        if problem is not None:
            raise UserError(problem)
        return value  # type: ignore[return-value]

    def each(self, make: Callable[[], T]) -> T:
        """What `make` returns on each rank.

        Raises:
            UserError: on all ranks, if `make` raises one on any.
        """
        value, problem = _attempt(make)
        problems = self._communicator.gather(problem)
        self.share(lambda: _raise_first(problems))
        return value  # type: ignore[return-value]

    def run(
        self, sizes: Sequence[int], work: Callable[[int], T], report: Callable[[int, T], None]
    ) -> list[T]:
        """Does all items of work, each on one rank.

        Args:
            sizes: of the items: the largest are handed out first.
            work: does item i and returns a small result.
            report: called on rank 0 after every item, with its number and result.

        Returns:
            The results in the order of the items; on other ranks than the first, an empty list.

        Raises:
            UserError: on all ranks, if an item raises one (or an OSError, such as a full disk).
        """
        mine = hand_out(sizes, self.size)[self.rank]
        if not self.is_first:
            self._follow(mine, work)
            self._hear()
            return []
        results, problem = self._lead(mine, work, report)
        if problem is not None:
            raise UserError(problem)
        return [results[i] for i in range(len(sizes))]

    def _lead(
        self, mine: list[int], work: Callable[[int], T], report: Callable[[int, T], None]
    ) -> tuple[dict[int, T], str | None]:
        """Rank 0: its own items, and between them the news of the others, until all have ended."""
        results: dict[int, Any] = {}
        problem: str | None = None
        pending = iter(mine)
        num_working = self.size - 1
        while True:
            news = []
            if problem is None and (index := next(pending, None)) is not None:
                news.append((index, *_attempt(work, index)))
            elif num_working == 0:
                break
            elif not self._communicator.iprobe(tag=_RESULTS):
                time.sleep(_POLL_SECONDS)
            while self._communicator.iprobe(tag=_RESULTS):
                news.append(self._communicator.recv(tag=_RESULTS))
            for index, result, new_problem in news:
                if index is None:
                    num_working -= 1
                elif problem is None and new_problem is not None:
                    problem = new_problem
                    self._tell(None, problem)  # the others stop after the item they are at
                elif problem is None:
                    results[index] = result
                    report(index, results[index])
        if problem is None:
            self._tell(None, None)
        return results, problem

    def _follow(self, mine: list[int], work: Callable[[int], Any]) -> None:
        """Other ranks: their items, until one fails or rank 0 calls them off."""
        sends = []
        for index in mine:
            if self._communicator.iprobe(source=0, tag=_ORDERS):
                break
            result, problem = _attempt(work, index)
            sends.append(self._communicator.isend((index, result, problem), dest=0, tag=_RESULTS))
            if problem is not None:
                break
        sends.append(self._communicator.isend((None, None, None), dest=0, tag=_RESULTS))
        for send in sends:
            send.wait()

    def _tell(self, value: Any, problem: str | None) -> None:
        for other in range(1, self.size):
            self._communicator.send((value, problem), dest=other, tag=_ORDERS)

    def _hear(self) -> Any:
        while not self._communicator.iprobe(source=0, tag=_ORDERS):
            time.sleep(_POLL_SECONDS)
        value, problem = self._communicator.recv(source=0, tag=_ORDERS)
        if problem is not None:
            raise UserError(problem)
        return value


@contextlib.contextmanager
def connect() -> Iterator[Ranks]:
    """Joins the other ranks; an error on one rank ends them all.

    A `UserError` is raised by all ranks together, so they may each end in peace; whatever else a
    rank raises would leave the others waiting for it.
    """
    # What MPICH says of an abort would stand below the error that a user should read.
    os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"mpi4py finds no MPI library ({error}); install one: pip install mpich"
        ) from None
    ranks = Ranks(MPI.COMM_WORLD)
    try:
        yield ranks
    except UserError:
        MPI.Finalize()  # else `-m mpi4py` takes the exit code for a crash and aborts, noisily
        raise
    except BaseException:
        if ranks.size > 1:
            traceback.print_exc()
            MPI.COMM_WORLD.Abort(1)
        raise


def hand_out(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Deals items to ranks, the largest first, each to the rank that has least so far.

    Returns:
        For each rank the numbers of its items, in the order of doing.
    """
    loads = [(0, rank) for rank in range(num_ranks)]
    items: list[list[int]] = [[] for _ in range(num_ranks)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, rank = heapq.heappop(loads)
        items[rank].append(index)
        heapq.heappush(loads, (load + sizes[index], rank))
    return items


def _attempt(work: Callable[..., T], *arguments: int) -> tuple[T | None, str | None]:
    """The result of some work, or what the user should know."""
    try:
        return work(*arguments), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{error.filename or 'output'}: {error.strerror or error}"


def _raise_first(problems: list[str | None]) -> None:
    for problem in problems:
        if problem is not None:
            raise UserError(problem)
