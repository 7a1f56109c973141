"""Rotary positions: queries and keys are rotated by their places, so scores know distances.

Su et al. 2021, "RoFormer" (https://arxiv.org/abs/2104.09864), section 3.2.2. Element i of a head is
paired with element i + D/2, as in GPT-NeoX and ModernBERT; the paper pairs neighbours.

Shapes: T tokens, H hidden, N heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (T, 1, 1, D/2) float32 each
_CACHED_VALUES = 3 << 17  # of queries, keys and values at once on CPU: 1.5 MiB in float32


def rotation(position_ids: Tensor, head_size: int, theta: float) -> Rotation:
    """The rotation of each token: pair i turns by position * theta^(-2i / D).

    In float32 whatever the weights: bf16 cannot tell position 8,000 from 8,016.

    Args:
        position_ids: (T,) int64.
        head_size: D, even.
        theta: base of the angles; the larger, the farther the slowest pairs reach.
    """
    exponents = torch.arange(0, head_size, 2, device=position_ids.device).float() / head_size
    angles = position_ids.float()[:, None] * (1.0 / theta**exponents)  # (T, D/2)
    angles = angles[:, None, None, :]
    return angles.cos(), angles.sin()


def rotate(qkv: Tensor, rotation: Rotation, num_heads: int) -> Tensor:
    """Rotates queries and keys of (T, 3H), leaves values as they are; rounds once.

    The gradient is the gradient's rotation back, so nothing but the angles is kept for it.
    """
    rotated: Tensor = _Rotate.apply(qkv, *rotation, num_heads)
    return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.num_heads = num_heads
        return _rotated(qkv, cos, sin, num_heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin, ctx.num_heads), None, None, None


def _rotated(qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """On CPU some tokens at a time, whose float32 values stay in a core's cache."""
    rotated = torch.empty_like(qkv)
    at_once = len(qkv)
    if qkv.device.type == "cpu":
        at_once = max(1, _CACHED_VALUES // qkv.shape[1])
    for parts in zip(*(part.split(at_once) for part in (qkv, rotated, cos, sin)), strict=True):
        values, result = (part.view(len(part), 3, num_heads, 2, -1) for part in parts[:2])
        c, s = parts[2:]
        first, second = values[:, :2].float().unbind(3)  # (tokens, 2, N, D/2) each
        result[:, :2, :, 0] = first * c - second * s
        result[:, :2, :, 1] = second * c + first * s
        result[:, 2] = values[:, 2]
    return rotated
