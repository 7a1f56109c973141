"""Processes of tests: time limits that suit the machine, and an end for all that was started.

`adopt_orphans` makes this process the parent of every descendant whose own parent is gone, in
whatever session it is. Killing the children until none is left therefore reaches all of them.
`tests/conftest.py` does so after every test, and checks at the end of the session.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# On two idle cores of a Xeon of 2023 no call of a test takes more than a twentieth of this.
LIMIT_SECONDS = 300.0
GRACE_SECONDS = 30.0  # for what ends by itself once the process that started it has ended
_MARK = "STARTED_BY_TESTS"  # variable that tells the descendants of one call from all others
_numbers = itertools.count()
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# As most tests: much of the work is to import, the rest is small products.
_FIXED_WORK = """
import deepspeed, torch
weights = torch.rand(512, 512)
for _ in range(100):
    weights = (weights @ weights).softmax(-1)
"""
_FIXED_WORK_SECONDS = 2.5  # on the machine above


class TimeLimitError(AssertionError):
    """Something did not happen in time."""


def environment() -> dict[str, str]:
    """Variables for a script of the repository: this checkout, these packages, no GPU, one core.

    Models are so small that threads of OpenMP cost more than they bring, and a multiple of it
    where other processes want the cores.
    """
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    values = {
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **values}


def slowness() -> float:
    """How many times longer than the machine above this one takes for a fixed piece of work, now.

    Returns:
        at least 1.
    """
    begin = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", _FIXED_WORK], env=environment(), capture_output=True, check=True
    )
    return max(1.0, (time.monotonic() - begin) / _FIXED_WORK_SECONDS)


class Patience:
    """A time limit in seconds of the machine above, however slow or busy this one is.

    The fixed work is done only when the seconds are over, so that it costs nothing otherwise and
    measures the machine as it is while the test waits.
    """

    def __init__(self, seconds: float = LIMIT_SECONDS) -> None:
        self._seconds = seconds
        self._begin = time.monotonic()

    def is_over(self) -> bool:
        """Whether a machine like this one has had enough time."""
        waited = time.monotonic() - self._begin
        return waited > self._seconds and waited > self._seconds * slowness()


def wait_until(is_so: Callable[[], Any], what: str, seconds: float = LIMIT_SECONDS) -> None:
    """Waits for a condition.

    Args:
        is_so: the condition, asked every few milliseconds.
        what: the condition in words, for the error.
        seconds: time limit, see `Patience`.

    Raises:
        TimeLimitError: it did not come true.
    """
    patience = Patience(seconds)
    while not is_so():
        if patience.is_over() and not is_so():
            raise TimeLimitError(f"{what}: not within the time for {seconds} s of work")
        time.sleep(0.003)


def adopt_orphans() -> None:
    """Makes this process the parent of its descendants whose parent ends, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[psutil.Process]:
    """The processes whose parent is this one, zombies too."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # the usual case, without a walk through /proc
        return set()
    return set(psutil.Process().children())


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended; a zombie has."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_children(is_meant: Callable[[psutil.Process], bool]) -> list[str]:
    """Kills children and, as each generation is adopted in its turn, their descendants.

    Args:
        is_meant: whether a child is to be killed.

    Returns:
        command lines of those that were still alive.
    """
    lines = []
    while found := set(filter(is_meant, children())):
        for child in found:
            if is_alive(child):
                with contextlib.suppress(psutil.NoSuchProcess):
                    lines.append(" ".join(child.cmdline()))
            child.kill()
        psutil.wait_procs(found)
    return lines


@contextlib.contextmanager
def started(
    *command: object, env: dict[str, str] | None = None, cwd: Path = ROOT, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, killed with all its descendants when the block ends.

    Args:
        command: program and arguments.
        env: its variables; `environment()` by default.
        cwd: its folder.
        options: of `subprocess.Popen`.
    """
    mark = f"{os.environ.get(_MARK, '')}{os.getpid()}.{next(_numbers)}/"

    def is_from_here(child: psutil.Process) -> bool:
        try:
            return bool(child.environ().get(_MARK, "").startswith(mark))
        except psutil.Error:  # it has ended
            return False

    process = subprocess.Popen(
        [str(part) for part in command], env={**(env or environment()), _MARK: mark}, cwd=cwd,
        text=True, start_new_session=True, **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # at once, as when the power fails
        process.wait()
        end_children(is_from_here)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def finish(
    process: subprocess.Popen[str], seconds: float = LIMIT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Waits for a process, and for the end of its output: also of what it leaves behind.

    Raises:
        TimeLimitError: with what it had printed.
    """
    patience = Patience(seconds)
    while True:
        try:
            stdout, stderr = process.communicate(timeout=1.0)
            return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
        except subprocess.TimeoutExpired as expired:
            if patience.is_over():
                told = [part for part in (expired.stdout, expired.stderr) if part]
                raise TimeLimitError(
                    f"{process.args!r} has not ended in the time for {seconds} s of work: {told}"
                ) from None


def run_script(
    *command: object,
    timeout: float = LIMIT_SECONDS,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command, in the repository's root, and returns what it printed and how it ended.

    Args:
        command: program and arguments.
        timeout: in seconds, see `Patience`.
        cwd: its folder.
        env: its variables; `environment()` by default.
        stdin: what it can read.
    """
    with contextlib.ExitStack() as stack:
        source: Any = subprocess.DEVNULL
        if stdin is not None:
            source = stack.enter_context(tempfile.TemporaryFile("w+"))
            source.write(stdin)
            source.seek(0)
        pipes = {"stdin": source, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = stack.enter_context(started(*command, env=env, cwd=cwd, **pipes))
        return finish(process, timeout)


def kill_when_printed(text: str, *command: object, timeout: float = LIMIT_SECONDS) -> str:
    """Kills a command and all its descendants with -9 as soon as it has printed `text`."""
    with (
        tempfile.NamedTemporaryFile() as file,
        started(*command, stdout=file, stderr=subprocess.STDOUT) as process,
    ):

        def output() -> str:
            whole_lines, newline, _ = Path(file.name).read_text().rpartition("\n")
            return whole_lines + newline

        wait_until(
            lambda: text in output() or process.poll() is not None,
            f"{text!r} from {process.args!r}",
            timeout,
        )
        told = output()
    assert text in told, f"ended without {text!r}: {told}"
    return told
