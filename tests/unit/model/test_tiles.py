"""Attention by tiles: against torch's own, within a window against a plain mask; and its cost."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dist_bert.model import products, tiles
from dist_bert.model.tiles import band_tiles, group_samples, tiled_attention
from tests.unit.model.test_kernels import random

pytestmark = pytest.mark.trains

NUM_HEADS, HEAD_SIZE = 3, 4
SAMPLES = (33, 31, 17, 16, 16, 5, 1)
# Below, at and above the window of 20; from 81 tokens on a text is cut.
LENGTHS = (1, 2, 19, 20, 21, 22, 41, 79, 80, 81, 95, 96, 97, 211)
WINDOW = 20


def bounds_of(lengths: tuple[int, ...]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def torchs_attention(qkv: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """One sample after the other, none padded."""
    contexts = []
    for sample in qkv.split(lengths):
        q, k, v = sample.view(len(sample), 3, NUM_HEADS, HEAD_SIZE).permute(1, 2, 0, 3)
        contexts.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
    return torch.cat(contexts)


def masked_attention(qkv: Tensor, lengths: tuple[int, ...], window: int) -> Tensor:
    """One sample after the other, each with a mask of all its pairs."""
    contexts = []
    for sample in qkv.split(lengths):
        q, k, v = sample.view(len(sample), 3, NUM_HEADS, HEAD_SIZE).permute(1, 2, 0, 3)
        places = torch.arange(len(sample))
        scores = q @ k.transpose(1, 2) / HEAD_SIZE**0.5
        is_far = (places[:, None] - places).abs() > window
        weights = scores.masked_fill(is_far, -torch.inf).softmax(-1)
        contexts.append((weights @ v).transpose(0, 1).flatten(1))
    return torch.cat(contexts)


@pytest.mark.parametrize("cached_scores", [1, 5_000, 20_000, 1 << 21])
def test_of_whole_samples_it_agrees_with_torch(
    cached_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_CACHED_SCORES", cached_scores)
    qkv = random(sum(SAMPLES), 3 * NUM_HEADS * HEAD_SIZE)
    direction = random(sum(SAMPLES), NUM_HEADS * HEAD_SIZE, seed=4).detach()
    groups = group_samples(bounds_of(SAMPLES), NUM_HEADS)
    results = []
    for context in (
        tiled_attention(qkv, groups, NUM_HEADS, 0.0),
        torchs_attention(qkv, SAMPLES),
    ):
        results.append((context, *torch.autograd.grad(context, qkv, direction)))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-12)


def test_groups_cover_all_tokens_within_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_CACHED_SCORES", 3_000)
    groups = group_samples(bounds_of(SAMPLES), NUM_HEADS)
    found = [(group.start, group.stop, group.shape) for group in groups]
    assert found == [
        (0, 33, (1, 48, 48)),
        (33, 64, (1, 32, 32)),
        (64, 81, (1, 32, 32)),
        (81, 118, (3, 16, 16)),
        (118, 119, (1, 16, 16)),
    ]
    assert groups[3].token_of_slot is not None and len(groups[3].token_of_slot) == 3 * 16


@pytest.mark.parametrize("cached_scores", [1, 5_000, 1 << 21])
def test_gradients_of_attention_with_dropout(
    cached_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass draws the dropout of the forward pass again: numeric derivatives tell."""
    monkeypatch.setattr(tiles, "_CACHED_SCORES", cached_scores)
    lengths = (7, 16, 3)
    qkv = random(sum(lengths), 3 * NUM_HEADS * HEAD_SIZE)
    groups = group_samples(bounds_of(lengths), NUM_HEADS)

    def attend(qkv: Tensor) -> Tensor:
        torch.manual_seed(2)
        return tiled_attention(qkv, groups, NUM_HEADS, 0.4)

    assert not torch.equal(attend(qkv), tiled_attention(qkv, groups, NUM_HEADS, 0.0))
    assert torch.autograd.gradcheck(attend, (qkv,))


def test_attention_with_dropout_is_right_on_average() -> None:
    lengths = (19, 4)
    qkv = random(sum(lengths), 3 * NUM_HEADS * HEAD_SIZE, dtype=torch.float32).detach()
    groups = group_samples(bounds_of(lengths), NUM_HEADS)
    draws = torch.stack([tiled_attention(qkv, groups, NUM_HEADS, 0.2) for _ in range(4_000)])
    deviation = draws.std(0) / math.sqrt(len(draws))
    error = (draws.mean(0) - torchs_attention(qkv, lengths)).abs()
    assert float((error / deviation).max()) < 5.0


