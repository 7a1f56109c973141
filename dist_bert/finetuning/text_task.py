"""Classification of one or two texts: classes, features, answers and scores. No torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from dist_bert.finetuning.examples import TextExample
from dist_bert.finetuning.features import Features, mean_cross_entropy, text_features
from dist_bert.finetuning.scores import Scores, classification_scores, multi_label_scores
from dist_bert.finetuning.task import TEXT_PIPELINE
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dist_bert.finetuning.heads import BertForTextClassification


@dataclasses.dataclass(frozen=True)
class PreparedTexts:
    """Examples and their features."""

    examples: Sequence[TextExample]
    features: Features
    notes: tuple[str, ...]  # what a user should know of the preparation


def prepared_texts(
    examples: Sequence[TextExample],
    tokenizer: Tokenizer,
    max_seq_length: int,
    labels: NDArray[Any] | None,
) -> PreparedTexts:
    """Examples, their features, and a note where texts were cut."""
    features, num_cut = text_features(examples, tokenizer, max_seq_length, labels)
    note = f"{num_cut:,} of {len(examples):,} texts were cut to {max_seq_length} tokens"
    return PreparedTexts(examples, features, (note,) if num_cut else ())


@dataclasses.dataclass(frozen=True)
class TextTask:
    """What fine-tuning, scoring and prediction need to know of classification."""

    tokenizer: Tokenizer
    max_seq_length: int
    classes: tuple[str, ...]
    has_several_labels: bool

    pipeline: ClassVar[str] = TEXT_PIPELINE

    @property
    def score_note(self) -> str:
        """What the scores of transformers' pipeline mean."""
        if self.has_several_labels:
            return "All labels with a score above 0.5 apply, maybe none."
        return "The label with the highest score comes first."

    def labels_of(self, example: TextExample) -> Sequence[str]:
        """Its labels."""
        return example.labels or ()

    def new_head(self, config: ModelConfig) -> "BertForTextClassification":
        """[CLS] through the pooler to the classes."""
        from dist_bert.finetuning.heads import BertForTextClassification

        return BertForTextClassification(config, len(self.classes), self.has_several_labels)

    def prepare(self, examples: Sequence[TextExample], is_training: bool) -> PreparedTexts:
        """Turns examples into features; `is_training` makes no difference here."""
        labels = None
        if examples and examples[0].labels is not None:
            labels = class_labels(examples, self.classes, self.has_several_labels)
        return prepared_texts(examples, self.tokenizer, self.max_seq_length, labels)

    def loss(self, prepared: PreparedTexts, logits: Sequence[NDArray[np.float32]]) -> float:
        """Mean loss of a labelled set from the scores (C,) of its samples."""
        stacked, labels = np.stack(logits), prepared.features.sample_labels["labels"]
        if self.has_several_labels:
            return float(np.mean(np.logaddexp(0.0, stacked) - stacked * labels))
        return mean_cross_entropy(stacked, labels)

    def answers(
        self, prepared: PreparedTexts, logits: Sequence[NDArray[np.float32]]
    ) -> list[dict[str, Any]]:
        """What the model says to each example: `label` or `labels`, and `probabilities`."""
        stacked = np.stack(logits)  # (M, C)
        probabilities = expit(stacked) if self.has_several_labels else softmax(stacked, axis=1)
        answers = []
        for scores, row in zip(stacked, probabilities, strict=True):
            told = {name: round(float(p), 6) for name, p in zip(self.classes, row, strict=True)}
            if self.has_several_labels:
                chosen = [self.classes[index] for index in np.flatnonzero(scores > 0)]
                answers.append({"labels": chosen, "probabilities": told})
            else:
                label = self.classes[int(scores.argmax())]
                answers.append({"label": label, "probabilities": told})
        return answers

    def scores(self, prepared: PreparedTexts, answers: Sequence[dict[str, Any]]) -> Scores:
        """Scores of the answers to labelled examples."""
        class_of = {name: index for index, name in enumerate(self.classes)}
        gold = prepared.features.sample_labels["labels"]
        if not self.has_several_labels:
            predicted = np.array([class_of[answer["label"]] for answer in answers])
            return classification_scores(gold, predicted, self.classes)
        chosen = np.zeros(gold.shape, np.bool_)
        for row, answer in enumerate(answers):
            chosen[row, [class_of[name] for name in answer["labels"]]] = True
        return multi_label_scores(gold.astype(np.bool_), chosen, self.classes)

    def tuned(self, prepared: PreparedTexts, logits: Sequence[NDArray[np.float32]]) -> "TextTask":
        """The task itself: no setting depends on held-out examples."""
        return self

    def tuned_settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def with_settings(self, results: Mapping[str, Any]) -> "TextTask":
        """The task itself."""
        return self

    def published_facts(self, encoder: str) -> dict[str, Any]:
        """The class of transformers and the names of the classes."""
        kind = "multi" if self.has_several_labels else "single"
        return {
            "architectures": [f"{encoder}ForSequenceClassification"],
            "problem_type": f"{kind}_label_classification",
            **published_classes(self.classes),
        }

    def published_weights(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same."""
        return weights

    def answer_of_pipeline(self, told: Sequence[dict[str, Any]]) -> Any:
        """What transformers' pipeline says, in place of an answer of this task.

        Args:
            told: all classes with their scores, the best one first.
        """
        if not self.has_several_labels:
            return told[0]["label"]
        names = (scores["label"] for scores in told if scores["score"] > 0.5)
        return sorted(names, key=self.classes.index)

    def told(self, answer: dict[str, Any]) -> Any:
        """What `answer_of_pipeline` must be like."""
        return answer["labels" if self.has_several_labels else "label"]


def class_labels(
    examples: Sequence[TextExample], classes: Sequence[str], has_several_labels: bool
) -> NDArray[Any]:
    """(M,) int64 classes; (M, C) float32 zeros and ones where several may apply.

    Args:
        examples: whose labels are all among `classes`.
        classes: names, in the order of the scores.
        has_several_labels: labels become zeros and ones instead of one number.
    """
    class_of = {name: index for index, name in enumerate(classes)}
    chosen = np.zeros((len(examples), len(classes)), np.float32)
    for row, example in enumerate(examples):
        chosen[row, [class_of[name] for name in example.labels or ()]] = 1.0
    return chosen if has_several_labels else chosen.argmax(1)


def published_classes(classes: Sequence[str]) -> dict[str, Any]:
    """The names of classes in transformers' config.json."""
    return {
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
    }
