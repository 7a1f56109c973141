"""Scores of predictions for labelled examples: one result type for all tasks, as text and picture.

All scores are fractions from 0 to 1, except correlations (-1 to 1) and errors of numbers. Not for:
confidence intervals (`dist_bert.inference.confidence`), or making the predictions.
"""

from dist_bert.finetuning.scores.answers import answer_scores, language_of, score_answer
from dist_bert.finetuning.scores.confusion import write_confusion
from dist_bert.finetuning.scores.labels import classification_scores, multi_label_scores
from dist_bert.finetuning.scores.numbers import regression_scores
from dist_bert.finetuning.scores.result import ClassScores, Scores
from dist_bert.finetuning.scores.tags import tag_scores
from dist_bert.finetuning.scores.text import markdown_table, scores_as_markdown, scores_as_text

__all__ = [
    "ClassScores",
    "Scores",
    "answer_scores",
    "classification_scores",
    "language_of",
    "markdown_table",
    "multi_label_scores",
    "regression_scores",
    "score_answer",
    "scores_as_markdown",
    "scores_as_text",
    "tag_scores",
    "write_confusion",
]
