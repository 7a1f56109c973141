"""Attention by FlashAttention's kernel, on a GPU by its own and on the CPU by a plain one.

The CPU's runs show that the kernel gets the right arguments and that autograd and torch.compile
pass them on; the GPU's, that the kernel itself agrees.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dist_bert.common.errors import UserError
from dist_bert.model import attention as attention_module
from dist_bert.model import bert as model_module
from dist_bert.model.attention import SampleLayout, attention, can_use_varlen_kernel
from tests.support.deterministic_ops import Names, refused
from tests.support.devices import on_each_device
from tests.support.flash_kernel import flash_kernel_on_cpu
from tests.unit.model.test_bert import TINY, Batch, backward, make_batch, make_model, max_difference
from tests.unit.model.test_modern import MODERN

LENGTHS = (13, 7, 5)
NUM_HEADS, HEAD_SIZE, WINDOW, P = 3, 16, 3, 0.3
NUM_TOKENS, HIDDEN = sum(LENGTHS), NUM_HEADS * HEAD_SIZE
# The kernel wants head sizes of 8 * n.
BERT = dataclasses.replace(TINY, hidden_size=32)
LOCAL = dataclasses.replace(MODERN, hidden_size=32)
pytestmark = pytest.mark.trains


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where models take their attention to the kernel."""
    name: str = request.param
    with contextlib.ExitStack() as stack:
        if name == "cpu":
            stack.enter_context(flash_kernel_on_cpu())
            monkeypatch.setattr(model_module, "can_use_varlen_kernel", lambda *_: True)
        yield name


def tolerance(device: str) -> float:
    """Float32 on the CPU; on a GPU bf16, with 8 bits."""
    return 1e-5 if device == "cpu" else 0.03


def to(device: str, batch: Batch) -> Batch:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def inputs(device: str) -> tuple[Tensor, SampleLayout, Tensor]:
    """(T, 3H) that needs a gradient, the layout, and (T, H), the gradient of what comes out."""
    rng = torch.Generator().manual_seed(3)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    qkv, gradient = (
        torch.randn(NUM_TOKENS, width, generator=rng).to(device, dtype)
        for width in (3 * HIDDEN, HIDDEN)
    )
    cu_seqlens = F.pad(torch.tensor(LENGTHS).cumsum(0), (1, 0)).int().to(device)
    return qkv.requires_grad_(), SampleLayout(cu_seqlens, max(LENGTHS), is_varlen=True), gradient


def plainly(qkv: Tensor, window: int | None, factors: Tensor | None = None) -> Tensor:
    """(T, H) in float32, a sample at a time; `factors` of the weights: (T, N, longest sample)."""
    contexts = []
    for start, length in zip((0, 13, 20), LENGTHS, strict=True):
        own = qkv[start : start + length].float().view(length, 3, NUM_HEADS, HEAD_SIZE)
        q, k, v = own.permute(1, 2, 0, 3).unbind(0)  # (N, L, D) each
        places = torch.arange(length, device=qkv.device)
        is_far = (places[:, None] - places).abs() > (length if window is None else window)
        weights = (q @ k.mT / HEAD_SIZE**0.5).masked_fill(is_far, -torch.inf).softmax(-1)
        if factors is not None:
            weights = weights * factors[start : start + length, :, :length].transpose(0, 1)
        contexts.append((weights @ v).transpose(0, 1).flatten(1))
    return torch.cat(contexts)


def dropped_weights(qkv: Tensor, layout: SampleLayout, window: int | None, p: float) -> Tensor:
    """(T, N, D) the weights that each token gives the places of its sample, after dropout.

    Read from the kernel by values of zeros and a one: D is larger than every sample.
    """
    place = torch.cat([torch.arange(length) for length in LENGTHS]).to(qkv.device)
    values = F.one_hot(place, HEAD_SIZE).to(qkv.dtype).repeat(1, NUM_HEADS)  # (T, H)
    told = torch.cat([qkv.detach()[:, : 2 * HIDDEN], values], 1)
    return attention(told, layout, NUM_HEADS, p, window).view(NUM_TOKENS, NUM_HEADS, HEAD_SIZE)


@pytest.mark.parametrize("window", [None, WINDOW])
@on_each_device
def test_without_dropout_it_is_plain_attention(device: str, window: int | None) -> None:
    qkv, layout, gradient = inputs(device)
    context = attention(qkv, layout, NUM_HEADS, 0.0, window)
    expected = plainly(qkv, window)
    assert max_difference(context.float(), expected) < tolerance(device)
    (found,) = torch.autograd.grad(context, qkv, gradient)
    (wanted,) = torch.autograd.grad(expected, qkv, gradient.float())
    assert max_difference(found.float(), wanted.float()) < tolerance(device)


