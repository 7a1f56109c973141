"""A step whose loss or gradient is not finite leaves weights, moments and step count as they are.

DeepSpeed's own optimizers leave such an update out, on all ranks alike, since they look at the
global norm of the gradients anyway. Added here: a loss that is not finite counts even where its
gradient is finite; plain float32 without ZeRO; and loss scaling that has reached its floor.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def gradient_factor(loss: Tensor, factor: float) -> Tensor:
    """`factor`, or NaN where the loss is not finite: so all ranks see it in the gradients' norm."""
    return factor + 0.0 * loss.detach()


def skip_plain_updates(engine: Any) -> None:
    """Makes an engine without ZeRO in float32 clip, keep the norm and skip as the others do.

    It waits for the device once a step, as DeepSpeed's optimizers do.
    """
    optimizer = engine.optimizer
    engine.clip_fp32_gradients = lambda: None  # done with the step, below
    optimizer.overflow = False  # DeepSpeed's name for a skipped update
    optimizer.step = functools.partial(_step_if_finite, engine, optimizer.step)


def _step_if_finite(engine: Any, step: Callable[[], None]) -> None:
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    if engine.gradient_clipping() > 0:
        norm = nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    engine._global_grad_norm = norm
    engine.optimizer.overflow = not bool(torch.isfinite(norm))
    if not engine.optimizer.overflow:
        step()


def judge_by_norm(engine: Any) -> None:
    """Leaves it to the norm of all gradients, at ZeRO 1 and 2, to find what is not finite.

    DeepSpeed also looks at each parameter on its own, in a dozen operations for every one.
    """
    assert engine.optimizer.compute_grad_norm
    engine.optimizer.check_overflow = lambda partition_gradients: None


class SkippedSteps:
    """Counts skipped steps in a row; the same on all ranks.

    While the loss scale of fp16 falls, steps are skipped as a matter of course: they do not count.
    """

    def __init__(self, engine: Any) -> None:
        """Begins at none. A loss scale at its floor counts here, instead of DeepSpeed's error."""
        self._engine = engine
        scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False
        self._scale = self._loss_scale()
        self.in_a_row = 0

    def count(self) -> bool:
        """Looks at the step that was just taken; returns whether its update was left out."""
        is_skipped = not self._engine.was_step_applied()
        scale = self._loss_scale()
        if not is_skipped:
            self.in_a_row = 0
        elif scale >= self._scale:
            self.in_a_row += 1
        self._scale = scale
        return is_skipped

    def _loss_scale(self) -> float:
        return self._engine._get_optimizer_loss_scale() if self._engine.fp16_enabled() else math.inf
