"""Baselines: what each answers on sets made so that the answer is known, and the script."""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_bert.finetuning.baselines import (
    all_outside,
    commonest_labels,
    first_words,
    likeness_numbers,
    linear_labels,
    linear_numbers,
    mean_number,
    nearest_sentence,
    no_answer,
    score_baselines,
    word_lookup,
)
from dist_bert.finetuning.examples import Answer, QuestionExample, TextExample, WordsExample
from tests.support.processes import run_script

ROOT = Path(__file__).parents[3]
NOUNS = ("kettle", "lantern", "ladder", "harbour", "window", "clock", "parcel", "violin", "compass")

WORDS = {1.0: "small", 3.0: "middling", 5.0: "huge"}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def text(text_a: str, *labels: str, text_b: str | None = None) -> TextExample:
    return TextExample(text_a, text_b, labels, "")


def words(line: str, tags: str) -> WordsExample:
    return WordsExample(tuple(line.split()), tuple(tags.split()), "")


def question(asked: str, context: str, *answers: str) -> QuestionExample:
    found = tuple(Answer(answer, context.find(answer)) for answer in answers)
    return QuestionExample(asked, asked, context, found, "")


def test_the_commonest_label() -> None:
    one = [text("a", "red"), text("b", "green"), text("c", "green")]
    assert commonest_labels(one, one[:2]) == [("green",), ("green",)]
    several = [text("a", "red", "blue"), text("b", "blue", "red"), text("c", "red"), text("d")]
    assert commonest_labels(several, several[:1]) == [("blue", "red")]


def test_a_linear_model_learns_words_and_their_neighbours() -> None:
    training = [
        text(f"{colour} {noun} not {other}", colour)
        for colour, other in (("red", "green"), ("green", "blue"), ("blue", "red"))
        for noun in ("kettle", "lantern", "ladder", "harbour")
    ]
    held_out = [text(f"{c} window not {o}", "") for c, o in (("red", "green"), ("blue", "red"))]
    # red and green are in "red window not green": only the neighbours tell
    assert linear_labels(training, held_out) == [("red",), ("blue",)]
    assert linear_labels(training[:3], held_out) == [("red",), ("red",)]  # one class alone


def test_a_linear_model_learns_several_labels() -> None:
    parts = {"red": "kettle lantern", "green": "ladder harbour", "blue": "window clock"}
    chosen: list[tuple[str, ...]] = [("red",), ("green", "red"), ("blue",), ("blue", "green"), ()]
    training = [
        text(" ".join([*(parts[label] for label in labels), "and so on"]), *labels)
        for labels in chosen
    ] * 4
    held_out = [text("kettle ladder so on"), text("clock"), text("and so on")]
    assert linear_labels(training, held_out) == [("green", "red"), ("blue",), ()]
    one_or_none = [text("kettle", "red"), text("ladder")]
    assert linear_labels(one_or_none, one_or_none) == [("red",), ()]


def test_a_linear_model_takes_characters_of_chinese() -> None:
    training = [text(f"{noun}很红", "红") for noun in ("灯笼", "茶壶", "桥梁")]
    training += [text(f"{noun}很绿", "绿") for noun in ("灯笼", "茶壶", "桥梁")]
    assert linear_labels(training, [text("窗户绿"), text("红窗户")]) == [("绿",), ("红",)]


def test_a_linear_model_sees_what_a_pair_has_in_common() -> None:
    pairs = {
        step: [
            text(f"where is the {a}", "no" if step else "yes", text_b=f"there stands a {b} now")
            for a, b in zip(NOUNS, (*NOUNS[step:], *NOUNS[:step]), strict=True)
        ]
        for step in (0, 1, 2)
    }
    training = [*pairs[0], *pairs[1]]  # every noun as often with yes as with no
    assert linear_labels(training, training) == [e.labels for e in training]
    assert linear_labels(training, pairs[2]) == [("no",)] * len(NOUNS)


