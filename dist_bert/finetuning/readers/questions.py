"""Reads questions on texts with the answers: SQuAD 1.1 and 2.0, CMRC 2018 and JSON lines.

Offsets count code points, as in Python. An answer that is not at its offset is moved to its nearest
occurrence. An answer that does not occur keeps its text, for scoring, but has no offset, so it is
not used for training.
"""

import json
from collections.abc import Iterator
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import Answer, QuestionExample
from dist_bert.finetuning.readers.read_config import ReadConfig
from dist_bert.finetuning.readers.source import (
    first_lines,
    json_object,
    lines_of,
    read_text,
    shown,
    whole_characters,
)
from dist_bert.finetuning.readers.tally import RowError, Tally

_WANTED = (
    'expected {"data": [{"paragraphs": ...}]} (SQuAD), [{"context_text": ..., "qas": ...}] (CMRC)'
    ' or rows of {"question": ..., "context": ..., "answers": ...}, as JSON lines or a list'
)
# Names of fields in the layouts, SQuAD's first.
_CONTEXT = ("context", "context_text")
_QUESTION = ("question", "query_text")
_ID = ("id", "query_id")

Question = dict[str, Any] | RowError  # with its context
_Given = tuple[str, int | None]  # an answer's text, and its offset as `_placed` takes it


def read_questions(
    path: str, config: ReadConfig, is_labelled: bool, tally: Tally
) -> tuple[list[QuestionExample], str]:
    """Reads the examples of question_answering.

    Args:
        path: of a file.
        config: how to read it.
        is_labelled: whether to read answers.
        tally: counts bad rows and corrections.

    Returns:
        The examples, and the layout that was read.
    """
    rows, layout = _rows(path, config.format)
    examples: dict[str, QuestionExample] = {}
    for place, row in rows:
        tally.num_rows += 1
        try:
            example = _example(place, row, path, is_labelled, tally)
            if example.id in examples:
                raise RowError("id occurs twice", f"id {example.id!r} occurs twice")
        except RowError as bad:
            tally.count_bad(place, bad)
            continue
        examples[example.id] = example
    if any(example.answers == () for example in examples.values()):
        layout += ", with questions that have no answer (2.0)"
    return list(examples.values()), layout


def _rows(path: str, layout: str) -> tuple[Iterator[tuple[str, Question]], str]:
    """Questions with their contexts, each with its place, and the layout of the file."""
    text = read_text(path)
    lines = first_lines(text)
    firsts = [record for line in lines if (record := json_object(line)) is not None]
    are_lines = 2 * len(firsts) > len(lines) and any(map(_is_row, firsts))
    if layout == "jsonl" or (layout == "auto" and are_lines):
        return _json_lines(text, path), "JSON lines"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); {_WANTED}") from None
    if isinstance(value, dict) and isinstance(value.get("data"), list) and layout != "cmrc":
        rows = value["data"]
        told = "SQuAD's questions as rows" if any(map(_is_row, rows)) else "SQuAD"
        return _items(rows, f"{path}, data"), told
    if isinstance(value, list):
        is_cmrc = any(isinstance(item, dict) and "context_text" in item for item in value)
        kinds = [kind for item in value if (kind := _kind_of(item)) is not None]
        if is_cmrc and layout != "squad":
            told = "CMRC 2018, answers at their first occurrence in the text"
            return _items(value, f"{path}, "), told
        if kinds and layout in ("auto", "squad") and not is_cmrc:
            told = "SQuAD's questions as rows" if kinds[0] == "row" else f"a list of {kinds[0]}s"
            return _items(value, f"{path}, "), told
    told = (
        f"an object of {', '.join(shown(whole_characters(name)) for name in value)}"
        if isinstance(value, dict)
        else f"JSON of type {type(value).__name__}"
    )
    raise UserError(f"{path}: holds {told}; {_WANTED}")


def _kind_of(item: Any) -> str | None:
    """Kind of an item of a list: article, paragraph or row; None for others."""
    if _list_in(item, "paragraphs") is not None:
        return "article"
    if _list_in(item, "qas") is not None:
        return "paragraph"
    return "row" if _is_row(item) else None


def _is_row(item: Any) -> bool:
    """Whether an item is a question with its context."""
    return isinstance(item, dict) and _has(item, _CONTEXT) and _has(item, _QUESTION)


def _has(fields: dict[str, Any], names: tuple[str, str]) -> bool:
    return any(name in fields for name in names)


def _items(items: list[Any], place: str) -> Iterator[tuple[str, Question]]:
    """The questions of a list: of articles of paragraphs, of paragraphs, or of rows."""
    for number, item in enumerate(items):
        yield from _item(item, f"{place}[{number}]")


