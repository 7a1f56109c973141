"""What every kind of training says of itself to the session that runs it."""

from pathlib import Path
from typing import Any, Protocol

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

    @property
    def may_differ(self) -> list[str]:
        """Facts of the identity in which a checkpoint may differ."""

    def resolved(self) -> dict[str, Any]:
        """What the run's `config.json` keeps."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be resumed."""
