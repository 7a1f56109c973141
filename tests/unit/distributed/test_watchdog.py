"""A process without progress ends, after telling where it is; one with progress does not."""

import pytest

from tests.unit.distributed.test_interrupts import run_program

# The clock of the watchdog goes as it is told to; faulthandler's timer is a real one.
START = """
import ctypes, faulthandler, threading, time
from dist_bert.distributed import watchdog

class Clock:
    now, looks = 0.0, 0
    def monotonic():
        Clock.looks += threading.current_thread().name == "watchdog"
        return Clock.now

def pass_time(seconds):
    Clock.now += seconds
    looks = Clock.looks
    while Clock.looks < looks + 2:  # and the timer is set anew between two looks
        time.sleep(0.001)

watchdog.time, watchdog._BACKSTOP = Clock, {backstop}
minutes = {minutes}  # 0.01 are 0.6 s
dog = watchdog.Watchdog(
    {{watchdog.START: 2 * minutes, watchdog.STEP: minutes, watchdog.SAVE: 3 * minutes}}
)
for step in range(9):
    dog.use(watchdog.STEP)
    if minutes:
        pass_time(0.59)
    dog.beat(f"in step {{step}}")
print("alive", flush=True)
"""
HANG = """
def hang(seconds):
    Clock.now += seconds
    time.sleep(1_000_000)
"""


def test_hanging_process_shows_its_stacks_and_ends() -> None:
    program = START.format(minutes=0.01, backstop=1_000) + HANG + "hang(0.61)"
    ended = run_program(program, RANK="2")
    assert ended.stdout == "alive\n" and ended.returncode == 1
    assert "in hang" in ended.stderr
    assert "rank 2: stacks of all threads while in step 8:" in ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        "error: rank 2: no progress for 0.01 minutes (watchdog_minutes = 0.01) while in step 8;"
        " the stacks above show where it is"
    )


IN_START = """
dog.use(watchdog.START)
dog.beat("loading")
pass_time(1.19)
print("still alive", flush=True)
hang(0.02)
"""
IN_A_WAIT = """
with dog.waiting_for_save("waiting for the writing of step 4"):
    pass_time(1.79)
    print("still alive", flush=True)
    hang(0.02)
"""
# The run goes on, its beats do not keep a writer alive that hangs.
IN_A_WRITING = """
def write():
    with dog.writing("writing step 4"):
        threading.Event().wait()
threading.Thread(target=write, daemon=True).start()
while dog._writing is None:
    time.sleep(0.001)
for step in range(3):
    pass_time(0.59)
    dog.beat(f"in step {step}")
print("still alive", flush=True)
hang(0.04)
"""


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (IN_START, "(start_minutes = 0.02) while loading;"),
        (IN_A_WAIT, "(save_minutes = 0.03) while waiting for the writing of step 4;"),
        (IN_A_WRITING, "(save_minutes = 0.03) while writing step 4;"),
    ],
)
def test_start_and_saves_have_limits_of_their_own(part: str, told: str) -> None:
    ended = run_program(START.format(minutes=0.01, backstop=1_000) + HANG + part)
    assert ended.stdout == "alive\nstill alive\n" and ended.returncode == 1, ended.stderr
    assert told in ended.stderr.splitlines()[-1], ended.stderr


def test_after_a_save_a_step_has_its_own_limit_again() -> None:
    rest = """
with dog.waiting_for_save("waiting for the writing of step 4"), dog.writing("writing step 4"):
    pass_time(1.79)
pass_time(0.59)
print("still alive", flush=True)
hang(0.02)
"""
    ended = run_program(START.format(minutes=0.01, backstop=1_000) + HANG + rest)
    assert ended.stdout == "alive\nstill alive\n" and ended.returncode == 1, ended.stderr
    told = "(watchdog_minutes = 0.01) while after waiting for the writing of step 4;"
    assert told in ended.stderr.splitlines()[-1], ended.stderr


def test_the_stacks_are_shown_also_where_the_interpreter_is_held() -> None:
    hang = """
def hang():
    ctypes.PyDLL(None).sleep(1_000_000)
watchdog._BACKSTOP, watchdog._SLACK_SECONDS = 5.0, 0.0  # 3 s, from the next look on
pass_time(0.0)
hang()
"""
    ended = run_program(START.format(minutes=0.01, backstop=1_000) + hang)
    assert ended.stdout == "alive\n" and ended.returncode == 1
    assert "in hang" in ended.stderr and "error: " not in ended.stderr


def test_stopped_watchdog_lets_the_process_be() -> None:
    rest = """
is_set = False
def note(value):
    global is_set
    is_set = value
set_timer, cancel = faulthandler.dump_traceback_later, faulthandler.cancel_dump_traceback_later
faulthandler.dump_traceback_later = lambda *a, **k: (note(True), set_timer(*a, **k))
faulthandler.cancel_dump_traceback_later = lambda: (note(False), cancel())
pass_time(0.0)
print(is_set)
dog.stop()
Clock.now += 1_000
while threading.active_count() > 1:
    time.sleep(0.001)
print(is_set)
"""
    ended = run_program(START.format(minutes=0.01, backstop=1_000) + rest)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "alive\nTrue\nFalse\n", "")


def test_no_limit_no_watch() -> None:
    program = START.format(minutes=0.0, backstop=1.5) + "print(threading.active_count())"
    assert run_program(program).stdout == "alive\n1\n"
