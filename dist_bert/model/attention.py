"""Attention of unpadded samples, on every device by what is fast there; all with a window.

The only operation of the model that knows where one sample ends and the next begins. Not for: the
projections around it (`dist_bert.model.bert`).

Shapes: T tokens of the micro-batch, B samples, H hidden, N heads, D head size, S padded length (the
longest sample).
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention as torch_attention

from dist_bert.common.errors import UserError
from dist_bert.model.tiles import Tiles, tiled_attention

# Of torch's FlashAttention operator, `aten::_flash_attention_forward`, which `attention` calls by
# name: torch may change it without notice. Torch's own wrapper, `varlen_attn`, has no dropout.
_KERNEL_ARGUMENTS = (
    "query",
    "key",
    "value",
    "cum_seq_q",
    "cum_seq_k",
    "max_q",
    "max_k",
    "dropout_p",
    "is_causal",
    "return_debug_mask",
    "window_size_left",
    "window_size_right",
)


class SampleLayout(NamedTuple):
    """Where the samples lie among the T tokens: made once per forward, read by every attention.

    Attributes:
        cu_seqlens: (B+1,) int32, sample b is tokens cu_seqlens[b] to cu_seqlens[b+1] - 1.
        max_seqlen: S, tokens of the longest sample.
        is_varlen: attention reads `cu_seqlens` itself and needs no padded view.
        tiles: on CPU, of global layers; None elsewhere.
        local_tiles: on CPU, of local layers; None elsewhere.
        token_of_slot: (B*S,) token in each slot of the padded view; None where that is a reshape.
        slot_of_token: (T,) its inverse.
        is_real_key: (B, 1, 1, S) False in slots behind the end of a sample.
        is_in_band: (B or 1, 1, S, S) True where a local layer attends; None without local layers.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    is_varlen: bool = False
    tiles: list[Tiles] | None = None
    local_tiles: list[Tiles] | None = None
    token_of_slot: Tensor | None = None
    slot_of_token: Tensor | None = None
    is_real_key: Tensor | None = None
    is_in_band: Tensor | None = None


def can_use_varlen_kernel(hidden: Tensor, head_size: int) -> bool:
    """Whether FlashAttention's variable-length kernel can do the attention of this forward.

    With dropout and windows too; float32 and GPUs before Ampere need the padded view.

    Args:
        hidden: for device and dtype; torch.autocast overrules the dtype.
        head_size: D; the kernel takes multiples of 8 up to 256.

    Raises:
        UserError: it could, but this torch has another operator for it.
    """
    device = hidden.device
    if device.type != "cuda" or head_size % 8 or head_size > 256:
        return False
    is_autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_autocast else hidden.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    if torch.cuda.get_device_properties(device).major < 8:  # Ampere
        return False
    _check_kernel()
    return True


@functools.cache
def _check_kernel() -> None:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    missing = set(_KERNEL_ARGUMENTS) - {argument.name for argument in schema.arguments}
    if missing:
        raise UserError(
            f"torch {torch.__version__}: its FlashAttention operator has no argument"
            f" {', '.join(sorted(missing))}; install a version that setup.py allows"
        )


def use_flash_attention_3() -> None:
    """Exchanges the kernels of FlashAttention's operator for version 3, in all of this process.

    They are for Hopper GPUs and have no dropout (Shah et al. 2024, "FlashAttention-3",
    https://arxiv.org/abs/2407.08608). torch does not have them: it takes them from a package.
    `torch.nn.attention.restore_flash_attention_impl` is the way back.

    Raises:
        UserError: another GPU, a torch that cannot exchange them, or no such package.
    """
    major, minor = torch.cuda.get_device_capability()
    if major != 9:
        raise UserError(
            "flash_attention_3 = True: is for GPUs of compute capability 9 (Hopper); this one has"
            f" {major}.{minor}: leave it out"
        )
    activate = getattr(torch_attention, "activate_flash_attention_impl", None)
    if activate is None:
        raise UserError(
            f"flash_attention_3 = True: torch {torch.__version__} has only its own kernels; install"
            " a later one that setup.py allows"
        )
    try:
        activate("FA3")
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(
            f"flash_attention_3 = True: {error}: build the package of"
            " github.com/Dao-AILab/flash-attention, folder hopper, for this torch"
        ) from None


