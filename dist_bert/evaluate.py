"""Scores on held-out samples, beside the baselines that show whether a model learnt anything."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dist_bert.data import NO_LABEL, BatchShape, piece_counts, validation_batches
from dist_bert.errors import UserError
from dist_bert.inference import TrainedRun, sum_of_shares
from dist_bert.metrics import scores_of
from dist_bert.reader import SampleReader
from dist_bert.shard_format import Manifest

_SHAPE = BatchShape(accumulation_steps=1, world_size=1, micro_batch_size=64)
_MAX_BASELINE_BLOCKS = 1_024  # a million samples tell a distribution over pieces


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Mean scores over a data set's validation split, and the baselines on the same samples."""

    step: int  # optimizer steps of the checkpoint
    num_samples: int
    num_masked: int
    mlm_loss: float  # nats per masked position
    mlm_accuracy: float
    unigram_loss: float  # of the training pieces' distribution, on the same positions
    majority_accuracy: float  # of always answering the most frequent training piece
    nsp_loss: float | None = None  # nats per sample; None where samples have a single segment
    nsp_accuracy: float | None = None

    @property
    def mlm_perplexity(self) -> float:
        """How many equally likely pieces the loss amounts to."""
        return math.exp(self.mlm_loss)


def evaluate(run: TrainedRun, shards: str | Path, max_samples: int = 0) -> Evaluation:
    """Scores a run on a data set's validation split, in the precision of its training.

    Args:
        run: what to score.
        shards: folder of the data set.
        max_samples: samples that are used; 0 = all.

    Raises:
        UserError: the data set was made with another tokenizer, or `max_samples` is negative.
    """
    if max_samples < 0:
        raise UserError(f"--max_samples {max_samples}: must be at least 0; 0 = all samples")
    manifest = Manifest.load(shards)
    if manifest.tokenizer["fingerprint"] != run.tokenizer.fingerprint:
        raise UserError(
            f"--shards {shards}: were made with another tokenizer than the run's"
            f" {run.tokenizer.path}; prepare them with that one"
        )
    reader = SampleReader(shards, manifest, "validation")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[run.precision]
    batches = list(validation_batches(reader, _SHAPE, rank=0, num_samples=max_samples))
    model = copy.deepcopy(run.model).to(dtype)
    means = sum_of_shares(model, batches, run.device).tolist()
    scores = scores_of(dict(zip(model.metric_names, means, strict=True)), reader.has_pairs)
    labels = np.concatenate([batch["masked_lm_labels"] for batch in batches])
    labels = labels[labels != NO_LABEL]
    training = SampleReader(shards, manifest, "train")
    counts = piece_counts(training, run.tokenizer.vocab_size, _MAX_BASELINE_BLOCKS)
    unigram_loss, majority_accuracy = unigram_baseline(counts, labels)
    return Evaluation(
        step=run.step,
        num_samples=batches[0]["num_samples"],
        num_masked=labels.size,
        unigram_loss=unigram_loss,
        majority_accuracy=majority_accuracy,
        **scores,
    )


def unigram_baseline(counts: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """What can be scored without looking at the context.

    Args:
        counts: (V,) occurrences of each piece in training.
        labels: (P,) the pieces to predict.

    Returns:
        Cross-entropy in nats of the (add-one smoothed) distribution of the training pieces, and the
        accuracy of always answering the most frequent one.
    """
    log_share = np.log(counts + 1.0) - math.log(counts.sum() + counts.size)
    return float(-log_share[labels].mean()), float((labels == counts.argmax()).mean())
