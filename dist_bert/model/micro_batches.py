"""Moves micro-batches to a device, and sums a model's shares over many of them."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dist_bert.data.batches import MicroBatch, StepBatch


def to_device(micro_batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """Arrays of a micro-batch as tensors on the device; plain integers are unchanged.

    From page-locked memory (`pinned`), copies are asynchronous.
    """
    return {
        name: value
        if isinstance(value, int)
        else torch.as_tensor(value).to(device, non_blocking=True)
        for name, value in micro_batch.items()
    }


def pinned(steps: Iterator[StepBatch]) -> Iterator[StepBatch]:
    """Steps with their arrays as tensors in page-locked memory; run it in the prefetch thread.

    The host, which runs ahead of the GPU, then never waits for a copy.
    """
    for step in steps:
        micro_batches = [
            {n: v if isinstance(v, int) else torch.from_numpy(v).pin_memory() for n, v in m.items()}
            for m in step.micro_batches
        ]
        yield dataclasses.replace(step, micro_batches=micro_batches)


@torch.no_grad()
def sum_of_shares(model: nn.Module, batches: Iterable[MicroBatch], device: torch.device) -> Tensor:
    """Sum of the model's metric shares over all batches: (number of metrics,), on the device."""
    shares = [model(**to_device(micro_batch, device))[1] for micro_batch in batches]
    return torch.stack(shares).sum(0)
