"""StableAdamW's clipping and averages at exact values; layouts: tests/integration."""

import math

import pytest
import torch

from dist_bert.checkpoint.places import Place
from dist_bert.training.optimizers.own_optimizer import OwnOptimizer
from dist_bert.training.optimizers.stable_adamw import StableAdamW, clipped_share, debiased


def test_only_a_root_mean_square_above_one_slows_down() -> None:
    rms = torch.tensor([0.0, 0.5, 1.0, 4.0])
    assert clipped_share(rms).tolist() == [1.0, 1.0, 1.0, 0.25]


def test_averages_have_no_bias() -> None:
    """The decays of the first steps make them plain means of what came so far, nearly."""
    assert [debiased(0.5, step) for step in (1, 2, 3)] == pytest.approx([0.0, 1 / 3, 3 / 7])
    assert debiased(0.9, 1_000) == pytest.approx(0.9)
    average, plain = 0.0, 0.0
    for step, value in enumerate([3.0, -1.0, 4.0, 1.0], start=1):
        beta = debiased(0.9, step)
        average = beta * average + (1 - beta) * value
        plain = 0.9 * plain + 0.1 * value
        assert average == pytest.approx(plain / (1 - 0.9**step))


def test_a_step_after_a_jump_of_the_gradient_by_hand() -> None:
    """The second gradient is 3 times the first: RMS 3 / sqrt((1 + 2 * 9) / 3), with beta 0.5."""
    weights = torch.tensor([[1.0, -1.0]])
    optimizer = OwnOptimizer(
        [{"params": [weights], "names": ["w"], "shapes": [weights.shape], "weight_decay": 0.1}],
        lr=0.1,
        rule=StableAdamW(betas=(0.5, 0.5), eps=1e-12),
    )
    optimizer.bind([Place("w", 0, weights, 0, 2)], is_sharded=False)
    weights.grad = torch.tensor([[1.0, -1.0]])
    optimizer.step()
    first = 1.0 - 0.1 * (1.0 + 0.1)
    assert weights.flatten().tolist() == pytest.approx([first, -first])
    weights.grad = torch.tensor([[3.0, -3.0]])
    optimizer.step()
    moment, root = (1 + 2 * 3) / 3, math.sqrt((1 + 2 * 9) / 3)
    second = first - 0.1 / (3 / root) * (moment / root + 0.1 * first)
    assert weights.flatten().tolist() == pytest.approx([second, -second])
