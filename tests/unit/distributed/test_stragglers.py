"""The rank that others wait for is named, when it is behind for long; equal ranks are not."""

from collections.abc import Sequence

import pytest

from dist_bert.distributed.stragglers import Interval, Stragglers

HOSTS = ["node1", "node1", "node2", "node2", "node3"]
EVEN = (2.0, 2.1, 1.9, 2.05, 1.95)
LAST_SLOW = (2.0, 2.1, 1.9, 2.05, 2.5)  # 2.5 / 2.05 = 1.22
FIRST_SLOW = (3.0, 2.1, 1.9, 2.05, 1.95)


def told(
    computing: Sequence[Sequence[float]], waiting: Sequence[Sequence[float]] = ()
) -> list[list[str]]:
    """What is told behind each of some intervals of 10 seconds."""
    stragglers = Stragglers(HOSTS)
    waiting = waiting or [[0.0] * 5] * len(computing)
    intervals = [Interval(c, w, 7, 10.0) for c, w in zip(computing, waiting, strict=True)]
    return [list(stragglers.named(interval)) for interval in intervals]


def test_metrics_of_an_interval() -> None:
    interval = Interval((3.5, 1.5, 7.0, 2.0), (0.5, 4.0, 1.0, 0.0), num_steps=11, seconds=8.0)
    assert interval.metrics() == {
        "ranks/slowest_rank": 2,
        "ranks/slowest_share": 7.0 / 2.75,
        "ranks/median_compute_seconds": 0.25,
        "ranks/worst_data_wait_fraction": 0.5,
    }
    assert interval.median_wait == 0.75 / 8


def test_without_times_of_their_own_only_the_wait_for_data_is_told() -> None:
    interval = Interval((0.0, 0.0, 0.0), (0.5, 2.0, 1.0), num_steps=11, seconds=8.0)
    assert interval.metrics() == {"ranks/worst_data_wait_fraction": 0.25}
    assert told([[0.0] * 5] * 9) == [[]] * 9


def test_a_slow_rank_is_named_once_with_its_host() -> None:
    (line,) = told([LAST_SLOW] * 3)[2]
    assert line == (
        "rank 4 on node3 is slow: its forward passes took 1.22 times the median of all ranks, above"
        " 1.2 for 3 log intervals in a row; all ranks wait for it"
    )
    assert [len(lines) for lines in told([LAST_SLOW] * 9)] == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    again = [*[LAST_SLOW] * 4, EVEN, *[LAST_SLOW] * 3]
    assert [len(lines) for lines in told(again)] == [0, 0, 1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "computing",
    [
        [EVEN] * 9,
        [LAST_SLOW, LAST_SLOW, EVEN] * 3,  # now and then
        [LAST_SLOW, LAST_SLOW, FIRST_SLOW, FIRST_SLOW] * 3,  # not the same rank
    ],
)
def test_equal_ranks_are_not_named(computing: list[Sequence[float]]) -> None:
    assert told(computing) == [[]] * len(computing)


def test_a_rank_that_waits_for_its_data_is_named() -> None:
    behind, even = (0.5, 0.25, 3.0, 0.0, 0.5), (3.0, 2.75, 3.5, 3.0, 2.9)
    (line,) = told([EVEN] * 3, [behind] * 3)[2]
    assert line == (
        "rank 2 on node2 waits for data: 30% of the time, the median rank 5%, for 3 log"
        " intervals in a row; all ranks wait for it"
    )
    assert told([EVEN] * 4, [even] * 4) == [[]] * 4, "all wait: no rank is behind"