@pytest.mark.parametrize("window", [1, 5, WINDOW, 64, 300])
@pytest.mark.parametrize("cached_scores", [1, 20_000, 1 << 21])
def test_it_agrees_with_a_mask(
    cached_scores: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_CACHED_SCORES", cached_scores)
    qkv = random(sum(LENGTHS), 3 * NUM_HEADS * HEAD_SIZE)
    direction = random(sum(LENGTHS), NUM_HEADS * HEAD_SIZE, seed=4).detach()
    groups = band_tiles(bounds_of(LENGTHS), NUM_HEADS, window)
    results = []
    for context in (
        tiled_attention(qkv, groups, NUM_HEADS, 0.0),
        masked_attention(qkv, LENGTHS, window),
    ):
        results.append((context, *torch.autograd.grad(context, qkv, direction)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_each_length_alone(length: int) -> None:
    qkv = random(length, 3 * NUM_HEADS * HEAD_SIZE)
    groups = band_tiles(bounds_of((length,)), NUM_HEADS, WINDOW)
    context = tiled_attention(qkv, groups, NUM_HEADS, 0.0)
    expected = masked_attention(qkv, (length,), WINDOW)
    torch.testing.assert_close(context, expected, rtol=0, atol=1e-12)


def test_every_token_is_the_query_of_one_slot() -> None:
    groups = band_tiles(bounds_of(LENGTHS), NUM_HEADS, WINDOW)
    queries = []
    for group in groups:
        slots = torch.arange(group.stop - group.start)
        tokens = slots if group.token_of_slot is None else group.token_of_slot
        tokens = tokens if group.slot_of_token is None else tokens[group.slot_of_token]
        assert torch.equal(tokens, slots)
        queries += [group.start + slots]
    assert torch.equal(torch.cat(queries), torch.arange(sum(LENGTHS)))


@pytest.mark.parametrize("cached_scores", [1, 1 << 21])
def test_gradients_within_a_window_with_dropout(
    cached_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass draws the dropout of the forward pass again: numeric derivatives tell."""
    monkeypatch.setattr(tiles, "_CACHED_SCORES", cached_scores)
    lengths = (7, 35, 3)
    qkv = random(sum(lengths), 3 * NUM_HEADS * HEAD_SIZE)
    groups = band_tiles(bounds_of(lengths), NUM_HEADS, 3)

    def attend(qkv: Tensor) -> Tensor:
        torch.manual_seed(2)
        return tiled_attention(qkv, groups, NUM_HEADS, 0.4)

    assert not torch.equal(attend(qkv), tiled_attention(qkv, groups, NUM_HEADS, 0.0))
    assert torch.autograd.gradcheck(attend, (qkv,), fast_mode=True)


def test_within_a_window_with_dropout_it_is_right_on_average() -> None:
    lengths = (53, 19, 4)
    qkv = random(sum(lengths), 3 * NUM_HEADS * HEAD_SIZE, dtype=torch.float32).detach()
    groups = band_tiles(bounds_of(lengths), NUM_HEADS, 6)
    draws = torch.stack([tiled_attention(qkv, groups, NUM_HEADS, 0.2) for _ in range(2_000)])
    deviation = draws.std(0) / math.sqrt(len(draws))
    error = (draws.mean(0) - masked_attention(qkv, lengths, 6)).abs()
    assert float((error / deviation).max()) < 5.0


def test_heads_and_tiles_draw_their_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal values everywhere: what differs between heads and tiles is the dropout alone."""
    monkeypatch.setattr(tiles, "_CACHED_SCORES", 1)
    groups = band_tiles(bounds_of((64, 64)), NUM_HEADS, 3)
    context = tiled_attention(torch.ones(128, 3 * NUM_HEADS * HEAD_SIZE), groups, NUM_HEADS, 0.5)
    parts = context.view(8, 16, NUM_HEADS, HEAD_SIZE)[..., 0].permute(0, 2, 1)  # of 16 tokens each
    inner = parts[[1, 2, 5, 6]].flatten(0, 1)  # whose window is whole
    for a, b in itertools.combinations(inner, 2):
        assert not torch.equal(a, b)


def test_in_bf16_it_is_float32_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without bf16 instructions: not one product in bf16."""
    monkeypatch.setattr(products, "has_bf16_instructions", lambda: False)
    qkv = random(sum(LENGTHS), 3 * NUM_HEADS * HEAD_SIZE, dtype=torch.float32).detach()
    direction = random(sum(LENGTHS), NUM_HEADS * HEAD_SIZE, seed=4).bfloat16()
    groups = band_tiles(bounds_of(LENGTHS), NUM_HEADS, WINDOW)
    half = qkv.bfloat16()
    results = []
    for values, dtype in ((half, torch.bfloat16), (half.float(), torch.float32)):
        values.requires_grad_()
        context = tiled_attention(values, groups, NUM_HEADS, 0.0)
        assert context.dtype == dtype
        results.append((context, *torch.autograd.grad(context, values, direction.to(dtype))))
    for rounded, exact in zip(*results, strict=True):
        assert torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize(("lengths", "factor"), [((1_024,), 2.0), ((512, 512), 2.0)])
def test_the_cost_grows_with_length_times_window(lengths: tuple[int, ...], factor: float) -> None:
    """Torch's own count of the products: twice the text or twice the window is twice the work."""

    def count(lengths: tuple[int, ...], window: int) -> int:
        qkv = random(sum(lengths), 3 * NUM_HEADS * HEAD_SIZE)
        groups = band_tiles(bounds_of(lengths), NUM_HEADS, window)
        with FlopCounterMode(display=False) as counter:
            tiled_attention(qkv, groups, NUM_HEADS, 0.0).sum().backward()
        return counter.get_total_flops()

    whole = count(lengths, 32)
    assert count(tuple(2 * n for n in lengths), 32) == factor * whole
    assert count(lengths, 64) == factor * whole
    # Of all pairs of 1,024 tokens the band has 65 / 1,024; in tiles of 32 it is 96 / 1,024.
    products_of_pairs = 2 * 7 * HEAD_SIZE * NUM_HEADS  # two forward, five backward
    assert whole == products_of_pairs * sum(lengths) * 96


def test_without_a_longer_text_nothing_is_cut() -> None:
    (group,) = band_tiles(bounds_of((16, 16)), NUM_HEADS, WINDOW)
    assert (group.shape, group.mask, group.keys) == ((2, 16, 16), None, None)
