"""Steps of 16-bit weights without ZeRO, which DeepSpeed 0.19 leaves half done.

Its optimizers around 16-bit weights divide the gradients by the loss scale, but its engine
multiplies the loss by it at ZeRO 1 to 3 alone. So gradients were too small by the scale, and were
never clipped: measured, a norm of 4.51 clipped at 0.5 came to Adam as 0.0044 with a scale of 1,024.
Where the scale grows, it divides by the new one. And it looks at each parameter on its own: 19
operations and a wait for the device for every one, which is most of an update on a GPU.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor


def step_plainly(engine: Any) -> None:
    """Makes an engine without ZeRO in 16 bits scale its losses, clip, and step in few operations.

    It waits for the device once a step.
    """
    wrapper = engine.optimizer
    if engine.fp16_enabled():
        engine.backward = functools.partial(_backward, wrapper.loss_scale_config, engine.backward)
    if isinstance(wrapper, FP16_UnfusedOptimizer):
        wrapper.step = functools.partial(_step, wrapper)


def _backward(config: Any, backward: Callable[..., Any], loss: Tensor, **options: Any) -> Any:
    return backward(loss.float() * config.cur_scale, **options)


def _step(wrapper: Any) -> bool:
    """An update, or none where the gradients are not finite; returns whether it was left out."""
    halves = [parameter for group in wrapper.fp16_groups for parameter in group]
    masters = [parameter for group in wrapper.fp32_groups for parameter in group]
    flat = torch.zeros(sum(p.numel() for p in masters), device=masters[0].device)
    parts = flat.split([parameter.numel() for parameter in masters])
    for master, part in zip(masters, parts, strict=True):
        master.grad = part.view_as(master)
    pairs = zip(parts, halves, strict=True)
    known = [(part, half.grad) for part, half in pairs if half.grad is not None]
    torch._foreach_copy_([part for part, _ in known], [grad.view(-1) for _, grad in known])
    scale = wrapper.loss_scale_config.cur_scale
    norm = float(torch.linalg.vector_norm(flat)) / scale
    if not math.isfinite(norm):
        return bool(wrapper._skip_invalid_grad_norm())
    wrapper.overflow = False
    wrapper._global_grad_norm = norm
    wrapper._update_scale(False)
    clip = max(1.0, (norm + 1e-6) / wrapper.clip_grad) if wrapper.clip_grad > 0 else 1.0
    flat.mul_(1.0 / (clip * scale))
    wrapper.optimizer.step()
    torch._foreach_copy_([parameter.data for parameter in halves], masters)
    for master in masters:
        master.grad = None
    return False
