"""Runs commands of this repository, and shows what they print: for quickstart and speed run."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dist_bert.common.device import arithmetic, num_wanted_gpus
from dist_bert.common.errors import UserError
from dist_bert.common.shipped import found
from dist_bert.distributed.rendezvous import free_port

_LAUNCHER_NOISE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[(INFO|WARNING)\]")


def ranks_and_arithmetic() -> str:
    """What the training runs on, and in which precision."""
    device = "cuda" if num_wanted_gpus() else "cpu"
    unit = "GPUs" if num_wanted_gpus() else "CPU ranks"
    return f"{num_ranks()} {unit}, {arithmetic('bf16', device)}"


def _environment() -> dict[str, str]:
    """This interpreter's scripts (deepspeed, mpiexec) come first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    device = (
        {} if num_wanted_gpus() else {"DS_ACCELERATOR": "cpu"}
    )  # unnamed, DeepSpeed warns of it
    return {**os.environ, **device, "PATH": path, "PYTHONUNBUFFERED": "1"}


def num_ranks() -> int:
    """All GPUs (a power of two of them, which divides the batch); 2 ranks where there are none."""
    return (
        1 << (num_wanted_gpus().bit_length() - 1)
        if num_wanted_gpus()
        else min(2, os.cpu_count() or 1)
    )


def launcher_flags(ranks: int) -> str:
    """Flags of the deepspeed launcher, for so many ranks on this machine."""
    return f"--num_gpus {ranks} --master_port {free_port()}"


@contextlib.contextmanager
def _running(command: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a command; whatever is left of it at the end, by Ctrl-C too, is killed."""
    print(f"    $ {command}", flush=True)
    words = shlex.split(command)
    process = subprocess.Popen(
        [str(found(word)) if word.startswith("launch/") else word for word in words],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, so that all of it can be killed
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def call(command: str) -> None:
    """Runs a command to its end, showing what it prints.

    Raises:
        UserError: it failed.
    """
    with _running(command) as process:
        _show(process, until=None)
        if process.wait() != 0:
            raise UserError(f"this command ended with exit code {process.returncode}: {command}")


def call_and_kill(command: str, step: int) -> int:
    """Kills a training command and all its processes once it has passed a step; returns where.

    Raises:
        UserError: it ended before.
    """
    with _running(command) as process:
        reached = _show(process, until=step)
    if reached is None:
        raise UserError(f"this command ended before step {step}: {command}")
    return reached


def _show(process: subprocess.Popen[str], until: int | None) -> int | None:
    """Prints a process's output, without the launcher's own log lines, to its end or to a step."""
    assert process.stdout is not None
    for line in process.stdout:
        if _LAUNCHER_NOISE.match(line):
            continue
        print(f"    {line.rstrip()}", flush=True)
        reported = re.match(r"step ([\d,]+)/", line)
        if until is not None and reported and int(reported[1].replace(",", "")) > until:
            return int(reported[1].replace(",", ""))
    return None
