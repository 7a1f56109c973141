"""How much arithmetic a step is, and how much the device could do: the two halves of MFU.

Model FLOPs (no recomputation counted), per real token, forward and backward (factor 3 of the
forward): 6 for every weight of the encoder's matrices, 12 * hidden_size * layers for each pair of
tokens that attend to each other, 6 for every weight of the MLM head and its decoder at each masked
position. See docs/performance.md. Counting needs no torch.
"""

import re
import time
from typing import TYPE_CHECKING

from dist_bert.config import ModelConfig

if TYPE_CHECKING:  # torch takes seconds, and only the measuring needs it
    import torch

# Dense bf16 peaks from the makers' data sheets, by whole words of the device's name.
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
        num_tokens: real tokens, padding not counted.
        num_token_pairs: sum of squared sequence lengths.
        num_masked: masked positions that are predicted.
        num_segment_pairs: samples of two segments, for pooler and next-sentence head.
    """
    hidden, layers = model.hidden_size, model.num_hidden_layers
    encoder_weights = layers * (4 * hidden**2 + 2 * hidden * model.intermediate_size)
    mlm_weights = hidden**2 + hidden * model.padded_vocab_size
    nsp_weights = hidden**2 + 2 * hidden
    return (
        6.0 * encoder_weights * num_tokens
        + 12.0 * hidden * layers * num_token_pairs
        + 6.0 * mlm_weights * num_masked
        + 6.0 * nsp_weights * num_segment_pairs
    )


def peak_flops(device: "torch.device", dtype: "torch.dtype") -> float:
    """Peak operations per second of one device: the data sheet's for known GPUs, else measured.

    The measured one is the best of a few products of 2,048-wide square matrices in `dtype` (0.3 s).
    """
    import torch

    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_BF16_FLOPS.items():
            if re.search(rf"\b{part}\b", name):
                return peak
    return measured_matmul_flops(device, dtype, size=2_048)


def matmul_roofline(device: "torch.device", dtype: "torch.dtype") -> float:
    """The best operations per second of square matrix products of several sizes on one device."""
    sizes = (1_024, 2_048, 4_096) if device.type == "cpu" else (4_096, 8_192, 16_384)
    return max(measured_matmul_flops(device, dtype, size) for size in sizes)


def measured_matmul_flops(device: "torch.device", dtype: "torch.dtype", size: int) -> float:
    """Best operations per second over 5 products of two (size, size) matrices."""
    import torch

    a = torch.randn(size, size, device=device).to(dtype)  # of zeros and ones, some chips go faster
    seconds = []
    for _ in range(6):  # the first one pays for set-up
        start = time.perf_counter()
        product = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        del product
    return 2.0 * size**3 / min(seconds[1:])
