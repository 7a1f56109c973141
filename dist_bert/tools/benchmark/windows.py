"""Attention within a window beside attention to all tokens: CPU seconds by length.

One sample, forward and backward, without the projections around it, in turns, in one process: the
cost of a local layer is seen to grow with length times window. In CPU time of all threads, because
the time on the wall of a busy machine is also other processes'. Not for: GPUs, where both are
FlashAttention's.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dist_bert.model.attention import SampleLayout, attention
from dist_bert.model.config import ModelConfig
from dist_bert.model.tiles import band_tiles, group_samples


def compare_windows(
    model: ModelConfig,
    lengths: Sequence[int],
    windows: Sequence[int],
    dtype: torch.dtype,
    *,
    rounds: int,
    report: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Measures all lengths and windows.

    Args:
        model: gives hidden size, heads and dropout of attention.
        lengths: tokens of the one sample.
        windows: as `local_attention`: half of the tokens are on each side.
        dtype: of queries, keys and values.
        rounds: in which all pairs and the windows take turns; the median counts.
        report: is told what is being done.

    Returns:
        Length and window -> figures. `of_all_pairs` is the window's time, compared in each round;
        `by_length_times_window` the seconds by length and window, 1 in the first row.
    """
    rows: dict[str, dict[str, float]] = {}
    for length in lengths:
        qkv, gradient = _values(length, model, dtype)
        choices = [None, *(window // 2 for window in windows)]  # tokens on each side
        layouts = [_layout(length, model.num_attention_heads, choice) for choice in choices]
        taken: list[list[float]] = []
        for number in range(rounds + 1):  # the first one prepares matrix kernels
            report(
                f"{length:,} tokens: " + (f"round {number} of {rounds}" if number else "warm-up")
            )
            taken.append(
                [
                    _seconds(qkv, gradient, layout, model, choice)
                    for layout, choice in zip(layouts, choices, strict=True)
                ]
            )
        all_pairs, *local = zip(*taken[1:], strict=True)
        for window, seconds in zip(windows, local, strict=True):
            median = statistics.median(seconds)
            rows[f"{length:,} tokens, window {window:,}"] = {
                "all_pairs_cpu_seconds": statistics.median(all_pairs),
                "window_cpu_seconds": median,
                "of_all_pairs": statistics.median(
                    own / whole for own, whole in zip(seconds, all_pairs, strict=True)
                ),
                "by_length_times_window": median / (length * window),
            }
    unit = next(iter(rows.values()))["by_length_times_window"]
    for row in rows.values():
        row["by_length_times_window"] /= unit
    return rows


def _values(length: int, model: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random (T, 3H) queries, keys and values, and the (T, H) gradient of the context."""
    rng = torch.Generator().manual_seed(0)
    qkv = torch.randn(length, 3 * model.hidden_size, generator=rng).to(dtype).requires_grad_()
    return qkv, torch.randn(length, model.hidden_size, generator=rng).to(dtype)


def _layout(length: int, num_heads: int, window: int | None) -> SampleLayout:
    cu_seqlens = torch.tensor([0, length], dtype=torch.int32)
    if window is None:
        return SampleLayout(cu_seqlens, length, tiles=group_samples(cu_seqlens, num_heads))
    return SampleLayout(cu_seqlens, length, local_tiles=band_tiles(cu_seqlens, num_heads, window))


def _seconds(
    qkv: Tensor, gradient: Tensor, layout: SampleLayout, model: ModelConfig, window: int | None
) -> float:
    begin = time.process_time()
    dropout_p = model.attention_probs_dropout_prob
    context = attention(qkv, layout, model.num_attention_heads, dropout_p, window)
    torch.autograd.grad(context, qkv, gradient)
    return time.process_time() - begin
