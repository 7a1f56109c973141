"""A process without progress ends, after telling where it is; one with progress does not."""

import pytest

from tests.test_interrupts import run_program

START = """
import ctypes, time
from dist_bert.watchdog import Watchdog

def hang():
    {hang}

watchdog = Watchdog(0.01)  # 0.6 s
for step in range(9):
    time.sleep(0.1)
    watchdog.beat(f"in step {{step}}")
print("alive", flush=True)
{stop}
hang()
"""


@pytest.mark.parametrize("holds_interpreter", [False, True])
def test_hanging_process_shows_its_stacks_and_ends(holds_interpreter: bool) -> None:
    hang = "ctypes.PyDLL(None).sleep(30)" if holds_interpreter else "time.sleep(30)"
    ended = run_program(START.format(hang=hang, stop=""), RANK="2")
    assert ended.stdout == "alive\n" and ended.returncode == 1
    assert "in hang" in ended.stderr
    if not holds_interpreter:
        assert "rank 2: stacks of all threads while in step 8:" in ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("error: rank 2: no progress for 0.01") and "in step 8" in last


def test_stopped_watchdog_lets_the_process_be() -> None:
    ended = run_program(START.format(hang="time.sleep(1.5)", stop="watchdog.stop()"))
    assert ended.returncode == 0 and ended.stderr == ""


def test_no_limit_no_watch() -> None:
    program = START.format(hang="time.sleep(0)", stop="").replace("0.01", "0.0")
    assert run_program(program + "import threading; print(threading.active_count())").stdout == (
        "alive\n1\n"
    )
