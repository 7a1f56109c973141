"""How many steps fit a time limit: exact values."""

import pytest

from dist_bert.time_budget import (
    FULL,
    LEAST,
    Schedule,
    is_worthwhile,
    long_steps,
    run_flags,
    schedule,
    settled,
    training_seconds,
)


def test_time_for_steps_is_what_nothing_else_takes() -> None:
    assert training_seconds(570.0, elapsed=70.0, other=100.0) == pytest.approx(0.85 * 400.0)
    assert training_seconds(570.0, elapsed=500.0, other=100.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "step_seconds", "expected"),
    [
        (1e6, 0.1, FULL),
        (0.0, 0.1, LEAST),
        (200.0, 0.1, Schedule(1_100, 257)),  # 110 s and 90 s, at 0.1 s and 0.35 s a step
        (200.0, 0.5, Schedule(220, 51)),
    ],
)
def test_both_runs_share_the_time(seconds: float, step_seconds: float, expected: Schedule) -> None:
    assert schedule(seconds, step_seconds, long_to_short=3.5) == expected


def test_a_schedule_never_takes_longer_than_its_time() -> None:
    for seconds in (40.0, 123.0, 400.0):
        found = schedule(seconds, 0.08, long_to_short=3.5)
        assert found.short_steps * 0.08 + found.long_steps * 0.08 * 3.5 <= seconds


def test_a_model_is_worthwhile_from_a_share_of_its_full_schedule() -> None:
    full = 0.1 * (2_000 + 800 * 3.5)
    assert is_worthwhile(0.61 * full, 0.1, 3.5)
    assert not is_worthwhile(0.59 * full, 0.1, 3.5)


def test_the_second_run_takes_what_is_left() -> None:
    assert long_steps(100.0, 0.5) == 200
    assert long_steps(1e6, 0.5) == FULL.long_steps
    assert long_steps(0.0, 0.5) == LEAST.long_steps


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (
            800,
            "--num_train_steps 800 --warmup_steps 100 --log_interval 50 --checkpoint_interval 100"
            " --validation_interval 200",
        ),
        (
            40,
            "--num_train_steps 40 --warmup_steps 5 --log_interval 5 --checkpoint_interval 5"
            " --validation_interval 10",
        ),
    ],
)
def test_intervals_follow_from_the_number_of_steps(num_steps: int, expected: str) -> None:
    assert run_flags(num_steps) == expected


def test_the_first_steps_do_not_count() -> None:
    assert settled([9.0, 5.0, 0.3, 0.1, 0.2, 0.2]) == 0.2
    assert settled([0.7]) == 0.7
