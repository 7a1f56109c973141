"""Loss scaling of fp16 without ZeRO, which DeepSpeed 0.19 leaves half done.

Its optimizers around 16-bit weights divide the gradients by the loss scale, but its engine
multiplies the loss by it at ZeRO 1 to 3 alone. So gradients were too small by the scale, and were
never clipped: measured, a norm of 4.51 clipped at 0.5 came to Adam as 0.0044 with a scale of 1,024.
"""

import functools
from collections.abc import Callable
from typing import Any

from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor


def scale_plain_losses(engine: Any) -> None:
    """Makes an engine without ZeRO in fp16 scale its losses, and tell norms without the scale."""
    wrapper = engine.optimizer
    engine.backward = functools.partial(_backward, wrapper.loss_scale_config, engine.backward)
    if isinstance(wrapper, FP16_UnfusedOptimizer):
        wrapper.step = functools.partial(_step, wrapper, wrapper.step)


def _backward(config: Any, backward: Callable[..., Any], loss: Tensor, **options: Any) -> Any:
    return backward(loss.float() * config.cur_scale, **options)


def _step(wrapper: Any, step: Callable[[], Any]) -> Any:
    scale = wrapper.loss_scale_config.cur_scale  # the step may change it
    overflow = step()
    wrapper._global_grad_norm /= scale
    return overflow
