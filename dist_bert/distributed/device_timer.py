"""Times between two points of what a device computes, without waiting for it.

On CUDA by events, which the GPU stamps when it comes to them; elsewhere by the host's clock.
"""

import time
from collections.abc import Iterable

import torch

Moment = torch.cuda.Event | float
Span = tuple[Moment, Moment]


def moment(device: torch.device) -> Moment:
    """This point among the work that the device has been given."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def total_seconds(spans: Iterable[Span]) -> float:
    """Time in all spans together; on CUDA the device must have passed them."""
    total = 0.0
    for start, end in spans:
        if isinstance(start, float) or isinstance(end, float):
            assert isinstance(start, float) and isinstance(end, float), "of one device"
            total += end - start
        else:
            total += start.elapsed_time(end) / 1_000  # milliseconds
    return total