def locate_samples(
    cu_seqlens: Tensor,
    max_seqlen: int,
    num_tokens: int,
    is_varlen: bool,
    window: int | None = None,
) -> SampleLayout:
    """Makes the layout on the device without waiting for it: no shape depends on tensor values."""
    layout = SampleLayout(cu_seqlens, max_seqlen, is_varlen)
    if is_varlen:
        return layout
    if window is not None:
        slots = torch.arange(max_seqlen, device=cu_seqlens.device)
        is_near = (slots[:, None] - slots).abs() <= window  # (S, S)
        layout = layout._replace(is_in_band=is_near[None, None])
    if num_tokens == (len(cu_seqlens) - 1) * max_seqlen:
        return layout
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]  # (B,)
    token_of_slot = starts[:, None] + torch.arange(max_seqlen, device=starts.device)  # (B, S)
    tokens = torch.arange(num_tokens, dtype=ends.dtype, device=ends.device)  # (T,)
    sample_of_token = torch.searchsorted(ends, tokens, right=True)  # (T,)
    is_real = (token_of_slot < ends[:, None])[:, None, None, :]  # (B, 1, 1, S)
    if layout.is_in_band is not None:
        # Slots behind the end attend to something, too: a softmax of nothing is not a number.
        is_in_band = is_real & (layout.is_in_band | ~is_real.transpose(2, 3))
        layout = layout._replace(is_in_band=is_in_band)
    return layout._replace(
        # A slot behind the end of a sample may hold any valid row: it is masked.
        token_of_slot=token_of_slot.clamp(max=num_tokens - 1).flatten(),
        slot_of_token=sample_of_token * max_seqlen + tokens - starts[sample_of_token],
        is_real_key=is_real,
    )


def attention(
    qkv: Tensor,
    layout: SampleLayout,
    num_heads: int,
    dropout_p: float,
    window: int | None = None,
) -> Tensor:
    """Lets every token attend to the tokens of its own sample (Vaswani et al. 2017, section 3.2).

    Args:
        qkv: (T, 3H), queries, keys and values, each with its heads side by side.
        layout: which tokens belong together; made for this window or for None.
        num_heads: N.
        dropout_p: dropout on attention weights in this forward; its noise comes from torch's global
            generator of the device.
        window: tokens on each side that a token attends to, beside itself; None = all.

    Returns:
        (T, H), the heads side by side.
    """
    head_size = qkv.shape[1] // (3 * num_heads)
    cu_seqlens, max_seqlen = layout.cu_seqlens, layout.max_seqlen
    if layout.is_varlen:
        q, k, v = qkv.view(-1, 3, num_heads, head_size).unbind(1)  # (T, N, D) each
        reach = -1 if window is None else window  # -1: all
        context = torch.ops.aten._flash_attention_forward(
            query=q,
            key=k,
            value=v,
            cum_seq_q=cu_seqlens,
            cum_seq_k=cu_seqlens,
            max_q=max_seqlen,
            max_k=max_seqlen,
            dropout_p=dropout_p,
            is_causal=False,
            return_debug_mask=False,
            window_size_left=reach,
            window_size_right=reach,
        )[0]
        return context.flatten(1)
    tiles = layout.tiles if window is None else layout.local_tiles
    if tiles is not None:
        return tiled_attention(qkv, tiles, num_heads, dropout_p)
    if layout.token_of_slot is not None:
        qkv = qkv.index_select(0, layout.token_of_slot)  # (B*S, 3H)
    padded = qkv.view(-1, max_seqlen, 3, num_heads, head_size)
    q, k, v = padded.permute(2, 0, 3, 1, 4).unbind(0)  # (B, N, S, D) each
    mask = layout.is_real_key if window is None else layout.is_in_band
    context = F.scaled_dot_product_attention(q, k, v, mask, dropout_p)
    context = context.transpose(1, 2).reshape(-1, num_heads * head_size)  # (B*S, H)
    if layout.slot_of_token is not None:
        context = context.index_select(0, layout.slot_of_token)
    return context
