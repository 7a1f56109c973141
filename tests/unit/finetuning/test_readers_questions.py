"""Readers of questions: SQuAD 1.1 and 2.0, CMRC, JSON lines; answers found where they stand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import Answer, QuestionExample
from dist_bert.finetuning.readers import Labelled, ReadConfig, read_examples

CONTEXT = "\U0001f600 In \U00020bb7野家 they ate rice. Rice was good, and they said so."
NOT_THERE = "answer is not in its text: scored by, not learnt from"
MOVED = "answer_start does not fit: moved to where the answer stands"


def read(path: Path, is_labelled: bool = True, **settings: Any) -> Labelled:
    return read_examples("question_answering", str(path), ReadConfig(**settings), is_labelled)


def questions_of(labelled: Labelled) -> list[QuestionExample]:
    assert all(isinstance(example, QuestionExample) for example in labelled.examples)
    return labelled.examples  # type: ignore[return-value]


def answers_of(labelled: Labelled) -> list[list[tuple[str, int | None]] | None]:
    return [
        None if example.answers is None else [(a.text, a.start) for a in example.answers]
        for example in questions_of(labelled)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[Any], Path]:
    def write(value: Any) -> Path:
        path = tmp_path / "set.json"
        text = value if isinstance(value, str) else json.dumps(value)
        path.write_text(text, encoding="utf-8")
        return path

    return write


File = Callable[[Any], Path]


def question(*answers: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    given = [{"text": text, "answer_start": start} for text, start in answers]
    return {"question": " What? ", "id": "q1", "answers": given, **fields}


def squad(*questions: Any, context: Any = CONTEXT) -> dict[str, Any]:
    return {"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}


def test_squad_counts_offsets_in_code_points(file: File) -> None:
    value = squad(question(("\U00020bb7野家", 5), ("rice", 18)), question(("Rice", 24), id=77))
    path = file(value)
    found = read(path)
    assert questions_of(found) == [
        QuestionExample(
            "q1",
            "What?",
            CONTEXT,
            (Answer("\U00020bb7野家", 5), Answer("rice", 18)),
            f"{path}, question q1",
        ),
        QuestionExample("77", "What?", CONTEXT, (Answer("Rice", 24),), f"{path}, question 77"),
    ]
    for answers in answers_of(found):
        for text, start in answers or ():
            assert CONTEXT[start:].startswith(text)
    assert (found.layout, found.num_rows, found.bad_rows, found.notes) == ("SQuAD", 2, {}, {})
    assert answers_of(read(path, is_labelled=False)) == [None, None]
    literal = file(json.dumps(value, ensure_ascii=False, indent=1))
    assert questions_of(read(literal, format="squad")) == questions_of(found)


def test_contexts_are_shared_and_kept_as_they_are(file: File) -> None:
    context = "  Line one\r\nline  two "
    found = read(
        file(squad(question(("line", 12)), question(("two", 18), id="q2"), context=context))
    )
    first, second = questions_of(found)
    assert first.context == context
    assert first.context is second.context  # windows are made once for a context
    assert found.notes == {}


@pytest.mark.parametrize(
    "text,start,answer,note",
    [
        ("they", 10, ("they", 9), MOVED),
        ("they", 39, ("they", 43), MOVED),
        ("they", 9_999, ("they", 43), MOVED),
        ("they", 26, ("they", 9), MOVED),  # as near as the other: 17 characters
        ("they", -1, ("they", 9), MOVED),
        ("they", "9", ("they", 9), MOVED),
        (" they ", 8, ("they", 9), None),
        (" they ", 9, ("they", 9), MOVED),
        ("rice \n", 18, ("rice", 18), None),
        ("noodles", -1, ("noodles", None), NOT_THERE),
        ("noodles", 4, ("noodles", None), NOT_THERE),
    ],
)
def test_an_answer_is_taken_where_it_stands(
    file: File, text: str, start: Any, answer: tuple[str, int | None], note: str | None
) -> None:
    found = read(file(squad(question((text, start)))))
    assert answers_of(found) == [[answer]]
    assert found.notes == ({note: 1} if note else {})
    assert found.bad_rows == {}
    assert len(found.first_bad) == (note is not None)
    if note == MOVED:
        told = f"answer {text!r} is not at answer_start {start}; moved to {answer[1]}"
        assert start == "9" or found.first_bad[0].endswith(f"set.json, question q1: {told}")


def test_unanswerable_questions(file: File) -> None:
    found = read(
        file(
            squad(
                question(is_impossible=True, plausible_answers=[{"text": "a", "answer_start": 0}]),
                question(("rice", 18), id="q2", is_impossible=True),
                question(("rice", 18), id="q3", is_impossible=False),
                question(id="q4"),
                question(("", 0), ("rice", 18), id="q5"),
                question(id="q6", is_impossible=False),
                question((" ", 0), id="q7"),
            )
        ),
        max_bad_share=0.5,
    )
    assert answers_of(found) == [[], [], [("rice", 18)], [], [("rice", 18)]]
    assert found.layout == "SQuAD, with questions that have no answer (2.0)"
    assert found.notes == {
        "no answer given, taken as one that the text does not hold": 1,
        "empty answer, left out": 2,
    }
    assert found.bad_rows == {
        "no answer, but is_impossible is false": 1,
        "all answers are empty": 1,
    }


def test_cmrc_answers_have_no_offsets(file: File) -> None:
    value = [
        {
            "context_id": "T_1",
            "context_text": CONTEXT,
            "title": "x",
            "qas": [
                {"query_id": "T_1_Q", "query_text": "谁？", "answers": ["they", "noodles"]},
                {"query_id": "T_2_Q", "query_text": "何？", "answers": ["Rice"]},
            ],
        }
    ]
    path = file(value)
    found = read(path)
    assert answers_of(found) == [[("they", 9), ("noodles", None)], [("Rice", 24)]]
    assert [e.id for e in questions_of(found)] == ["T_1_Q", "T_2_Q"]
    assert [e.question for e in questions_of(found)] == ["谁？", "何？"]
    assert found.layout == "CMRC 2018, answers at their first occurrence in the text"
    assert found.notes == {NOT_THERE: 1}
    assert answers_of(read(path, format="cmrc", is_labelled=False)) == [None, None]
    with pytest.raises(UserError, match=r"set.json: holds JSON of type list; expected .*SQuAD"):
        read(path, format="squad")


def test_json_lines(file: File) -> None:
    lists = {"text": ["rice", "Rice"], "answer_start": [18, 24]}
    records = [
        {"id": 3, "question": "A?", "context": CONTEXT, "answers": lists},
        {"question": "B?", "context": "b", "answers": {"text": [], "answer_start": []}},
        {"question": "C?", "context": "c d", "answers": [{"text": "d", "answer_start": 2}]},
    ]
    path = file("\n".join(map(json.dumps, records)) + "\n[")
    found = read(path, max_bad_share=0.5)
    assert answers_of(found) == [[("rice", 18), ("Rice", 24)], [], [("d", 2)]]
    assert [e.id for e in questions_of(found)] == ["3", f"{path}, line 2", f"{path}, line 3"]
    assert found.bad_rows == {"no JSON object": 1}
    one = file(json.dumps({"question": "A?", "context": "c"}))
    assert answers_of(read(one, is_labelled=False)) == [None]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": "1", "data": rows}])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_as_hugging_face_writes_them(file: File, wrap: Any, indent: int | None) -> None:
    lists = {"text": ["rice", "Rice"], "answer_start": [18, 24.0]}
    rows = [
        {"id": "a", "title": "t", "question": "A?", "context": CONTEXT, "answers": lists},
        {"id": "b", "context": "b", "question": "B?", "answers": {"text": [], "answer_start": []}},
        {
            "id": "c",
            "context": "c d",
            "question": "C?",
            "answers": {"text": "d", "answer_start": 2},
        },
        {"id": "d", "question": "D?"},
    ]
    path = file(json.dumps(wrap(rows), indent=indent))
    found = read(path, max_bad_share=0.5)
    assert answers_of(found) == [[("rice", 18), ("Rice", 24)], [], [("d", 2)]]
    assert found.layout.startswith("SQuAD's questions as rows")
    assert (found.num_rows, found.bad_rows) == (4, {"article without paragraphs": 1})
    assert found.notes == {"no answer given, taken as one that the text does not hold": 1}
    assert questions_of(read(path, format="squad", max_bad_share=0.5)) == questions_of(found)


def test_squads_articles_and_paragraphs_may_be_the_list_itself(file: File) -> None:
    articles = squad(question(("rice", 18)))["data"]
    assert answers_of(read(file(articles))) == [[("rice", 18)]]
    assert read(file(articles)).layout == "a list of articles"
    assert answers_of(read(file(articles[0]["paragraphs"]))) == [[("rice", 18)]]


def test_bad_questions_are_left_out_and_named(file: File) -> None:
    good = question(("rice", 18))
    value = squad(
        good,
        good,
        "What?",
        question(("rice", 18), id="q2", question=" "),
        {"question": "What?", "id": "q3"},
        {"question": "What?", "id": "q4", "answers": [{"answer_start": 3}]},
        question(("rice", 18), id="q5"),
    )
    value["data"] += [{"title": "t"}, {"paragraphs": [{"context": "c"}]}, 3]
    value["data"] += squad(question(("a", 0), id="q6"), context="\t")["data"]
    path = file(value)
    found = read(path, max_bad_share=0.9)
    assert [e.id for e in questions_of(found)] == ["q1", "q5"]
    assert found.num_rows == 11
    assert found.bad_rows == {
        "id occurs twice": 1,
        "question is no object": 1,
        "empty question": 1,
        "no list of answers": 1,
        "answer without text": 1,
        "article without paragraphs": 2,
        "paragraph without questions (qas)": 1,
        "empty context": 1,
    }
    place = f"{path}, data[0].paragraphs[0].qas"
    assert found.first_bad == [
        f"{place}[1]: id 'q1' occurs twice",
        f"{place}[2]: question is no object",
        f"{place}[3]: has no question, or an empty one",
        f"{place}[4]: no list of answers",
        f"{place}[5]: answer {{'answer_start': 3}} has no text",
        f"{path}, data[1]: article without paragraphs",
        f"{path}, data[2].paragraphs[0]: paragraph without questions (qas)",
        f"{path}, data[3]: article without paragraphs",
        f"{path}, data[4].paragraphs[0].qas[0]: has no context, or an empty one",
    ]
    with pytest.raises(UserError, match=r"qas\[1\]: id 'q1' occurs twice \(9 of 11 rows"):
        read(path)


def test_halves_of_characters_keep_offsets_right(file: File) -> None:
    value = squad(question(("\ud83d b", 2)), context="a \ud83d b c")
    found = read(file(value))  # written as escapes
    assert questions_of(found)[0].context == "a \ufffd b c"
    assert answers_of(found) == [[("\ufffd b", 2)]]


@pytest.mark.parametrize(
    "value,settings,problem",
    [
        (
            {"a": 1, "b": 2},
            {},
            r"set.json: holds an object of a, b; expected .*SQuAD.*CMRC.*JSON",
        ),
        ([{"a": 1}], {}, "set.json: holds JSON of type list; expected"),
        ([], {}, "set.json: holds JSON of type list; expected"),
        (3, {}, "set.json: holds JSON of type int; expected"),
        ('{"data": [', {}, r"set.json: is not valid JSON \(.*line 1 column"),
        ("[" * 100_000, {}, r"set.json: is not valid JSON \(maximum recursion"),
        ("question\tanswer\n", {}, "set.json: is not valid JSON"),
        ({"data": []}, {}, r"set.json: has no examples \(read as SQuAD\)"),
        (squad(), {"format": "cmrc"}, "set.json: holds an object of data; expected"),
        (squad(), {"format": "csv"}, "format = csv: must be one of squad, cmrc"),
        (squad(), {"labels": "x"}, "labels = x: has no effect on question_answering"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    file: File, value: Any, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as error:
        read(file(value), **settings)
    assert "\n" not in str(error.value)
