"""A loss that jumps is told from noise and from a loss that falls."""

import itertools
import math
import random

from dist_bert.training.loss_spikes import LossSpikes, usual_losses

STEPS = itertools.count(1_000)


def measure(spikes: LossSpikes, loss: float) -> float:
    return spikes.measure(next(STEPS), loss)


def fours(count: int) -> list[tuple[int, float]]:
    return [(step, 4.0) for step in range(1, count + 1)]


def test_a_jump_is_a_spike_and_does_not_move_the_median() -> None:
    spikes = LossSpikes(8.0)
    noise = random.Random(5)
    for _ in range(60):
        assert measure(spikes, noise.gauss(4.0, 0.1)) == 0.0
    for _ in range(80):  # also many of them
        assert 1.9 < measure(spikes, 8.0) < 2.1
    assert measure(spikes, 4.4) == 0.0
    assert measure(spikes, math.nan) == measure(spikes, math.inf) == 0.0
    assert 1.9 < measure(spikes, 8.0) < 2.1, "what is not finite is not kept"
    assert measure(LossSpikes(0.0, fours(50)), 400.0) == 0.0, "switched off"


def test_noise_and_a_falling_loss_are_no_spikes() -> None:
    noise = random.Random(7)
    spikes = LossSpikes(8.0)
    losses = [2.0 + 8.0 * math.exp(-step / 300) for step in range(3_000)]
    told = [measure(spikes, loss * (1 + noise.gauss(0.0, 0.03))) for loss in losses]
    assert sum(map(bool, told)) == 0


def test_a_few_losses_judge_nothing_and_a_small_step_is_none() -> None:
    assert measure(LossSpikes(8.0, fours(19)), 40.0) == 0.0
    assert measure(LossSpikes(8.0, fours(20)), 40.0) == 10.0
    assert measure(LossSpikes(8.0, fours(20)), 4.3) == 0.0, "within a tenth"


def test_a_resumed_run_has_the_window_of_one_that_never_stopped() -> None:
    noise = random.Random(9)
    rows: list[dict[str, float]] = []
    whole = LossSpikes(8.0)
    for step in range(1, 201):
        loss = 9.0 if step % 37 == 0 else noise.gauss(3.0, 0.05)
        spike = measure(whole, loss)
        rows.append({"step": step, "train/loss": loss, **({"train/spike": spike} if spike else {})})
        if step % 50 == 0:
            rows += [{"step": step, "validation/loss": 3.0}, {"step": step, "train/lr": 0.1}]
    assert sum("train/spike" in row for row in rows) == 5
    resumed = LossSpikes(8.0, usual_losses(rows))
    for loss in (3.1, 9.0, 2.9, 3.31, 3.6):
        assert measure(resumed, loss) == measure(whole, loss)


def test_losses_on_other_data_are_not_compared() -> None:
    spikes = LossSpikes(8.0, fours(50), comparable_since=lambda step: 50 if step > 50 else 0)
    assert [spikes.measure(step, 9.0) for step in (50, 51)] == [9.0 / 4.0, 0.0]
    assert [spikes.measure(step, 9.0) for step in range(52, 71)] == [0.0] * 19
    assert spikes.measure(71, 18.0) == 2.0
