"""Computes the FLOPs of a step and the peak of the device: the two terms of MFU.

Model FLOPs (without recomputation), per real token, forward and backward (factor 3 of the forward):
6 for every weight of the encoder's matrices, 12 * hidden_size for each pair of tokens that attend
to each other in a layer, 6 for every weight of the MLM head and its decoder at each masked
position. See docs/performance.md. Counting does not need torch.
"""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_bert.common.device import has_bf16_instructions
from dist_bert.model.config import ModelConfig

if TYPE_CHECKING:  # importing torch takes seconds, and only measuring needs it
    import torch

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
    num_token_pairs: int,
    num_masked: int,
    num_segment_pairs: int,
) -> float:
    """Floating-point operations of forward and backward over a global batch.

    Args:
        model: the architecture.
        num_tokens: real tokens, without padding.
        num_token_pairs: sum of squared sequence lengths.
        num_masked: masked positions to predict.
        num_segment_pairs: samples of two segments, for pooler and next-sentence head.
    """
    hidden, layers = model.hidden_size, model.num_hidden_layers
    num_matrices = 3 if model.feed_forward == "geglu" else 2  # hidden by inner size
    encoder_weights = layers * (4 * hidden**2 + num_matrices * hidden * model.intermediate_size)
    global_pairs = (layers - model.num_local_layers) * num_token_pairs
    local_pairs = model.num_local_layers * pairs_in_window(model, num_tokens, num_token_pairs)
    mlm_weights = hidden**2 + hidden * model.padded_vocab_size
    nsp_weights = hidden**2 + 2 * hidden
    return (
        6.0 * encoder_weights * num_tokens
        + 12.0 * hidden * (global_pairs + local_pairs)
        + 6.0 * mlm_weights * num_masked
        + 6.0 * nsp_weights * num_segment_pairs
    )


def pairs_in_window(model: ModelConfig, num_tokens: int, num_token_pairs: int) -> float:
    """Pairs of tokens of which one lies in the other's window in a local layer.

    Exact for samples of one length; of others, as if all had the length in which the mean token
    lies, `num_token_pairs / num_tokens`.
    """
    window = model.window
    length = num_token_pairs / max(1, num_tokens)
    if window is None or length <= window + 1:
        return num_token_pairs
    num_samples = num_tokens / length
    return num_tokens * (2 * window + 1) - num_samples * window * (window + 1)


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
