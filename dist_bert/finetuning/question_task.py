"""Answers in contexts: windows, features, answers and scores. No torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from dist_bert.data.batches import NO_LABEL
from dist_bert.finetuning.examples import QuestionExample
from dist_bert.finetuning.features import Features, mean_cross_entropy, question_features
from dist_bert.finetuning.question_answers import (
    Prediction,
    best_threshold,
    class_scores,
    predict,
    span_scores,
)
from dist_bert.finetuning.question_windows import (
    TOKEN_CLASSES,
    Window,
    windows_of,
    with_few_null_windows,
)
from dist_bert.finetuning.scores import Scores, answer_scores, language_of, score_answer
from dist_bert.finetuning.task import QUESTION_PIPELINE
from dist_bert.finetuning.text_task import published_classes
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dist_bert.finetuning.heads import BertForQuestionAnswering, BertForTokenClassification

_NUM_CANDIDATES = 20


@dataclasses.dataclass(frozen=True)
class PreparedQuestions:
    """Examples, their windows and features: a sample is a window."""

    examples: Sequence[QuestionExample]
    windows: Sequence[Window]
    bounds: NDArray[np.int64]  # (examples + 1,) the windows of each
    features: Features
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class QuestionTask:
    """What fine-tuning, scoring and prediction need to know of questions."""

    tokenizer: Tokenizer
    max_seq_length: int
    doc_stride: int
    max_question_tokens: int
    max_answer_tokens: int
    as_token_classes: bool  # the head tells each token's class
    may_lack_answers: bool = False  # contexts without an answer were learnt from
    null_score_threshold: float = 0.0  # by how much no answer must outscore the best one, if so
    max_null_windows: int = 0  # windows of a question without the answer to learn from; 0 = all
    classes: ClassVar[tuple[str, ...]] = ()
    pipeline: ClassVar[str] = QUESTION_PIPELINE

    def labels_of(self, example: QuestionExample) -> Sequence[str]:
        """None: answers are places."""
        return ()

    def new_head(
        self, config: ModelConfig
    ) -> "BertForQuestionAnswering | BertForTokenClassification":
        """Start and end chosen among all tokens, or every token to `TOKEN_CLASSES`."""
        from dist_bert.finetuning.heads import BertForQuestionAnswering, BertForTokenClassification

        if self.as_token_classes:
            return BertForTokenClassification(config, len(TOKEN_CLASSES))
        return BertForQuestionAnswering(config)

    def prepare(self, examples: Sequence[QuestionExample], is_training: bool) -> PreparedQuestions:
        """Turns examples into features; in training, only those whose answer has a place."""
        per_example = [
            windows_of(
                example,
                self.tokenizer,
                self.max_seq_length,
                self.doc_stride,
                self.max_question_tokens,
                is_training,
            )
            for example in examples
        ]
        num_made = sum(map(len, per_example))
        if is_training and self.max_null_windows:
            per_example = [with_few_null_windows(w, self.max_null_windows) for w in per_example]
        windows = [window for own in per_example for window in own]
        features = question_features(windows, is_training, self.as_token_classes)
        bounds = np.concatenate(([0], np.cumsum([len(own) for own in per_example])))
        num_cut = sum(own[0].question.is_cut for own in per_example if own)
        num_left_out = sum(not own for own in per_example)
        notes = [f"{len(examples):,} questions make {len(windows):,} samples"]
        if num_made > len(windows):
            notes.append(f"{num_made - len(windows):,} windows without the answer are left out")
        if num_cut:
            notes.append(f"{num_cut:,} questions were cut to {self.max_question_tokens} tokens")
        if num_left_out:
            notes.append(f"{num_left_out:,} questions are left out: no answer's place is known")
        return PreparedQuestions(examples, windows, bounds, features, tuple(notes))

    def loss(self, prepared: PreparedQuestions, logits: Sequence[NDArray[np.float32]]) -> float:
        """Mean loss, over the windows whose answer has a known place, of scores (n, 2 or 3)."""
        known = [
            (window, row)
            for window, row in zip(prepared.windows, logits, strict=True)
            if window.start_position != NO_LABEL
        ]
        if not known:
            return float("nan")
        if self.as_token_classes:
            labels = question_features([window for window, _ in known], True, True).token_labels
            assert labels is not None
            return mean_cross_entropy(np.concatenate([row for _, row in known]), labels)
        losses = [
            -(logs[window.start_position, 0] + logs[window.end_position, 1]) / 2
            for window, row in known
            for logs in (log_softmax(row, axis=0),)
        ]
        return float(np.mean(losses))

    def predictions(
        self, prepared: PreparedQuestions, logits: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """The best spans of each question."""
        score_window = class_scores if self.as_token_classes else span_scores
        found = []
        for begin, end in zip(prepared.bounds, prepared.bounds[1:], strict=False):
            windows = prepared.windows[begin:end]
            scores = [
                score_window(window, row)
                for window, row in zip(windows, logits[begin:end], strict=True)
            ]
            found.append(predict(windows, scores, _NUM_CANDIDATES, self.max_answer_tokens))
        return found

    def tuned(
        self, prepared: PreparedQuestions, logits: Sequence[NDArray[np.float32]]
    ) -> "QuestionTask":
        """The same with the `null_score_threshold` that makes the F1 of a labelled set greatest."""
        if not self.may_lack_answers:
            return self
        found = self.predictions(prepared, logits)
        gold = [[a.text for a in example.answers or ()] for example in prepared.examples]
        language = language_of([text for texts in gold for text in texts])
        answered, unanswered = (
            np.array(
                [
                    score_answer(texts, prediction.text(threshold), language, True)[1]
                    for texts, prediction in zip(gold, found, strict=True)
                ]
            )
            for threshold in (None, -np.inf)
        )
        odds = np.array([prediction.null_odds for prediction in found])
        threshold, _ = best_threshold(odds, answered, unanswered)
        return dataclasses.replace(self, null_score_threshold=threshold)

    def tuned_settings(self) -> dict[str, Any]:
        """`null_score_threshold`, where a question may lack an answer."""
        return {"null_score_threshold": self.null_score_threshold} if self.may_lack_answers else {}

    def with_settings(self, results: Mapping[str, Any]) -> "QuestionTask":
        """The same with the `null_score_threshold` of a run's results, if there is one."""
        threshold = results.get("null_score_threshold", self.null_score_threshold)
        return dataclasses.replace(self, null_score_threshold=threshold)

    def answers(
        self, prepared: PreparedQuestions, logits: Sequence[NDArray[np.float32]]
    ) -> list[dict[str, Any]]:
        """What the model says to each question: its `id`, the `answer`, and `candidates`.

        `answer` is "" where the model says that there is none; `null_odds` tells by how much that
        outscores the best candidate, None where a context has no candidate.
        """
        threshold = self.null_score_threshold if self.may_lack_answers else None
        answers = []
        for example, found in zip(
            prepared.examples, self.predictions(prepared, logits), strict=True
        ):
            told: dict[str, Any] = {"id": example.id, "answer": found.text(threshold)}
            if self.may_lack_answers:
                told["null_odds"] = found.null_odds if found.candidates else None
            told["candidates"] = [candidate._asdict() for candidate in found.candidates]
            answers.append(told)
        return answers

    def scores(self, prepared: PreparedQuestions, answers: Sequence[dict[str, Any]]) -> Scores:
        """Scores of the answers to labelled examples, in the language that their answers have."""
        gold = {
            example.id: tuple(answer.text for answer in example.answers or ())
            for example in prepared.examples
        }
        told = {answer["id"]: answer["answer"] for answer in answers}
        language = language_of([text for texts in gold.values() for text in texts])
        return answer_scores(gold, told, language)

    def published_facts(self, encoder: str) -> dict[str, Any]:
        """The class of transformers and, where tokens have classes, their names."""
        if not self.as_token_classes:
            return {"architectures": [f"{encoder}ForQuestionAnswering"]}
        names = published_classes(TOKEN_CLASSES)
        return {"architectures": [f"{encoder}ForTokenClassification"], **names}

    def published_weights(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same."""
        return weights
