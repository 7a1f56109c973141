"""Writes checkpoints while training continues: the loop waits only for a copy to host memory.

At a save every rank copies its fragments; a thread of the rank then writes them. The threads of all
ranks agree among themselves, over a process group that nothing else uses, that all have written or
that one has failed. So every thread learns the same about every save, in the order of the saves. A
thread's failure is raised in the loop where all ranks look at the same save: at the end of a wait
for it. For what a checkpoint is, see `dist_bert.checkpoint.checkpoint`.
"""

import collections
import dataclasses
import queue
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_bert.checkpoint import fragments
from dist_bert.checkpoint.checkpoint import (
    TrainState,
    is_best,
    publish,
    remove_old,
)
from dist_bert.checkpoint.format import Fragment, FragmentFile, write_state
from dist_bert.checkpoint.run_dir import CHECKPOINTS_NAME, HAS_AVERAGE, checkpoint_name
from dist_bert.common.device import has_gpu
from dist_bert.common.errors import UserError
from dist_bert.distributed.agreement import all_ranks_agree
from dist_bert.distributed.interrupts import end_with_error
from dist_bert.distributed.watchdog import Watchdog

MAX_PENDING = 2  # saves that are being written or wait for it; each takes host memory


class CheckpointWriter:
    """The saves of one run; every method is called by all ranks together, but `has_failed`."""

    def __init__(
        self,
        engine: Any,
        run_dir: str | Path,
        identity: dict[str, Any],
        keep: int,
        watchdog: Watchdog,
        tell: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Starts the thread.

        Args:
            engine: the DeepSpeed engine.
            run_dir: the run's folder.
            identity: what a run must be equal in to resume from it (see `check_identity`).
            keep: number of checkpoints to keep besides the best, at least 1.
            watchdog: watches over the thread, and over the waits for it.
            tell: takes the step of every checkpoint written, in the thread of the caller.
        """
        self._engine = engine
        self._shapes = {n: list(_full_shape(p)) for n, p in engine.module.named_parameters()}
        self._run_dir = Path(run_dir)
        self._identity = identity
        self._keep = keep
        self._watchdog = watchdog
        self._tell = tell
        self._group = dist.new_group(backend="gloo")
        self._snapshots: list[_Snapshot] = []
        self._pending: collections.deque[_Save] = collections.deque()
        self._queue: queue.SimpleQueue[_Save | None] = queue.SimpleQueue()
        self._error: UserError | None = None  # of the first save that failed; no later one begins
        self._thread = threading.Thread(target=self._work, name="checkpoint writer", daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether this rank knows of a save that failed; `finish` raises its error on all ranks."""
        return self._error is not None

    def save(
        self, state: TrainState, validation_loss: float | None = None, comparable_since: int = 0
    ) -> None:
        """Takes a copy of what a checkpoint holds, to be written later.

        `latest` moves to it when it is whole, then all but the newest `keep` and the best go. Waits
        while `MAX_PENDING` saves before it are not yet written.

        Args:
            state: where the run stands.
            validation_loss: at this step, if there was a validation; `best` moves to the checkpoint
                with the lowest one.
            comparable_since: step after which losses are of the same samples; earlier ones do not
                count.

        Raises:
            UserError: on all ranks, if any could not write the save that was waited for.
        """
        while len(self._pending) >= MAX_PENDING:
            self._end_oldest()
        snapshot = next((s for s in self._snapshots if s.is_free), None)
        if snapshot is None:
            snapshot = _Snapshot()
            self._snapshots.append(snapshot)
        own = fragments.fragments(self._engine)
        if fragments.is_replicated(self._engine):
            own = own[dist.get_rank() :: dist.get_world_size()]
        snapshot.take(own)
        save = _Save(
            state, validation_loss, comparable_since, fragments.numbers(self._engine), snapshot
        )
        self._pending.append(save)
        self._queue.put(save)

    def finish(self) -> None:
        """Waits until all saves are written.

        Raises:
            UserError: on all ranks, if any could not write one; the checkpoints before it stay.
        """
        while self._pending:
            self._end_oldest()

    def tell_written(self) -> None:
        """Tells of the saves that have been written meanwhile, without waiting."""
        for save in self._pending:
            if save.is_done.is_set():
                self._tell_of(save)

    def close(self) -> None:
        """Ends the thread, when it has written what it was given; raises no error of a save."""
        self._queue.put(None)
        for save in self._pending:
            self._wait_for(save)
        self.tell_written()
        self._pending.clear()
        self._thread.join()

    def _end_oldest(self) -> None:
        save = self._pending[0]
        self._wait_for(save)
        self._tell_of(save)
        self._pending.popleft()
        if save.error is not None:
            raise UserError(str(save.error))

    def _wait_for(self, save: "_Save") -> None:
        if not save.is_done.is_set():
            doing = f"waiting for the writing of step {save.state.step:,}"
            with self._watchdog.waiting_for_save(doing):
                save.is_done.wait()

    def _tell_of(self, save: "_Save") -> None:
        if save.error is None and not save.is_told:
            save.is_told = True
            self._tell(save.state.step)

    def _work(self) -> None:
        """The thread."""
        try:
            while (save := self._queue.get()) is not None:
                with self._watchdog.writing(f"writing step {save.state.step:,}"):
                    if self._error is None:
                        try:
                            self._write(save)
                        except UserError as error:
                            self._error = error
                save.error = self._error
                save.snapshot.is_free = True
                save.is_done.set()
        except Exception as error:  # the other ranks' threads wait for this one
            end_with_error(error)

    def _write(self, save: "_Save") -> None:
        """Writes a checkpoint; the threads of all ranks together."""
        folder = self._run_dir / CHECKPOINTS_NAME
        name = checkpoint_name(save.state.step)
        partial = folder / f".{name}.partial"
        failure = f"cannot save step {save.state.step:,}"
        with all_ranks_agree(failure, group=self._group):
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with all_ranks_agree(failure, partial, self._group):
            written = FragmentFile.write(partial, dist.get_rank(), save.snapshot.fragments)
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, dataclasses.asdict(written), group=self._group)
        contents = {
            "state": dataclasses.asdict(save.state),
            "identity": self._identity,
            "validation_loss": save.validation_loss,
            "comparable_since": save.comparable_since,
            "optimizer": save.optimizer,
            "shapes": self._shapes,
            HAS_AVERAGE: bool(fragments.averages(self._engine)),
            "files": gathered,
        }
        with all_ranks_agree(failure, partial, self._group):
            if dist.get_rank() == 0:
                write_state(partial, contents)
                must_point = is_best(self._run_dir, save.validation_loss, save.comparable_since)
                publish(partial, folder / name, must_point)
                remove_old(self._run_dir, self._keep)


