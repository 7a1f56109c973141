"""Prefetching: order, errors, how far ahead, and that its thread ends."""

import threading
import time
from collections.abc import Iterator

import pytest

from dist_bert.common.prefetch import prefetch
from tests.support.processes import wait_until


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetching_keeps_the_order_and_ends() -> None:
    assert list(prefetch(iter(range(101)), depth=3)) == list(range(101))
    assert list(prefetch(iter([]))) == []
    assert prefetch_threads() == []


def test_errors_of_the_thread_come_out_in_their_place() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk went away")

    items = prefetch(broken())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="the disk went away"):
        next(items)
    assert prefetch_threads() == []


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetching_is_never_more_than_its_depth_ahead(depth: int) -> None:
    made = 0

    def count() -> Iterator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    items = prefetch(count(), depth)
    for taken in range(1, 6):
        assert next(items) == taken
        expected = taken + depth + 1
        wait_until(lambda expected=expected: made >= expected, f"{expected} items")  # type: ignore[misc]
        time.sleep(0.02)
        assert made == expected, "`depth` items wait, one more is in the thread's hand"
    assert len(prefetch_threads()) == 1
    items.close()  # while the thread waits for room
    assert prefetch_threads() == []
    assert made == 5 + depth + 1


def test_the_thread_works_while_the_loop_does() -> None:
    second_made = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        second_made.set()
        yield 2

    items = prefetch(slow())
    assert next(items) == 1
    wait_until(second_made.is_set, "a second item")
    items.close()
