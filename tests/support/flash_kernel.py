"""FlashAttention's variable-length kernel for the CPU: torch's GPU operator, computed plainly.

torch has the operator, its derivative and its meta kernels everywhere, and kernels for GPUs alone.
Here, two are registered for the CPU, so that a call goes the way it goes on a GPU: through
dispatcher, autograd's formula and torch.compile, down to the kernels. They demand what those of
GPUs demand (Dao 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691).

Shapes: T tokens, N heads, D head size, L tokens of a sample.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Names = dict[str, Any]


@contextlib.contextmanager
def flash_kernel_on_cpu() -> Iterator[list[Names]]:
    """Yields the arguments of the forward kernel's calls that are not tensors; appended."""
    calls: list[Names] = []

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cum_seq_q: Tensor,
        cum_seq_k: Tensor,
        max_q: int,
        max_k: int,
        dropout_p: float,
        is_causal: bool,
        return_debug_mask: bool,
        *,
        scale: float | None = None,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
        **unused: Any,
    ) -> tuple[Tensor, ...]:
        window = (window_size_left, window_size_right)
        _check(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, window)
        assert not (is_causal or return_debug_mask) and scale is None
        assert not any(unused.values())
        calls.append({"max_q": max_q, "dropout_p": dropout_p, "window": window})
        seed = torch.zeros(2, dtype=torch.int64)
        if dropout_p:  # as on a GPU, from the device's global generator
            seed.random_()
        rng_state = seed.view(torch.uint64)
        contexts = [
            (plain * factors @ value[rows].transpose(0, 1).float()).transpose(0, 1)  # (L, N, D)
            for rows, plain, factors in _weights(
                query, key, cum_seq_q, dropout_p, window, rng_state
            )
        ]
        context = torch.cat(contexts).to(query.dtype)
        statistics = query.new_empty((query.shape[1], len(query)), dtype=torch.float32)  # (N, T)
        unused_state = torch.empty((), dtype=torch.uint64)
        return context, statistics, rng_state, unused_state, query.new_empty(0)

    def backward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        cum_seq_q: Tensor,
        cum_seq_k: Tensor,
        max_q: int,
        max_k: int,
        dropout_p: float,
        is_causal: bool,
        rng_state: Tensor,
        unused: Tensor,
        *,
        scale: float | None = None,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
    ) -> tuple[Tensor, ...]:
        window = (window_size_left, window_size_right)
        _check(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, window)
        weights = _weights(query, key, cum_seq_q, dropout_p, window, rng_state)
        gradients = []
        for rows, plain, factors in weights:
            q, k, v, grad = (  # (N, L, D)
                x[rows].transpose(0, 1).float() for x in (query, key, value, grad_out)
            )
            of_weights = grad @ v.mT * factors  # (N, L, L)
            of_scores = plain * (of_weights - (of_weights * plain).sum(-1, keepdim=True))
            of_scores = of_scores / query.shape[2] ** 0.5
            own = (of_scores @ k, of_scores.mT @ q, (plain * factors).mT @ grad)
            gradients.append([x.transpose(0, 1) for x in own])
        return tuple(torch.cat(parts).to(query.dtype) for parts in zip(*gradients, strict=True))

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield calls
    finally:
        library._destroy()


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    window: tuple[int | None, int | None],
) -> None:
    """What the kernels of GPUs refuse or would read wrongly."""
    for x in (query, key, value):
        assert x.dim() == 3 and x.stride(-1) == 1 and x.shape == query.shape  # (T, N, D)
    assert query.shape[2] % 8 == 0 and query.shape[2] <= 256
    for cu_seqlens, longest in ((cum_seq_q, max_q), (cum_seq_k, max_k)):
        assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous()
        assert cu_seqlens[0] == 0 and cu_seqlens[-1] == len(query)
        assert cu_seqlens.diff().max() <= longest
    assert window[0] == window[1] and window[0] is not None and window[0] >= -1


def _weights(
    query: Tensor,
    key: Tensor,
    cu_seqlens: Tensor,
    dropout_p: float,
    window: tuple[int | None, int | None],
    rng_state: Tensor,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of each sample its tokens, weights and dropout's factors, both (N, L, L), in float32.

    The factors are a function of `rng_state` alone.
    """
    noise = torch.Generator().manual_seed(int(rng_state.view(torch.int64)[0]))
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        rows = slice(start, end)
        q, k = (x[rows].transpose(0, 1).float() for x in (query, key))
        scores = q @ k.mT / query.shape[2] ** 0.5
        if window[0] is not None and window[0] >= 0:
            places = torch.arange(end - start)
            is_far = (places[:, None] - places).abs() > window[0]
            scores = scores.masked_fill(is_far, -torch.inf)
        is_kept = torch.rand(scores.shape, generator=noise) >= dropout_p
        yield rows, scores.softmax(-1), is_kept / (1.0 - dropout_p)
