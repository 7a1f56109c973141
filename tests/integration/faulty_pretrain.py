"""launch/pretrain.py with a fault on one rank, as the variable FAULT says: RANK|PLACE|WHAT.

PLACE matches the beginning of what the watchdog is told, e.g. `in step (5|6), micro-step 2`. WHAT
is `hang`, `raise`, `nan`, `jump` (the loss, to eight times), `orphan`, or a signal that the rank
sends to itself. So the product needs no hooks for its faults.
"""

import os
import re
import runpy
import signal
import time
from typing import Any

from dist_bert.distributed.watchdog import Watchdog
from dist_bert.model.micro_batches import to_device
from dist_bert.training import engine

RANK, PLACE, WHAT = re.fullmatch(r"(.)\|(.*)\|(\w+)", os.environ["FAULT"]).groups()  # type: ignore[union-attr]
beat = Watchdog.beat
is_there = False


def faulty_beat(watchdog: Watchdog, doing: str) -> None:
    global is_there
    beat(watchdog, doing)
    is_there = os.environ.get("RANK", "0") == RANK and re.match(PLACE, doing) is not None
    if not is_there or WHAT in ("nan", "jump"):
        return
    if WHAT == "raise":
        raise ValueError("an injected fault")
    if WHAT == "hang":
        watchdog._seconds = 1.0  # the limit given was for the start, slow on a busy machine
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


if __name__ == "__main__":
    Watchdog.beat = faulty_beat  # type: ignore
    engine.to_device = faulty_to_device  # type: ignore
    runpy.run_path("launch/pretrain.py", run_name="__main__")