@pytest.mark.parametrize("window", [None, WINDOW])
@on_each_device
def test_dropout_scales_the_kept_weights_and_has_their_gradient(
    device: str, window: int | None
) -> None:
    """The noise is a function of the seed, so a second pass can tell the first one's."""
    qkv, layout, gradient = inputs(device)
    torch.manual_seed(7)
    dropped = dropped_weights(qkv, layout, window, P)
    torch.manual_seed(8)
    assert not torch.equal(dropped_weights(qkv, layout, window, P), dropped)
    torch.manual_seed(7)
    context = attention(qkv, layout, NUM_HEADS, P, window)
    all_weights = dropped_weights(qkv, layout, window, 0.0)
    is_kept = dropped > 0
    kept_share = is_kept.sum() / (all_weights > 0).sum()
    assert float(kept_share) == pytest.approx(1 - P, abs=0.07)  # of 459 weights or more
    factors = is_kept.float() / (1 - P)  # (T, N, D)
    assert max_difference(dropped.float(), all_weights.float() * factors) < tolerance(device)
    expected = plainly(qkv, window, factors)
    assert max_difference(context.float(), expected) < tolerance(device)
    (found,) = torch.autograd.grad(context, qkv, gradient)
    (wanted,) = torch.autograd.grad(expected, qkv, gradient.float())
    assert max_difference(found.float(), wanted.float()) < tolerance(device)