def rated(text_a: str, text_b: str | None, target: float) -> TextExample:
    return TextExample(text_a, text_b, None, "", target)


def test_numbers_of_texts_and_pairs() -> None:
    texts = [rated(f"{noun} is {word}", None, n) for noun in NOUNS for n, word in WORDS.items()]
    held_out = [rated("door is small", None, 1.0), rated("door is huge", None, 5.0)]
    assert mean_number(texts, held_out) == [3.0, 3.0]
    small, huge = linear_numbers(texts, held_out)
    assert small < 2 and huge > 4
    pairs = [
        rated(f"the {a} {b}", f"the {c} {d}", len({a, b} & {c, d}))
        for a, b, c, d in zip(NOUNS, NOUNS[1:], NOUNS[1:], NOUNS[2:], strict=False)
    ]
    pairs += [rated(f"the {noun}", f"the {noun}", 2.0) for noun in NOUNS]
    pairs += [rated(f"the {a}", f"a {b}", 0.0) for a, b in zip(NOUNS, NOUNS[3:], strict=False)]
    new = [rated("the kettle clock", "the kettle clock", 2), rated("window", "violin", 0)]
    alike, different = likeness_numbers(pairs, new)
    assert alike == pytest.approx(2.0, abs=0.3) and different == pytest.approx(0.0, abs=0.3)
    results = score_baselines("pair_regression", pairs, pairs, None)
    assert list(results) == ["mean", "linear on TF-IDF", "cosine of TF-IDF"]
    assert results["mean"][0].values["spearman"] == 0
    assert results["cosine of TF-IDF"][0].values["spearman"] > 0.9
    assert list(score_baselines("sentence_regression", texts, texts, None)) == [
        "mean",
        "linear on TF-IDF",
    ]


def test_words_get_their_commonest_tag() -> None:
    training = [
        words("in New York now", "O B-loc I-loc O"),
        words("New things in York", "O O O B-loc"),
        words("New York", "B-loc I-loc"),
    ]
    held_out = [words("York in New York", "O O O O"), words("now unknown", "O O")]
    assert all_outside(training, held_out) == [["O"] * 4, ["O"] * 2]
    # York is I-loc, which begins a name where it continues none
    assert word_lookup(training, held_out) == [["B-loc", "O", "B-loc", "I-loc"], ["O", "O"]]


def test_the_first_words_are_as_many_as_answers_have() -> None:
    training = [
        question("a", "x", "old harbour"),
        question("b", "x", "kettle", "a long other answer"),
        question("c", "x", "a very large lantern"),
        question("d", "x"),
    ]
    held_out = [question("e", " The green  door. It opened.", ""), question("f", "Short", "")]
    assert first_words(training, held_out) == ["The green", "Short"]
    chinese = [question("a", "x", "红色灯笼"), question("b", "x", "灯"), question("c", "x", "桥梁")]
    assert first_words(chinese, [question("d", "老师 看见灯笼。", "")]) == ["老师"]


def test_the_nearest_sentence_has_the_words_of_the_question() -> None:
    context = "The harbour is old. A lantern of 3.5 kg hangs there! Who lit it?\nThe clock stopped"
    training = [question("Where?", "The harbour is there. The clock is not.", "there")]
    asked = ["How heavy is the lantern that hangs?", "Did the clock stop, and when?", "Xyz"]
    assert nearest_sentence(training, [question(q, context, "") for q in asked]) == [
        "A lantern of 3.5 kg hangs there!",
        "The clock stopped",
        "The harbour is old.",  # nothing in common: the first
    ]
    chinese = [question("谁看见灯笼？", "老师打开窗户。学生看见灯笼。孩子走了", "学生")]
    assert nearest_sentence(chinese, chinese) == ["学生看见灯笼。"]
    assert no_answer(training, chinese) == [""]


