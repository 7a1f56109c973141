"""The fast operations against torch's own, in values, gradients and statistics."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_bert.model import kernels
from dist_bert.model.kernels import (
    FewRows,
    dropout,
    dropout_noise,
    hashed_counters,
    linear_cross_entropy,
)
from tests.support.deterministic_ops import Names

pytestmark = pytest.mark.trains


def random(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=dtype).requires_grad_()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_the_gradient_of_few_rows_is_that_of_an_embedding(
    dtype: torch.dtype, tolerance: float
) -> None:
    """Summed in float32 and rounded once: 3,000 tokens share each of the two rows."""
    ids = torch.arange(6_000) % 2 * 4
    weight, slope = random(7, 16, dtype=dtype), random(6_000, 16, seed=4).detach().abs()
    slope = slope.to(dtype)
    rows = kernels._FewRows.apply(weight, ids)
    (found,) = torch.autograd.grad(rows, weight, slope)
    expected = torch.zeros(7, 16, dtype=torch.float64).index_add_(0, ids, slope.double())

    assert torch.equal(rows, weight[ids]) and found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize(
    ("device", "num_rows", "expected"),
    [
        ("cpu", 512, "aten.embedding_dense_backward.default"),
        ("meta", 512, "aten.mm.default"),
        ("meta", 8_192, "aten.embedding_dense_backward.default"),
    ],
)
def test_a_gpu_does_not_sort_the_tokens_of_a_small_table(
    device: str, num_rows: int, expected: str
) -> None:
    table = FewRows(num_rows, 16, device=device)
    with Names() as names:
        table(torch.zeros(64, dtype=torch.int64, device=device)).sum().backward()
    sums = {"aten.mm.default", "aten.embedding_dense_backward.default"}
    assert names.found & sums == {expected}


def test_hashes_are_splitmix64() -> None:
    """Steele, Lea and Flood's generator in Python's integers."""
    mask, seed = (1 << 64) - 1, 0x1234567890ABCDEF
    expected = []
    for number in range(1, 6):
        z = (seed + number * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append(z ^ (z >> 31))
    assert hashed_counters(5, seed).numpy().view(np.uint64).tolist() == expected
    assert hashed_counters(2, seed, first=3).numpy().view(np.uint64).tolist() == expected[3:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_drops_the_share_it_is_told_and_keeps_the_mean(dtype: torch.dtype) -> None:
    p, count = 0.1, 1_000_003
    noise = dropout_noise((count,), dtype, p, seed=5)
    share = float((noise == 0).double().mean())
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / count)  # five standard deviations
    kept = noise[noise != 0].unique()
    assert len(kept) == 1 and float(kept) == pytest.approx(1 / (1 - p), rel=3e-3)


def test_dropout_of_neighbours_lanes_and_seeds_is_independent() -> None:
    count = 400_000
    first, other = (dropout_noise((count,), torch.float32, 0.5, seed) == 0 for seed in (7, 8))
    pairs = {
        "another seed": (first, other),
        **{f"{d} places on": (first[:-d], first[d:]) for d in (1, 2, 3, 4, 5, 64, 1_024)},
    }
    for name, (a, b) in pairs.items():
        both = float((a & b).double().mean())
        assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / len(a)), name


def test_dropout_follows_torchs_seed() -> None:
    values = random(13, 7, dtype=torch.float32)
    torch.manual_seed(1)
    first, second = dropout(values, 0.3), dropout(values, 0.3)
    torch.manual_seed(1)
    assert torch.equal(dropout(values, 0.3), first)
    assert not torch.equal(first, second)
    (gradient,) = torch.autograd.grad(first.sum(), values)
    assert torch.equal(gradient != 0, first != 0)
    assert torch.equal(dropout(values, 0.0), values)


@pytest.mark.parametrize("cached_logits", [1, 300, 1 << 20])
def test_linear_cross_entropy_agrees_with_torch(
    cached_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_CACHED_LOGITS", cached_logits)
    hidden, weight = (random(*s, dtype=torch.float32) for s in ((17, 5), (101, 5)))
    with torch.no_grad():
        bias = random(101, seed=5, dtype=torch.float32) * 1.0
        bias[97:] = -torch.inf  # rows that pad the vocabulary
    bias.requires_grad_()
    labels = torch.randint(97, (17,), generator=torch.Generator().manual_seed(6))
    logits = F.linear(hidden, weight, bias)
    labels[::4] = logits.argmax(1)[::4]
    labels[[3, 4]] = -100
    expected = 1.7 * F.cross_entropy(logits, labels, reduction="sum")
    loss, num_correct = linear_cross_entropy(hidden, weight, bias, labels)
    assert 1.7 * loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert num_correct == (logits.argmax(1) == labels).sum() >= 4
    inputs = (hidden, weight, bias)
    ours, torchs = (torch.autograd.grad(x, inputs) for x in (1.7 * loss, expected))
    for gradient, torchs_gradient in zip(ours, torchs, strict=True):
        torch.testing.assert_close(gradient, torchs_gradient, rtol=0, atol=1e-5)
    with torch.no_grad():
        evaluated, _ = linear_cross_entropy(hidden, weight, bias, labels)
    assert torch.equal(evaluated, loss)


@pytest.mark.parametrize("gap", [-200.0, -30.0, 0.0, 12.0])
def test_the_loss_is_exact_where_the_label_is_hopeless_or_certain(gap: float) -> None:
    """The label is `gap` above the best other class, at logits whose rounding is 4e-6."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[50.0 + gap], [50.0], [50.0 - 1.0]])
    loss, _ = linear_cross_entropy(hidden, weight, torch.zeros(3), torch.tensor([0]))
    expected = math.log1p(math.exp(-gap) + math.exp(-gap - 1.0))
    assert loss.item() == pytest.approx(expected, rel=3e-7 if gap <= 0 else 2e-2)


def test_gradients_of_linear_cross_entropy_in_bf16_scale_exactly() -> None:
    """1/3 rounded to bf16 would be 0.2 % off; the product may round, but not the factor."""
    hidden, weight = (random(*s, dtype=torch.float32) for s in ((64, 8), (101, 8)))
    hidden, weight, bias = (
        x.detach().bfloat16().requires_grad_() for x in (hidden, weight, weight[:, 0])
    )
    inputs = (hidden, weight, bias)
    labels = torch.arange(64)
    loss, _ = linear_cross_entropy(hidden, weight, bias, labels)
    ones = torch.autograd.grad(loss, inputs, retain_graph=True)
    thirds = torch.autograd.grad(loss / 3.0, inputs)
    for one, third in zip(ones, thirds, strict=True):
        ratio = third.float().abs().sum() / one.float().abs().sum()
        assert float(ratio) == pytest.approx(1 / 3, rel=5e-4)
