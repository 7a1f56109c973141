"""The process group of a job: its ranks meet, work on one folder, and part again."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from dist_bert.checkpoint.run_dir import LOGS_NAME
from dist_bert.common.device import compute_deterministically
from dist_bert.common.errors import NodeError, UserError
from dist_bert.distributed.agreement import all_ranks_agree
from dist_bert.distributed.heartbeat import Heartbeat
from dist_bert.distributed.interrupts import end_at_once, end_with_error
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.distributed.rank_log import open_rank_log
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.training.config import TrainingConfig
from dist_bert.training.console import Console
from dist_bert.training.run_lock import RunLock


@contextlib.contextmanager
def joined_ranks(
    run: TrainingConfig, console: Console, folder: str | Path | None = None
) -> Iterator[Watchdog]:
    """Joins the ranks of the launcher for a block, and leaves them after it; run by every rank.

    An error that all ranks raise together, a `UserError`, leaves the group in order. Any other one
    ends this process at once, because its peers may wait for it in a collective.

    Args:
        run: gives the time limits and the folder of the ranks' logs.
        console: of this rank; closed at the end.
        folder: is locked against other trainings; None = nothing is written, neither logs.

    Yields:
        The watchdog, which expects the block's beats.

    Raises:
        UserError: from the block, or the folder is in use or cannot be written to; raised by all
            ranks together. Or the environment contradicts `deterministic`.
    """
    watchdog = Watchdog(run.time_limits)
    heartbeat = None
    unwritable: OSError | None = None
    try:
        if run.deterministic:
            compute_deterministically()  # before CUDA starts
        try:
            if folder is not None:
                open_rank_log(Path(run.output_dir) / LOGS_NAME)
        except OSError as error:  # raised below, by all ranks together
            unwritable = error
        start_distributed(run.timeout_seconds)
        heartbeat = Heartbeat(run.heartbeat_seconds)
        lock = _locked(folder, unwritable) if folder is not None else None
        yield watchdog
        if lock is not None:
            lock.release()
        heartbeat.stop()
        dist.barrier()  # a rank that still beats would miss those that have left
    except UserError as error:
        console.note_mistake(error)
        console.close()
        if isinstance(error, NodeError):
            end_at_once(str(error))
        watchdog.stop()
        if heartbeat is not None:
            heartbeat.stop()
        leave_distributed()
        raise
    except Exception as error:
        console.note(f"error: rank 0 failed: {type(error).__name__}: {error}")
        console.close()
        end_with_error(error)
    leave_distributed()
    watchdog.stop()
    console.close()


def _locked(folder: str | Path, unwritable: OSError | None) -> RunLock | None:
    """The lock of the folder, on rank 0; called by all ranks together.

    Args:
        folder: is written to.
        unwritable: the error with which this rank's log could not be opened.

    Raises:
        UserError: on all ranks, if any cannot write there or another training does.
    """
    with all_ranks_agree("cannot start"):
        if unwritable is not None:
            raise unwritable
        return RunLock(folder) if dist.get_rank() == 0 else None
