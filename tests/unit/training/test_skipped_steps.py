"""Skipped updates and how they are counted; whole engines: integration/test_faults.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dist_bert.training.skipped_steps import SkippedSteps, gradient_factor, skip_plain_updates


@pytest.mark.parametrize("value", [0.0, -7.25, 1e30])
def test_finite_loss_keeps_its_factor(value: float) -> None:
    assert float(gradient_factor(torch.tensor(value), 3.0)) == 3.0


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_any_other_loss_spoils_the_gradient(value: str) -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    loss = weight + float(value)
    (loss * gradient_factor(loss, 3.0)).backward()
    assert weight.grad is not None and weight.grad.isnan()


def plain_engine(clipping: float) -> Any:
    module = nn.Linear(2, 1, bias=False)
    nn.init.ones_(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    return SimpleNamespace(
        module=module, optimizer=optimizer, gradient_clipping=lambda: clipping,
        clip_fp32_gradients=None,
    )  # fmt: skip


@pytest.mark.parametrize(("clipping", "expected"), [(0.0, [-2.0, -3.0]), (1.0, [0.4, 0.2])])
def test_plain_updates_clip_and_keep_the_norm(clipping: float, expected: list[float]) -> None:
    engine = plain_engine(clipping)
    skip_plain_updates(engine)
    engine.module.weight.grad = torch.tensor([[3.0, 4.0]])
    engine.clip_fp32_gradients()
    engine.optimizer.step()
    assert float(engine._global_grad_norm) == 5.0 and not engine.optimizer.overflow
    torch.testing.assert_close(engine.module.weight.data, torch.tensor([expected]))
    engine.module.weight.grad = torch.tensor([[3.0, torch.nan]])
    engine.optimizer.step()
    assert engine.optimizer.overflow
    torch.testing.assert_close(engine.module.weight.data, torch.tensor([expected]))


def counts(steps: list[tuple[bool, float]], is_fp16: bool) -> list[tuple[bool, int]]:
    """What is counted after steps of (applied, loss scale afterwards), from a scale of 16."""
    now = [(True, 16.0)]
    scaler = SimpleNamespace(raise_error_at_min_scale=True)
    engine = SimpleNamespace(
        optimizer=SimpleNamespace(loss_scaler=scaler),
        fp16_enabled=lambda: is_fp16,
        was_step_applied=lambda: now[0][0],
        _get_optimizer_loss_scale=lambda: now[0][1],
    )
    skipped = SkippedSteps(engine)
    assert not scaler.raise_error_at_min_scale
    found = []
    for step in steps:
        now[0] = step
        found.append((skipped.count(), skipped.in_a_row))
    return found


def test_skipped_steps_count_in_a_row() -> None:
    steps = [(True, 1.0), (False, 1.0), (False, 1.0), (True, 1.0), (False, 1.0)]
    assert counts(steps, is_fp16=False) == [
        (False, 0), (True, 1), (True, 2), (False, 0), (True, 1),
    ]  # fmt: skip


def test_a_falling_loss_scale_is_no_fault() -> None:
    steps = [(False, 16.0), (False, 8.0), (False, 4.0), (True, 4.0), (False, 2.0), (False, 2.0)]
    assert counts(steps, is_fp16=True) == [
        (True, 1), (True, 1), (True, 1), (False, 0), (True, 0), (True, 1),
    ]  # fmt: skip
