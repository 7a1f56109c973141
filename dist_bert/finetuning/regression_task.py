"""Numbers of one or two texts, such as how alike they are: features, answers, scores. No torch.

The head learns how many standard deviations a number lies from the mean of the training set, so the
scale of a set makes no difference to training. Its scores are in the units of the set.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dist_bert.finetuning.examples import TextExample
from dist_bert.finetuning.scores import Scores, regression_scores
from dist_bert.finetuning.task import TEXT_PIPELINE
from dist_bert.finetuning.text_task import PreparedTexts, prepared_texts
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dist_bert.finetuning.heads import BertForTextRegression

SCORE = "score"  # in answers, and as the name of the only score in transformers


@dataclasses.dataclass(frozen=True)
class RegressionTask:
    """What fine-tuning, scoring and prediction need to know of numbers."""

    tokenizer: Tokenizer
    max_seq_length: int
    mean: float  # of the training set's numbers
    deviation: float  # standard deviation of the same, above 0
    classes: ClassVar[tuple[str, ...]] = ()
    pipeline: ClassVar[str] = TEXT_PIPELINE

    @property
    def score_note(self) -> str:
        """What the score of transformers' pipeline means."""
        return (
            f"`score` is the number itself, on the scale of the training set: mean {self.mean:.4g},"
            f" standard deviation {self.deviation:.4g}."
        )

    def labels_of(self, example: TextExample) -> Sequence[str]:
        """None."""
        return ()

    def new_head(self, config: ModelConfig) -> "BertForTextRegression":
        """[CLS] through the pooler to a number."""
        from dist_bert.finetuning.heads import BertForTextRegression

        return BertForTextRegression(config, self.mean, self.deviation)

    def prepare(self, examples: Sequence[TextExample], is_training: bool) -> PreparedTexts:
        """Turns examples into features; `is_training` makes no difference here."""
        labels = None
        if examples and examples[0].target is not None:
            labels = np.array([example.target for example in examples], np.float32)
        return prepared_texts(examples, self.tokenizer, self.max_seq_length, labels)

    def loss(self, prepared: PreparedTexts, logits: Sequence[NDArray[np.float32]]) -> float:
        """Mean squared error of the scores (1,) of samples, in variances of the training set."""
        differences = np.stack(logits)[:, 0] - prepared.features.sample_labels["labels"]
        return float(np.mean((differences.astype(np.float64) / self.deviation) ** 2))

    def answers(
        self, prepared: PreparedTexts, logits: Sequence[NDArray[np.float32]]
    ) -> list[dict[str, Any]]:
        """What the model says to each example: its `score`, a number."""
        return [{SCORE: float(str(row[0]))} for row in logits]  # float32's digits, at any scale

    def scores(self, prepared: PreparedTexts, answers: Sequence[dict[str, Any]]) -> Scores:
        """Scores of the answers to labelled examples."""
        gold = np.array([example.target for example in prepared.examples], np.float64)
        return regression_scores(gold, np.array([answer[SCORE] for answer in answers]))

    def tuned(
        self, prepared: PreparedTexts, logits: Sequence[NDArray[np.float32]]
    ) -> "RegressionTask":
        """The task itself: no setting depends on held-out examples."""
        return self

    def tuned_settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def with_settings(self, results: Mapping[str, Any]) -> "RegressionTask":
        """The task itself."""
        return self

    def published_facts(self, encoder: str) -> dict[str, Any]:
        """The class of transformers, which returns the number as it is."""
        return {
            "architectures": [f"{encoder}ForSequenceClassification"],
            "problem_type": "regression",
            "id2label": {"0": SCORE},
            "label2id": {SCORE: 0},
        }

    def published_weights(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """A last layer that has mean and deviation in it."""
        weight, bias = weights["classifier.weight"], weights["classifier.bias"]
        return {
            **weights,
            "classifier.weight": weight * self.deviation,
            "classifier.bias": bias * self.deviation + self.mean,
        }

    def answer_of_pipeline(self, told: Sequence[dict[str, Any]]) -> float:
        """What transformers' pipeline says, in place of an answer of this task."""
        return float(told[0]["score"])

    def told(self, answer: dict[str, Any]) -> float:
        """What `answer_of_pipeline` must be like."""
        return float(answer[SCORE])
