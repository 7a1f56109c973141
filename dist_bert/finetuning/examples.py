"""What a labelled set holds, whatever its layout: one kind of example for each kind of question.

Readers make them (`dist_bert.finetuning.readers`), features turn them into ids. Not for: ids or
tensors.
"""

import dataclasses

TASKS = (
    "pair_classification",
    "pair_regression",
    "sentence_classification",
    "sentence_regression",
    "question_answering",
    "token_classification",
)
PAIR_TASKS = ("pair_classification", "pair_regression")
REGRESSION_TASKS = ("pair_regression", "sentence_regression")


@dataclasses.dataclass(frozen=True, slots=True)
class TextExample:
    """One or two texts to be classified, or to get a number."""

    text_a: str
    text_b: str | None  # of a pair
    labels: tuple[str, ...] | None  # names; more than one where several apply; None = not known
    name: str  # where it stands, for messages: "dev.tsv, line 17"
    target: float | None = None  # the number to predict, of a regression; None = not known


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A stretch of a context."""

    text: str
    start: int | None  # its first code point in the context; None = not known


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question on a text that may hold its answer."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None  # () = the context has none; None = not known
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class WordsExample:
    """A sentence in words, each with a tag."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None  # IOB2: O, B-TYPE, I-TYPE; None = not known
    name: str


Example = TextExample | QuestionExample | WordsExample
