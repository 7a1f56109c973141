"""Products in 8 bits, emulated: against rounding by hand, and what stays as it was."""

import dataclasses
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_bert.common.errors import UserError
from dist_bert.model.attention import SampleLayout
from dist_bert.model.float8 import use_float8
from dist_bert.model.products import Linear
from tests.support.devices import needs_gpu, needs_torchao
from tests.support.flash_kernel import flash_kernel_on_cpu
from tests.unit.model.test_bert import TINY, backward, make_batch, make_model, max_difference
from tests.unit.model.test_modern import MODERN

pytestmark = pytest.mark.trains
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """By its largest value and back, in float64."""
    scale = torch.finfo(dtype).max / values.abs().max().double()
    return (values.double() * scale).to(torch.float32).to(dtype).double() / scale


@needs_torchao
def test_both_passes_multiply_what_was_rounded() -> None:
    torch.manual_seed(1)
    before = Linear(32, 48)
    weight, bias = before.weight, before.bias
    layers = nn.ModuleList([before])
    use_float8(layers, emulate=True)
    linear: Any = layers[0]
    assert linear.weight is weight and linear.bias is bias
    values = torch.randn(64, 32, requires_grad=True)
    gradient = torch.randn(64, 48)
    product = linear(values)
    of_values, of_weight, of_bias = torch.autograd.grad(product, (values, weight, bias), gradient)
    v, w, g = rounded(values, E4M3), rounded(weight, E4M3), rounded(gradient, E5M2)
    for found, expected in (
        (product, v @ w.T + bias.double()),
        (of_values, g @ w),
        (of_weight, g.T @ v),
        (of_bias, gradient.double().sum(0)),
    ):
        assert (found.double() - expected).norm() < 1e-5 * expected.norm()
    plain = nn.functional.linear(values, weight, bias)
    assert 0.01 < (product - plain).norm() / plain.norm() < 0.06, "3 bits of fraction"


@needs_torchao
@pytest.mark.parametrize("config", [TINY, MODERN], ids=["bert", "modern"])
def test_a_model_keeps_its_names_and_comes_near_the_gradient(config: Any) -> None:
    model, plain = make_model(config), make_model(config)
    names = {name: parameter for name, parameter in model.named_parameters()}
    use_float8(model.encoder.layers, emulate=True)
    assert {name: parameter for name, parameter in model.named_parameters()} == names
    batch = make_batch((17, 13, 5))
    loss, _, gradients = backward(model, batch)
    exact_loss, _, exact = backward(plain, batch)
    assert loss == pytest.approx(exact_loss, rel=0.03) and loss != exact_loss
    found, expected = (torch.cat([g.flatten() for g in x.values()]) for x in (gradients, exact))
    assert torch.cosine_similarity(found, expected, 0) > 0.95


@needs_torchao
def test_a_layer_is_compiled_as_one_graph_for_all_numbers_of_tokens() -> None:
    """With the kernel of GPUs, where layers are compiled."""
    model = make_model(dataclasses.replace(MODERN, hidden_size=32))
    use_float8(model.encoder.layers, emulate=True)
    layer = model.encoder.layers[1]
    backend = "aot_eager_decomp_partition"
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    with flash_kernel_on_cpu():
        for lengths in ((13, 7, 5, 6, 2), (3, 11, 8, 2), (9, 4, 17, 6, 2, 5)):
            batch = make_batch(lengths)
            layout = SampleLayout(batch["cu_seqlens"], max(lengths), is_varlen=True)
            turn = model.encoder.rotations(batch["position_ids"])[1]
            values = torch.randn(sum(lengths), 32, requires_grad=True)
            found = []
            for run in (layer, compiled):
                context = run(values, layout, turn)
                found.append([context, *torch.autograd.grad(context.square().sum(), values)])
            for eager, other in zip(*found, strict=True):
                assert max_difference(eager, other) < 1e-5 * float(eager.detach().abs().max())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_without_torchao_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"float8 = True: torchao.* pip install .*\[float8\]"):
        use_float8(nn.ModuleList(), emulate=True)


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(UserError, match=r"capability 8\.9 or later; this one has 8\.6"):
        use_float8(nn.ModuleList())


@needs_torchao
@pytest.mark.gpu
@needs_gpu
def test_a_gpu_multiplies_as_emulated() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU since Ada or Hopper")
    torch.manual_seed(1)
    own, emulated = (nn.ModuleList([Linear(64, 128)]).cuda().bfloat16() for _ in range(2))
    emulated.load_state_dict(own.state_dict())
    use_float8(own)
    use_float8(emulated, emulate=True)
    modules: list[Any] = [own[0], emulated[0]]
    values = torch.randn(192, 64, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn(192, 128, device="cuda", dtype=torch.bfloat16)
    found = []
    for module in modules:
        inputs = values.clone().requires_grad_()
        product = module(inputs)
        found.append((product, *torch.autograd.grad(product, (inputs, module.weight), gradient)))
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).float().norm()) < 0.01 * float(theirs.float().norm())