def test_each_task_has_its_baselines_and_scores() -> None:
    labelled = [text("kettle", "red"), text("lantern", "green"), text("kettle", "red")]
    results = score_baselines("sentence_classification", labelled, labelled, None)
    values = {name: scores.values["accuracy"] for name, (scores, _) in results.items()}
    assert values == {"commonest": pytest.approx(2 / 3), "linear on TF-IDF": 1}
    assert [c.name for c in results["commonest"][0].per_class] == ["green", "red"]
    assert all(seconds > 0 for _, seconds in results.values())
    listed = score_baselines("sentence_classification", labelled, labelled, ("red", "x", "green"))
    assert [c.name for c in listed["commonest"][0].per_class] == ["red", "x", "green"]

    several = [text("kettle", "red", "green"), text("lantern", "green")]
    results = score_baselines("sentence_classification", several * 3, several, None)
    assert results["linear on TF-IDF"][0].values["micro_f1"] == 1
    assert results["commonest"][0].values["micro_f1"] == pytest.approx(6 / 7)

    tagged = [words("in York", "O B-loc")]
    results = score_baselines("token_classification", tagged, tagged, None)
    assert [(n, scores.values["f1"]) for n, (scores, _) in results.items()] == [
        ("all O", 0),
        ("word lookup", 1),
    ]

    asked = [question("Where is York?", "York is there. Rain falls.", "York")]
    results = score_baselines("question_answering", asked, asked, None)
    assert [(n, scores.values["f1"]) for n, (scores, _) in results.items()] == [
        ("first words", 1),
        ("nearest sentence", 1 / 2),
    ]
    asked.append(question("Who?", "Rain falls.", *()))
    results = score_baselines("question_answering", asked, asked, None)
    assert results["no answer"][0].values["exact_match"] == 1 / 2


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    variables = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return run_script(sys.executable, ROOT / "launch/baselines.py", *flags, env=variables)


def test_the_script_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    lines = [f"{c} {noun} {n}\t{c}\n" for n in "123" for noun in NOUNS for c in ("red", "green")]
    (tmp_path / "train.tsv").write_text("".join([*lines, "a door\tred\n", "a gate\tred\n"]))
    flags = ("--task", "sentence_classification", "--train", str(tmp_path / "train.tsv"))
    ended = run(*flags, "--json", str(tmp_path / "scores.json"), "--eval_share", "0.5")
    assert ended.returncode == 0, ended.stderr
    told = ended.stdout.splitlines()
    assert told[0].startswith(f"{tmp_path / 'train.tsv'}: 56 examples of 56 rows; TSV")
    assert told[1:3] == ["28 of them are kept apart to score, 28 learnt from", ""]
    assert told[3].split() == ["commonest", "linear", "on", "TF-IDF"]
    assert told[4].startswith("accuracy ") and told[4].endswith("1.0000")
    assert told[-1].startswith("seconds ")
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["num_training_examples"] == 28 and written["num_held_out_examples"] == 28
    assert written["baselines"]["linear on TF-IDF"]["values"]["accuracy"] == 1
    assert sum(map(sum, written["baselines"]["commonest"]["confusion"])) == 28


def test_the_scripts_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("red door\tred\ngreen door\tgreen\n")
    flags = ("--task", "sentence_classification", "--train", str(tmp_path / "train.tsv"))
    for given, message in (
        (flags, "error: eval_share = 0.1: of 2 examples"),
        (
            (*flags, "--eval_share", "1"),
            "error: argument --eval_share: 1: must be a number above 0",
        ),
        ((*flags, "--eval", "none.tsv"), "error: none.tsv: cannot be read"),
        (
            (*flags, "--json", "no/such/folder.json"),
            "error: --json no/such/folder.json: its folder",
        ),
    ):
        ended = run(*given)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1
        assert ended.stderr.startswith(message)
    dry = run(*flags, "--dry_run", "--quoting", "true")
    assert json.loads(dry.stdout)["quoting"] == "true"
    assert json.loads(dry.stdout)["task"] == "sentence_classification"
