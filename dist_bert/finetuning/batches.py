"""Micro-batches of one rank from the features of a labelled set.

As in pretraining, the whole position in the data is the number of samples consumed, every epoch
has an order of its own, and a global batch is the same set of samples for every number of ranks and
micro-steps. Not for: shards (`dist_bert.data.pretraining_batches`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from dist_bert.common.hashing import permuted
from dist_bert.data.batches import (
    NO_LABEL,
    BatchShape,
    MicroBatch,
    StepBatch,
    deal,
    encoder_input,
    round_up,
)
from dist_bert.finetuning.features import Features
from dist_bert.model.micro_batches import to_device

SampleScores = list[NDArray[np.float32]]


def training_steps(
    features: Features, shape: BatchShape, rank: int, seed: int, start_sample: int
) -> Iterator[StepBatch]:
    """Endless stream of optimizer steps, as this rank's share of each.

    Args:
        features: of the training set, with labels.
        shape: how a global batch is cut.
        rank: this rank.
        seed: of the orders of the epochs.
        start_sample: samples consumed so far: the position to go on from.
    """
    size = shape.global_batch_size
    all_tokens, all_labels = features.num_tokens, features.num_labels  # over the whole set: once
    while True:
        samples = samples_at(np.arange(start_sample, start_sample + size), len(features), seed)
        num_tokens = all_tokens[samples]
        totals = {"num_samples": size}
        if features.token_labels is not None:
            totals = {"num_labels": int(all_labels[samples].sum())}
        own = deal(num_tokens[None], shape)[0, :, rank]  # (A, M)
        yield StepBatch(
            [{**micro_batch(features, samples[rows]), **totals} for rows in own],
            num_samples=size,
            num_tokens=int(num_tokens.sum()),
            lengths=num_tokens,
        )
        start_sample += size


def samples_at(positions: NDArray[np.int64], num_samples: int, seed: int) -> NDArray[np.int64]:
    """Which samples come at positions of the endless stream; each comes once in an epoch."""
    epochs = positions // num_samples
    samples = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        samples[chosen] = permuted(
            positions[chosen] % num_samples, num_samples, seed, "fine-tuning", int(epoch)
        )
    return samples


class EvaluationBatch(NamedTuple):
    """A micro-batch without labels, and which samples it holds."""

    samples: NDArray[np.int64]  # (B,)
    micro_batch: MicroBatch


def evaluation_batches(
    features: Features, shape: BatchShape, rank: int
) -> Iterator[EvaluationBatch]:
    """This rank's micro-batches of a whole set, each sample once.

    Every rank gets the same number of micro-batches and none is empty: where there are fewer
    samples than ranks, some samples are computed by several ranks.
    """
    longest_first = np.argsort(-features.num_tokens, kind="stable")
    size = shape.micro_batch_size * shape.world_size
    for step in np.array_split(longest_first, max(1, -(-len(longest_first) // size))):
        own = step[rank :: shape.world_size]
        own = own if own.size else step[:1]
        yield EvaluationBatch(own, micro_batch(features, own, with_labels=False))


def micro_batch(
    features: Features, samples: NDArray[np.int64], with_labels: bool = True
) -> MicroBatch:
    """Samples as the unpadded arguments of a head, in their order."""
    lengths = features.offsets[samples + 1] - features.offsets[samples]
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    position = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)  # (T,)
    place = np.repeat(features.offsets[samples], lengths) + position  # (T,) in the flat arrays
    in_segment_b = position >= np.repeat(features.segment_b_start[samples], lengths)
    batch = encoder_input(features.input_ids[place], in_segment_b, position, cu_seqlens)
    batch["num_real_samples"] = len(samples)
    if with_labels:
        batch |= {name: values[samples] for name, values in features.sample_labels.items()}
        if features.token_labels is not None:
            batch["labels"] = round_up(features.token_labels[place], NO_LABEL)
    return batch


@torch.no_grad()
def scores_of_batches(
    model: Callable[..., Any], batches: Iterable[EvaluationBatch], device: torch.device
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Sample and scores, (C,) where the head scores samples, (n, C) where it scores tokens.

    Waits for the device once a micro-batch.
    """
    for samples, micro_batch in batches:
        logits = model(**to_device(micro_batch, device)).cpu().numpy()
        if len(logits) == len(micro_batch["input_ids"]):  # scores of tokens
            bounds = micro_batch["cu_seqlens"]
            rows = [logits[bounds[i] : bounds[i + 1]] for i in range(len(samples))]
        else:
            rows = list(logits)
        yield from zip(samples.tolist(), rows, strict=True)


def scores_of_set(
    model: nn.Module,
    features: Features,
    shape: BatchShape,
    device: torch.device,
    watched: Callable[[Iterator[Any]], Iterator[Any]] = iter,
) -> SampleScores | None:
    """The scores of all samples, on every rank; None where `watched` ended it early.

    Args:
        model: an engine or a head in evaluation mode.
        features: of the set; labels are not looked at.
        shape: gives the size of a micro-batch and the number of ranks.
        device: of the model.
        watched: passes micro-batches on, on all ranks until the same one.
    """
    batches = watched(evaluation_batches(features, shape, dist.get_rank()))
    own = dict(scores_of_batches(model, batches, device))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    scores = {sample: row for part in gathered for sample, row in part.items()}
    if len(scores) < len(features):
        return None
    return [scores[sample] for sample in range(len(features))]
