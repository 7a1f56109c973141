"""How many steps fit a time limit: exact values."""

import pytest

from dist_bert.tools.quickstart.time_budget import (
    Phase,
    all_steps,
    is_worthwhile,
    next_steps,
    run_settings,
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
        counts = all_steps(PHASES, seconds, 0.08)
        taken = sum(n * 0.08 * phase.cost for n, phase in zip(counts, PHASES, strict=True))
        assert 0 <= seconds - taken < 1
    assert all_steps(PHASES, 0.0, 0.08) == [60, 50, 40]
    assert all_steps(PHASES, 1e6, 0.08) == [800, 1_200, 800]
    assert all_steps(PHASES, 200.0, 0.125) == [480, 480, 182]


def test_a_model_is_worthwhile_from_a_share_of_all_steps() -> None:
    full = 0.1 * (800 + 1_200 + 3.5 * 800)
    assert is_worthwhile(PHASES, 0.41 * full, 0.1)
    assert not is_worthwhile(PHASES, 0.39 * full, 0.1)


@pytest.mark.parametrize(
    ("num_steps", "expected"), [(2_800, (100, 50, 100, 700)), (40, (5, 5, 5, 10))]
)
def test_intervals_follow_from_the_number_of_steps(
    num_steps: int, expected: tuple[int, ...]
) -> None:
    settings = run_settings(num_steps)
    assert tuple(settings.values()) == expected
    assert list(settings) == [
        "warmup_steps", "log_interval", "checkpoint_interval", "validation_interval",
    ]  # fmt: skip


def test_the_first_steps_do_not_count() -> None:
    assert settled([9.0, 5.0, 0.3, 0.1, 0.2, 0.2]) == 0.2
    assert settled([0.7]) == 0.7
