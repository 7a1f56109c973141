"""Measures the time between two points of a device's work, without waiting for it.

On CUDA with events, which the GPU timestamps when it reaches them; elsewhere with the host's clock.
"""

import time
from collections.abc import Iterable

import torch

Moment = torch.cuda.Event | float
Span = tuple[Moment, Moment]


def moment(device: torch.device) -> Moment:
    """The current point in the device's queue of work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def total_seconds(spans: Iterable[Span]) -> float:
    """Total time of all spans; on CUDA, the device must have passed them."""
    total = 0.0
    for start, end in spans:
        if isinstance(start, float) or isinstance(end, float):
            assert isinstance(start, float) and isinstance(end, float), "of one device"
            total += end - start
        else:
            total += start.elapsed_time(end) / 1_000  # milliseconds
    return total
