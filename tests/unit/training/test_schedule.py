"""The learning rate at exact points."""

import math
from itertools import pairwise

import pytest

from dist_bert.training.schedule import SCHEDULES, LrSchedule

STEPS, WARMUP, DECAY = 110, 10, 30


def schedule_of(name: str, min_lr_ratio: float = 0.0, warmup_steps: int = WARMUP) -> LrSchedule:
    decay_steps = DECAY if name.startswith("wsd") else 0
    return LrSchedule(STEPS, warmup_steps, name, decay_steps, min_lr_ratio)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_the_warm_up_is_a_line_from_0_to_the_peak(name: str, min_lr_ratio: float) -> None:
    schedule = schedule_of(name, min_lr_ratio)
    assert [schedule.share(step) for step in (1, 2, 5, 9, 10)] == [0.1, 0.2, 0.5, 0.9, 1.0]
    assert schedule.share(11) == pytest.approx(1.0, abs=0.011)


@pytest.mark.parametrize(
    "name,quarter,half,three_quarters,end",  # of the 100 steps after the warm-up
    [
        ("linear", 0.75, 0.5, 0.25, 0.0),
        ("cosine", 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5), 0.0),
        ("constant", 1.0, 1.0, 1.0, 1.0),
        ("wsd", 1.0, 1.0, 25 / 30, 0.0),
        ("wsd_sqrt", 1.0, 1.0, 1 - math.sqrt(5 / 30), 0.0),
    ],
)
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_the_decay_at_exact_points(
    name: str, quarter: float, half: float, three_quarters: float, end: float,
    min_lr_ratio: float,
) -> None:  # fmt: skip
    schedule = schedule_of(name, min_lr_ratio)
    expected = [min_lr_ratio + (1 - min_lr_ratio) * s for s in (quarter, half, three_quarters, end)]
    assert [schedule.share(step) for step in (35, 60, 85, 110)] == pytest.approx(
        expected, abs=1e-12
    )


def test_wsd_is_constant_until_its_decay_steps() -> None:
    schedule = schedule_of("wsd")
    shares = {step: schedule.share(step) for step in (79, 80, 81, 95, 109)}
    assert shares == pytest.approx({79: 1.0, 80: 1.0, 81: 29 / 30, 95: 0.5, 109: 1 / 30})


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.3, 1.0])
def test_it_rises_to_the_peak_and_never_again(name: str, min_lr_ratio: float) -> None:
    shares = [schedule_of(name, min_lr_ratio).share(step) for step in range(1, STEPS + 1)]
    assert all(a < b for a, b in pairwise(shares[:WARMUP]))
    assert max(shares) == shares[WARMUP - 1] == 1.0
    assert all(a >= b for a, b in pairwise(shares[WARMUP - 1 :]))
    assert min(shares[WARMUP:]) >= min_lr_ratio


def test_without_warm_up_and_with_nothing_else() -> None:
    assert schedule_of("linear", warmup_steps=0).share(1) == pytest.approx(109 / 110)
    only_warmup = schedule_of("linear", warmup_steps=STEPS)
    assert [only_warmup.share(step) for step in (1, 55, 110)] == [1 / 110, 0.5, 1.0]


def test_a_warm_up_from_where_the_lr_was() -> None:
    schedule = LrSchedule(100, 4, "constant", start=0.2)
    assert [schedule.share(step) for step in (1, 2, 3, 4, 5)] == pytest.approx(
        [0.4, 0.6, 0.8, 1.0, 1.0]
    )
