"""Rotary positions: against complex numbers, and their gradient against plain autograd's."""

import pytest
import torch
from torch import Tensor

from dist_bert.model.rotary import Rotation, rotate, rotation

HEADS, HEAD_SIZE = 3, 10
HIDDEN = HEADS * HEAD_SIZE


def plain(qkv: Tensor, turn: Rotation) -> Tensor:
    """By the definition, in operations that autograd knows."""
    cos, sin = turn
    by_head = qkv.view(len(qkv), 3, HEADS, HEAD_SIZE)
    first, second = by_head[:, :2].float().chunk(2, -1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((rotated.to(qkv.dtype), by_head[:, 2:]), 1).view_as(qkv)


def test_pairs_are_complex_numbers_that_turn() -> None:
    qkv = torch.randn(7, 3 * HIDDEN)
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 9_000])
    turned = rotate(qkv, rotation(positions, HEAD_SIZE, 100.0), HEADS)
    exponents = torch.arange(HEAD_SIZE // 2, dtype=torch.float64) * 2 / HEAD_SIZE
    angles = positions[:, None].double() / 100.0**exponents  # (T, D/2)
    unit = torch.polar(torch.ones_like(angles), angles)[:, None, None, :]
    heads = qkv.double().view(7, 3, HEADS, 2, HEAD_SIZE // 2)
    pairs = torch.complex(heads[:, :2, :, 0], heads[:, :2, :, 1]) * unit
    expected = torch.stack((pairs.real, pairs.imag), 3)
    made = turned.double().view(7, 3, HEADS, 2, HEAD_SIZE // 2)
    # An angle of 9,000 has a last float32 digit of 0.001.
    assert (made[:, :2] - expected).abs()[:-1].max() < 1e-6
    assert (made[:, :2] - expected).abs()[-1].max() < 5e-3
    assert torch.equal(made[:, 2], heads[:, 2]), "values have no places"
    assert torch.equal(turned[0], qkv[0]) and torch.equal(turned[4], qkv[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradient_are_autograds_bit_for_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few tokens at a time, of which the last are fewer."""
    monkeypatch.setattr("dist_bert.model.rotary._CACHED_VALUES", 5 * 3 * HIDDEN)
    qkv = torch.randn(23, 3 * HIDDEN).to(dtype).requires_grad_()
    upstream = torch.randn(23, 3 * HIDDEN).to(dtype)
    turn = rotation(torch.arange(23) % 8, HEAD_SIZE, 10_000.0)
    expected, made = plain(qkv, turn), rotate(qkv, turn, HEADS)
    assert torch.equal(made, expected)
    (expected_gradient,) = torch.autograd.grad(expected, qkv, upstream)
    (gradient,) = torch.autograd.grad(made, qkv, upstream)
    assert torch.equal(gradient, expected_gradient) and gradient.dtype == dtype
    assert not torch.equal(gradient[1], upstream[1]), "this test can fail"
