"""The MPI ranks of a preparation: the only home of mpi4py.

Work is a list of items with sizes. Every rank computes the same static hand-out and does its part;
rank 0 hears of each finished item, so it can tell the progress, and of mistakes, which end all
ranks together, also those in the middle of an item (`MpiRanks.breathe`). No result depends on the
number of ranks. Ranks that wait sleep: a spinning MPI call would take a core from those that work.
"""

import contextlib
import heapq
import logging
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from dist_bert.common.errors import UserError
from dist_bert.common.slurm import num_tasks

T = TypeVar("T")

_ORDERS, _RESULTS = 1, 2  # message tags: from rank 0 to another one, and back
_POLL_SECONDS = 0.01
_BREATH_SECONDS = 0.1
_LAST_WORDS_SECONDS = 0.5  # until the launcher has forwarded an error: it drops pending output
_log = logging.getLogger(__name__)


class MpiRanks:
    """This rank and its peers. All ranks call the same methods in the same order."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self._next_breath = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints."""
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
        self,
        noun: str,
        sizes: Sequence[int],
        work: Callable[[int], T],
        report: Callable[[int, T], None],
    ) -> list[T]:
        """Does all items of work, each on one rank.

        Args:
            noun: what an item is, for the log.
            sizes: of the items; the largest are assigned first.
            work: does item i and returns a small result; calls `breathe` if it takes seconds.
            report: called on rank 0 after every item, with its number and result.

        Returns:
            The results in the order of the items; an empty list on other ranks than the first.

        Raises:
            UserError: on all ranks, if an item raises one (or an OSError, such as a full disk).
        """

        def logged(index: int) -> T:
            _log.info("%s %d begins", noun, index)
            result = work(index)
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            _log.info("%s %d is done; peak memory so far %.0f MiB", noun, index, peak_mib)
            return result

        mine = hand_out(sizes, self.size)[self.rank]
        if not self.is_first:
            self._follow(mine, logged)
            self._hear()
            return []
        self._lead = _Lead(self._communicator, report)
        self._lead.run(mine, logged)
        if self._lead.problem is not None:  # the others have received it
            raise UserError(self._lead.problem)
        self._tell(None, None)
        return [self._lead.results[i] for i in range(len(sizes))]

    def breathe(self) -> None:
        """Abandons the current item of work if another rank has met an error.

        Cheap enough to be called for every document.
        """
        now = time.monotonic()
        if now < self._next_breath:
            return
        self._next_breath = now + _BREATH_SECONDS
        if self.is_first:
            self._lead.listen()
            is_in_vain = self._lead.problem is not None
        else:
            is_in_vain = self._communicator.iprobe(source=0, tag=_ORDERS)
        if is_in_vain:
            raise _CalledOff

    def _follow(self, mine: list[int], work: Callable[[int], Any]) -> None:
        """On other ranks: works on their items until one fails or rank 0 cancels the work."""
        sends = []
        for index in mine:
            if self._communicator.iprobe(source=0, tag=_ORDERS):
                break
            try:
                result, problem = _attempt(work, index)
            except _CalledOff:
                break
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


class _CalledOff(Exception):  # noqa: N818 - not an error, but the exit from a half-done item
    """Another rank has met an error."""


class _Lead:
    """Rank 0 during the work: does its own items and receives the results of all ranks."""

    def __init__(self, communicator: Any, report: Callable[[int, Any], None]) -> None:
        self.results: dict[int, Any] = {}
        self.problem: str | None = None  # the first error that any rank met
        self._communicator = communicator
        self._report = report
        self._num_working = communicator.Get_size() - 1  # other ranks that have not finished

    def run(self, mine: list[int], work: Callable[[int], Any]) -> None:
        """Does the items of this rank, and returns when all ranks have finished theirs."""
        for index in mine:
            if self.problem is None:
                with contextlib.suppress(_CalledOff):
                    self._take(index, *_attempt(work, index))
            self.listen()
        while self._num_working:
            time.sleep(_POLL_SECONDS)
            self.listen()

    def listen(self) -> None:
        """Receives the results of the other ranks."""
        while self._communicator.iprobe(tag=_RESULTS):
            index, result, problem = self._communicator.recv(tag=_RESULTS)
            if index is None:
                self._num_working -= 1
            else:
                self._take(index, result, problem)

    def _take(self, index: int, result: Any, problem: str | None) -> None:
        if self.problem is None and problem is None:
            self.results[index] = result
            self._report(index, result)
        elif self.problem is None:
            self.problem = problem
            for other in range(1, self._communicator.Get_size()):
                self._communicator.send((None, problem), dest=other, tag=_ORDERS)


@contextlib.contextmanager
def connect() -> Iterator[MpiRanks]:
    """Joins the other ranks; an error on one rank ends them all.

    A `UserError` is raised by all ranks together, so each can exit normally. Any other exception
    would leave the other ranks waiting, so it aborts all.
    """
    # MPICH's message about an abort would follow the error that the user should read.
    os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"mpi4py finds no MPI library ({error}); install one: pip install mpich"
        ) from None
    ranks = MpiRanks(MPI.COMM_WORLD)
    try:
        if ranks.size == 1 < num_tasks():  # each would prepare everything
            raise UserError(
                f"srun started {num_tasks()} tasks, and MPI finds 1 rank: give srun the --mpi of"
                " mpi4py's MPI library (pmi2 for PyPI's mpich; `srun --mpi=list` lists all)"
                ", or start that library's mpiexec inside the job"
            )
        yield ranks
    except UserError:
        MPI.Finalize()  # else `-m mpi4py` treats the exit code as a crash and aborts
        raise
    except BaseException:
        if ranks.size > 1:
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            time.sleep(_LAST_WORDS_SECONDS)
            MPI.COMM_WORLD.Abort(1)
        raise


def hand_out(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Assigns items to ranks, the largest first, each to the rank with the least work so far.

    Returns:
        For each rank the numbers of its items, in the order of work.
    """
    loads = [(0, rank) for rank in range(num_ranks)]
    items: list[list[int]] = [[] for _ in range(num_ranks)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, rank = heapq.heappop(loads)
        items[rank].append(index)
        heapq.heappush(loads, (load + sizes[index], rank))
    return items


def _attempt(work: Callable[..., T], *arguments: int) -> tuple[T | None, str | None]:
    """The result of some work, or the error message for the user."""
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
