"""Attention on CPU within a window: only the band of the scores is computed.

The band is cut into tiles of some queries and all keys that any of them attends to, so that the
cost of a token grows with the window, not with the length of its sample (Beltagy et al. 2020,
"Longformer", section 3.1, https://arxiv.org/abs/2004.05150).

Shapes: T tokens, H hidden, N heads, D head size, G tiles computed together, Q queries and K keys of
a tile.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dist_bert.model.kernels import CACHED_SCORES, LANES, draw_seed, dropout_noise, rounded_length
from dist_bert.model.products import converts


class BandTiles(NamedTuple):
    """Tiles of one shape whose scores stay in a core's cache together.

    Attributes:
        queries: (G*Q,) the token in each slot; slots behind the end of a sample hold any.
        keys: (G*K,) likewise; a token is a key of up to K / Q + 1 tiles.
        own: (number of queries,) slots that hold a query; None where all do.
        is_masked: (G, 1, Q, K) True where a query does not attend to a key. Slots without a query
            attend to all: a softmax of nothing is not a number.
    """

    queries: Tensor
    keys: Tensor
    own: Tensor | None
    is_masked: Tensor

    @property
    def num_scores(self) -> int:
        """Of one head."""
        return self.is_masked.numel()


def band_tiles(cu_seqlens: Tensor, num_heads: int, window: int) -> list[BandTiles]:
    """Cuts the bands of all samples into tiles.

    Args:
        cu_seqlens: (B+1,) on CPU.
        num_heads: N.
        window: tokens on each side that a token attends to.
    """
    num_queries = rounded_length(window)
    num_keys = rounded_length(num_queries + 2 * window)
    bounds = cu_seqlens.tolist()
    by_shape: dict[tuple[int, int], list[tuple[int, int, int, int]]] = defaultdict(list)
    for start, end in itertools.pairwise(bounds):
        length = rounded_length(end - start)
        if length <= num_keys:  # as a whole it is no more work
            by_shape[length, length].append((start, start, start, end))
            continue
        for first in range(start, end, num_queries):
            by_shape[num_queries, num_keys].append((first, first - window, start, end))
    groups = []
    for (queries, keys), places in by_shape.items():
        at_once = max(1, CACHED_SCORES // (num_heads * queries * keys))
        groups += [
            _tiles(part, queries, keys, window) for part in torch.tensor(places).split(at_once)
        ]
    return groups


def _tiles(places: Tensor, num_queries: int, num_keys: int, window: int) -> BandTiles:
    """Tiles at (G, 4) places: first query, first key, start and end of the sample."""
    first_query, first_key, start, end = places[:, :, None].unbind(1)  # (G, 1) each
    queries = first_query + torch.arange(num_queries)  # (G, Q)
    keys = first_key + torch.arange(num_keys)  # (G, K)
    is_query, is_key = queries < end, (keys >= start) & (keys < end)
    is_near = (queries[:, :, None] - keys[:, None, :]).abs() <= window  # (G, Q, K)
    is_masked = is_query[:, :, None] & ~(is_near & is_key[:, None, :])
    return BandTiles(
        queries=queries.minimum(end - 1).flatten(),
        keys=keys.maximum(start).minimum(end - 1).flatten(),
        own=None if bool(is_query.all()) else is_query.flatten().nonzero()[:, 0],
        is_masked=is_masked[:, None],
    )


def banded_attention(
    qkv: Tensor, groups: list[BandTiles], num_heads: int, dropout_p: float
) -> Tensor:
    """Attention on CPU within a window, as many tiles at a time as stay in the cache.

    Attention weights are not kept: the backward pass computes them again, dropout included, as in
    `kernels.grouped_attention`.

    Args:
        qkv: (T, 3H), queries, keys and values, each with its heads side by side.
        groups: of all T tokens, from `band_tiles`.
        num_heads: N.
        dropout_p: dropout on attention weights.

    Returns:
        (T, H), the heads side by side.
    """
    seed = draw_seed() if dropout_p > 0.0 else 0
    context: Tensor = _BandedAttention.apply(qkv, groups, num_heads, dropout_p, seed)
    return context


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        groups: list[BandTiles],
        num_heads: int,
        dropout_p: float,
        seed: int,
    ) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.settings = (groups, num_heads, dropout_p, seed)
        context = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        first = 0
        with torch.autocast("cpu", enabled=False):
            for group in groups:
                q, k, v = _inputs(qkv, group, num_heads)
                result = torch.empty_like(q)
                for heads, weights, noise in _weights(q, k, group, dropout_p, seed, first):
                    weights = weights if noise is None else weights.mul_(noise)
                    torch.bmm(weights, v[heads], out=result[heads])
                _put_queries(result, context, group, num_heads)
                first += num_heads * group.num_scores // LANES
        return context

    @staticmethod
    def backward(ctx: Any, context_gradient: Tensor) -> tuple[Tensor | None, ...]:
        (qkv,) = ctx.saved_tensors
        groups, num_heads, dropout_p, seed = ctx.settings
        hidden_size = qkv.shape[1] // 3
        scale = (hidden_size // num_heads) ** -0.5
        gradient = torch.empty_like(qkv)
        # A key's gradient comes from several tiles: summed in float32, rounded once.
        sum_dtype = torch.promote_types(qkv.dtype, torch.float32)
        of_keys = qkv.new_zeros(len(qkv), 2 * hidden_size, dtype=sum_dtype)
        first = 0
        for group in groups:
            q, k, v = _inputs(qkv, group, num_heads)
            output = _output_gradient(context_gradient, group, num_heads)
            by_q, by_kv = torch.empty_like(q), k.new_empty(2, *k.shape)
            for heads, weights, noise in _weights(q, k, group, dropout_p, seed, first):
                kept = weights if noise is None else weights * noise
                torch.bmm(kept.transpose(1, 2), output[heads], out=by_kv[1, heads])
                by_weight = torch.bmm(output[heads], v[heads].transpose(1, 2))
                by_weight = by_weight if noise is None else by_weight.mul_(noise)
                by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
                by_score.mul_(scale)
                torch.bmm(by_score, k[heads], out=by_q[heads])
                torch.bmm(by_score.transpose(1, 2), q[heads], out=by_kv[0, heads])
            _put_queries(by_q, gradient[:, :hidden_size], group, num_heads)
            of_keys.index_add_(0, group.keys, _rows(by_kv, num_heads).to(sum_dtype))
            first += num_heads * group.num_scores // LANES
        gradient[:, hidden_size:] = of_keys
        return gradient, None, None, None, None


def _inputs(qkv: Tensor, group: BandTiles, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (N*G, Q, D), keys and values (N*G, K, D) of the tiles."""
    hidden_size = qkv.shape[1] // 3
    num_tiles = len(group.is_masked)
    (q,) = _by_head(qkv[:, :hidden_size], group.queries, num_tiles, 1, num_heads)
    k, v = _by_head(qkv[:, hidden_size:], group.keys, num_tiles, 2, num_heads)
    return q, k, v


