"""What tests start: it ends in any case, with all that came of it; limits follow the machine."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import processes
from tests.support.processes import (
    Patience,
    TimeLimitError,
    is_alive,
    run_script,
    started,
    wait_until,
)

# A process, its child, and a grandchild in a session of its own that lost its parent. Each writes
# its number into a file, deaf to whatever can be ignored.
TREE = """
import os, signal, sys, time

def live():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
    time.sleep(1_000)

if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            live()
        os._exit(0)
    os.wait()
    live()
live()
"""
# A file of tests that start the tree and are still waiting, fail, or forget it.
TESTS = """
import subprocess, sys, time
import pytest
from tests.support import processes

processes.GRACE_SECONDS = 0.1
processes.slowness = lambda: 1.0
TREE = {tree!r}

def test_that_waits():
    with processes.started(sys.executable, "-c", TREE, {folder!r}):
        time.sleep(1_000)

def forget():
    subprocess.Popen([sys.executable, "-c", TREE, {folder!r}])
    while len(__import__("os").listdir({folder!r})) < 3:
        time.sleep(0.01)

def test_that_forgets():
    forget()

def test_interrupted_and_forgets():
    forget()
    time.sleep(1_000)

@pytest.fixture(scope="module")
def forgetful():
    forget()

def test_after_a_fixture(forgetful):
    pass

def test_interrupted_after_a_fixture(forgetful):
    time.sleep(1_000)
"""


def numbers_in(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def is_complete(folder: Path) -> bool:
    return len(numbers_in(folder)) == 3


def num_alive(folder: Path) -> int:
    """A process that has ended may wait for the end of its test to be reaped."""
    alive = 0
    for number in numbers_in(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            alive += is_alive(psutil.Process(number))
    return alive


def test_a_time_limit_ends_the_whole_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowness() -> float:  # asked when the time is over
        wait_until(lambda: is_complete(tmp_path), "three processes")
        return 1.0

    monkeypatch.setattr(processes, "slowness", slowness)
    with pytest.raises(TimeLimitError, match="has not ended"):
        run_script(sys.executable, "-c", TREE, tmp_path, timeout=0.01)
    assert is_complete(tmp_path) and num_alive(tmp_path) == 0


def test_a_failing_assertion_ends_the_whole_tree(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="as asked"),
        started(sys.executable, "-c", TREE, tmp_path) as process,
    ):
        wait_until(lambda: is_complete(tmp_path), "three processes")
        assert process.pid in numbers_in(tmp_path)
        raise AssertionError("as asked")
    assert num_alive(tmp_path) == 0


def test_only_what_the_block_started_is_ended(tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    with started(sys.executable, "-c", TREE, tmp_path / "outer"):
        wait_until(lambda: is_complete(tmp_path / "outer"), "three processes")
        with started(sys.executable, "-c", TREE, tmp_path / "inner"):
            wait_until(lambda: is_complete(tmp_path / "inner"), "three processes")
        assert num_alive(tmp_path / "inner") == 0 and num_alive(tmp_path / "outer") == 3
    assert num_alive(tmp_path / "outer") == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("flags", [(), ("-n", "2")])
def test_a_session_that_is_interrupted_ends_the_whole_tree(
    tmp_path: Path, name: str, flags: tuple[str, ...]
) -> None:
    command, folder = inner_session(tmp_path, "test_that_waits", *flags)
    with started(*command, stdout=-1, stderr=-2) as process:
        wait_until(lambda: is_complete(folder), "three processes")
        os.kill(process.pid, getattr(signal, name))
        told = processes.finish(process).stdout
        assert process.returncode == 2 and "KeyboardInterrupt" in told, told
        assert num_alive(folder) == 0


def test_a_test_that_leaves_a_process_behind_is_an_error(tmp_path: Path) -> None:
    command, folder = inner_session(tmp_path, "test_that_forgets")
    made = run_script(*command)
    assert "1 passed, 4 deselected, 1 error" in made.stdout, made.stdout + made.stderr
    assert "processes that the test left behind" in made.stdout
    assert is_complete(folder) and num_alive(folder) == 0


@pytest.mark.parametrize(
    ("flags", "summary"), [((), "1 passed, 4 deselected"), (("-n", "2"), "1 passed in ")]
)
def test_a_fixture_that_leaves_a_process_behind_fails_the_session(
    tmp_path: Path, flags: tuple[str, ...], summary: str
) -> None:
    command, folder = inner_session(tmp_path, "test_after_a_fixture", *flags)
    made = run_script(*command)
    assert made.returncode == 1 and summary in made.stdout, made.stdout
    assert made.stdout.count("ERROR a process was left behind: ") == 3
    assert num_alive(folder) == 0


@pytest.mark.parametrize("test", ["interrupted_and_forgets", "interrupted_after_a_fixture"])
def test_an_interrupted_session_has_its_summary(tmp_path: Path, test: str) -> None:
    command, folder = inner_session(tmp_path, test)
    with started(*command, stdout=-1, stderr=-2) as process:
        wait_until(lambda: is_complete(folder), "three processes")
        time.sleep(0.5)  # until the test waits
        os.kill(process.pid, signal.SIGINT)
        told = processes.finish(process).stdout
    assert process.returncode == 2 and "4 deselected in" in told, told
    assert told.count("ERROR a process was left behind: ") == 3, told
    assert "KeyboardInterrupt" in told and "AssertionError" not in told, told
    assert num_alive(folder) == 0


def inner_session(tmp_path: Path, test: str, *flags: str) -> tuple[list[str | Path], Path]:
    """Command of a pytest session with the fixtures of this one, and its folder of numbers."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    (tmp_path / "test_inner.py").write_text(TESTS.format(tree=TREE, folder=str(folder)))
    command: list[str | Path] = [sys.executable, "-m", "pytest", "-p", "tests.conftest"]
    command += ["--rootdir", tmp_path, "-c", os.devnull, "-k", test, *flags]
    command.append(tmp_path / "test_inner.py")
    return command, folder


def test_a_limit_follows_the_machine_as_it_is_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, factor, asked = 100.0, 3.0, 0

    def slowness() -> float:
        nonlocal asked
        asked += 1
        return factor

    monkeypatch.setattr(processes, "slowness", slowness)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    patience = Patience(20.0)
    now = 120.0
    assert not patience.is_over() and asked == 0
    now = 160.0
    assert not patience.is_over() and asked == 1
    factor = 2.9
    assert patience.is_over() and asked == 2


def test_the_fixed_work_takes_its_time() -> None:
    assert 1.0 <= processes.slowness() < 1_000
