"""Attention within a window: the band against a plain mask, and its cost."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dist_bert.model import band, products
from dist_bert.model.band import band_tiles, banded_attention
from tests.unit.model.test_kernels import HEAD_SIZE, NUM_HEADS, bounds_of, random

pytestmark = pytest.mark.trains

# Below, at and above the window of 20; from 81 tokens on a text is cut.
LENGTHS = (1, 2, 19, 20, 21, 22, 41, 79, 80, 81, 95, 96, 97, 211)
WINDOW = 20


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


@pytest.mark.parametrize("window", [1, 5, WINDOW, 64, 300])
@pytest.mark.parametrize("cached_scores", [1, 20_000, 1 << 21])
def test_it_agrees_with_a_mask(
    cached_scores: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(band, "CACHED_SCORES", cached_scores)
    qkv = random(sum(LENGTHS), 3 * NUM_HEADS * HEAD_SIZE)
    direction = random(sum(LENGTHS), NUM_HEADS * HEAD_SIZE, seed=4).detach()
    tiles = band_tiles(bounds_of(LENGTHS), NUM_HEADS, window)
    results = []
    for context in (
        banded_attention(qkv, tiles, NUM_HEADS, 0.0),
        masked_attention(qkv, LENGTHS, window),
    ):
        results.append((context, *torch.autograd.grad(context, qkv, direction)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_each_length_alone(length: int) -> None:
    qkv = random(length, 3 * NUM_HEADS * HEAD_SIZE)
    tiles = band_tiles(bounds_of((length,)), NUM_HEADS, WINDOW)
    context = banded_attention(qkv, tiles, NUM_HEADS, 0.0)
    expected = masked_attention(qkv, (length,), WINDOW)
    torch.testing.assert_close(context, expected, rtol=0, atol=1e-12)


def test_every_token_is_the_query_of_one_slot() -> None:
    tiles = band_tiles(bounds_of(LENGTHS), NUM_HEADS, WINDOW)
    queries = [group.queries if group.own is None else group.queries[group.own] for group in tiles]
    assert torch.cat(queries).sort().values.tolist() == list(range(sum(LENGTHS)))


@pytest.mark.parametrize("cached_scores", [1, 1 << 21])
def test_gradients_with_dropout(cached_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass draws the dropout of the forward pass again: numeric derivatives tell."""
    monkeypatch.setattr(band, "CACHED_SCORES", cached_scores)
    lengths = (7, 35, 3)
    qkv = random(sum(lengths), 3 * NUM_HEADS * HEAD_SIZE)
    tiles = band_tiles(bounds_of(lengths), NUM_HEADS, 3)

    def attend(qkv: Tensor) -> Tensor:
        torch.manual_seed(2)
        return banded_attention(qkv, tiles, NUM_HEADS, 0.4)

    assert not torch.equal(attend(qkv), banded_attention(qkv, tiles, NUM_HEADS, 0.0))
    assert torch.autograd.gradcheck(attend, (qkv,), fast_mode=True)


def test_with_dropout_it_is_right_on_average() -> None:
    lengths = (53, 19, 4)
    qkv = random(sum(lengths), 3 * NUM_HEADS * HEAD_SIZE, dtype=torch.float32).detach()
    tiles = band_tiles(bounds_of(lengths), NUM_HEADS, 6)
    draws = torch.stack([banded_attention(qkv, tiles, NUM_HEADS, 0.2) for _ in range(2_000)])
    deviation = draws.std(0) / math.sqrt(len(draws))
    error = (draws.mean(0) - masked_attention(qkv, lengths, 6)).abs()
    assert float((error / deviation).max()) < 5.0


def test_heads_and_tiles_draw_their_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal values everywhere: what differs between heads and tiles is the dropout alone."""
    monkeypatch.setattr(band, "CACHED_SCORES", 1)
    tiles = band_tiles(bounds_of((64, 64)), NUM_HEADS, 3)
    context = banded_attention(torch.ones(128, 3 * NUM_HEADS * HEAD_SIZE), tiles, NUM_HEADS, 0.5)
    parts = context.view(8, 16, NUM_HEADS, HEAD_SIZE)[..., 0].permute(0, 2, 1)  # of 16 tokens each
    inner = parts[[1, 2, 5, 6]].flatten(0, 1)  # whose window is whole
    for a, b in itertools.combinations(inner, 2):
        assert not torch.equal(a, b)


def test_in_bf16_it_is_float32_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without bf16 instructions: not one product in bf16."""
    monkeypatch.setattr(products, "has_bf16_instructions", lambda: False)
    qkv = random(sum(LENGTHS), 3 * NUM_HEADS * HEAD_SIZE, dtype=torch.float32).detach()
    direction = random(sum(LENGTHS), NUM_HEADS * HEAD_SIZE, seed=4).bfloat16()
    tiles = band_tiles(bounds_of(LENGTHS), NUM_HEADS, WINDOW)
    half = qkv.bfloat16()
    results = []
    for values, dtype in ((half, torch.bfloat16), (half.float(), torch.float32)):
        values.requires_grad_()
        context = banded_attention(values, tiles, NUM_HEADS, 0.0)
        assert context.dtype == dtype
        results.append((context, *torch.autograd.grad(context, values, direction.to(dtype))))
    for rounded, exact in zip(*results, strict=True):
        assert torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize(("lengths", "factor"), [((1_024,), 2.0), ((512, 512), 2.0)])
def test_the_cost_grows_with_length_times_window(lengths: tuple[int, ...], factor: float) -> None:
    """Torch's own count of the products: twice the text or twice the window is twice the work."""

    def count(lengths: tuple[int, ...], window: int) -> int:
        qkv = random(sum(lengths), 3 * NUM_HEADS * HEAD_SIZE)
        tiles = band_tiles(bounds_of(lengths), NUM_HEADS, window)
        with FlopCounterMode(display=False) as counter:
            banded_attention(qkv, tiles, NUM_HEADS, 0.0).sum().backward()
        return counter.get_total_flops()

    whole = count(lengths, 32)
    assert count(tuple(2 * n for n in lengths), 32) == factor * whole
    assert count(lengths, 64) == factor * whole
    # Of all pairs of 1,024 tokens the band has 65 / 1,024; in tiles of 32 it is 96 / 1,024.
    products_of_pairs = 2 * 7 * HEAD_SIZE * NUM_HEADS  # two forward, five backward
    assert whole == products_of_pairs * sum(lengths) * 96


def test_without_a_longer_text_nothing_is_cut() -> None:
    (group,) = band_tiles(bounds_of((16, 16)), NUM_HEADS, WINDOW)
    assert group.is_masked.shape == (2, 1, 16, 16) and not group.is_masked.any()
    assert group.own is None
