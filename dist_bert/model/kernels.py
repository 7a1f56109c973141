"""Replacements of torch operations that are slow on CPU or need too much memory.

Plain torch, no compiler. Not for: code that depends on the model's modules
(`dist_bert.model.bert`).

Shapes: T tokens, P masked positions, H hidden, V padded vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_bert.model.products import linear, matmul

_CACHED_LOGITS = 1 << 20  # logits converted to gradients at once on CPU: 4 MiB in float32
_LOGITS_AT_ONCE = 1 << 25  # on GPU: 128 MiB, so that kernels are few and large
_NO_LABEL = -100  # of an ignored row
_FEW_ROWS = 1_024  # of a table whose gradient is a product: of more, that is the greater work
LANES = 4  # random numbers of 16 bits in one hash of 64
# The finalizer of Stafford 2011, "Better bit mixing", variant 13, as used by splitmix64 (Steele et
# al. 2014, "Fast splittable pseudorandom number generators").
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))


def dropout(values: Tensor, p: float) -> Tensor:
    """Zeroes each value with probability `p`, scales the others by 1 / (1 - p).

    On CPU with `dropout_noise`, several times as fast as torch's sequential generator. The seed
    comes from torch's global generator, so `torch.manual_seed` and activation checkpointing work as
    with `F.dropout`.
    """
    if p == 0.0 or values.device.type != "cpu":
        return F.dropout(values, p)
    return values * dropout_noise(values.shape, values.dtype, p, draw_seed())


def dropout_noise(
    shape: Sequence[int], dtype: torch.dtype, p: float, seed: int, first: int = 0
) -> Tensor:
    """Zeros with probability `p`, else 1 / (1 - p): a pure function of seed and place.

    Args:
        shape: of the result.
        dtype: of the result.
        p: below 1, rounded to 1/32,768.
        seed: any 64 bits.
        first: number of the first hash; each hash serves four values.
    """
    count = math.prod(shape)
    num_kept = round((1.0 - p) * (1 << 15))  # of the 32,768 values of a lane without its sign
    lanes = hashed_counters(-(-count // LANES), seed, first).view(torch.int16)[:count]
    # -1 if the value is below num_kept, else 0, with integers: comparing takes 4 times as long.
    lanes.bitwise_and_((1 << 15) - 1).sub_(num_kept).bitwise_right_shift_(15)
    scale = torch.tensor((1 << 15) / num_kept, dtype=dtype)
    if dtype.itemsize == 2:  # all bits of the scale, or none
        return lanes.bitwise_and_(scale.view(torch.int16)).view(dtype).view(shape)
    return (lanes * -scale).view(shape)


def hashed_counters(count: int, seed: int, first: int = 0) -> Tensor:
    """(count,) int64 random bits: splitmix64's numbers `first` and following."""
    bits = torch.arange(first + 1, first + count + 1).mul_(_GOLDEN).add_(seed)
    shifted = torch.empty_like(bits)
    for shift, factor in _MIX:
        # torch's shift copies the sign: without the mask the xor loses a bit. (`>>` copies first.)
        torch.bitwise_right_shift(bits, shift, out=shifted)
        bits.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return bits


def draw_seed() -> int:
    """64 random bits from torch's global generator, for `dropout_noise`."""
    return int(torch.empty((), dtype=torch.int64).random_())


class FewRows(nn.Embedding):
    """`nn.Embedding` of few rows that many tokens share, such as segments and positions.

    On GPUs, torch sorts the tokens by row to sum the gradient. Here it is one product, with the
    tokens' one-hot rows: summed in float32, rounded once, deterministic. CPUs do not sort.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """(T,) int64 to (T, H)."""
        if ids.device.type == "cpu" or self.num_embeddings > _FEW_ROWS:
            return super().forward(ids)
        rows: Tensor = _FewRows.apply(self.weight, ids)
        return rows


class _FewRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.num_rows = len(weight)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        is_row = ids == torch.arange(ctx.num_rows, device=ids.device)[:, None]  # (rows, T)
        return is_row.to(gradient.dtype) @ gradient, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of `F.linear(hidden, weight, bias)`, and number of correct ones.

    The logits are never kept in float32, only their gradient in the weights' type: a quarter of the
    memory of `F.cross_entropy`, and each piece of the work fits in a core's cache. (torch 2.13 has
    a function of this name, but it does not count correct predictions, which needs the logits.)

    Args:
        hidden: (P, H).
        weight: (V, H).
        bias: (V,), minus infinity for padding classes.
        labels: (P,) int64; rows with -100 are ignored, as in `F.cross_entropy`.

    Returns:
        Two float32 scalars: the sum in nats, and the number of rows whose largest logit is the
        label's (not differentiable).
    """
    needs_gradient = torch.is_grad_enabled()
    loss, num_correct = _LinearCrossEntropy.apply(hidden, weight, bias, labels, needs_gradient)
    return loss, num_correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        logits = linear(hidden, weight, bias)  # (P, V)
        loss = torch.zeros((), device=hidden.device)
        num_correct = torch.zeros((), device=hidden.device)
        at_once = _CACHED_LOGITS if logits.device.type == "cpu" else _LOGITS_AT_ONCE
        size = max(1, at_once // logits.shape[1])
        for chunk, label in zip(logits.split(size), labels.split(size), strict=True):
            scores = chunk.float()  # bf16 would keep 8 bits of a sum over V
            is_counted = label != _NO_LABEL
            column = label.clamp(min=0)[:, None]
            best = scores.argmax(1, keepdim=True)
            num_correct += ((best == column)[:, 0] & is_counted).sum()
            shares = torch.softmax(scores, 1)
            # The best share is at least 1 / V; the label's may be 0, so its logit is subtracted.
            behind = scores.gather(1, best) - scores.gather(1, column)
            losses = behind - shares.gather(1, best).log()  # (rows, 1)
            loss += losses[:, 0].where(is_counted, 0.0).sum()
            if needs_gradient:
                shares.scatter_add_(1, column, shares.new_full(column.shape, -1.0))
                torch.mul(shares, is_counted[:, None], out=chunk)
        ctx.save_for_backward(hidden, weight, logits)
        ctx.bias_dtype = bias.dtype
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, gradient = ctx.saved_tensors  # gradient: of the sum w.r.t. the logits
        dtype = gradient.dtype  # under autocast, not the dtype of hidden and weight
        # In float32: rounded to bf16, the factor would differ between 3 ranks and 1.
        scaled = (hidden.float() * loss_gradient).to(dtype)
        return (
            (matmul(gradient, weight.to(dtype)).float() * loss_gradient).to(hidden.dtype),
            matmul(gradient.T, scaled).to(weight.dtype),
            (gradient.sum(0, dtype=torch.float32) * loss_gradient).to(ctx.bias_dtype),
            None,
            None,
        )
