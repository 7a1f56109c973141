"""How many steps fit a time limit: exact values."""

import pytest

from dist_bert.tools.quickstart.time_budget import (
    Phase,
    is_worthwhile,
    next_steps,
    run_flags,
    settled,
    training_seconds,
)

PHASES = (
    Phase(16, 128, cost=1.0, most_steps=800, least_steps=60, share=0.3),
    Phase(32, 64, cost=1.0, most_steps=1_200, least_steps=50, share=0.3),
    Phase(128, 64, cost=3.5, most_steps=800, least_steps=40, share=0.4),
)


def test_time_for_steps_is_what_nothing_else_takes() -> None:
    assert training_seconds(570.0, elapsed=70.0, other=100.0) == pytest.approx(0.85 * 400.0)
    assert training_seconds(570.0, elapsed=500.0, other=100.0) == 0.0


@pytest.mark.parametrize(
    ("num_done", "seconds", "step_seconds", "expected"),
    [
        (0, 1e6, 0.1, 800),
        (0, 0.0, 0.1, 60),
        (0, 200.0, 0.125, 480),  # 0.3 of the time
        (1, 140.0, 0.125, 480),  # 3/7 of what is left
        (2, 80.0, 0.4, 200),  # all of it
        (2, 0.0, 0.4, 40),
        (2, 1e6, 0.4, 800),
    ],
)
def test_phases_share_the_time(
    num_done: int, seconds: float, step_seconds: float, expected: int
) -> None:
    assert next_steps(PHASES[num_done:], seconds, step_seconds) == expected


def test_all_phases_end_in_time() -> None:
    for seconds in (80.0, 123.0, 200.0):
        left, step_seconds = seconds, 0.08
        for done, phase in enumerate(PHASES):
            steps = next_steps(PHASES[done:], left, step_seconds * phase.cost)
            left -= steps * step_seconds * phase.cost
        assert 0 <= left < 1


def test_a_model_is_worthwhile_from_a_share_of_all_steps() -> None:
    full = 0.1 * (800 + 1_200 + 3.5 * 800)
    assert is_worthwhile(PHASES, 0.61 * full, 0.1)
    assert not is_worthwhile(PHASES, 0.59 * full, 0.1)


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
