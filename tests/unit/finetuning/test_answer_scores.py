"""Exact match and F1 of answers: values worked out by hand from the published definitions."""

import random
import re

import pytest

from dist_bert.finetuning.scores import answer_scores, language_of, score_answer


def english(answers: list[str], predicted: str, may_lack_answers: bool = False) -> list[float]:
    return [*score_answer(answers, predicted, "en", may_lack_answers)]


def chinese(answers: list[str], predicted: str, may_lack_answers: bool = False) -> list[float]:
    return [*score_answer(answers, predicted, "zh", may_lack_answers)]


@pytest.mark.parametrize(
    "answers,predicted,exact_match,f1",
    [
        (["The old harbour"], "old  Harbour!", 1, 1),  # articles, case, marks, spaces
        (["the old harbour"], "an old lantern", 0, 1 / 2),  # old harbour | old lantern
        (["a b a b"], "b b b", 0, 4 / 5),  # b b | b b b: words count as often as both have them
        (["harbour"], "in the old harbour of Bremen", 0, 2 / 6),  # 1 of 5, 1 of 1
        (["lantern", "old harbour"], "harbour", 0, 2 / 3),  # the best answer
        (["lantern", "harbour"], "harbour", 1, 1),
        (["U.S.A."], "usa", 1, 1),  # marks join what they stood between
        (["well-known"], "well known", 0, 0),
        (["theatre another"], "theatre", 0, 2 / 3),  # no articles inside of words
        (["café"], "cafe", 0, 0),
        (["“harbour”"], "harbour", 0, 0),  # marks are those of ASCII
        (["２０"], "20", 0, 0),  # full width is another character
        (["harbour"], "", 0, 0),
    ],
)
def test_english_is_scored_as_squad_does(
    answers: list[str], predicted: str, exact_match: float, f1: float
) -> None:
    assert english(answers, predicted) == pytest.approx([exact_match, f1])
    assert english(answers, predicted, may_lack_answers=True) == pytest.approx([exact_match, f1])


@pytest.mark.parametrize("predicted", ["", "an", "!?", " the ... "])
def test_what_normalisation_empties_is_scored_by_the_version_of_squad(predicted: str) -> None:
    assert english(["The"], predicted) == [1, 0]  # 1.1: equal, and no word in common
    assert english(["The"], predicted, may_lack_answers=True) == [1, 1]  # 2.0: it is none
    assert english([], predicted, may_lack_answers=True) == [1, 1]
    assert english([], "harbour", may_lack_answers=True) == [0, 0]
    # 1.1: the empty answer counts. 2.0: it does not stand beside others.
    assert english(["A", "harbour"], predicted) == [1, 0]
    assert english(["A", "harbour"], predicted, may_lack_answers=True) == [0, 0]


@pytest.mark.parametrize(
    "answers,predicted,exact_match,f1",
    [
        (["红色灯笼"], "红色灯笼", 1, 1),
        (["《红色》灯笼。"], "红色，灯笼", 1, 1),  # marks
        (["红色灯笼"], "灯笼", 0, 2 * 2 / 6),
        (["红色的灯笼"], "红色灯笼", 0, 2 * 2 / 9),  # longest stretch: 红色, or 灯笼; never both
        (["红黄蓝"], "蓝黄红", 0, 2 * 1 / 6),  # order counts
        (["红色灯笼", "灯"], "灯", 1, 1),
        (["红色灯笼", "灯笼桥梁"], "灯笼桥", 0, 2 * 3 / 7),
        (["Alice号"], "alice号", 1, 1),
        (["Alice Smith号"], "Alice号", 0, 2 * 1 / 5),  # alice smith 号 | alice 号: words whole
        (["3.5%"], "3.5", 0, 2 * 1 / 3),  # 3.5 % | 3.5
        (["1,234人"], "234人", 0, 2 * 1 / 4),  # 1,234 人 | 234 人
        (["12米"], "１２米", 0, 2 * 1 / 4),  # full width is another character
        (["(红)"], "（红）", 0, 2 * 1 / 4),  # full width goes, half width stays: ( 红 ) | 红
        (["红…色"], "红色", 0, 2 * 1 / 5),  # the ellipsis stays
        (["‘红’"], "红", 0, 2 * 1 / 3),  # only the closing quote goes
        (["红 色"], "红色", 0, 1),  # spaces count for exact match alone
        (["-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』红"], "红", 1, 1),
        (["𠀀灯"], "𠀀灯", 1, 1),  # outside of the common block: a word, as in CMRC's script
        (["。"], "", 1, 0),  # equal, and nothing in common
        (["灯笼"], "", 0, 0),
    ],
)
def test_chinese_is_scored_as_cmrc_does(
    answers: list[str], predicted: str, exact_match: float, f1: float
) -> None:
    assert chinese(answers, predicted) == pytest.approx([exact_match, f1])


