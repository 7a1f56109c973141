"""Scores of labels and tags: exact values, what is not defined, tables and the picture."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_bert.common.text_tables import aligned, display_width
from dist_bert.finetuning.scores import (
    ClassScores,
    Scores,
    classification_scores,
    confusion,
    multi_label_scores,
    regression_scores,
    scores_as_markdown,
    scores_as_text,
    tag_scores,
    write_confusion,
)
from tests.unit.common.test_pictures import drawn_texts


def about(value: float) -> Any:
    return pytest.approx(value)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_numbers() -> None:
    gold = np.array([1.0, 2.0, 3.0, 4.0])
    scores = regression_scores(gold, np.array([10.0, 30.0, 20.0, 20.0]))
    # ranks 1, 4, 2.5, 2.5: covariance with 1 to 4 is 1.5, variances 5 and 4.5
    assert scores.values == pytest.approx(
        {
            "spearman": 1.5 / (5 * 4.5) ** 0.5,
            "pearson": 10 / (5 * 200) ** 0.5,
            "mean_absolute_error": 17.5,
        }
    )
    assert (scores.main, scores.per_class, scores.confusion) == ("spearman", [], None)
    assert regression_scores(gold, 2 * gold).values["spearman"] == about(1)
    for a, b in ((gold, np.full(4, 7.0)), (np.full(4, 7.0), gold), (gold[:1], gold[:1])):
        values = regression_scores(a, b).values
        assert (values["spearman"], values["pearson"]) == (0, 0)


def test_single_labels() -> None:
    gold = np.array([0, 0, 0, 1, 1, 2, 0])
    predicted = np.array([0, 0, 1, 1, 2, 2, 0])
    scores = classification_scores(gold, predicted, ["red", "green", "blue", "absent"])
    assert scores.main == "accuracy"
    red, green, blue = 2 * 3 / 7, 2 * 1 / 4, 2 * 1 / 3  # F1 = 2 TP / (gold + predicted)
    assert scores.per_class == [
        ClassScores("red", 1.0, 3 / 4, about(red), 4),
        ClassScores("green", 1 / 2, 1 / 2, about(green), 2),
        ClassScores("blue", 1 / 2, 1.0, about(blue), 1),
        ClassScores("absent", 0.0, 0.0, 0.0, 0),
    ]
    # c = 5 right of s = 7; t = 4, 2, 1 true and p = 3, 2, 2 predicted of each class:
    # (c s - t p) / sqrt((s^2 - p p) (s^2 - t t))
    matthews = (5 * 7 - (12 + 4 + 2)) / ((49 - 17) * (49 - 21)) ** 0.5
    assert scores.values == pytest.approx(
        {
            "accuracy": 5 / 7,
            "macro_f1": (red + green + blue) / 3,  # of what occurs
            "weighted_f1": (4 * red + 2 * green + blue) / 7,
            "matthews": matthews,
        }
    )
    assert scores.confusion is not None
    assert scores.confusion.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_single_labels_of_one_class() -> None:
    scores = classification_scores(np.array([1]), np.array([1]), ["red", "green"])
    assert scores.values == {"accuracy": 1, "macro_f1": 1, "weighted_f1": 1, "matthews": 0}
    scores = classification_scores(np.array([1]), np.array([0]), ["red", "green"])
    assert scores.values == {"accuracy": 0, "macro_f1": 0, "weighted_f1": 0, "matthews": 0}


def test_several_labels() -> None:
    gold = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]], bool)
    told = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]], bool)
    scores = multi_label_scores(gold, told, ["red", "green", "blue", "absent"])
    assert scores.main == "micro_f1" and scores.confusion is None
    assert scores.per_class == [
        ClassScores("red", 1.0, 1.0, 1.0, 2),
        ClassScores("green", 1.0, about(2 / 3), about(4 / 5), 3),
        ClassScores("blue", 0.0, 0.0, 0.0, 1),
        ClassScores("absent", 0.0, 0.0, 0.0, 0),
    ]
    assert scores.values == pytest.approx(
        {
            "micro_f1": 2 * 4 / (6 + 5),
            "micro_precision": 4 / 5,
            "micro_recall": 4 / 6,
            "macro_f1": (1 + 4 / 5 + 0) / 3,
            "macro_precision": 2 / 3,
            "macro_recall": (1 + 2 / 3 + 0) / 3,
            "exact_match": 2 / 5,
        }
    )


def test_several_labels_of_which_none_applies() -> None:
    nothing = np.zeros((3, 2), bool)
    values = multi_label_scores(nothing, nothing, ["red", "green"]).values
    assert values.pop("exact_match") == 1 and set(values.values()) == {0}
    one = multi_label_scores(np.ones((3, 1), bool), np.ones((3, 1), bool), ["red"])
    assert set(one.values.values()) == {1} and one.per_class[0].support == 3
    gold, told = np.zeros((4, 3), bool), np.zeros((4, 3), bool)
    gold[:2, 1] = told[1:, 1] = True  # one class alone occurs: 1 right of 3, and of 2
    values = multi_label_scores(gold, told, ["red", "green", "blue"]).values
    assert values == pytest.approx(
        {
            **dict.fromkeys(("micro_f1", "macro_f1"), 2 / 5),
            **dict.fromkeys(("micro_precision", "macro_precision"), 1 / 3),
            **dict.fromkeys(("micro_recall", "macro_recall"), 1 / 2),
            "exact_match": 1 / 4,
        }
    )


def test_tags_are_scored_by_whole_entities() -> None:
    gold = [
        ["B-creative-work", "I-creative-work", "O", "B-person"],
        ["O", "O"],
        ["B-person", "I-person", "B-person", "B-creative-work"],
        [],
    ]
    predicted = [
        ["B-creative-work", "I-creative-work", "O", "B-creative-work"],  # right; wrong type
        ["O", "B-group-x"],  # a type that is never true
        ["B-person", "O", "B-person", "I-creative-work"],  # cut; right; not begun, so none
        [],
    ]
    scores = tag_scores(gold, predicted)
    assert scores.main == "f1" and scores.confusion is None
    assert scores.per_class == [
        ClassScores("creative-work", 1 / 2, 1 / 2, 1 / 2, 2),
        ClassScores("group-x", 0.0, 0.0, 0.0, 0),
        ClassScores("person", 1 / 2, about(1 / 3), about(2 / 5), 3),
    ]
    assert scores.values == pytest.approx(
        {
            "f1": 2 * 2 / (5 + 5),
            "precision": 2 / 5,
            "recall": 2 / 5,
            "macro_f1": (1 / 2 + 0 + 2 / 5) / 3,
            "token_accuracy": 6 / 10,
        }
    )


def test_types_differ_behind_their_hyphens() -> None:
    gold, predicted = [["B-creative-work", "B-creative"]], [["B-creative-play", "B-creative"]]
    scores = tag_scores(gold, predicted)
    assert [c.name for c in scores.per_class] == ["creative", "creative-play", "creative-work"]
    assert scores.values["f1"] == 1 / 2


@pytest.mark.parametrize(
    "gold,predicted,token_accuracy",
    [
        ([["O", "O"], ["O"]], [["O", "O"], ["O"]], 1),
        ([["O", "B-x"]], [["O", "O"]], 1 / 2),
        ([["O", "O"]], [["O", "B-x"]], 1 / 2),
        ([["O", "O"]], [["O", "I-x"]], 1 / 2),  # begins nothing: no entity anywhere
    ],
)
def test_tags_without_entities(
    gold: list[list[str]], predicted: list[list[str]], token_accuracy: float
) -> None:
    scores = tag_scores(gold, predicted)
    assert scores.values.pop("token_accuracy") == token_accuracy
    assert set(scores.values.values()) == {0}
    assert [c.name for c in scores.per_class] == (
        ["x"] if "B-x" in (*gold[0], *predicted[0]) else []
    )


EXAMPLE = Scores(
    {"accuracy": 0.75, "matthews": -0.125},
    [
        ClassScores("宪法相关法", 1.0, 0.5, 2 / 3, 1_234),
        ClassScores("a|b\n\u202ec", 0.0, 0.0, 0.0, 5),
    ],
    np.array([[3, 1], [0, 0]]),
    "accuracy",
)


def test_tables_stand_in_columns() -> None:
    lines = scores_as_text(EXAMPLE).split("\n")
    assert lines == [
        "score       value",
        "accuracy   0.7500",
        "matthews  -0.1250",
        "",
        "class       precision  recall      f1  support",
        "宪法相关法     1.0000  0.5000  0.6667    1,234",
        "a|b  c         0.0000  0.0000  0.0000        5",
    ]
    assert len({display_width(line) for line in lines[4:]}) == 1
    no_classes = Scores({"f1": 1.0}, [], None, "f1")
    assert scores_as_text(no_classes) == "score   value\nf1     1.0000"
    assert scores_as_markdown(no_classes) == "| score | value |\n| --- | ---: |\n| f1 | 1.0000 |"
    assert "| a\\|b  c | 0.0000 |" in scores_as_markdown(EXAMPLE)
    assert scores_as_markdown(EXAMPLE).count("\n") == 8


def test_the_width_of_a_text_is_that_on_a_terminal() -> None:
    assert [*map(display_width, ("abc", "法a", "ｘ", "e\u0301", "", "\u200bx"))] == [
        3,
        3,
        2,
        1,
        0,
        1,
    ]
    assert aligned([["法", "x"], ["abc", "12"]]) == "法    x\nabc  12"


def test_all_of_it_is_json() -> None:
    assert json.loads(json.dumps(EXAMPLE.figures())) == {
        "main": "accuracy",
        "values": {"accuracy": 0.75, "matthews": -0.125},
        "per_class": [
            {
                "name": "宪法相关法",
                "precision": 1.0,
                "recall": 0.5,
                "f1": 2 / 3,
                "support": 1234,
            },
            {"name": "a|b\n\u202ec", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 5},
        ],
        "confusion": [[3, 1], [0, 0]],
    }
    assert tag_scores([["B-x"]], [["B-x"]]).figures()["confusion"] is None


def classes_of(names: list[str], counts: list[list[int]]) -> Scores:
    per_class = [ClassScores(name, 0.0, 0.0, 0.0, 0) for name in names]
    return Scores({}, per_class, np.array(counts), "accuracy")


def test_the_picture_has_counts_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    scores = classes_of(["red", "$green$"], [[1_200, 0], [7, 35]])
    assert write_confusion(tmp_path / "a.png", "best run", scores) == []
    wanted = {"best run", "red  (1,200)", "red", "$green$  (42)", "$green$", "1,200", "7", "35"}
    assert wanted | {"true", "predicted"} <= set(texts)
    first = (tmp_path / "a.png").read_bytes()
    # other counts of the same shares
    write_confusion(
        tmp_path / "b.png", "best run", classes_of(["red", "$green$"], [[9, 0], [7, 35]])
    )
    assert first != (tmp_path / "b.png").read_bytes()


def test_names_without_a_font_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    texts = drawn_texts(monkeypatch)
    scores = classes_of(["red", "刑法", "民法"], [[1, 0, 0], [0, 2, 0], [0, 0, 0]])
    (note,) = write_confusion(tmp_path / "a.png", "run", scores)
    assert "a.png: no installed font has all characters of 2 names" in note
    assert "2 = 刑法, 3 = 民法; install a font, for Chinese" in note
    assert {"red  (1)", "2  (2)", "3  (0)", "red", "2", "3"} <= set(texts)
    assert not any("法" in text for text in texts)
    assert capsys.readouterr().err == ""


def test_of_too_many_classes_those_with_most_mistakes_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = drawn_texts(monkeypatch)
    monkeypatch.setattr(confusion, "MAX_ROWS", 5)
    counts = np.eye(7, dtype=int)
    counts[3:, 2] = 1  # all but the first two classes have mistakes
    names = [f"class {number}" for number in range(7)]
    (note,) = write_confusion(tmp_path / "a.png", "run", classes_of(names, counts.tolist()))
    assert note.endswith("a.png: shows the 5 classes with the most errors, of 7")
    assert {"class 2  (1)", "class 3  (2)", "class 6  (2)"} <= set(texts)
    assert not {"class 0", "class 1"} & set(texts)
