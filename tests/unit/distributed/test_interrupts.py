"""Reasons to stop: noted by one process, agreed on by all; a launcher or a peer that is gone."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from dist_bert.common.errors import UserError
from dist_bert.distributed.agreement import StopAgreement
from dist_bert.distributed.interrupts import REASONS, Interrupts
from dist_bert.pretraining.config import PretrainingConfig
from tests.support.processes import children, environment, is_alive, run_script, started, wait_until


def run_program(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return run_script(*command, env={**environment(), **variables})


def test_signals_are_noted_and_the_second_interrupt_ends_at_once() -> None:
    ended = run_program(
        """
        import os, signal
        from dist_bert.distributed.interrupts import REASONS, Interrupts

        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as launchers are told to
        interrupts = Interrupts()
        interrupts.catch_signals()
        assert interrupts.noted == 0
        for name in ("SIGUSR1", "SIGHUP", "SIGUSR1", "SIGTERM", "SIGHUP", "SIGINT", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, name))
            print(REASONS[interrupts.noted], flush=True)
        """
    )
    expected = ["SIGUSR1", "SIGHUP", "SIGHUP", "SIGTERM", "SIGTERM", "SIGINT"]
    assert ended.stdout.split() == expected
    assert ended.returncode == -2


def test_nohup_is_respected() -> None:
    ended = run_program(
        """
        import os, signal
        from dist_bert.distributed.interrupts import Interrupts

        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        interrupts = Interrupts()
        interrupts.catch_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        print(interrupts.noted)
        """
    )
    assert (ended.stdout, ended.returncode) == ("0\n", 0)


def test_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    unlimited, limited = Interrupts(), Interrupts(1.5)
    now += 89.9
    assert unlimited.noted == limited.noted == 0
    now += 0.1
    assert REASONS[limited.noted] == "max_minutes reached" and unlimited.noted == 0


LAUNCHED = """
import threading, time
from dist_bert.distributed import interrupts

class Clock:  # the thread's: its last wait ends once the main thread has told
    monotonic = staticmethod(time.monotonic)
    def sleep(seconds):
        has_told.wait() if seconds == interrupts._ORPHAN_SECONDS else time.sleep(0.05)

has_told = threading.Event()
interrupts.time = Clock
own = interrupts.Interrupts()
own.follow_launcher()
print("ready", flush=True)
while not own.noted:
    time.sleep(0.01)
print(interrupts.REASONS[own.noted], flush=True)
has_told.set()
time.sleep(1_000_000)
"""


def test_a_rank_without_its_launcher_asks_to_stop_then_ends(tmp_path: Path) -> None:
    launcher = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    command = [sys.executable, "-c", launcher, LAUNCHED]
    lines = (tmp_path / "lines").read_text
    with open(tmp_path / "lines", "w") as file:
        before = children()
        variables = {**environment(), "RANK": "5"}
        with started(*command, env=variables, stdout=file, stderr=file) as process:
            wait_until(lambda: lines() == "ready\n", "a rank that is ready")
            process.kill()
            process.wait()
            wait_until(lambda: not any(map(is_alive, children() - before)), "the rank's end")
    assert lines().startswith(
        "ready\nthe launcher has exited\nerror: rank 5: the launcher has exited, and this"
    )


def test_without_a_launcher_none_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
        import threading
        from dist_bert.distributed.interrupts import Interrupts

        Interrupts().follow_launcher()
        print(threading.active_count())
        """
    monkeypatch.delenv("RANK", raising=False)
    assert run_program(program).stdout == "1\n"
    assert run_program(program, RANK="0").stdout == "2\n"


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("[pair.cc:553] Connection closed by peer [127.0.0.1]:7\nmore", 1),
        ("something else", 5),
    ],
)
def test_a_rank_that_lost_another_one_leaves_the_word_to_it(message: str, lines: int) -> None:
    ended = run_program(
        f"""
        import threading
        from dist_bert.distributed.interrupts import end_with_error

        threading.Thread(target=threading.Event().wait).start()  # would keep the process alive
        try:
            raise RuntimeError({message!r})
        except RuntimeError as error:
            end_with_error(error)
        """,
        RANK="3",
    )
    assert ended.returncode == 1 and ended.stderr.startswith("error: rank 3")
    assert message.split("\n")[0] in ended.stderr.splitlines()[-1]
    assert 1 <= ended.stderr.count("\n") <= lines
    assert ("Traceback" in ended.stderr) == (lines > 1)