def test_chinese_questions_without_an_answer() -> None:
    assert chinese([], "", may_lack_answers=True) == [1, 1]
    assert chinese([], "。", may_lack_answers=True) == [1, 1]
    assert chinese([], "灯", may_lack_answers=True) == [0, 0]
    assert chinese(["灯"], "", may_lack_answers=True) == [0, 0]
    assert chinese(["灯笼"], "灯", may_lack_answers=True) == pytest.approx([0, 2 / 3])


def simple_f1(a: str, b: str) -> float:
    """The definition for Chinese characters alone, by trying all stretches."""
    stretches = {a[i:j] for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
    common = max((len(s) for s in stretches if s in b), default=0)
    if not common:
        return 0.0
    precision, recall = common / len(b), common / len(a)
    return 2 * precision * recall / (precision + recall)


def simple_english(a: str, b: str) -> tuple[float, float]:
    """The definition of SQuAD 1.1, step by step."""
    first, second = (
        [
            word
            for word in re.split(r"\s+", "".join(c for c in t.lower() if c not in "!\"'.,-"))
            if word not in ("a", "an", "the", "")
        ]
        for t in (a, b)
    )
    left, common = list(second), 0
    for word in first:
        if word in left:
            left.remove(word)
            common += 1
    f1 = 2 * common / (len(first) + len(second)) if common else 0.0
    return float(first == second), f1


def test_odd_strings_follow_the_definitions() -> None:
    rng = random.Random(5)
    num_partly_right = 0
    for _ in range(2_000):
        a, b = ("".join(rng.choices("红黄蓝灯", k=rng.randrange(9))) for _ in range(2))
        exact_match, f1 = chinese([a], b)
        assert exact_match == float(a == b) and f1 == pytest.approx(simple_f1(a, b))
        num_partly_right += 0 < f1 < 1
        a, b = ("".join(rng.choices("anthe AN.,'\"-!\t\n ", k=rng.randrange(9))) for _ in range(2))
        assert english([a], b) == pytest.approx([*simple_english(a, b)])
    assert num_partly_right > 500


def test_a_set_has_the_means_over_its_questions() -> None:
    gold = {"a": ("old harbour", "harbour"), "b": ("lantern",), "c": ("old kettle",)}
    predicted = {"c": "kettle", "a": "the harbour", "b": "window"}
    scores = answer_scores(gold, predicted, "en")
    assert scores.main == "f1" and scores.per_class == [] and scores.confusion is None
    assert scores.values == pytest.approx({"f1": (1 + 0 + 2 / 3) / 3, "exact_match": 1 / 3})
    assert answer_scores({"a": ("灯笼",)}, {"a": "灯"}, "zh").values["f1"] == pytest.approx(2 / 3)


def test_questions_without_an_answer_are_also_scored_apart() -> None:
    gold = {"a": ("old harbour",), "b": (), "c": (), "d": ("The",), "e": ("kettle",)}
    predicted = {"a": "harbour", "b": "", "c": "window", "d": "an", "e": ""}
    assert answer_scores(gold, predicted, "en").values == pytest.approx(
        {
            "f1": (2 / 3 + 1 + 0 + 1 + 0) / 5,
            "exact_match": 2 / 5,
            "has_answer_exact_match": 1 / 3,
            "has_answer_f1": (2 / 3 + 1 + 0) / 3,
            "no_answer_accuracy": 1 / 2,
        }
    )
    none = answer_scores({"a": (), "b": ()}, {"a": "", "b": ""}, "en")
    assert none.values == {"f1": 1, "exact_match": 1, "no_answer_accuracy": 1}


def test_the_language_is_that_of_most_texts() -> None:
    assert language_of(["灯笼", "Alice号", "1911"]) == "zh"
    assert language_of(["灯笼", "1911"]) == "en"  # half of them
    assert language_of(["𠀀", "𠀀"]) == "zh"
    assert language_of(["harbour", "café", "カタカナ"]) == "en"
    assert language_of([]) == "en"
