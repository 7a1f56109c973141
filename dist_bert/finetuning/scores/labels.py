"""Scores of classification, with one or several labels per example; by scikit-learn.

Macro means are over the classes that occur among the true or the predicted labels: a class that a
small held-out set lacks says nothing about the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from dist_bert.finetuning.scores.result import ClassScores, Scores


def classification_scores(
    gold: NDArray[np.integer], predicted: NDArray[np.integer], label_names: Sequence[str]
) -> Scores:
    """Scores if every example has exactly one class.

    Args:
        gold: (N,) the classes of the examples, N at least 1.
        predicted: (N,) the predicted classes.
        label_names: (C,) of the classes.
    """
    assert len(gold) == len(predicted) > 0
    classes = np.arange(len(label_names))
    is_one_class = len(np.union1d(gold, predicted)) == 1  # no correlation: 0 by definition
    values = {
        "accuracy": float(accuracy_score(gold, predicted)),
        "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0)),
        "weighted_f1": float(f1_score(gold, predicted, average="weighted", zero_division=0)),
        "matthews": 0.0 if is_one_class else float(matthews_corrcoef(gold, predicted)),
    }
    size = len(classes)
    confusion = np.bincount(gold * size + predicted, minlength=size**2).reshape(size, size)
    return Scores(
        values, _per_class(gold, predicted, classes, label_names), confusion, main="accuracy"
    )


def multi_label_scores(
    gold: NDArray[np.bool_], predicted: NDArray[np.bool_], label_names: Sequence[str]
) -> Scores:
    """Scores if any number of classes may apply to an example.

    Args:
        gold: (N, C) whether a class applies, N at least 1.
        predicted: (N, C) whether it was predicted.
        label_names: (C,) of the classes.
    """
    assert gold.shape == predicted.shape == (len(gold), len(label_names)) and len(gold)
    exact_match = float((gold == predicted).all(axis=1).mean())
    occurring = np.flatnonzero((gold | predicted).any(axis=0))
    # An extra column without a class: scikit-learn would treat a single one as two classes.
    truth, told = (np.pad(a.astype(np.int64), ((0, 0), (0, 1))) for a in (gold, predicted))
    values = {}
    for average in ("micro", "macro"):
        precision, recall, f1 = 0.0, 0.0, 0.0
        if occurring.size:
            precision, recall, f1, _ = precision_recall_fscore_support(
                truth, told, labels=occurring, average=average, zero_division=0
            )
        values[f"{average}_f1"] = float(f1)
        values[f"{average}_precision"] = float(precision)
        values[f"{average}_recall"] = float(recall)
    values["exact_match"] = exact_match
    classes = np.arange(len(label_names))
    return Scores(values, _per_class(truth, told, classes, label_names), None, main="micro_f1")


def _per_class(gold: Any, predicted: Any, classes: Any, names: Sequence[str]) -> list[ClassScores]:
    columns = precision_recall_fscore_support(
        gold, predicted, labels=classes, average=None, zero_division=0
    )
    return [
        ClassScores(name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(names, *columns, strict=True)
    ]
