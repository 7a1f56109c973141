"""launch/pretrain.py with a fault on one rank, as the variable FAULT says: RANK|PLACE|WHAT.

PLACE matches the beginning of what the watchdog is told, e.g. `in step (5|6), micro-step 2` or
`writing step 4`. WHAT is `hang`, `raise`, `nan`, `jump` (the loss, to eight times), `orphan`, or a
signal that the rank sends to itself; in the writing of a checkpoint `hang`, `full` (as the disk),
`block` (until the file UNBLOCK is there; beats are printed), or `stall_` and the function before
which the writing stands still for ever, `save_file` in the middle of its file. With the variable
LATE every checkpoint is only written when the loop waits for it. So the product needs no hooks for
its faults.
"""

import contextlib
import errno
import os
import re
import runpy
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dist_bert.checkpoint import checkpoint, writer
from dist_bert.checkpoint import format as checkpoint_format
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.model.micro_batches import to_device
from dist_bert.training import loop

RANK, PLACE, WHAT = re.fullmatch(r"(.)\|(.*)\|(\w+)", os.environ["FAULT"]).groups()  # type: ignore[union-attr]
beat, writing = Watchdog.beat, Watchdog.writing
save_file = vars(checkpoint_format)["save_file"]
is_there = is_writing = False
beginning = ""  # what the loop was to do at its last beat


def is_meant(doing: str) -> bool:
    return os.environ.get("RANK", "0") == RANK and re.match(PLACE, doing) is not None


def faulty_beat(watchdog: Watchdog, doing: str) -> None:
    global is_there, beginning
    beat(watchdog, doing)
    if threading.current_thread() is threading.main_thread():
        beginning = doing
    if WHAT == "block":
        print(f"rank {os.environ.get('RANK', '0')}: {doing};", flush=True)
    is_there = is_meant(doing)
    if not is_there or WHAT in ("nan", "jump"):
        return
    if WHAT == "raise":
        raise ValueError("an injected fault")
    if WHAT == "hang":
        # The limit given was for the start, slow on a busy machine.
        watchdog._seconds["watchdog_minutes"] = 1.0
        time.sleep(1_000)
    if WHAT == "orphan":
        with open(f"/proc/{os.getppid()}/stat") as status:  # launch.py, whose parent is deepspeed
            os.kill(int(status.read().split()[3]), signal.SIGKILL)
        time.sleep(1_000)
    os.kill(os.getpid(), signal.Signals[WHAT])


def faulty_to_device(*arguments: Any) -> dict[str, Any]:
    batch = to_device(*arguments)
    if not is_there or WHAT not in ("nan", "jump"):
        return batch
    factors = {"nan": float("nan"), "jump": 1 / 8}  # the loss is a sum divided by these
    return {**batch, **{n: batch[n] * factors[WHAT] for n in ("num_masked", "num_samples")}}


def faulty_writing(watchdog: Watchdog, doing: str) -> contextlib.AbstractContextManager[None]:
    global is_writing
    is_writing = is_meant(doing)
    if is_writing and WHAT == "hang":
        watchdog._seconds["save_minutes"] = 1.0
    return writing(watchdog, doing)


def faulty_save_file(tensors: Any, path: Path) -> None:
    while "LATE" in os.environ and not beginning.startswith("waiting for the writing of"):
        time.sleep(0.01)
    if is_writing and WHAT == "full":
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    if is_writing and WHAT == "hang":
        time.sleep(1_000)
    while is_writing and WHAT == "block" and not os.path.exists(os.environ["UNBLOCK"]):
        time.sleep(0.01)
    save_file(tensors, path)
    if is_writing and WHAT == "stall_save_file":
        os.truncate(path, os.path.getsize(path) // 2)
        stall()


def may_stall(module: ModuleType, name: str) -> None:
    """Lets the writing stand still before a function, if that is the fault."""
    function: Callable[..., Any] = vars(module)[name]

    def call(*arguments: Any) -> Any:
        if is_writing and f"stall_{name}" == WHAT:
            stall()
        return function(*arguments)

    setattr(module, name, call)


def stall() -> None:
    print("the writing stalls", flush=True)
    time.sleep(1_000)


if __name__ == "__main__":
    Watchdog.beat = faulty_beat  # type: ignore
    Watchdog.writing = faulty_writing  # type: ignore
    loop.to_device = faulty_to_device  # type: ignore
    vars(checkpoint_format)["save_file"] = faulty_save_file
    may_stall(writer, "write_state")
    may_stall(writer, "remove_old")
    may_stall(checkpoint, "_point")
    runpy.run_path("launch/pretrain.py", run_name="__main__")
