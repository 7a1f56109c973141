"""Attention on CPU by tiles of queries and keys whose scores fit in a core's cache.

Whole samples are padded together in groups of similar length. Within a window, longer samples are
cut: a tile has some queries and all keys that any of them attends to, so that the cost of a token
grows with the window, not with the length of its sample (Beltagy et al. 2020, "Longformer", section
3.1, https://arxiv.org/abs/2004.05150).

Shapes: T tokens, H hidden, N heads, D head size, G tiles computed together, Q queries and K keys of
a tile.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dist_bert.model.kernels import LANES, draw_seed, dropout_noise
from dist_bert.model.products import converts

_CACHED_SCORES = 1 << 21  # attention scores computed at once: 4 MiB in bf16, a core's cache
_LENGTH_MULTIPLE = 16  # of padded lengths: matrix kernels are prepared again for every shape


class Tiles(NamedTuple):
    """Tiles of one shape that are computed together. Their queries are consecutive tokens.

    Attributes:
        start: index of the first query among the T.
        stop: index after the last one.
        shape: G, Q, K.
        token_of_slot: (G*Q,) the query in each slot, from `start`; None if no slot is empty. An
            empty slot, after the end of a sample, has any.
        slot_of_token: (stop - start,) its inverse.
        keys: (G*K,) the token in each slot for keys; None where these are the queries' own. A token
            may be a key of several tiles.
        mask: (G, 1, 1 or Q, K) float32, minus infinity where a query does not attend to a key, else
            0; None if all do.
    """

    start: int
    stop: int
    shape: tuple[int, int, int]
    token_of_slot: Tensor | None = None
    slot_of_token: Tensor | None = None
    keys: Tensor | None = None
    mask: Tensor | None = None


def group_samples(cu_seqlens: Tensor, num_heads: int) -> list[Tiles]:
    """Tiles of whole samples, as many consecutive ones at a time as fit in a core's cache.

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
            if (last + 1 - first) * num_heads * _rounded(longer) ** 2 > _CACHED_SCORES:
                break
            longest, last = longer, last + 1
        samples = [
            (start, start, end) for start, end in itertools.pairwise(bounds[first : last + 1])
        ]
        length = _rounded(longest)
        groups.append(_tiles(torch.tensor(samples), length, length, None))
        first = last
    return groups


