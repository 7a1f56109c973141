"""bf16 products by float32: exact values, and no other kind anywhere in a training step."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dist_bert.finetuning.heads import BertForQuestionAnswering, BertForTextClassification
from dist_bert.model import products
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.products import Linear, linear, matmul
from tests.unit.model.test_bert import TINY, make_batch

pytestmark = pytest.mark.trains

M, K, N = 13, 24, 37
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_bf16_instructions", lambda: False)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


class NoBf16Products(TorchDispatchMode):
    """Fails on every product of bf16 matrices, and counts those of float32."""

    num_products = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            dtypes = {a.dtype for a in args if isinstance(a, Tensor)}
            assert dtypes == {torch.float32}, (func, dtypes)
            self.num_products += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("without_bf16")
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("at_once", [1, (K + N) * 5, 1 << 22])
def test_a_product_is_that_of_float32_rounded_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int, has_bias: bool
) -> None:
    monkeypatch.setattr(products, "_CONVERTED_AT_ONCE", at_once)
    a, b, bias = random(M, K), random(N, K, seed=2).T, random(N, seed=3)
    exact = a.double() @ b.double() + (bias.double() if has_bias else 0.0)
    product = matmul(a, b, bias if has_bias else None)
    assert product.dtype == torch.bfloat16
    # Half a unit in the last of 8 places, and what float32 rounds on the way.
    assert (product.double() - exact).abs().le(exact.abs() * (1.001 * 2**-8) + 1e-6).all()
    assert torch.equal(matmul(a.T.contiguous().T, b.contiguous(), None), matmul(a, b, None))


@pytest.mark.usefixtures("without_bf16")
def test_no_rows_and_no_bf16_are_products_too() -> None:
    assert matmul(random(0, K), random(K, N)).shape == (0, N)
    a, b = random(M, K).float(), random(K, N).float()
    assert torch.equal(matmul(a, b), a @ b)


@pytest.mark.usefixtures("without_bf16")
def test_linear_and_its_gradients_are_those_of_float32_rounded() -> None:
    values, weight, bias = random(M, K), random(N, K, seed=2), random(N, seed=3)
    upstream = random(M, N, seed=4)
    ours = [t.clone().requires_grad_() for t in (values, weight, bias)]
    theirs = [t.float().requires_grad_() for t in (values, weight, bias)]
    with NoBf16Products() as seen:
        result = linear(*ours)
        result.backward(upstream)
    assert seen.num_products == 3
    expected = F.linear(*theirs)
    expected.backward(upstream.float())
    assert torch.equal(result, expected.bfloat16())
    for own, other in zip(ours, theirs, strict=True):
        assert own.grad is not None and other.grad is not None
        torch.testing.assert_close(own.grad, other.grad.bfloat16(), rtol=2**-8, atol=1e-6)


@pytest.mark.usefixtures("without_bf16")
def test_what_needs_no_gradient_gets_none() -> None:
    weight = random(N, K, seed=2).requires_grad_()
    linear(random(M, K), weight, None).sum().backward()
    assert weight.grad is not None
    frozen = Linear(K, N).bfloat16().requires_grad_(False)
    values = random(M, K).requires_grad_()
    frozen(values).sum().backward()
    assert frozen.weight.grad is None and values.grad is not None


@pytest.mark.usefixtures("without_bf16")
def test_autocast_keeps_float32_weights_and_rounds_what_is_multiplied() -> None:
    layer = Linear(K, N)
    values = random(M, K).float() * 1.001  # no bf16 numbers
    with torch.autocast("cpu", dtype=torch.bfloat16), NoBf16Products():
        result = layer(values)
    expected = F.linear(
        values.bfloat16().float(), layer.weight.bfloat16().float(), layer.bias.bfloat16().float()
    )
    assert torch.equal(result, expected.bfloat16())
    with NoBf16Products():
        result.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def heads() -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    batch = make_batch()
    encoder = {n: batch[n] for n in list(batch)[:5]}
    yield "pretraining", BertForPreTraining(TINY), batch
    text = {**encoder, "num_real_samples": 3, "labels": torch.tensor([1, 0, 2]), "num_samples": 3}
    yield "text", BertForTextClassification(TINY, 3, False), text
    ends = {"start_positions": torch.tensor([0, 2, 1]), "end_positions": torch.tensor([0, 3, 1])}
    question = {**encoder, **ends, "num_real_samples": 3, "num_samples": 3}
    yield "question", BertForQuestionAnswering(TINY), question


@pytest.mark.usefixtures("without_bf16")
@pytest.mark.parametrize("is_autocast", [False, True])
def test_a_training_step_multiplies_no_bf16(is_autocast: bool) -> None:
    """Model, attention, heads and loss, forward and backward."""
    for name, model, batch in heads():
        model = model if is_autocast else model.bfloat16()
        with NoBf16Products() as seen:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
                loss, _ = model(**batch)
            loss.backward()
        assert seen.num_products > 30, name
        assert torch.isfinite(loss)
        assert all(p.grad is not None for p in model.parameters()), name


def test_both_arithmetics_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a bf16 model by float32 products, against the float32 model's."""
    batch = make_batch()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(products, "has_bf16_instructions", lambda: False)
        torch.manual_seed(5)
        model = BertForPreTraining(TINY).to(dtype).eval()
        loss, _ = model(**batch)
        loss.backward()
        gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        found[dtype] = float(loss.detach()), torch.cat(gradients)
    (exact, gradient), (rounded, other) = found[torch.float32], found[torch.bfloat16]
    assert rounded == pytest.approx(exact, rel=2**-7)
    assert F.cosine_similarity(gradient, other, dim=0) > 0.999
