"""Computes the FLOPs of a step and the peak of the device: the two terms of MFU.

Model FLOPs (without recomputation), per real token, forward and backward (factor 3 of the forward):
6 for every weight of the encoder's matrices, 12 * hidden_size for each pair of tokens that attend
to each other, of each layer, 6 for every weight of the MLM head and its decoder at each masked
position. See docs/performance.md. Counting does not need torch.
"""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dist_bert.common.device import has_bf16_instructions
from dist_bert.model.config import ModelConfig

if TYPE_CHECKING:  # importing torch takes seconds, and only measuring needs it
    import torch
    from numpy.typing import NDArray

# Dense bf16 peaks from the manufacturers' data sheets, by whole words of the device's name.
PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2_250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}


def training_flops(
    model: ModelConfig,
    num_tokens: int,
    num_attention_pairs: int,
    num_masked: int,
    num_segment_pairs: int,
) -> float:
    """Floating-point operations of forward and backward over a global batch.

    Args:
        model: the architecture.
        num_tokens: real tokens, without padding.
        num_attention_pairs: sum of `attention_pairs` of its samples.
        num_masked: masked positions to predict.
        num_segment_pairs: samples of two segments, for pooler and next-sentence head.
    """
    hidden, layers = model.hidden_size, model.num_hidden_layers
    num_matrices = 3 if model.feed_forward == "geglu" else 2  # hidden by inner size
    encoder_weights = layers * (4 * hidden**2 + num_matrices * hidden * model.intermediate_size)
    mlm_weights = hidden**2 + hidden * model.padded_vocab_size
    nsp_weights = hidden**2 + 2 * hidden
    return (
        6.0 * encoder_weights * num_tokens
        + 12.0 * hidden * num_attention_pairs
        + 6.0 * mlm_weights * num_masked
        + 6.0 * nsp_weights * num_segment_pairs
    )


def attention_pairs(model: ModelConfig, lengths: "NDArray[Any]") -> "NDArray[Any]":
    """Pairs of tokens that attend to each other, over all layers: exact, also in local layers.

    Args:
        model: the architecture.
        lengths: tokens of samples, in any shape.

    Returns:
        The pairs of each sample, in the same shape.
    """
    num_pairs = (model.num_hidden_layers - model.num_local_layers) * lengths**2
    if model.window is not None:
        reach = lengths.clip(max=model.window + 1)  # tokens of a window to one side, its own too
        near = lengths * (2 * reach - 1) - reach * (reach - 1)  # all, less what ends cut off
        num_pairs = num_pairs + model.num_local_layers * near
    return num_pairs


def peak_flops(device: "torch.device", precision: str) -> float:
    """Peak operations per second of one device, in the best precision that a run may use there.

    For known GPUs in 16 bits, from the data sheet. Otherwise measured: a run computes in float32,
    and in 16 bits if the device multiplies them faster, so no run exceeds the best of both. Takes
    at most two seconds.

    Args:
        device: of this process, with nothing else running on it.
        precision: of the DeepSpeed JSON: bf16, fp16 or fp32.
    """
    import torch

    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_BF16_FLOPS.items():
            if re.search(rf"\b{part}\b", name):
                return peak
    dtypes = [torch.float32]
    if precision == "fp16":
        dtypes.append(torch.float16)
    elif precision == "bf16" and (device.type == "cuda" or has_bf16_instructions()):
        dtypes.append(torch.bfloat16)
    return max(measured_matmul_flops(device, dtype, (512, 1_024, 2_048)) for dtype in dtypes)


def matmul_roofline(device: "torch.device", dtype: "torch.dtype") -> float:
    """The best operations per second of square matrix products of several sizes on one device."""
    sizes = (1_024, 2_048, 4_096) if device.type == "cpu" else (4_096, 8_192, 16_384)
    return measured_matmul_flops(device, dtype, sizes, seconds=6.0)


def measured_matmul_flops(
    device: "torch.device", dtype: "torch.dtype", sizes: Sequence[int], seconds: float = 1.0
) -> float:
    """Best operations per second over products of two square matrices, within a time limit.

    Args:
        device: to measure.
        dtype: of the matrices.
        sizes: of the matrices, ascending; skips sizes whose products would exceed the limit.
        seconds: the limit, divided among the sizes.
    """
    import torch

    def product_seconds(matrix: "torch.Tensor") -> float:
        start = time.perf_counter()
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - start
        del product
        return taken

    best = 0.0
    share = seconds / len(sizes)
    for size in sizes:
        if best and 2 * 2.0 * size**3 / best > share:
            break
        deadline = time.perf_counter() + share
        # Some chips are faster with zeros and ones, so the values are random.
        matrix = torch.randn(size, size, device=device).to(dtype)
        product_seconds(matrix)  # the first one includes set-up
        while time.perf_counter() < deadline or not best:
            best = max(best, 2.0 * size**3 / product_seconds(matrix))
    return best