def band_tiles(cu_seqlens: Tensor, num_heads: int, window: int) -> list[Tiles]:
    """Tiles of the bands of all samples, as many at a time as fit in a core's cache.

    Args:
        cu_seqlens: (B+1,) on CPU.
        num_heads: N.
        window: tokens on each side that a token attends to.
    """
    cut = _rounded(window), _rounded(_rounded(window) + 2 * window)  # Q and K
    places = []
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        length = _rounded(end - start)
        shape = (length, length) if length <= cut[1] else cut  # as a whole it is no more work
        places += [(shape, (first, start, end)) for first in range(start, end, shape[0])]
    groups = []
    for (num_queries, num_keys), same in itertools.groupby(places, lambda place: place[0]):
        at_once = max(1, _CACHED_SCORES // (num_heads * num_queries * num_keys))
        for part in torch.tensor([place for _, place in same]).split(at_once):
            groups.append(_tiles(part, num_queries, num_keys, window))
    return groups


def _rounded(length: int) -> int:
    """A length up to the multiple that is computed."""
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def _tiles(places: Tensor, num_queries: int, num_keys: int, window: int | None) -> Tiles:
    """Tiles at (G, 3) places: first query, start and end of its sample; in order."""
    first, start, end = places[:, :, None].unbind(1)  # (G, 1) each
    queries = first + torch.arange(num_queries)  # (G, Q)
    is_whole = num_queries == num_keys
    keys = queries if is_whole else first - (window or 0) + torch.arange(num_keys)  # (G, K)
    is_query = queries < end
    is_masked = ((keys < start) | (keys >= end))[:, None, :]  # (G, 1, K)
    if window is not None:
        is_far = (queries[:, :, None] - keys[:, None, :]).abs() > window  # (G, Q, K)
        # Empty slots attend to all: a softmax of nothing is not a number.
        is_masked = is_query[:, :, None] & (is_masked | is_far)
    tiles = Tiles(
        start=int(first[0]),
        stop=int(queries[-1, -1].minimum(end[-1, 0] - 1)) + 1,
        shape=(len(places), num_queries, num_keys),
    )
    if not bool(is_query.all()):
        tiles = tiles._replace(
            token_of_slot=(queries.minimum(end - 1) - tiles.start).flatten(),
            slot_of_token=is_query.flatten().nonzero()[:, 0],
        )
    if not is_whole:
        tiles = tiles._replace(keys=keys.maximum(start).minimum(end - 1).flatten())
    if bool(is_masked.any()):
        tiles = tiles._replace(
            mask=torch.zeros(is_masked.shape).masked_fill_(is_masked, -torch.inf)[:, None]
        )
    return tiles


def tiled_attention(qkv: Tensor, groups: list[Tiles], num_heads: int, dropout_p: float) -> Tensor:
    """Attention on CPU, some tiles at a time, so that they fit in the cache.

    Attention weights are not kept: the backward pass recomputes them, including dropout (Dao et al.
    2022, "FlashAttention", https://arxiv.org/abs/2205.14135, section 3.1).

    Args:
        qkv: (T, 3H), queries, keys and values, each with its heads side by side.
        groups: of all T tokens, from `group_samples` or `band_tiles`.
        num_heads: N.
        dropout_p: dropout on attention weights.

    Returns:
        (T, H), the heads side by side.
    """
    seed = draw_seed() if dropout_p > 0.0 else 0
    context: Tensor = _TiledAttention.apply(qkv, groups, num_heads, dropout_p, seed)
    return context


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        groups: list[Tiles],
        num_heads: int,
        dropout_p: float,
        seed: int,
    ) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.settings = (groups, num_heads, dropout_p, seed)
        context = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        with torch.autocast("cpu", enabled=False):
            for tiles, first in zip(groups, _first_hashes(groups, num_heads), strict=True):
                q, k, v = _inputs(qkv, tiles, num_heads)
                result = torch.empty_like(q)
                for heads, weights, noise in _weights(q, k, tiles, dropout_p, seed, first):
                    weights = weights if noise is None else weights.mul_(noise)
                    torch.bmm(weights, v[heads], out=result[heads])
                _put_back(result[None], context[tiles.start : tiles.stop], tiles)
        return context

    @staticmethod
    def backward(ctx: Any, context_gradient: Tensor) -> tuple[Tensor | None, ...]:
        (qkv,) = ctx.saved_tensors
        groups, num_heads, dropout_p, seed = ctx.settings
        hidden_size = qkv.shape[1] // 3
        scale = (hidden_size // num_heads) ** -0.5
        gradient = torch.empty_like(qkv)
        cut = [tiles for tiles in groups if tiles.keys is not None]
        if cut:  # a key's gradient comes from several tiles: summed in float32, rounded once
            sum_dtype = torch.promote_types(qkv.dtype, torch.float32)
            sums = qkv.new_zeros(len(qkv), 2 * hidden_size, dtype=sum_dtype)
        for tiles, first in zip(groups, _first_hashes(groups, num_heads), strict=True):
            q, k, v = _inputs(qkv, tiles, num_heads)
            output = _output_gradient(context_gradient, tiles, num_heads)
            by_q, by_kv = torch.empty_like(q), k.new_empty(2, *k.shape)
            for heads, weights, noise in _weights(q, k, tiles, dropout_p, seed, first):
                kept = weights if noise is None else weights * noise
                torch.bmm(kept.transpose(1, 2), output[heads], out=by_kv[1, heads])
                by_weight = torch.bmm(output[heads], v[heads].transpose(1, 2))
                by_weight = by_weight if noise is None else by_weight.mul_(noise)
                by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
                by_score.mul_(scale)
                torch.bmm(by_score, k[heads], out=by_q[heads])
                torch.bmm(by_score.transpose(1, 2), q[heads], out=by_kv[0, heads])
            own = gradient[tiles.start : tiles.stop]
            _put_back(by_q[None], own[:, :hidden_size], tiles)
            if tiles.keys is None:
                _put_back(by_kv, own[:, hidden_size:], tiles)
            else:
                sums.index_add_(0, tiles.keys, _rows(by_kv, tiles).to(sum_dtype))
        for tiles in cut:
            tokens = slice(tiles.start, tiles.stop)
            gradient[tokens, hidden_size:] = sums[tokens]
        return gradient, None, None, None, None


def _first_hashes(groups: list[Tiles], num_heads: int) -> list[int]:
    """The number of the first hash of each group's dropout."""
    sizes = [num_heads * math.prod(tiles.shape) // LANES for tiles in groups]
    return list(itertools.accumulate(sizes, initial=0))[:-1]


def _inputs(qkv: Tensor, tiles: Tiles, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (G*N, Q, D), keys and values (G*N, K, D); empty slots have any."""
    hidden_size = qkv.shape[1] // 3
    own = qkv[tiles.start : tiles.stop]
    if tiles.keys is not None:
        own = own[:, :hidden_size]
    if tiles.token_of_slot is not None:
        own = own.index_select(0, tiles.token_of_slot)
    if tiles.keys is None:
        q, k, v = _by_head(own, tiles, 3, num_heads)
    else:
        (q,) = _by_head(own, tiles, 1, num_heads)
        k, v = _by_head(qkv[:, hidden_size:].index_select(0, tiles.keys), tiles, 2, num_heads)
    return q, k, v


def _output_gradient(context_gradient: Tensor, tiles: Tiles, num_heads: int) -> Tensor:
    """(T, H) as (G*N, Q, D), zeros in empty slots."""
    own = context_gradient[tiles.start : tiles.stop]
    if tiles.slot_of_token is not None:
        num_tiles, num_queries, _ = tiles.shape
        padded = own.new_zeros(num_tiles * num_queries, own.shape[1])
        own = padded.index_copy_(0, tiles.slot_of_token, own)
    (output,) = _by_head(own, tiles, 1, num_heads)
    return output


def _by_head(rows: Tensor, tiles: Tiles, num_parts: int, num_heads: int) -> Tensor:
    """(G*slots, parts * H) as (parts, G*N, slots, D).

    In float32 if products of the rows' type are computed in it (`dist_bert.model.products`):
    converted once, while they are in the cache.
    """
    if converts(rows.device, rows.dtype):
        rows = rows.float()
    num_tiles = tiles.shape[0]
    rows = rows.view(num_tiles, len(rows) // num_tiles, num_parts, num_heads, -1)
    return rows.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()


def _rows(heads: Tensor, tiles: Tiles) -> Tensor:
    """(parts, G*N, slots, D) as (G*slots, parts * H)."""
    num_parts, _, num_slots, head_size = heads.shape
    num_tiles = tiles.shape[0]
    heads = heads.view(num_parts, num_tiles, -1, num_slots, head_size)
    return heads.permute(1, 3, 0, 2, 4).reshape(num_tiles * num_slots, -1)


def _put_back(heads: Tensor, tokens: Tensor, tiles: Tiles) -> None:
    """Writes (parts, G*N, Q, D) to the tiles' own tokens, (stop - start, parts * H)."""
    rows = _rows(heads, tiles).to(tokens.dtype)
    if tiles.slot_of_token is None:
        tokens.copy_(rows)
    else:
        torch.index_select(rows, 0, tiles.slot_of_token, out=tokens)


def _weights(
    query: Tensor, key: Tensor, tiles: Tiles, dropout_p: float, seed: int, first: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Attention weights before dropout, and its noise, for as many heads as fit in the cache."""
    num_tiles, num_queries, num_keys = tiles.shape
    num_heads, _, head_size = query.shape  # of all tiles: G*N
    size = num_heads if num_tiles > 1 else max(1, _CACHED_SCORES // (num_queries * num_keys))
    # Not `masked_fill_`, which takes several times as long as adding tensors of one type.
    mask = None if tiles.mask is None else tiles.mask.to(query.dtype)
    for begin in range(0, num_heads, size):
        heads = slice(begin, min(begin + size, num_heads))
        q, k = query[heads], key[heads]
        scores = q.new_empty(len(q), num_queries, num_keys)
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=head_size**-0.5, out=scores)
        if mask is not None:
            scores.view(num_tiles, -1, num_queries, num_keys).add_(mask)
        weights = scores.softmax(-1)
        noise = None
        if dropout_p > 0.0:
            offset = first + begin * num_queries * num_keys // LANES
            noise = dropout_noise(weights.shape, weights.dtype, dropout_p, seed, offset)
        yield heads, weights, noise
