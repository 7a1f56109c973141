"""A head's scores of a whole set, by all ranks together. Not for: what they mean."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from dist_bert.data import BatchShape
from dist_bert.inference import to_device
from dist_bert.tasks.batches import EvaluationBatch, evaluation_batches
from dist_bert.tasks.features import Features

SampleScores = list[NDArray[np.float32]]


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
