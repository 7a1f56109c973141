"""Adam's moments and its direction (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980).

Shared by the optimizers of ours. For lists of tensors, in few kernels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

EXP_AVG, EXP_AVG_SQ = "exp_avg", "exp_avg_sq"  # torch's names of the moments


def move_moments(
    states: Sequence[dict[str, Any]], gradients: list[Tensor], betas: tuple[float, float]
) -> tuple[list[Tensor], list[Tensor]]:
    """Takes gradients into both moving averages, in place; returns them."""
    averages = [state[EXP_AVG] for state in states]
    squares = [state[EXP_AVG_SQ] for state in states]
    torch._foreach_lerp_(averages, gradients, 1.0 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - betas[1])
    return averages, squares


def direction(
    averages: list[Tensor], squares: list[Tensor], eps: float, corrections: tuple[float, float]
) -> list[Tensor]:
    """(m / c1) / (sqrt(v / c2) + eps), in new tensors; c1 and c2 correct the moments' bias."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, math.sqrt(corrections[1]))
    torch._foreach_add_(roots, eps)
    found: list[Tensor] = list(torch._foreach_div(averages, roots))
    torch._foreach_div_(found, corrections[0])
    return found


def corrections_of(betas: tuple[float, float], step: int) -> tuple[float, float]:
    """1 - beta^t for both moments, t the number of the step from 1."""
    return 1.0 - betas[0] ** step, 1.0 - betas[1] ** step
