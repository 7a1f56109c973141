"""What the samples of a run are on average, and the parts of a run in which they differ."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dist_bert.common.errors import UserError
from dist_bert.data.batches import BatchShape
from dist_bert.data.shard_format import Manifest
from dist_bert.model.config import ModelConfig
from dist_bert.model.flops import attention_pairs, training_flops
from dist_bert.pretraining.timeline import Timeline
from dist_bert.training.memory import SampleSize

# Of samples that are not there to be counted.
_MASKED_SHARE, _SPECIAL_TOKENS = 0.15, 3
_COUNTS = ("num_samples", "length_bin_tokens", "num_tokens", "num_masked")  # of a manifest


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a sample is on average, and how many there are."""

    sequence_length: int  # of the longest samples
    tokens_per_sample: float
    attention_pairs_per_sample: float  # over all layers of the model that is planned for
    masked_per_sample: float
    has_pairs: bool
    samples_per_epoch: int | None = None
    masked_share: float = _MASKED_SHARE  # of the tokens, as stored
    most_masked: float = 1.0  # of a longest sample, as a multiple of its share of the mean's

    @classmethod
    def of_length(cls, sequence_length: int, model: ModelConfig) -> "Workload":
        """Samples of full length, 15 % of them masked: where there are no shards yet."""
        masked = _MASKED_SHARE * max(0, sequence_length - _SPECIAL_TOKENS)
        pairs = int(attention_pairs(model, np.array(sequence_length)))
        return cls(sequence_length, sequence_length, pairs, masked, True)

    @classmethod
    def of_shards(cls, manifest: Manifest, model: ModelConfig) -> "Workload":
        """The means that the manifest's statistics give; pairs are of bins of the histogram.

        Raises:
            UserError: the statistics lack them.
        """
        train, length = manifest.statistics.get("train", {}), manifest.config["sequence_length"]
        counts = [train.get(name) for name in _COUNTS]
        histogram = train.get("length_histogram")
        counts += histogram if isinstance(histogram, list) else [None]
        if not all(type(count) is int and count >= 0 for count in counts) or 0 in counts[:4]:
            raise UserError(
                f"manifest of the shards: statistics.train must have {', '.join(_COUNTS)} and"
                " length_histogram; give --sequence_length, or prepare the shards again"
            )
        num_samples, width = train["num_samples"], train["length_bin_tokens"]
        lengths = ((np.arange(len(histogram)) + 0.5) * width).clip(max=length)
        num_pairs = float(np.array(histogram) @ attention_pairs(model, lengths))
        return cls(
            sequence_length=length,
            tokens_per_sample=train["num_tokens"] / num_samples,
            attention_pairs_per_sample=num_pairs / num_samples,
            masked_per_sample=train["num_masked"] / num_samples,
            has_pairs=manifest.config["pair_objective"] != "none",
            samples_per_epoch=num_samples,
            masked_share=manifest.config.get("masked_lm_prob", _MASKED_SHARE),
        )

    @property
    def longest_sample(self) -> SampleSize:
        """What memory is planned for: a micro-batch of the longest samples has no others."""
        masked = self.masked_per_sample * self.sequence_length / self.tokens_per_sample
        return SampleSize(self.sequence_length, masked * self.most_masked)

    def with_masks(self, first: float, last: float) -> "Workload":
        """The same samples; the share of masked tokens moves in a line. `first` 0 = as stored."""
        if not first:
            return self
        mean = (first + last) / 2
        return dataclasses.replace(
            self,
            masked_per_sample=self.masked_per_sample * mean / self.masked_share,
            most_masked=self.most_masked * max(first, last) / mean,
        )

    @classmethod
    def mixed(cls, workloads: Sequence["Workload"], weights: Sequence[float]) -> "Workload":
        """The means over data sets, and the longest samples of all; `weights` are of samples."""
        if len(workloads) == 1:
            return workloads[0]

        def mean(name: str) -> float:
            values = (getattr(workload, name) for workload in workloads)
            return sum(map(operator.mul, values, weights)) / sum(weights)

        mixed = cls(
            max(workload.sequence_length for workload in workloads),
            mean("tokens_per_sample"),
            mean("attention_pairs_per_sample"),
            mean("masked_per_sample"),
            workloads[0].has_pairs,
            masked_share=workloads[0].masked_share,
        )
        most = max(workload.longest_sample.num_masked for workload in workloads)
        return dataclasses.replace(mixed, most_masked=most / mixed.longest_sample.num_masked)

    def flops(self, model: ModelConfig, num_samples: int) -> float:
        """Floating-point operations of a global batch, forward and backward."""
        return training_flops(
            model,
            round(num_samples * self.tokens_per_sample),
            round(num_samples * self.attention_pairs_per_sample),
            round(num_samples * self.masked_per_sample),
            num_samples if self.has_pairs else 0,
        )


class Part(NamedTuple):
    """Consecutive steps of one phase, with one batch size."""

    phase: str  # its name
    num_steps: int
    shape: BatchShape  # by samples
    workload: Workload
    micro_batch_tokens: int = 0  # of the run; 0 = by samples

    @property
    def longest_at_once(self) -> int:
        """Samples of the greatest length in a micro-batch, which takes the most memory."""
        if self.micro_batch_tokens:
            return max(1, self.micro_batch_tokens // self.workload.sequence_length)
        return self.shape.micro_batch_size

    @property
    def num_samples(self) -> int:
        """Of all its steps."""
        return self.num_steps * self.shape.global_batch_size


def parts_of(timeline: Timeline, of_places: Mapping[str, Workload]) -> tuple[Part, ...]:
    """The parts of a run, in their order.

    The share of masks is the mean of the whole phase, in every part of it.

    Args:
        timeline: its phases.
        of_places: the samples of each data set, masked as stored, by its place.
    """
    parts = []
    for phase in timeline.phases:
        mixture = Workload.mixed([of_places[p] for p in phase.settings.shards], phase.weights)
        workload = mixture.with_masks(
            phase.masked_lm_prob(1), phase.masked_lm_prob(phase.num_steps)
        )
        name = phase.settings.name
        parts += [
            Part(
                name,
                stage.num_steps,
                _by_samples(stage.shape, workload),
                workload,
                stage.shape.micro_batch_tokens,
            )
            for stage in phase.stages
        ]
    return tuple(parts)


def _by_samples(shape: BatchShape, workload: Workload) -> BatchShape:
    """A division by tokens as one by samples of the mean length: the most that fit and divide."""
    if not shape.micro_batch_tokens:
        return shape
    of_rank = shape.global_batch_size // shape.world_size
    fitting = max(1, int(shape.micro_batch_tokens // workload.tokens_per_sample))
    size = next(n for n in range(min(fitting, of_rank), 0, -1) if of_rank % n == 0)
    return BatchShape(of_rank // size, shape.world_size, size)
