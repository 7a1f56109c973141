"""Counts how often transformers' pipelines, and the code in cards, answer as a fine-tuned run.

Not for: scores and token ids, which must be equal (`dist_bert.huggingface.compare`).
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from dist_bert.finetuning.examples import TextExample
from dist_bert.finetuning.predict import FineTunedModel
from dist_bert.finetuning.question_task import QuestionTask
from dist_bert.finetuning.task import QUESTION_PIPELINE, TEXT_PIPELINE, WORD_PIPELINE
from dist_bert.finetuning.word_task import entities
from dist_bert.huggingface.folder import make_pipeline
from dist_bert.huggingface.usage import find_answer, tag_words

_SHOWN_DIFFERENCES = 3
_SHOWN_CHARACTERS = 100  # of an answer


class Agreement(NamedTuple):
    """How often a method of transformers gives the run's answers."""

    name: str
    num_alike: int
    num_examples: int
    differences: list[str]  # the first ones

    def __str__(self) -> str:
        return f"{self.name} agrees on {self.num_alike} of {self.num_examples} examples"


def compare_answers(
    model: FineTunedModel, theirs: Any, tokenizer: Any, examples: Sequence[Any]
) -> list[Agreement]:
    """Answers examples by all methods that a card shows, and by the run itself.

    Args:
        model: the run.
        theirs: the model as transformers loads it.
        tokenizer: as transformers loads it.
        examples: of the run's task.
    """
    answers = list(model.answers(examples))
    task: Any = model.task
    if task.pipeline == TEXT_PIPELINE:
        ours = [task.told(answer) for answer in answers]
        said = _classified(theirs, tokenizer, examples)
        found = list(map(task.answer_of_pipeline, said))
        return [_agreement("pipeline", ours, found)]
    if task.pipeline == QUESTION_PIPELINE:
        ours = [answer["answer"] for answer in answers]
        settings = answer_settings(task)
        found = [
            find_answer(e.question, e.context, theirs, tokenizer, **settings) for e in examples
        ]
        return [_agreement("find_answer", ours, found)]
    tags = [answer["tags"] for answer in answers]
    own_entities = [_in_text(words.words, row) for words, row in zip(examples, tags, strict=True)]
    return [
        _agreement("pipeline", own_entities, _entities(theirs, tokenizer, examples)),
        _agreement(
            "tag_words", tags, [tag_words(list(e.words), theirs, tokenizer) for e in examples]
        ),
    ]


def answer_settings(task: QuestionTask) -> dict[str, Any]:
    """Arguments of `find_answer` for a task."""
    return {
        "doc_stride": task.doc_stride,
        "max_question_tokens": task.max_question_tokens,
        "max_answer_tokens": task.max_answer_tokens,
        "null_score_threshold": task.null_score_threshold if task.may_lack_answers else None,
    }


def _classified(
    theirs: Any, tokenizer: Any, examples: Sequence[TextExample]
) -> list[list[dict[str, Any]]]:
    """All labels of each example with their scores, the best one first."""
    classify = make_pipeline(TEXT_PIPELINE, theirs, tokenizer)
    given = [
        example.text_a
        if example.text_b is None
        else {"text": example.text_a, "text_pair": example.text_b}
        for example in examples
    ]
    said: list[list[dict[str, Any]]] = classify(given, top_k=None, truncation=True)
    return said


def _entities(
    theirs: Any, tokenizer: Any, examples: Sequence[Any]
) -> list[list[tuple[str, str, int]]]:
    """Types, texts and places of the entities in each sentence."""
    tag = make_pipeline(WORD_PIPELINE, theirs, tokenizer)
    found = []
    for example in examples:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about splitting at spaces: words are given
            (told,) = tag(
                list(example.words), is_split_into_words=True, aggregation_strategy="first"
            )
        text = " ".join(example.words)
        found.append(
            [(e["entity_group"], text[e["start"] : e["end"]], int(e["start"])) for e in told]
        )
    return found


def _in_text(words: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str, int]]:
    """The same from tags, in the words joined by spaces."""
    return [
        (kind, " ".join(words[begin:end]), len(" ".join([*words[:begin], ""])))
        for kind, begin, end in entities(tags)
    ]


def _agreement(name: str, ours: Sequence[Any], found: Sequence[Any]) -> Agreement:
    differences = [(a, b) for a, b in zip(ours, found, strict=True) if not _are_alike(a, b)]
    shown = [
        f"{a!r:.{_SHOWN_CHARACTERS}} here, {b!r:.{_SHOWN_CHARACTERS}} in transformers"
        for a, b in differences[:_SHOWN_DIFFERENCES]
    ]
    return Agreement(name, len(ours) - len(differences), len(ours), shown)


def _are_alike(ours: Any, found: Any) -> bool:
    """Whether answers are equal; numbers up to float32 rounding."""
    if isinstance(ours, float):
        return math.isclose(ours, found, rel_tol=1e-4, abs_tol=1e-4)
    return bool(ours == found)
