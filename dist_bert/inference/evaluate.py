"""Scores on held-out samples, beside the baselines that show whether a model learnt anything.

The unit of work is the micro-batch: its samples do not depend on the number of ranks, each rank
takes every W-th, and the sums of every sample are gathered before anything is added up. So any
number of ranks finds the same scores.

Letters: B samples, P masked positions, T tokens, W ranks, V pieces.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.common.settings import raise_all
from dist_bert.data.batches import NO_LABEL, unpad
from dist_bert.data.pretraining_batches import piece_counts
from dist_bert.data.reader import Columns, SampleReader
from dist_bert.data.shard_source import ShardSource, bytes_of_first
from dist_bert.inference.confidence import Estimate, estimate_ratio
from dist_bert.inference.trained_run import DTYPES, TrainedRun
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.micro_batches import to_device
from dist_bert.tokenizer.tokenizer import MASK_ID

_BATCH_SAMPLES = 64
_MAX_BASELINE_BLOCKS = 1_024  # a million samples tell a distribution over pieces

# What stands at a masked position (BERT's 80/10/10), as far as the stored ids tell: a random piece
# that happens to be the original counts as kept.
KINDS = ("mask", "random", "kept")
SampleSums = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Mean scores of a group of predictions."""

    num_samples: int
    num_masked: int
    mlm_loss: Estimate  # nats per masked position
    mlm_accuracy: Estimate
    nsp_loss: Estimate | None = None  # nats per sample; None where samples have a single segment
    nsp_accuracy: Estimate | None = None

    @property
    def mlm_perplexity(self) -> Estimate:
        """How many equally likely pieces the loss amounts to."""
        return self.mlm_loss.map(math.exp)

    def estimates(self) -> dict[str, Estimate]:
        """All scores that the samples have, by name."""
        named = {
            "mlm_loss": self.mlm_loss,
            "mlm_perplexity": self.mlm_perplexity,
            "mlm_accuracy": self.mlm_accuracy,
            "nsp_loss": self.nsp_loss,
            "nsp_accuracy": self.nsp_accuracy,
        }
        return {name: estimate for name, estimate in named.items() if estimate is not None}

    def figures(self) -> dict[str, Any]:
        """The same for a JSON file."""
        estimates = self.estimates()
        return {
            "num_samples": self.num_samples,
            "num_masked": self.num_masked,
            **{name: estimate.value for name, estimate in estimates.items()},
            "confidence_95": {
                name: [estimate.low, estimate.high] for name, estimate in estimates.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores over a data set's validation split, and the baselines on the same samples."""

    step: int  # optimizer steps of the checkpoint
    num_documents: int  # that the samples' first segments come from: what the intervals count
    scores: Scores
    by_length: dict[tuple[int, int], Scores]  # fewest and most tokens of the samples
    by_kind: dict[str, Scores]  # one of KINDS; no next-sentence scores
    unigram_loss: float  # of the training pieces' distribution, on the same positions
    majority_accuracy: float  # of always answering the most frequent training piece
    nsp_entropy: float | None = None  # nats: of knowing how frequent each label is, and no more
    nsp_majority_accuracy: float | None = None  # of always answering the more frequent label

    def figures(self) -> dict[str, Any]:
        """All of it for a JSON file."""
        return {
            "step": self.step,
            "num_documents": self.num_documents,
            **self.scores.figures(),
            "unigram_loss": self.unigram_loss,
            "majority_accuracy": self.majority_accuracy,
            **self._pair_baselines(),
            "by_length": [
                {"min_tokens": fewest, "max_tokens": most, **scores.figures()}
                for (fewest, most), scores in self.by_length.items()
            ],
            "by_kind": {kind: scores.figures() for kind, scores in self.by_kind.items()},
        }

    def _pair_baselines(self) -> dict[str, float]:
        values = {
            "nsp_entropy": self.nsp_entropy,
            "nsp_majority_accuracy": self.nsp_majority_accuracy,
        }
        return {name: value for name, value in values.items() if value is not None}


def evaluate(run: TrainedRun, shards: str | Path | ShardSource, max_samples: int = 0) -> Evaluation:
    """Scores a run on a data set's validation split, in the precision of its training.

    Where a process group has been started, it is called by all ranks together: each scores its
    part, and all get the same result.

    Args:
        run: what to score.
        shards: the data set: its folder, or where its files come from.
        max_samples: samples that are used, the first ones; 0 = all.

    Raises:
        UserError: the data set was made with another tokenizer, `max_samples` is negative, or the
            model has no MLM head. Next-sentence scores of one without that head are left out.
    """
    if max_samples < 0:
        raise UserError(f"--max_samples {max_samples}: must be at least 0; 0 = all samples")
    run.require_mlm_head()
    source = ShardSource.of(shards)
    manifest = source.manifest()
    if manifest.tokenizer["fingerprint"] != run.tokenizer.fingerprint:
        raise UserError(
            f"--shards {source.place}: were made with another tokenizer than the run's"
            f" {run.tokenizer.path}; prepare them with that one"
        )
    at_once = bytes_of_first(manifest.splits["validation"], max_samples)
    raise_all("evaluation", source.room_problems(manifest, at_once))
    reader = SampleReader(source, manifest, "validation")
    blocks, rows = _first_samples(reader, max_samples)
    model = copy.deepcopy(run.model).to(DTYPES[run.precision])
    own = [score(model, columns, run.device) for columns in _own_batches(reader, blocks, rows)]
    sums = _gathered(own)
    has_pairs = reader.has_pairs and not run.missing_heads
    fields = ("masked_lm_labels", "num_masked", "next_sentence_label")
    stored = reader.gather(blocks, rows, fields)
    is_label = np.arange(stored["masked_lm_labels"].shape[1]) < stored["num_masked"][:, None]
    counts = piece_counts(
        SampleReader(source, manifest, "train"), run.tokenizer.vocab_size, _MAX_BASELINE_BLOCKS
    )
    unigram_loss, majority_accuracy = unigram_baseline(counts, stored["masked_lm_labels"][is_label])
    entropy, majority = pair_baseline(stored["next_sentence_label"]) if has_pairs else (None, None)
    return Evaluation(
        step=run.step,
        num_documents=np.unique(sums["document_id"]).size,
        scores=scores_of_samples(sums, has_pairs),
        by_length=scores_by_length(sums, has_pairs),
        by_kind=scores_by_kind(sums),
        unigram_loss=unigram_loss,
        majority_accuracy=majority_accuracy,
        nsp_entropy=entropy,
        nsp_majority_accuracy=majority,
    )


@torch.no_grad()
def score(model: BertForPreTraining, columns: Columns, device: torch.device) -> SampleSums:
    """What the model makes of every sample of a micro-batch: sums over its predictions.

    Args:
        model: in evaluation mode, on the device.
        columns: of B samples, as stored.
        device: where the model is.

    Returns:
        `document_id` and `num_tokens` (B,); `num_masked`, `mlm_loss` and `mlm_correct` (B, 3), a
        column for each of `KINDS`; `num_pairs`, `nsp_loss` and `nsp_correct` (B,).
    """
    batch = unpad(columns)
    tensors = to_device(batch, device)
    encoder_input = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "max_seqlen")
    hidden = model.encoder(**{name: tensors[name] for name in encoder_input})
    # float32 whatever the weights' dtype, as in training
    mlm_logits = model.mlm_logits(hidden[tensors["masked_lm_positions"]]).float()  # (P, V)
    labels, nsp_labels = tensors["masked_lm_labels"], tensors["next_sentence_label"]
    nsp_logits = model.nsp_logits(hidden[tensors["cu_seqlens"][: len(nsp_labels)].long()]).float()
    mlm_loss = F.cross_entropy(mlm_logits, labels, reduction="none").cpu().double().numpy()
    nsp_loss = F.cross_entropy(nsp_logits, nsp_labels, reduction="none").cpu().double().numpy()
    is_right = (mlm_logits.argmax(1) == labels).cpu().numpy()
    is_label = batch["masked_lm_labels"] != NO_LABEL  # the others are padding
    positions = batch["masked_lm_positions"][is_label]
    sample = np.searchsorted(batch["cu_seqlens"], positions, side="right") - 1
    kind = kinds_of(batch["input_ids"][positions], batch["masked_lm_labels"][is_label])
    num_samples = len(nsp_labels)

    def summed(values: NDArray[Any]) -> NDArray[Any]:
        cell = sample * len(KINDS) + kind
        return np.bincount(cell, values, num_samples * len(KINDS)).reshape(-1, len(KINDS))

    return {
        "document_id": columns["document_ids"][:, 0].astype(np.int64),
        "num_tokens": columns["num_tokens"].astype(np.int64),
        "num_masked": summed(np.ones(positions.size)),
        "mlm_loss": summed(mlm_loss[is_label]),
        "mlm_correct": summed(is_right[is_label]),
        "num_pairs": (batch["next_sentence_label"] != NO_LABEL).astype(np.float64),
        "nsp_loss": nsp_loss,  # 0 where there is no label
        "nsp_correct": (nsp_logits.argmax(1) == nsp_labels).cpu().double().numpy(),
    }


def kinds_of(input_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The kind of each prediction, an index into `KINDS`, from what stands there: (P,)."""
    return np.where(input_ids == MASK_ID, 0, np.where(input_ids != labels, 1, 2))


def scores_of_samples(sums: SampleSums, has_pairs: bool) -> Scores:
    """The scores of a group of samples, of which one has a masked position at least."""
    masked, documents = sums["num_masked"].sum(1), sums["document_id"]
    scores = Scores(
        num_samples=documents.size,
        num_masked=int(masked.sum()),
        mlm_loss=estimate_ratio(sums["mlm_loss"].sum(1), masked, documents),
        mlm_accuracy=estimate_ratio(sums["mlm_correct"].sum(1), masked, documents, (0.0, 1.0)),
    )
    if not (has_pairs and sums["num_pairs"].any()):
        return scores
    pairs = sums["num_pairs"]
    return dataclasses.replace(
        scores,
        nsp_loss=estimate_ratio(sums["nsp_loss"], pairs, documents),
        nsp_accuracy=estimate_ratio(sums["nsp_correct"], pairs, documents, (0.0, 1.0)),
    )


def scores_by_length(sums: SampleSums, has_pairs: bool) -> dict[tuple[int, int], Scores]:
    """Scores of the samples of 1 to 16 tokens, 17 to 32, and so on in powers of two."""
    most_tokens = 2 ** np.ceil(np.log2(np.maximum(sums["num_tokens"], 16))).astype(np.int64)
    groups = {}
    for most in np.unique(most_tokens).tolist():
        group = {name: values[most_tokens == most] for name, values in sums.items()}
        if group["num_masked"].any():
            fewest = 1 if most == 16 else most // 2 + 1
            groups[fewest, most] = scores_of_samples(group, has_pairs)
    return groups


def scores_by_kind(sums: SampleSums) -> dict[str, Scores]:
    """Scores of the predictions of each kind, without the kinds that do not occur."""
    groups = {}
    for index, kind in enumerate(KINDS):
        has_kind = sums["num_masked"][:, index] > 0
        if has_kind.any():
            group = {name: values[has_kind] for name, values in sums.items()}
            for name in ("num_masked", "mlm_loss", "mlm_correct"):
                group[name] = group[name][:, index : index + 1]
            groups[kind] = scores_of_samples(group, has_pairs=False)
    return groups


def unigram_baseline(counts: NDArray[np.int64], labels: NDArray[np.integer]) -> tuple[float, float]:
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


def pair_baseline(labels: NDArray[np.integer]) -> tuple[float, float]:
    """What can be scored without looking at the samples, half of which need not have either label.

    Args:
        labels: (B,) next-sentence labels, 0 or 1.

    Returns:
        Entropy of the labels in nats, and the share of the more frequent one.
    """
    shares = np.bincount(labels, minlength=2) / labels.size
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum()), float(shares.max())


def _first_samples(
    reader: SampleReader, max_samples: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Block and row of the samples that are scored, the longest first."""
    sizes, count = reader.block_sizes, max_samples or reader.num_samples
    blocks = np.repeat(np.arange(sizes.size), sizes)[:count]
    rows = np.concatenate([np.arange(size) for size in sizes])[:count]
    num_tokens = reader.gather(blocks, rows, ("num_tokens",))["num_tokens"].astype(np.int64)
    longest_first = np.argsort(-num_tokens, kind="stable")
    return blocks[longest_first], rows[longest_first]


def _own_batches(
    reader: SampleReader, blocks: NDArray[np.int64], rows: NDArray[np.int64]
) -> Iterator[Columns]:
    """This rank's micro-batches; they hold the same samples whatever the number of ranks."""
    starts = np.arange(_BATCH_SAMPLES, rows.size, _BATCH_SAMPLES)
    batches = np.split(np.arange(rows.size), starts)
    is_alone = not dist.is_initialized()
    rank, world_size = (0, 1) if is_alone else (dist.get_rank(), dist.get_world_size())
    for own in batches[rank::world_size]:
        yield reader.gather(blocks[own], rows[own])


def _gathered(own: list[SampleSums]) -> SampleSums:
    """The sums of all ranks' samples, in an order that does not depend on their number."""
    parts = [own]
    if dist.is_initialized():
        parts = [[]] * dist.get_world_size()
        # gloo, also beside GPUs: what is gathered lies on the CPU
        dist.all_gather_object(parts, own, group=dist.new_group(backend="gloo"))
    batches = [part[index] for index in range(len(parts[0])) for part in parts if index < len(part)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
