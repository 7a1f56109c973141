"""Moves micro-batches to a device, and sums a model's shares over many of them."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_bert.data.batches import MicroBatch, StepBatch


def to_device(micro_batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """Arrays of a micro-batch as tensors on the device; plain integers and None stay what they are.

    From page-locked memory (`pinned`), copies are asynchronous.
    """
    return {
        name: value
        if value is None or isinstance(value, int)
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


def from_padded(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
) -> dict[str, Tensor | int]:
    """Turns right-padded input into the arguments of `BertEncoder.forward`. Waits for the device.

    Args:
        input_ids: (B, S) int64.
        attention_mask: (B, S), nonzero at tokens, 0 at padding; no row is all 0.
        token_type_ids: (B, S) int64.
    """
    is_token = attention_mask.bool()
    num_tokens = is_token.sum(1)  # (B,)
    position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return {
        "input_ids": input_ids[is_token],
        "token_type_ids": token_type_ids[is_token],
        "position_ids": position_ids[is_token],
        "cu_seqlens": F.pad(num_tokens.cumsum(0), (1, 0)).int(),
        "max_seqlen": int(num_tokens.max()),
    }


def from_sequences(sequences: Sequence[Sequence[int]], device: torch.device) -> dict[str, Any]:
    """Texts in segment 0 as the arguments of `BertEncoder.forward`, without padding."""
    lengths = torch.tensor([len(ids) for ids in sequences])  # (B,)
    input_ids = torch.tensor(list(itertools.chain.from_iterable(sequences)))  # (T,)
    tensors = {
        "input_ids": input_ids,
        "token_type_ids": torch.zeros_like(input_ids),
        "position_ids": torch.cat([torch.arange(len(ids)) for ids in sequences]),
        "cu_seqlens": F.pad(lengths.cumsum(0), (1, 0)).int(),
    }
    on_device: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
    return {**on_device, "max_seqlen": int(lengths.max())}
