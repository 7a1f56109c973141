"""Rotary positions: queries and keys are rotated by their places, so scores know distances.

Su et al. 2021, "RoFormer" (https://arxiv.org/abs/2104.09864), section 3.2.2. Element i of a head is
paired with element i + D/2, as in GPT-NeoX and ModernBERT; the paper pairs neighbours.

Shapes: T tokens, H hidden, N heads, D head size.
"""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (T, 1, 1, D/2) float32 each


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
    """Rotates queries and keys of (T, 3H), leaves values as they are; rounds once."""
    cos, sin = rotation
    by_head = qkv.view(len(qkv), 3, num_heads, -1)
    first, second = by_head[:, :2].float().chunk(2, -1)  # (T, 2, N, D/2) each
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((rotated.to(qkv.dtype), by_head[:, 2:]), 1).view_as(qkv)