def _item(item: Any, place: str) -> Iterator[tuple[str, Question]]:
    paragraphs = _list_in(item, "paragraphs")
    if paragraphs is not None:
        for index, paragraph in enumerate(paragraphs):
            yield from _paragraph(paragraph, f"{place}.paragraphs[{index}]")
    elif _is_row(item):
        yield place, item
    elif isinstance(item, dict) and _has(item, _CONTEXT):
        yield from _paragraph(item, place)
    else:
        yield place, RowError("article without paragraphs")


def _paragraph(paragraph: Any, place: str) -> Iterator[tuple[str, Question]]:
    questions = _list_in(paragraph, "qas")
    if questions is None:
        yield place, RowError("paragraph without questions (qas)")
        return
    context = {name: paragraph[name] for name in _CONTEXT if name in paragraph}
    for index, question in enumerate(questions):
        is_object = isinstance(question, dict)
        row = question | context if is_object else RowError("question is no object")
        yield f"{place}.qas[{index}]", row


def _list_in(value: Any, name: str) -> list[Any] | None:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else None


def _json_lines(text: str, path: str) -> Iterator[tuple[str, Question]]:
    for number, line in enumerate(lines_of(text), 1):
        if line.strip():
            row = json_object(line)
            yield f"{path}, line {number}", RowError("no JSON object") if row is None else row


def _example(
    place: str, row: Question, path: str, is_labelled: bool, tally: Tally
) -> QuestionExample:
    if isinstance(row, RowError):
        raise row
    context, question = _text(row, _CONTEXT), _text(row, _QUESTION)
    given = next((row[name] for name in _ID if row.get(name) is not None), None)
    id_ = place if given is None else whole_characters(str(given))
    name = place if given is None else f"{path}, question {shown(id_)}"
    answers = _answers(row, context, name, tally) if is_labelled else None
    return QuestionExample(id_, question.strip(), context, answers, name)


def _text(row: dict[str, Any], names: tuple[str, str]) -> str:
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"empty {names[0]}", f"has no {names[0]}, or an empty one")
    return whole_characters(value)  # of the same length, so offsets stay valid


def _answers(row: dict[str, Any], context: str, name: str, tally: Tally) -> tuple[Answer, ...]:
    if row.get("is_impossible") is True:
        return ()
    given = _given_answers(row.get("answers"))
    if not given:
        if "is_impossible" in row:
            raise RowError("no answer, but is_impossible is false")
        tally.note("no answer given, taken as one that the text does not hold", name)
        return ()
    answers = []
    for text, start in given:
        if text.strip():
            answers.append(_placed(text, start, context, name, tally))
        else:
            tally.note("empty answer, left out", name)
    if not answers:
        raise RowError("all answers are empty")
    return tuple(answers)


def _given_answers(value: Any) -> list[_Given]:
    """Answers as given: objects, plain strings, or an object with a list for each field."""
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            value = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        elif isinstance(texts, str):
            value = [value]
    if not isinstance(value, list):
        raise RowError("no list of answers")
    given: list[_Given] = []
    for answer in value:
        fields = answer if isinstance(answer, dict) else {"text": answer, "answer_start": None}
        text, start = fields.get("text"), fields.get("answer_start", -1)
        if not isinstance(text, str):
            raise RowError("answer without text", f"answer {answer!r} has no text")
        if isinstance(start, float) and start.is_integer():
            start = int(start)  # whole numbers that were converted to floats
        given.append((whole_characters(text), start if start is None or type(start) is int else -1))
    return given


def _placed(text: str, start: int | None, context: str, name: str, tally: Tally) -> Answer:
    """An answer without surrounding white space, at its offset or at its nearest occurrence.

    Args:
        text: of the answer.
        start: its offset in the file; -1 if invalid, None if the layout has no offsets.
        context: that contains it.
        name: of the question.
        tally: counts answers that are moved or do not occur.
    """
    stripped = text.strip()
    wanted = -1 if start is None or start < 0 else start + len(text) - len(text.lstrip())
    if wanted >= 0 and context.startswith(stripped, wanted):
        return Answer(stripped, wanted)
    found = _nearest(stripped, wanted, context)
    told = f"answer {text if len(text) <= 60 else text[:60] + '...'!r}"
    if found is None:
        tally.note(
            "answer is not in its text: scored by, not learnt from",
            name,
            f"{told} is not in the text; it is used for scoring, not for training",
        )
    elif start is not None:
        tally.note(
            "answer_start does not fit: moved to where the answer stands",
            name,
            f"{told} is not at answer_start {start}; moved to {found}",
        )
    return Answer(stripped, found)


def _nearest(text: str, wanted: int, context: str) -> int | None:
    """Occurrence of a text nearest to an offset, or the first if that is negative; None if none."""
    behind = context.find(text, max(wanted, 0))
    before = context.rfind(text, 0, wanted + len(text)) if wanted >= 0 else -1
    places = [place for place in (before, behind) if place >= 0]
    return min(places, key=lambda place: abs(place - wanted), default=None)