def _by_head(
    tokens: Tensor, rows: Tensor, num_tiles: int, num_parts: int, num_heads: int
) -> Tensor:
    """Rows of (T, parts * H) as (parts, N*G, slots, D).

    In float32 where products of the tokens' type are computed so (`dist_bert.model.products`):
    converted once, while they are in the cache.
    """
    chosen = tokens.index_select(0, rows)
    if converts(tokens.device, tokens.dtype):
        chosen = chosen.float()
    chosen = chosen.view(num_tiles, len(rows) // num_tiles, num_parts, num_heads, -1)
    return chosen.permute(2, 3, 0, 1, 4).flatten(1, 2).contiguous()


def _rows(heads: Tensor, num_heads: int) -> Tensor:
    """(parts, N*G, slots, D) as (G*slots, parts * H)."""
    num_parts, _, num_slots, head_size = heads.shape
    heads = heads.view(num_parts, num_heads, -1, num_slots, head_size)
    return heads.permute(2, 3, 0, 1, 4).reshape(-1, num_parts * num_heads * head_size)


def _output_gradient(context_gradient: Tensor, group: BandTiles, num_heads: int) -> Tensor:
    """(T, H) as (N*G, Q, D), zeros in slots without a query."""
    num_tiles = len(group.is_masked)
    (output,) = _by_head(context_gradient, group.queries, num_tiles, 1, num_heads)
    if group.own is not None:
        is_empty = torch.ones(len(group.queries), dtype=torch.bool)
        is_empty[group.own] = False
        output.view(num_heads, -1, output.shape[-1]).masked_fill_(is_empty[:, None], 0.0)
    return output


def _put_queries(heads: Tensor, tokens: Tensor, group: BandTiles, num_heads: int) -> None:
    """Writes (N*G, Q, D) into the tiles' own rows of (T, H)."""
    rows, places = _rows(heads[None], num_heads).to(tokens.dtype), group.queries
    if group.own is not None:
        rows, places = rows.index_select(0, group.own), places.index_select(0, group.own)
    tokens.index_copy_(0, places, rows)


def _weights(
    query: Tensor, key: Tensor, group: BandTiles, dropout_p: float, seed: int, first: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Attention weights before dropout, and its noise, for as many heads as stay in the cache."""
    num_tiles, _, num_queries, num_keys = group.is_masked.shape
    size = num_tiles * max(1, CACHED_SCORES // group.num_scores)
    for begin in range(0, len(query), size):
        heads = slice(begin, min(begin + size, len(query)))
        q, k = query[heads], key[heads]
        scores = q.new_empty(len(q), num_queries, num_keys)
        scale = q.shape[-1] ** -0.5
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=scale, out=scores)
        by_head = scores.view(-1, num_tiles, num_queries, num_keys)
        by_head.masked_fill_(group.is_masked[:, 0], -torch.inf)
        weights = scores.softmax(-1)
        noise = None
        if dropout_p > 0.0:
            offset = first + begin * num_queries * num_keys // LANES
            noise = dropout_noise(weights.shape, weights.dtype, dropout_p, seed, offset)
        yield heads, weights, noise
