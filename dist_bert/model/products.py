"""Matrix products of bf16 tensors, at the speed of float32 on CPUs without bf16 instructions.

bf16 is a storage type on all devices. A product of bf16 matrices sums in float32 and rounds its
result once, on any device. If the CPU lacks the instructions, oneDNN emulates them, up to 90 times
slower than float32. Here, the operands are converted and multiplied in float32, and the result is
rounded: the same definition in 10 % more time than float32. On GPUs and on CPUs with bf16
instructions these are torch's own operations.

Shapes: M rows, K summed, N columns.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_bert.common.device import has_bf16_instructions

_CONVERTED_AT_ONCE = 1 << 22  # elements of operand and result: 16 MiB in float32


def converts(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of such tensors are computed in float32 and rounded."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not has_bf16_instructions()


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, K) times (K, N), plus a bias of (N,) if given: (M, N), all of one type; not for autograd.

    Computes a few rows at a time, so that no large float32 result exists as a whole.
    """
    if not converts(a.device, a.dtype):
        return a @ b if bias is None else torch.addmm(bias, a, b)
    b = b.float()
    product = a.new_empty(len(a), b.shape[1])
    size = max(1, _CONVERTED_AT_ONCE // (a.shape[1] + b.shape[1]))
    for rows, result in zip(a.split(size), product.split(size), strict=True):
        rows = rows.float()
        result.copy_(rows @ b if bias is None else torch.addmm(bias.float(), rows, b))
    return product


def linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`: (T, K) to (T, N) by a weight of (N, K) and a bias of (N,)."""
    dtype = values.dtype
    if values.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    if not converts(values.device, dtype):
        return F.linear(values, weight, bias)
    bias = None if bias is None else bias.to(dtype)
    product: Tensor = _ConvertedLinear.apply(values.to(dtype), weight.to(dtype), bias)
    return product


class Linear(nn.Linear):
    """`nn.Linear` of (T, K) inputs whose products are those of this module."""

    def forward(self, values: Tensor) -> Tensor:
        """(T, K) to (T, N)."""
        return linear(values, self.weight, self.bias)


class _ConvertedLinear(torch.autograd.Function):
    """Saves the bf16 operands, like `F.linear`, not their float32 copies."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        with torch.autocast("cpu", enabled=False):
            return matmul(values, weight.T, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        needs_values, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            matmul(gradient, weight) if needs_values else None,
            matmul(gradient.T, values) if needs_weight else None,
            gradient.sum(0, dtype=torch.float32).to(gradient.dtype) if needs_bias else None,
        )
