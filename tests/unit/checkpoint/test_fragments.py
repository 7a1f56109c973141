"""Counts of DeepSpeed's Adam and loss scale; layouts of engines are in test_checkpoints.py."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.ops.adam import fused_adam
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaleConfig, LossScaler
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


def dynamic(window: int, min_scale: float, hysteresis: int) -> Any:
    """As at ZeRO 1 to 3."""
    return DynamicLossScaler(2.0**16, window, min_scale, hysteresis, False)


def plain(window: int, min_scale: float, hysteresis: int, is_dynamic: bool = True) -> Any:
    """As without ZeRO, where there is no hysteresis."""
    values = {"init_scale": 2.0**16, "scale_window": window, "min_scale": min_scale}
    return LossScaleConfig(torch.float16, is_dynamic, 2.0**hysteresis, values)


def scaling_engine(scaler: Any) -> Any:
    name = "loss_scale_config" if isinstance(scaler, LossScaleConfig) else "loss_scaler"
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(3))])
    return SimpleNamespace(
        basic_optimizer=optimizer,
        optimizer=SimpleNamespace(**{name: scaler}),
        fp16_enabled=lambda: True,
    )


@pytest.mark.parametrize("make", [dynamic, plain])
@pytest.mark.parametrize("other", [dynamic, plain])
def test_the_loss_scale_goes_on_and_its_settings_are_those_of_the_resume(
    make: Any, other: Any
) -> None:
    before = make(1000, 1.0, 2)
    before.cur_scale, before.cur_iter, before.last_overflow_iter = 512.0, 31, 29
    after = other(70, 4.0, 5)
    fragments.set_numbers(scaling_engine(after), fragments.numbers(scaling_engine(before)))
    assert (after.cur_scale, after.cur_iter, after.last_overflow_iter) == (512.0, 31, 29)
    expected = vars(other(70, 4.0, 5))
    settings = ("scale_window", "min_scale", "min_loss_scale", "delayed_shift", "scale_factor")
    for name in settings:
        assert getattr(after, name, None) == expected.get(name), name


@pytest.mark.parametrize("make", [dynamic, plain])
@pytest.mark.parametrize("fixed", [LossScaler(128.0), plain(0, 0.0, 7, is_dynamic=False)])
def test_a_fixed_loss_scale_is_that_of_the_resume(fixed: Any, make: Any) -> None:
    saved = fragments.numbers(scaling_engine(make(9, 1.0, 2)))
    fragments.set_numbers(scaling_engine(fixed), saved)
    assert fixed.cur_scale == 128.0
