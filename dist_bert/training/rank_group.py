"""The ranks of a launcher: they meet, do some work with one folder, and part.

For every kind of training. The work of a training run is in `dist_bert.training.session`.
"""

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from dist_bert.checkpoint.checkpoint import all_ranks_agree
from dist_bert.checkpoint.run_dir import LOGS_NAME
from dist_bert.common.errors import NodeError, UserError
from dist_bert.distributed.heartbeat import Heartbeat
from dist_bert.distributed.interrupts import end_at_once, end_with_error
from dist_bert.distributed.process_group import leave_distributed, start_distributed
from dist_bert.distributed.rank_log import open_rank_log
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.training.config import RunConfig
from dist_bert.training.console import Console
from dist_bert.training.run_lock import RunLock


def run_session(
    run: RunConfig, folder: str | Path, console: Console, body: Callable[[Watchdog], int]
) -> int:
    """Joins the ranks of the launcher, does the work, and parts from them; called by every rank.

    Args:
        run: gives the limits of waiting.
        folder: that is written to, by no other training at the same time.
        console: of this rank.
        body: the work; takes the watchdog, returns the exit code.

    Returns:
        The exit code.

    Raises:
        UserError: of the body, or the folder is in use or cannot be written to; raised by all ranks
            together.
    """
    watchdog = Watchdog(run.time_limits)
    heartbeat = None
    unwritable: OSError | None = None
    try:
        try:
            open_rank_log(Path(run.output_dir) / LOGS_NAME)
        except OSError as error:  # told below, by all ranks together
            unwritable = error
        start_distributed(run.timeout_seconds)
        heartbeat = Heartbeat(run.heartbeat_seconds)
        lock = _locked(folder, unwritable)
        code = body(watchdog)
        if lock is not None:
            lock.release()
        heartbeat.stop()
        dist.barrier()  # a rank that still beats would miss those that have left
    except UserError as error:  # raised by all ranks together; after any other one peers may hang
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
    return code


def _locked(folder: str | Path, unwritable: OSError | None) -> RunLock | None:
    """The lock of the folder, on rank 0; called by all ranks together.

    Args:
        folder: that is written to.
        unwritable: what this rank met when it opened its log.

    Raises:
        UserError: on all ranks, if any cannot write there or another training does.
    """
    with all_ranks_agree("cannot start"):
        if unwritable is not None:
            raise unwritable
        return RunLock(folder) if dist.get_rank() == 0 else None
