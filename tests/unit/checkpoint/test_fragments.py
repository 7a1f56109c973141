"""Counts of DeepSpeed's own Adam; layouts of its engines are in test_checkpoints.py."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.ops.adam import fused_adam
from torch import Tensor, nn

from dist_bert.checkpoint import fragments

BETAS = (0.9, 0.98)


def multi_tensor_adam(
    chunk: int, buffer: Tensor, lists: Sequence[list[Tensor]], lr: float, beta1: float,
    beta2: float, eps: float, step: int, mode: int, bias_correction: int, decay: float,
) -> None:  # fmt: skip
    """What its C++ and CUDA do."""
    for grad, weight, average, square in zip(*lists, strict=True):
        average.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (square / (1 - beta2**step)).sqrt() + eps
        weight.mul_(1 - lr * decay).addcdiv_(average / (1 - beta1**step), root, value=-lr)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = SimpleNamespace(load=lambda: SimpleNamespace(multi_tensor_adam=multi_tensor_adam))
    monkeypatch.setattr(fused_adam, "FusedAdamBuilder", lambda: builder)


def engine_of(model: nn.Module) -> Any:
    """What is taken of an engine without ZeRO in float32: two groups, whole parameters."""
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.ndim == n], "lr": 0.1} for n in (2, 1)]
    adam = fused_adam.FusedAdam(groups, betas=BETAS)
    return SimpleNamespace(
        module=model, optimizer=adam, basic_optimizer=adam, fp16_enabled=lambda: False
    )


def train(engine: Any, steps: range) -> None:
    for step in steps:
        for number, parameter in enumerate(engine.module.parameters(), start=1):
            parameter.grad = torch.full_like(parameter, float(step % 3 - number))
        engine.optimizer.step()


def test_fused_adam_resumes_at_its_count_of_steps(without_compiler: None) -> None:
    """It counts in the last parameter of a group alone."""
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    engine = engine_of(layers)
    train(engine, range(1, 5))
    saved = fragments.numbers(engine)
    assert saved["state"]["step"] == 4.0

    resumed = engine_of(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)))
    fragments.create_states(resumed)
    for own, other in zip(fragments.fragments(engine), fragments.fragments(resumed), strict=True):
        for what, tensor in own.tensors.items():
            other.tensors[what].copy_(tensor)
    fragments.set_numbers(resumed, saved)
    for one in (engine, resumed):
        train(one, range(5, 7))
    for left, right in zip(layers.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(left, right)
