"""What fine-tuning, prediction and export need of a task, whatever it is. No torch.

A task knows its features, its head, what scores of the head mean, and how transformers calls it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dist_bert.finetuning.features import Features
from dist_bert.finetuning.scores import Scores
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dist_bert.finetuning.heads import Head

# The pipelines of transformers.
TEXT_PIPELINE = "text-classification"  # of classes and of numbers
WORD_PIPELINE = "token-classification"
QUESTION_PIPELINE = "question-answering"


class Prepared(Protocol):
    """Examples and what was made of them."""

    @property
    def examples(self) -> Sequence[Any]:
        """As they were given."""

    @property
    def features(self) -> Features:
        """Of their samples."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the preparation."""


class Task(Protocol):
    """A kind of question to texts, with all that it was made with."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the encoder."""

    @property
    def max_seq_length(self) -> int:
        """Longest sample in tokens."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is told apart, in the order of the scores; () where there are none."""

    @property
    def pipeline(self) -> str:
        """What transformers calls the task."""

    def labels_of(self, example: Any) -> Sequence[str]:
        """The labels of an example that must be among the classes."""

    def new_head(self, config: ModelConfig) -> "Head":
        """The encoder with the head of this task, with new weights."""

    def prepare(self, examples: Sequence[Any], is_training: bool) -> Any:
        """Turns examples into features, as a `Prepared` of this task."""

    def loss(self, prepared: Any, logits: Sequence[NDArray[np.float32]]) -> float:
        """Mean loss of a labelled set from the scores of its samples."""

    def answers(self, prepared: Any, logits: Sequence[NDArray[np.float32]]) -> list[dict[str, Any]]:
        """What the model says to each example, as a JSON object."""

    def scores(self, prepared: Any, answers: Sequence[dict[str, Any]]) -> Scores:
        """Scores of the answers to labelled examples."""

    def tuned(self, prepared: Any, logits: Sequence[NDArray[np.float32]]) -> "Task":
        """The task with the settings of answering that suit these labelled examples best."""

    def tuned_settings(self) -> dict[str, Any]:
        """Settings that `tuned` has chosen, by name, for the results of a run."""

    def with_settings(self, results: Mapping[str, Any]) -> "Task":
        """The task with the `tuned_settings` that a run's results hold."""

    def published_facts(self, encoder: str) -> dict[str, Any]:
        """What transformers' config.json says of the head: its class, the names of the classes.

        Args:
            encoder: how the names of transformers' classes of the encoder begin, such as Bert.
        """

    def published_weights(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """Weights of the head of which transformers' class computes what this head does."""
