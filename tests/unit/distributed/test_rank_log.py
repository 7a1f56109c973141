"""What a rank leaves of itself in its own file, however it ends."""

import platform
import re
import signal
from pathlib import Path

import pytest

from tests.unit.distributed.test_interrupts import run_program

BEGIN = """
import os, signal, sys
from pathlib import Path
from dist_bert.training.console import Console
from dist_bert.distributed.interrupts import end_at_once, end_with_error
from dist_bert.distributed.rank_log import open_rank_log

console = Console()
console.warn("an early one")
open_rank_log(Path({folder!r}) / "logs")
"""


def log_after(program: str, folder: Path, code: int) -> tuple[list[str], str]:
    """The lines of rank 12's file, without their times and host, and what was said on stderr."""
    ended = run_program(BEGIN.format(folder=str(folder)) + program, RANK="12", WORLD_SIZE="513")
    assert ended.returncode == code, ended.stderr
    path = folder / "logs/rank-00012.log"
    lines = path.read_text().splitlines()
    stamp = re.compile(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ {re.escape(platform.node())} ")
    assert stamp.match(lines[0])
    return [re.sub(r"process \d+", "process", stamp.sub("", line)) for line in lines], ended.stderr


START = ["start of rank 12 of 513, process", "warning: an early one"]


def test_starts_are_appended(tmp_path: Path) -> None:
    for number in (1, 2):
        lines, stderr = log_after("console.note_mistake(ValueError('a typo'))", tmp_path, 0)
        assert lines == [*START, "error: a typo"] * number and stderr == ""


def test_an_error_leaves_its_traceback_on_stderr_and_in_the_file(tmp_path: Path) -> None:
    program = "def fail():\n    raise ValueError('a fault')\n"
    program += "try:\n    fail()\nexcept ValueError as error:\n    end_with_error(error)\n"
    lines, stderr = log_after(program, tmp_path, 1)
    assert lines[:4] == [*START, "error: rank 12 failed:", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: a fault" and any("in fail" in line for line in lines)
    assert stderr.splitlines() == lines[2:]


def test_the_end_from_another_thread_is_in_the_file(tmp_path: Path) -> None:
    program = "import threading\n"
    program += "threading.Thread(target=end_at_once, args=('no sign of life',)).start()\n"
    program += "signal.pause()"
    lines, stderr = log_after(program, tmp_path, 1)
    assert lines == [*START, "error: rank 12: no sign of life"]
    assert stderr == "error: rank 12: no sign of life\n"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_fatal_signal_leaves_the_stacks(name: str, tmp_path: Path) -> None:
    program = f"def crash():\n    os.kill(os.getpid(), signal.{name})\ncrash()\n"
    lines, _ = log_after(program, tmp_path, -signal.Signals[name])
    assert lines[:2] == START and lines[2].startswith("Fatal Python error: ")
    assert any("in crash" in line for line in lines)


def test_a_file_system_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A pipe that nobody reads is one: writing waits for ever when it is full."""
    program = """
from dist_bert.distributed import rank_log
rank_log._PATIENCE_SECONDS = 0.1
ours, its = os.pipe()
os.set_blocking(its, False)
try:
    while True:
        os.write(its, bytes(4_096))
except BlockingIOError:
    os.set_blocking(its, True)
rank_log._descriptor = its
end_at_once("the disk is gone")
"""
    lines, stderr = log_after(program, tmp_path, 1)
    assert lines == START and stderr == "error: rank 12: the disk is gone\n"


def test_a_full_disk_ends_no_rank(tmp_path: Path) -> None:
    program = "from dist_bert.distributed import rank_log\n"
    program += "rank_log._descriptor = os.open('/dev/full', os.O_WRONLY)\n"
    program += "console.warn('something')\nprint('alive')"
    assert log_after(program, tmp_path, 0)[1] == ""


def test_before_there_is_a_file_the_end_is_told_on_stderr() -> None:
    program = "from dist_bert.distributed.interrupts import end_at_once\nend_at_once('too early')"
    ended = run_program(program, RANK="3")
    assert ended.returncode == 1 and ended.stderr == "error: rank 3: too early\n"
