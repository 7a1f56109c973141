"""The kernels of FlashAttention 3: exchanged where torch, package and GPU allow it, else refused.

Without a GPU the exchange is still torch's own; the package has names without kernels.
"""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.nn import attention as torch_attention

from dist_bert.common.errors import UserError
from dist_bert.model.attention import SampleLayout, attention, use_flash_attention_3
from tests.support.devices import needs_gpu

NAME = "flash_attn_interface"


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that has the kernels; torch's own are back after the test."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    yield
    torch_attention.restore_flash_attention_impl(_raise_warn=False)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, NAME, ModuleType(NAME))
    library = torch.library.Library("flash_attn_3", "DEF")
    for operator in ("fwd", "bwd"):
        library.define(f"{operator}(Tensor query) -> Tensor")
    yield
    library._destroy()


def refusal() -> str:
    with pytest.raises(UserError) as error:
        use_flash_attention_3()
    assert torch_attention.current_flash_attention_impl() is None
    return str(error.value)


def test_the_kernels_are_exchanged(package: None) -> None:
    assert torch_attention.current_flash_attention_impl() is None
    for _ in range(2):  # each turn of the benchmark does so
        use_flash_attention_3()
        assert torch_attention.current_flash_attention_impl() == "FA3"


def test_another_gpu_is_refused(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert "compute capability 9 (Hopper); this one has 8.6" in refusal()


def test_a_torch_that_cannot_exchange_them_is_refused(
    package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch_attention, "activate_flash_attention_impl")
    assert f"torch {torch.__version__} has only its own kernels" in refusal()


def test_without_the_package_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, NAME, None)  # import fails, also where it is installed
    message = refusal()
    assert NAME in message and "github.com/Dao-AILab/flash-attention, folder hopper" in message


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("window", [None, 3])
def test_its_attention_is_that_of_version_2(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(NAME)
    monkeypatch.undo()
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    lengths, num_heads, head_size = (700, 13, 7), 3, 64
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().cuda()
    layout = SampleLayout(cu_seqlens, max(lengths), is_varlen=True)
    rng = torch.Generator("cuda").manual_seed(3)
    qkv, gradient = (
        torch.randn(sum(lengths), n * num_heads * head_size, generator=rng, device="cuda")
        for n in (3, 1)
    )
    found = []
    for exchange in (lambda: None, use_flash_attention_3):
        exchange()
        inputs = qkv.bfloat16().requires_grad_()
        context = attention(inputs, layout, num_heads, 0.0, window)
        found.append((context, *torch.autograd.grad(context, inputs, gradient.bfloat16())))
    for second, third in zip(*found, strict=True):
        assert float((third - second).float().norm()) < 0.01 * float(second.float().norm())
