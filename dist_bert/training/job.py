"""What every kind of training says of itself to the session that runs it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dist_bert.data.batches import BatchShape
from dist_bert.model.config import ModelConfig
from dist_bert.training.config import TrainingConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig


class Job(Protocol):
    """What a run needs of the job that it does."""

    @property
    def model(self) -> ModelConfig:
        """The architecture."""

    @property
    def run(self) -> TrainingConfig:
        """Steps, schedule, intervals and the run's folder."""

    @property
    def deepspeed(self) -> DeepSpeedConfig:
        """Batch sizes, optimizer, precision, ZeRO."""

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer that made the ids."""

    def lr(self, step: int) -> float:
        """The learning rate of an optimizer step, from 1 on."""

    def batch_shape(self, step: int) -> BatchShape:
        """The division of a step's global batch."""

    def may_differ(self, saved: Mapping[str, Any], step: int) -> Sequence[str]:
        """Facts of its identity in which a checkpoint of a step may differ."""

    def resolved(self) -> dict[str, Any]:
        """What the run's `config.json` keeps."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be resumed."""