class _Snapshot:
    """Host memory for this rank's part of a checkpoint, used again from save to save."""

    def __init__(self) -> None:
        self.is_free = True  # the thread gives it back
        self.fragments: list[Fragment] = []  # copies
        self._buffers: dict[tuple[str, str, int], Tensor] = {}

    def take(self, own: Iterable[Fragment]) -> None:
        """Copies fragments; returns when the device has no more to copy."""
        self.is_free = False
        self.fragments = []
        for fragment in own:
            copies = {
                what: self._copy((what, fragment.name, fragment.start), tensor)
                for what, tensor in fragment.tensors.items()
            }
            self.fragments.append(Fragment(fragment.name, fragment.start, copies))
        if has_gpu():
            torch.cuda.synchronize()

    def _copy(self, key: tuple[str, str, int], tensor: Tensor) -> Tensor:
        if key not in self._buffers:
            self._buffers[key] = torch.empty(
                tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
            )
        return self._buffers[key].copy_(tensor, non_blocking=True)


@dataclasses.dataclass
class _Save:
    """One checkpoint on its way to the disk."""

    state: TrainState
    validation_loss: float | None
    comparable_since: int
    optimizer: dict[str, dict[str, float]]  # numbers besides the tensors
    snapshot: _Snapshot
    is_done: threading.Event = dataclasses.field(default_factory=threading.Event)
    error: UserError | None = None  # why it is not there; set before `is_done`
    is_told: bool = False


def _full_shape(parameter: Any) -> torch.Size:
    """Of a parameter that ZeRO-3 may have cut."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
