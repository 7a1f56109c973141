"""Starts the ranks of a script on this machine as the `deepspeed` launcher does, in less time.

    python -u tests/support/ranks.py 2 29500 launch/pretrain.py --deepspeed_config ...

The launcher is two processes that import torch before the ranks do so, too. Here one process
imports what takes seconds and needs no rank, then forks the ranks. A rank has the variables and
the flag that the launcher gives it; the first one that fails ends the others, and its exit code
is that of the whole.
"""

import contextlib
import importlib
import os
import runpy
import signal
import sys
from pathlib import Path

IMPORTS = ("deepspeed", "torch._dynamo")  # what an engine imports by and by


def main() -> None:
    """Forks the ranks, waits for them and ends as they did."""
    num_ranks, port, script, *arguments = sys.argv[1:]
    for name in IMPORTS:
        importlib.import_module(name)
    ranks = {}
    for rank in range(int(num_ranks)):
        process = os.fork()
        if process == 0:
            become_rank(rank, num_ranks, port, script, arguments)
            return
        ranks[process] = rank
    for number in (signal.SIGTERM, signal.SIGINT):  # those of a whole job reach the ranks
        signal.signal(number, lambda number, frame: send(number, ranks))
    code = 0
    while ranks:
        process, status = os.wait()
        del ranks[process]
        failed = os.waitstatus_to_exitcode(status)
        if failed and not code:
            code = failed if failed > 0 else 128 - failed
            send(signal.SIGKILL, ranks)
    os._exit(code)


def send(number: int, ranks: dict[int, int]) -> None:
    """Sends a signal to the ranks that are still there."""
    for process in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def become_rank(rank: int, num_ranks: str, port: str, script: str, arguments: list[str]) -> None:
    """Runs the script, whose end is the end of this process."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=num_ranks, LOCAL_SIZE=num_ranks,
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
    )  # fmt: skip
    sys.argv = [script, f"--local_rank={rank}", *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
