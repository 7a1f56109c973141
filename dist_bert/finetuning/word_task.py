"""Tags of words: labels, features, answers and scores. No torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from dist_bert.finetuning.examples import WordsExample
from dist_bert.finetuning.features import Features, mean_cross_entropy, word_features
from dist_bert.finetuning.scores import Scores, tag_scores
from dist_bert.finetuning.task import WORD_PIPELINE
from dist_bert.finetuning.text_task import published_classes
from dist_bert.model.config import ModelConfig
from dist_bert.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dist_bert.finetuning.heads import BertForTokenClassification

OUTSIDE = "O"


@dataclasses.dataclass(frozen=True)
class PreparedWords:
    """Examples and their features."""

    examples: Sequence[WordsExample]
    features: Features
    first_pieces: Sequence[NDArray[np.int64]]  # of each sample: its words' first pieces
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class WordTask:
    """What fine-tuning, scoring and prediction need to know of tags."""

    tokenizer: Tokenizer
    max_seq_length: int
    classes: tuple[str, ...]  # tags in IOB2
    pipeline: ClassVar[str] = WORD_PIPELINE

    def labels_of(self, example: WordsExample) -> Sequence[str]:
        """Its tags."""
        return example.tags or ()

    def new_head(self, config: ModelConfig) -> "BertForTokenClassification":
        """Every token to the tags."""
        from dist_bert.finetuning.heads import BertForTokenClassification

        return BertForTokenClassification(config, len(self.classes))

    def prepare(self, examples: Sequence[WordsExample], is_training: bool) -> PreparedWords:
        """Turns examples into features; `is_training` makes no difference here."""
        features, first_pieces, num_cut = word_features(
            examples, self.tokenizer, self.max_seq_length, self.classes
        )
        note = (
            f"{num_cut:,} of {len(examples):,} sentences are longer than {self.max_seq_length}"
            f" tokens: the words behind are {'not learnt from' if is_training else 'tagged O'}"
        )
        return PreparedWords(examples, features, first_pieces, (note,) if num_cut else ())

    def loss(self, prepared: PreparedWords, logits: Sequence[NDArray[np.float32]]) -> float:
        """Mean loss of a labelled set from the scores (n, C) of its samples."""
        labels = prepared.features.token_labels
        assert labels is not None
        return mean_cross_entropy(np.concatenate(logits), labels)

    def answers(
        self, prepared: PreparedWords, logits: Sequence[NDArray[np.float32]]
    ) -> list[dict[str, Any]]:
        """What the model says to each example: its `words`, their `tags`, the `entities` in them.

        Words behind the end of a sample that was cut are tagged O.
        """
        answers = []
        for example, scores, places in zip(
            prepared.examples, logits, prepared.first_pieces, strict=True
        ):
            tags = likeliest_tags(scores[places], self.classes)
            tags += [OUTSIDE] * (len(example.words) - len(tags))
            answers.append(
                {
                    "words": list(example.words),
                    "tags": tags,
                    "entities": [
                        {"type": kind, "words": list(example.words[begin:end]), "begin": begin}
                        for kind, begin, end in entities(tags)
                    ],
                }
            )
        return answers

    def scores(self, prepared: PreparedWords, answers: Sequence[dict[str, Any]]) -> Scores:
        """Scores of the answers to labelled examples, by whole entities."""
        gold = [list(example.tags or ()) for example in prepared.examples]
        return tag_scores(gold, [answer["tags"] for answer in answers])

    def tuned(self, prepared: PreparedWords, logits: Sequence[NDArray[np.float32]]) -> "WordTask":
        """The task itself: no setting depends on held-out examples."""
        return self

    def tuned_settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def with_settings(self, results: Mapping[str, Any]) -> "WordTask":
        """The task itself."""
        return self

    def published_facts(self, encoder: str) -> dict[str, Any]:
        """The class of transformers and the tags."""
        return {
            "architectures": [f"{encoder}ForTokenClassification"],
            **published_classes(self.classes),
        }

    def published_weights(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same."""
        return weights


def likeliest_tags(logits: NDArray[np.float32], classes: Sequence[str]) -> list[str]:
    """The likeliest of all sequences of tags that are valid IOB2: I-X comes after B-X or I-X alone.

    By the Viterbi algorithm over the words' log probabilities.

    Args:
        logits: (words, C).
        classes: the C tags.
    """
    if not len(logits):
        return []
    may_follow = np.array(
        [
            [not tag.startswith("I-") or tag[2:] == before[2:] for tag in classes]
            for before in classes
        ]
    )
    may_start = np.array([not tag.startswith("I-") for tag in classes])
    steps = log_softmax(logits.astype(np.float64), axis=1)  # (words, C)
    best = np.where(may_start, steps[0], -np.inf)
    origins = []
    for step in steps[1:]:
        paths = np.where(may_follow, best[:, None], -np.inf)  # (C before, C)
        origins.append(paths.argmax(0))
        best = paths.max(0) + step
    tags = [int(best.argmax())]
    for origin in reversed(origins):
        tags.append(int(origin[tags[-1]]))
    return [classes[index] for index in reversed(tags)]


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Type, first word and the word behind the last one of every entity of IOB2 tags."""
    found: list[tuple[str, int, int]] = []
    for index, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append((tag[2:], index, index + 1))
        elif tag.startswith("I-"):
            kind, begin, _ = found[-1]
            found[-1] = (kind, begin, index + 1)
    return found
