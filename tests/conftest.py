"""Whatever a test starts ends with it, also after a time limit, a failure, Ctrl-C or SIGTERM."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import processes
from tests.support.processes import Patience, adopt_orphans, children, end_children, is_alive

os.environ["OMP_NUM_THREADS"] = "1"  # as in every process that is started; before torch is imported
os.environ["DS_ACCELERATOR"] = "cpu"  # also where there is a GPU; tests for it name it themselves
# Started by nohup or in the background, a shell has these ignored, and so would be all that tests
# start. A signal with a handler here has its default there.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


# Command lines of processes that are found when the session ends: an error there would end an
# interrupted session before its summary.
LEFT = pytest.StashKey[list[str]]()


def pytest_sessionstart() -> None:
    """SIGTERM interrupts, as Ctrl-C does, so that fixtures are torn down."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_session(pytestconfig: pytest.Config) -> Iterator[None]:
    """Set up before every other fixture, and so torn down after them."""
    adopt_orphans()
    before = children()
    yield
    pytestconfig.stash.setdefault(LEFT, []).extend(end_children(lambda child: child not in before))


@pytest.hookimpl(trylast=True)  # behind the fixtures' own end
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A session that left processes behind has failed; one of several tells the first of them."""
    left = session.config.stash.get(LEFT, [])
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = left
    elif left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any, error: object) -> None:
    """Takes what one of several sessions has told."""
    left = getattr(node, "workeroutput", {}).get("left", [])
    node.config.stash.setdefault(LEFT, []).extend(left)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Names these processes, also where the session was interrupted."""
    for line in config.stash.get(LEFT, []):
        terminalreporter.line(f"ERROR a process was left behind: {line}", red=True)


@pytest.fixture(autouse=True)
def nothing_outlives_its_test(
    nothing_outlives_the_session: None, request: pytest.FixtureRequest
) -> Iterator[None]:
    """What fixtures of a module or a session started before stays."""
    before = children()
    yield
    patience = Patience(processes.GRACE_SECONDS)
    while any(map(is_alive, children() - before)) and not patience.is_over():
        time.sleep(0.01)
    left = end_children(lambda child: child not in before)
    if request.session.exitstatus == pytest.ExitCode.INTERRUPTED:
        request.config.stash.setdefault(LEFT, []).extend(left)
        return
    assert not left, f"processes that the test left behind: {left}"