@pytest.mark.parametrize("ends_as_rank", [True, False])
def test_a_late_thread_of_gloo_does_not_abort_a_rank(tmp_path: Path, ends_as_rank: bool) -> None:
    """The ordinary end does abort; once torch has mended that, `end_rank` can go."""
    program = f"""
        import atexit, ctypes, os, sys, time, warnings
        from pathlib import Path
        from dist_bert.common.cli import end_rank

        rank, folder = int(os.environ["RANK"]), Path({str(tmp_path)!r})

        def hold_the_lock():  # the last thing before the interpreter is taken down
            (folder / "ending").touch()
            access = ctypes.PyDLL(None).access  # keeps the lock
            while access(str(folder / "reduced").encode(), os.F_OK):
                pass
            end = time.monotonic() + 1.0  # for gloo's thread to come; it may also come later
            while time.monotonic() < end:
                pass

        atexit.register(hold_the_lock)
        warnings.simplefilter("ignore")
        import torch, torch.distributed as dist

        store = dist.FileStore(str(folder / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        tensor = torch.ones(8)
        if rank == 1:
            while not (folder / "ending").exists():  # rank 0's thread of gloo waits for us
                time.sleep(0.01)
            dist.all_reduce(tensor)
            (folder / "reduced").touch()
            os._exit(0)
        dist.all_reduce(tensor, async_op=True)
        sys.setswitchinterval(1_000)  # seconds: the lock is kept
        print("all done")
        if {ends_as_rank}:
            end_rank(7)
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with started(*command, env={**environment(), "RANK": "1"}):
        ended = run_program(program, RANK="0")
    assert ended.stdout == "all done\n"
    assert ended.returncode == (7 if ends_as_rank else -signal.SIGABRT), ended.stderr


@pytest.fixture
def group_of_one() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_agreement_stays_and_ends_an_iteration(group_of_one: None) -> None:
    noted = 0
    agreement = StopAgreement(lambda: noted)
    agreement.begin()
    assert agreement.end() == agreement.reason == 0
    seen = []
    for item in agreement.until_stop("abcdef"):
        seen.append(item)
        noted = 4 if item == "c" else noted  # too late for c's own question
    assert "".join(seen) == "abcd" and agreement.reason == 4
    noted = 0
    agreement.begin()
    assert agreement.end() == 4
    with pytest.raises(AssertionError, match="without begin"):
        agreement.end()


@pytest.mark.parametrize(
    "change",
    [
        {"max_minutes": -1.0},
        {"timeout_seconds": 0.5},
        {"start_minutes": -1.0},
        {"watchdog_minutes": -0.1},
        {"save_minutes": -0.5},
        {"max_skipped_steps": 0},
    ],
)
def test_limits_have_ranges(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(UserError, match=f"{name} = .*must be at least"):
        PretrainingConfig(**change)


def test_a_refused_file_is_one_line_and_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    ended = run_program(
        f"""
        from pathlib import Path
        from dist_bert.distributed.interrupts import end_with_error
        from dist_bert.distributed.rank_log import open_rank_log

        open_rank_log(Path({str(tmp_path)!r}))
        try:
            open("/proc/none/file", "w")
        except OSError as error:
            end_with_error(error)
        """
    )
    assert ended.returncode == 1
    assert ended.stderr == "error: rank 0: /proc/none/file: No such file or directory\n"
    assert "Traceback" in (tmp_path / "rank-00000.log").read_text()
