"""Replacements of torch operations that are slow on CPU or need too much memory.

Plain torch, no compiler. Not for: code that depends on the model's modules
(`dist_bert.model.bert`).

Shapes: B samples, N heads, S padded length, D head size, P masked positions, H hidden, V padded
vocabulary.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_bert.model.products import converts, linear, matmul

CACHED_SCORES = 1 << 21  # attention scores computed at once on CPU: 4 MiB in bf16, a core's cache
_CACHED_LOGITS = 1 << 20  # logits converted to gradients at once on CPU: 4 MiB in float32
_LOGITS_AT_ONCE = 1 << 25  # on GPU: 128 MiB, so that kernels are few and large
_LENGTH_MULTIPLE = 16  # of padded lengths: matrix kernels are prepared again for every shape
_NO_LABEL = -100  # of an ignored row
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


class SampleGroup(NamedTuple):
    """Consecutive samples whose attention on CPU is computed together, padded to one length.

    Attributes:
        start: index of their first token among the T.
        stop: index after their last token.
        length: S, their padded length.
        token_of_slot: (G*S,) token in each slot, from `start`; None if nothing is padded.
        slot_of_token: (stop - start,) its inverse.
        is_padding: (G, 1, 1, S) True in slots after the end of a sample.
    """

    start: int
    stop: int
    length: int
    token_of_slot: Tensor | None = None
    slot_of_token: Tensor | None = None
    is_padding: Tensor | None = None


def group_samples(cu_seqlens: Tensor, num_heads: int) -> list[SampleGroup]:
    """Groups of consecutive samples whose attention scores fit in a core's cache together.

    Args:
        cu_seqlens: (B+1,) on CPU; similar lengths of neighbours reduce the padding.
        num_heads: N.
    """
    bounds = cu_seqlens.tolist()
    groups = []
    first = 0
    while first < len(bounds) - 1:
        longest = bounds[first + 1] - bounds[first]
        last = first + 1  # end of the group
        while last < len(bounds) - 1:
            longer = max(longest, bounds[last + 1] - bounds[last])
            if (last + 1 - first) * num_heads * rounded_length(longer) ** 2 > CACHED_SCORES:
                break
            longest, last = longer, last + 1
        groups.append(_group(torch.tensor(bounds[first : last + 1]), rounded_length(longest)))
        first = last
    return groups


def rounded_length(length: int) -> int:
    """A length up to the multiple that is computed on CPU."""
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def _group(bounds: Tensor, length: int) -> SampleGroup:
    group = SampleGroup(int(bounds[0]), int(bounds[-1]), length)
    lengths = bounds.diff()  # (G,)
    is_token = torch.arange(length) < lengths[:, None]  # (G, S)
    if bool(is_token.all()):
        return group
    token_of_slot = (bounds[:-1] - bounds[0])[:, None] + torch.arange(length)
    return group._replace(
        token_of_slot=token_of_slot.clamp(max=group.stop - group.start - 1).flatten(),
        slot_of_token=is_token.flatten().nonzero()[:, 0],
        is_padding=~is_token[:, None, None, :],
    )


def grouped_attention(
    qkv: Tensor, groups: list[SampleGroup], num_heads: int, dropout_p: float
) -> Tensor:
    """Attention on CPU, one sample group at a time, so that it fits in the cache.

    Attention weights are not kept: the backward pass recomputes them, including dropout (Dao et al.
    2022, "FlashAttention", https://arxiv.org/abs/2205.14135, section 3.1).

    Args:
        qkv: (T, 3H), queries, keys and values, each with its heads side by side.
        groups: of all T tokens, from `group_samples`.
        num_heads: N.
        dropout_p: dropout on attention weights.

    Returns:
        (T, H), the heads side by side.
    """
    seed = draw_seed() if dropout_p > 0.0 else 0
    context: Tensor = _GroupedAttention.apply(qkv, groups, num_heads, dropout_p, seed)
    return context


class _GroupedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        groups: list[SampleGroup],
        num_heads: int,
        dropout_p: float,
        seed: int,
    ) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.settings = (groups, num_heads, dropout_p, seed)
        context = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        with torch.autocast("cpu", enabled=False):
            for group, first in zip(groups, _first_hashes(groups, num_heads), strict=True):
                q, k, v = _heads(qkv, group, 3, num_heads)
                parts = []
                for heads, weights, noise in _weights(q, k, group, dropout_p, seed, first):
                    weights = weights if noise is None else weights.mul_(noise)
                    parts.append(torch.bmm(weights, v[heads]))
                _put_back(torch.cat(parts)[None], context, group)
        return context

    @staticmethod
    def backward(ctx: Any, context_gradient: Tensor) -> tuple[Tensor | None, ...]:
        (qkv,) = ctx.saved_tensors
        groups, num_heads, dropout_p, seed = ctx.settings
        scale = (qkv.shape[1] // (3 * num_heads)) ** -0.5
        gradient = torch.empty_like(qkv)
        for group, first in zip(groups, _first_hashes(groups, num_heads), strict=True):
            q, k, v = _heads(qkv, group, 3, num_heads)
            (output,) = _heads(context_gradient, group, 1, num_heads, fill_with_zeros=True)
            parts = q.new_empty(3, *q.shape)
            for heads, weights, noise in _weights(q, k, group, dropout_p, seed, first):
                kept = weights if noise is None else weights * noise
                torch.bmm(kept.transpose(1, 2), output[heads], out=parts[2, heads])
                by_weight = torch.bmm(output[heads], v[heads].transpose(1, 2))
                by_weight = by_weight if noise is None else by_weight.mul_(noise)
                by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
                by_score.mul_(scale)
                torch.bmm(by_score, k[heads], out=parts[0, heads])
                torch.bmm(by_score.transpose(1, 2), q[heads], out=parts[1, heads])
            _put_back(parts, gradient, group)
        return gradient, None, None, None, None


def _first_hashes(groups: list[SampleGroup], num_heads: int) -> list[int]:
    """The number of the first hash of each group's dropout."""
    sizes = [_num_samples(g) * num_heads * g.length**2 // LANES for g in groups]
    return list(itertools.accumulate(sizes, initial=0))[:-1]


def _num_samples(group: SampleGroup) -> int:
    if group.token_of_slot is None:
        return (group.stop - group.start) // group.length
    return len(group.token_of_slot) // group.length


def _heads(
    tokens: Tensor,
    group: SampleGroup,
    num_parts: int,
    num_heads: int,
    fill_with_zeros: bool = False,
) -> list[Tensor]:
    """The group's rows of (T, parts * H) as (G*N, S, D) for each part.

    Slots after the end of a sample hold zeros or any rows: keys there are masked. In float32 if
    products of the tokens' type are computed in it: converted once, while they are in the cache.
    """
    rows = tokens[group.start : group.stop]
    if converts(rows.device, rows.dtype):
        rows = rows.float()
    if group.token_of_slot is not None:
        rows = rows.index_select(0, group.token_of_slot)
    if group.is_padding is not None and fill_with_zeros:
        rows.masked_fill_(group.is_padding.view(-1, 1), 0.0)
    rows = rows.view(_num_samples(group), group.length, num_parts, num_heads, -1)
    return list(rows.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous().unbind(0))


def _put_back(heads: Tensor, tokens: Tensor, group: SampleGroup) -> None:
    """Writes (parts, G*N, S, D) into the group's rows of (T, parts * H)."""
    num_parts, _, length, head_size = heads.shape
    heads = heads.view(num_parts, _num_samples(group), -1, length, head_size)
    rows = heads.permute(1, 3, 0, 2, 4).reshape(-1, tokens.shape[1]).to(tokens.dtype)
    own = tokens[group.start : group.stop]
    if group.slot_of_token is None:
        own.copy_(rows)
    else:
        torch.index_select(rows, 0, group.slot_of_token, out=own)


def _weights(
    query: Tensor, key: Tensor, group: SampleGroup, dropout_p: float, seed: int, first: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Attention weights before dropout, and its noise, for as many heads as fit in the cache."""
    num_heads, length, head_size = query.shape  # of all samples: G*N
    size = num_heads if _num_samples(group) > 1 else max(1, CACHED_SCORES // length**2)
    for begin in range(0, num_heads, size):
        heads = slice(begin, min(begin + size, num_heads))
        q, k = query[heads], key[heads]
        scores = q.new_empty(len(q), length, length)
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=head_size**-0.5, out=scores)
        if group.is_padding is not None:
            by_sample = scores.view(_num_samples(group), -1, length, length)
            by_sample.add_(torch.zeros(()).masked_fill(group.is_padding, -torch.inf))
        weights = scores.softmax(-1)
        noise = None
        if dropout_p > 0.0:
            offset = first + begin * length**2 // LANES
            noise = dropout_noise(weights.shape, weights.dtype, dropout_p, seed, offset)
        yield heads, weights, noise


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
            num_correct += ((scores.argmax(1) == label) & is_counted).sum()
            log_shares = torch.log_softmax(scores, 1)
            loss -= log_shares.gather(1, column)[:, 0].where(is_counted, 0.0).sum()
            if needs_gradient:
                gradient = log_shares.exp_()
                gradient.scatter_add_(1, column, gradient.new_full(column.shape, -1.0))
                chunk.copy_(gradient.mul_(is_counted[:, None]))
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
