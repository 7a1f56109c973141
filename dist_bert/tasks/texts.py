"""Classification of one or two texts: classes, features, answers and scores. No torch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from dist_bert.tasks.examples import TextExample
from dist_bert.tasks.features import Features, mean_cross_entropy, text_features
from dist_bert.tasks.scores import Scores, classification_scores, multi_label_scores
from dist_bert.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PreparedTexts:
    """Examples and their features."""

    examples: Sequence[TextExample]
    features: Features
    notes: tuple[str, ...]  # what a user should know of the preparation


@dataclasses.dataclass(frozen=True)
class TextTask:
    """What fine-tuning, scoring and prediction need to know of classification."""

    tokenizer: Tokenizer
    max_seq_length: int
    classes: tuple[str, ...]
    has_several_labels: bool

    def prepare(self, examples: Sequence[TextExample], is_training: bool) -> PreparedTexts:
        """Turns examples into features; `is_training` makes no difference here."""
        features, num_cut = text_features(
            examples, self.tokenizer, self.max_seq_length, self.classes, self.has_several_labels
        )
        note = f"{num_cut:,} of {len(examples):,} texts were cut to {self.max_seq_length} tokens"
        return PreparedTexts(examples, features, (note,) if num_cut else ())

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