@pytest.mark.parametrize("config", [BERT, LOCAL], ids=["bert", "local"])
@on_each_device
def test_a_model_trains_by_the_kernel_as_without(
    device: str, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch((17, 13, 5))
    model = make_model(config)
    by_kernel = make_model(config).to(device, torch.float32 if device == "cpu" else torch.bfloat16)
    kernel_loss, _, kernel_gradients = backward(by_kernel, to(device, batch))
    monkeypatch.setattr(model_module, "can_use_varlen_kernel", lambda *_: False)
    loss, _, gradients = backward(model, batch)
    assert kernel_loss == pytest.approx(loss, abs=tolerance(device))
    for name, gradient in gradients.items():
        error = (kernel_gradients[name].float().cpu() - gradient).norm()
        # bf16 alone, on CPU: at most 0.025
        assert error <= (1e-5 if device == "cpu" else 0.08) * gradient.norm() + 1e-5, name


@on_each_device
def test_attention_drops_in_training_alone_and_by_the_seed(device: str) -> None:
    """As `F.dropout` does, so a run needs no other state to resume."""
    dropping = dataclasses.replace(BERT, attention_probs_dropout_prob=P)
    model, plain = (make_model(config).to(device) for config in (dropping, BERT))
    batch = to(device, make_batch())
    if device == "cuda":
        model, plain = model.bfloat16(), plain.bfloat16()

    def loss(of: Any, seed: int) -> float:
        torch.manual_seed(seed)
        return float(of(**batch)[0].detach())

    assert loss(model.train(), 4) == loss(model, 4) != loss(model, 5)
    assert loss(model, 4) != loss(plain, 4)
    assert loss(model.eval(), 4) == loss(plain.eval(), 4)


@pytest.mark.parametrize("config", [BERT, LOCAL], ids=["bert", "local"])
@on_each_device
def test_activation_checkpointing_draws_the_same_noise(device: str, config: Any) -> None:
    dropping = dataclasses.replace(config, hidden_dropout_prob=P, attention_probs_dropout_prob=P)
    model = make_model(dropping).to(device, torch.float32 if device == "cpu" else torch.bfloat16)
    batch = to(device, make_batch())
    results = []
    for on in (False, True):
        model.encoder.activation_checkpointing = on
        torch.manual_seed(4)
        results.append(backward(model, batch))
    (loss, _, gradients), (again, _, again_gradients) = results
    assert loss == again
    for name, gradient in gradients.items():
        # The kernel of a GPU adds in any order: other noise would be a hundred times as far off.
        limit = 0.0 if device == "cpu" else 0.02
        error = (again_gradients[name].float() - gradient.float()).norm()
        assert error <= limit * gradient.float().norm() + limit / 1e3, name


@pytest.mark.parametrize("index", [0, 1])
@on_each_device
def test_a_compiled_layer_calls_it_once_with_the_same_noise(device: str, index: int) -> None:
    """Also in the backward pass, which must not draw again what it needs of the forward pass."""
    config = dataclasses.replace(LOCAL, attention_probs_dropout_prob=P)
    encoder = make_model(config).to(device, torch.float32 if device == "cpu" else torch.bfloat16)
    layer = encoder.encoder.layers[index]
    backend = "aot_eager_decomp_partition" if device == "cpu" else "inductor"
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for lengths in ((13, 7, 5, 6, 2), (3, 11, 8, 2), (9, 4, 17, 6, 2, 5)):
        batch = to(device, make_batch(lengths))
        layout = SampleLayout(batch["cu_seqlens"], max(lengths), is_varlen=True)
        turn = encoder.encoder.rotations(batch["position_ids"])[index]
        dtype = encoder.mlm_bias.dtype
        hidden = torch.randn(sum(lengths), 32).to(device, dtype)
        found = []
        for run in (layer, compiled):
            values = hidden.clone().requires_grad_()
            torch.manual_seed(6)
            context = run(values, layout, turn)
            found.append([context, *torch.autograd.grad(context.float().square().sum(), values)])
        for eager, other in zip(*found, strict=True):
            scale = float(eager.detach().float().abs().max())
            assert max_difference(eager.float(), other.float()) < tolerance(device) * scale
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


class Kernels(TorchDispatchMode):
    """Writes down what FlashAttention's operators get."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "_flash_attention" in func.name():
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.calls.append((func.name(), given))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("window", [None, WINDOW])
def test_torchs_own_operator_takes_the_call_and_has_its_derivative(window: int | None) -> None:
    """The operator that GPUs have a kernel for, on tensors without contents."""
    with torch.device("meta"):
        qkv = torch.empty(NUM_TOKENS, 3 * HIDDEN, dtype=torch.bfloat16, requires_grad=True)
        layout = SampleLayout(torch.empty(4, dtype=torch.int32), 13, is_varlen=True)
    with Kernels() as kernels:
        context = attention(qkv, layout, NUM_HEADS, P, window)
        context.sum().backward()
    assert (context.shape, context.dtype) == ((NUM_TOKENS, HIDDEN), torch.bfloat16)
    assert qkv.grad is not None and qkv.grad.shape == qkv.shape
    names = ["aten::_flash_attention_forward", "aten::_flash_attention_backward"]
    assert [name for name, _ in kernels.calls] == names
    for _, given in kernels.calls:
        assert given["cum_seq_q"] is layout.cu_seqlens is given["cum_seq_k"]
        assert (given["max_q"], given["max_k"], given["dropout_p"]) == (13, 13, P)
        reach = -1 if window is None else window
        assert (given["window_size_left"], given["window_size_right"]) == (reach, reach)
        assert not given["is_causal"] and given.get("scale") is None
        assert given["query"].shape == (NUM_TOKENS, NUM_HEADS, HEAD_SIZE)
    assert kernels.calls[1][1]["rng_state"].dtype == torch.uint64, (
        "with which the noise is drawn again"
    )


@pytest.mark.parametrize("config", [BERT, LOCAL], ids=["bert", "local"])
def test_a_gpu_can_compute_all_of_it_deterministically(config: Any) -> None:
    """Else torch would end a run with `deterministic` at the first such operation."""
    dropping = dataclasses.replace(config, hidden_dropout_prob=P, attention_probs_dropout_prob=P)
    model, batch = make_model(dropping), make_batch()
    with flash_kernel_on_cpu(), pytest.MonkeyPatch.context() as patch, Names() as names:
        patch.setattr(model_module, "can_use_varlen_kernel", lambda *_: True)
        model(**batch)[0].backward()
    assert "aten._flash_attention_backward.default" in names.found and not refused(names.found)


def test_layers_take_their_own_window_and_the_longest_sample() -> None:
    model, batch = make_model(LOCAL), make_batch((41, 13, 5))
    with flash_kernel_on_cpu() as calls, pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "can_use_varlen_kernel", lambda *_: True)
        model(**batch)
    assert [call["window"][0] for call in calls] == [-1, 3, 3, -1, 3]
    assert {call["max_q"] for call in calls} == {41}


def test_the_kernel_is_chosen_where_it_can_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)

    def choose(
        dtype: torch.dtype = torch.bfloat16, device: str = "cuda", head_size: int = 64
    ) -> bool:
        hidden: Any = SimpleNamespace(device=torch.device(device), dtype=dtype)
        return can_use_varlen_kernel(hidden, head_size)

    assert choose()
    assert choose(torch.float16)
    assert not choose(torch.float32)
    assert not choose(device="cpu")
    assert not choose(head_size=6)
    assert not choose(head_size=264)
    gpu.major = 7  # Volta and Turing have no FlashAttention
    assert not choose()
    gpu.major = 9
    # torch.autocast itself does nothing on a machine without a GPU
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device_type: torch.bfloat16)
    assert choose(torch.float32)


def test_a_torch_with_another_operator_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = SimpleNamespace(major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    names = (*attention_module._KERNEL_ARGUMENTS, "noise_of_tomorrow")
    monkeypatch.setattr(attention_module, "_KERNEL_ARGUMENTS", names)
    attention_module._check_kernel.cache_clear()
    hidden: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    with pytest.raises(UserError, match="operator has no argument noise_of_tomorrow; install"):
        can_use_varlen_kernel(hidden, 64)
