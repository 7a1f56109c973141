"""Answers from scores: all spans, both heads, no answer, and the way back to the text."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.finetuning.examples import Answer, QuestionExample
from dist_bert.finetuning.question_answers import (
    Prediction,
    SpanScores,
    best_threshold,
    class_scores,
    predict,
    span_scores,
)
from dist_bert.finetuning.question_windows import Window, token_class_labels, windows_of
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.support.corpus import chinese_sentences, english_sentences

SENTENCES = english_sentences(1_500, seed=1) + chinese_sentences(500, seed=2)
REAL_SETS = Path(__file__).parents[4] / "shared/data/finetune"  # real sets, where there are any
CONTEXT = "  ".join(english_sentences(9, seed=3)) + "".join(chinese_sentences(9, seed=4))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    config = TokenizerConfig(vocab_size=701, character_coverage=1.0, lower_case=True)
    return Tokenizer(train_tokenizer(SENTENCES, tmp_path_factory.mktemp("tokenizer"), config))


def windows(tokenizer: Tokenizer, context: str, *answers: Answer, size: int = 53) -> list[Window]:
    one = QuestionExample("q1", "Who?", context, answers, "question q1")
    return windows_of(one, tokenizer, size, 19, 7, is_training=True)


def logits_of(window: Window, rng: np.random.Generator, num_classes: int) -> NDArray[np.float32]:
    return rng.normal(size=(len(window.input_ids), num_classes)).astype(np.float32)


def one_hot(window: Window) -> NDArray[np.float32]:
    logits = np.zeros((len(window.input_ids), 2), np.float32)
    logits[window.start_position, 0] = logits[window.end_position, 1] = 9.0
    return logits


def one_hot_classes(window: Window) -> NDArray[np.float32]:
    return 9.0 * np.eye(3, dtype=np.float32)[token_class_labels(window)]


def all_spans(
    made: list[Window], scores: list[SpanScores], max_answer_tokens: int
) -> list[tuple[float, str, int]]:
    """Every span there is, the best first, one of each text."""
    found = []
    for window, each in zip(made, scores, strict=True):
        offsets = window.offsets.tolist()
        for i, (begin, end_of_first) in enumerate(offsets):
            for j in range(i, min(i + max_answer_tokens, len(offsets))):
                if begin == end_of_first or offsets[j][0] == offsets[j][1]:
                    continue
                if window.is_max_context[i]:
                    score = each.single[i] if i == j else each.start[i] + each.end[j]
                    found.append((float(score), CONTEXT[begin : offsets[j][1]], begin))
    best: dict[str, tuple[float, str, int]] = {}
    for span in sorted(found, reverse=True):
        best.setdefault(span[1], span)
    return list(best.values())


@pytest.mark.parametrize("max_answer_tokens", [1, 4, 23, 200])
@pytest.mark.parametrize("num_candidates", [1, 20, 100_000])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_best_of_all_spans(
    tokenizer: Tokenizer, max_answer_tokens: int, num_candidates: int, num_classes: int
) -> None:
    rng = np.random.default_rng(max_answer_tokens)
    made = windows(tokenizer, CONTEXT)
    assert len(made) > 9
    score = span_scores if num_classes == 2 else class_scores
    scores = [score(window, logits_of(window, rng, num_classes)) for window in made]
    expected = all_spans(made, scores, max_answer_tokens)[:num_candidates]
    assert len(expected) >= min(num_candidates, 20 * max_answer_tokens)
    candidates = predict(made, scores, num_candidates, max_answer_tokens).candidates
    assert [(c.score, c.text, c.start) for c in candidates] == expected
    weights = np.exp(np.array([span[0] for span in expected]) - expected[0][0])
    np.testing.assert_allclose([c.probability for c in candidates], weights / weights.sum())
    assert all(CONTEXT[c.start :].startswith(c.text) for c in candidates)


def test_spans_by_hand(tokenizer: Tokenizer) -> None:
    context = "The lamp was old"
    (window,) = windows(tokenizer, context)
    place = {context[begin:end]: i for i, (begin, end) in enumerate(window.offsets.tolist())}
    first, last = place["was"], place["old"]
    logits = np.zeros((len(window.input_ids), 2), np.float32)
    logits[window.segment_b_start + first] = 3.0, 1.0
    logits[window.segment_b_start + last] = 2.0, 5.0
    logits[0] = 4.0, 2.5  # [CLS]
    logits[1] = 90.0, 90.0  # in the question
    prediction = predict([window], [span_scores(window, logits)], 3, 30)
    best = [(c.text, c.start, c.score) for c in prediction.candidates]
    assert best[:2] == [("was old", 9, 8.0), ("old", 13, 7.0)]
    assert best[2][2] == 5.0 and best[2][0].endswith(" was old")
    weights = np.exp([0.0, -1.0, -3.0])
    shares = [c.probability for c in prediction.candidates]
    np.testing.assert_allclose(shares, weights / weights.sum())
    assert prediction.null_score == 6.5 and prediction.null_odds == -1.5
    assert prediction.text(None) == prediction.text(-1.5) == "was old"
    assert prediction.text(-1.6) == ""
    (short,) = predict([window], [span_scores(window, logits)], 1, 1).candidates
    assert short.text == "old", "at most one token"


def test_a_window_sees_the_answer_better_than_its_neighbour(tokenizer: Tokenizer) -> None:
    made = windows(tokenizer, CONTEXT)
    scores = []
    for window in made:  # all windows praise the tokens that they show badly
        logits = np.zeros((len(window.input_ids), 2), np.float32)
        logits[window.segment_b_start : -1][~window.is_max_context] = 50.0
        logits[0] = -float(window.begin)
        scores.append(span_scores(window, logits))
    prediction = predict(made, scores, 5, 9)
    assert max(c.score for c in prediction.candidates) <= 50.0, "an end at most, never a start"
    assert prediction.null_score == -2.0 * made[-1].begin, "of the window that has most of it"


def random_answers(context: str, count: int) -> list[Answer]:
    rng = random.Random(5)
    answers: list[Answer] = []
    while len(answers) < count:
        start = rng.randrange(len(context))
        text = context[start : start + rng.choice([1, 1, 2, 5, 17, 40])]
        if text == text.strip():
            answers.append(Answer(text, start))
    return answers


def test_from_the_answer_to_its_tokens_and_back(tokenizer: Tokenizer) -> None:
    context = f"½ \U00020000👍🏽\u200b e\u0323\u0301 {CONTEXT} Ｔｈｅ ﬁne lamp…"
    num_exact = 0
    for answer in random_answers(context, 300):
        made = windows(tokenizer, context, answer, size=101)
        if not made:
            assert answer.text == "\u200b", "shown by no piece"
            continue
        found = made[0].question.answer
        assert found is not None
        for score, hot in ((span_scores, one_hot), (class_scores, one_hot_classes)):
            scores = [score(window, hot(window)) for window in made]
            best = predict(made, scores, 1, 60).candidates[0]
            assert answer.start is not None
            if found.is_widened:
                assert answer.text.strip("\u200b ") in best.text and best.start <= answer.start
                assert best.text != answer.text
            else:
                assert (best.text, best.start) == (answer.text, answer.start), score
                num_exact += 1
    assert num_exact > 100


def real_questions(path: Path) -> Iterator[QuestionExample]:
    """The questions of a SQuAD file of whose answers one is where it says."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    for paragraph in (each for article in articles for each in article["paragraphs"]):
        context = paragraph["context"]
        for question in paragraph["qas"]:
            placed = [(a["text"], a["answer_start"]) for a in question["answers"]]
            found = tuple(Answer(*a) for a in placed if a[1] >= 0 and context.find(*a) == a[1])
            name = str(question["id"])
            if found:
                yield QuestionExample(name, question["question"], context, found, name)


@pytest.mark.skipif(not REAL_SETS.is_dir(), reason="no real sets beside this checkout")
@pytest.mark.parametrize(
    "name,count",
    [
        ("en-qa-xquad", 925),
        ("en-qa-covid", 778),
        ("zh-qa-cmrc2018", 2_371),
        ("zh-qa-drcd", 3_524),
        ("zh-qa-xquad", 925),
    ],
)
def test_real_answers_come_back(tmp_path: Path, name: str, count: int) -> None:
    examples = list(real_questions(REAL_SETS / name / "train.json.gz"))
    assert len(examples) == count
    config = TokenizerConfig(vocab_size=900, byte_fallback=True, lower_case=True)
    tokenizer = Tokenizer(train_tokenizer(SENTENCES, tmp_path, config))
    examples = examples[:: count // 150]
    num_exact = 0
    for one in examples:
        made = windows_of(one, tokenizer, 384, 128, 64, is_training=True)
        answer = made[0].question.answer
        assert answer is not None
        owners = [window for window in made if window.start_position]
        owners = [w for w in owners if w.max_context_begin <= answer.first < w.max_context_end]
        if not owners:  # longer than half a window
            assert answer.last - answer.first > 100
            continue
        scores = [span_scores(window, one_hot(window)) for window in owners]
        best = predict(owners, scores, 1, 384).candidates[0]
        text = (one.answers or ())[0].text.strip()
        assert text in best.text and answer.is_widened == (best.text != text)
        num_exact += not answer.is_widened
    assert num_exact > 0.95 * len(examples)


def test_one_token_answers_of_the_class_head(tokenizer: Tokenizer) -> None:
    """Scores are the probabilities of a known distribution of answers whose marginals are told."""
    context = "The lamp was old"
    (window,) = windows(tokenizer, context)
    num_tokens = window.end
    rng = np.random.default_rng(3)
    for share_answered in (1.0, 0.3):
        spans = {(i, j): rng.random() for i in range(num_tokens) for j in range(i, num_tokens)}
        total = sum(spans.values()) / share_answered
        start, end = np.zeros(num_tokens), np.zeros(num_tokens)
        one_token = 0.0
        for (i, j), weight in spans.items():
            start[i] += weight / total
            if i == j:
                one_token += weight / total
            else:
                end[j] += weight / total
        logits = np.zeros((len(window.input_ids), 3))
        shares = np.stack([1.0 - start - end, start, end], axis=1)
        logits[window.segment_b_start : -1] = np.log(np.maximum(shares, 1e-300)) + 3.7
        scores = class_scores(window, logits)
        np.testing.assert_allclose(scores.single, np.log(start * one_token), rtol=1e-9)
        np.testing.assert_allclose(scores.start, np.log(start))
        np.testing.assert_allclose(scores.end[1:], np.log(end[1:]))
        with np.errstate(divide="ignore"):
            null = np.log(1.0 - start).sum() + np.log(1.0 - end).sum()
        np.testing.assert_allclose(scores.null, null)


def test_a_start_without_an_end_is_an_answer_of_one_token(tokenizer: Tokenizer) -> None:
    (window,) = windows(tokenizer, "The lamp was old")
    begin = window.segment_b_start
    logits = np.full((len(window.input_ids), 3), [2.0, -3.0, -3.0], np.float32)
    logits[begin + 1] = 0.0, 4.0, 0.0
    alone = predict([window], [class_scores(window, logits)], 1, 30).candidates[0]
    logits[begin + window.end - 1] = 0.0, 0.0, 4.0
    joined = predict([window], [class_scores(window, logits)], 1, 30).candidates[0]
    first = window.offsets[1].tolist()
    assert [alone.start, alone.start + len(alone.text)] == first
    assert joined.start == first[0] and joined.text.endswith("old")
    logits[begin + 1] = 4.0, 0.0, 0.0
    nothing = predict([window], [class_scores(window, logits)], 1, 30)
    assert nothing.null_odds > predict([window], [class_scores(window, -logits)], 1, 30).null_odds


def test_an_empty_context_has_no_answer(tokenizer: Tokenizer) -> None:
    made = windows(tokenizer, " \u200b ")
    logits = np.zeros((len(made[0].input_ids), 3), np.float32)
    for scores in (span_scores(made[0], logits[:, :2]), class_scores(made[0], logits)):
        prediction = predict(made, [scores], 20, 30)
        assert prediction == Prediction([], 0.0)
        assert prediction.text(None) == "" and prediction.null_odds == np.inf


def test_the_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(8)
    for num_questions in (1, 2, 37):
        odds = rng.integers(-4, 5, num_questions) / 2
        answered, null = rng.random((2, num_questions))

        means = {t: np.where(odds > t, null, answered).mean() for t in [*odds.tolist(), -99.0]}
        threshold, score = best_threshold(odds, answered, null)
        assert score == pytest.approx(np.where(odds > threshold, null, answered).mean())
        assert score == pytest.approx(max(means.values()))


def test_a_threshold_tells_what_has_no_answer() -> None:
    odds = np.array([3.0, -1.0, 0.5, 2.0], np.float32)
    answered = np.array([0.0, 0.8, 1.0, 0.0])
    null = np.array([1.0, 0.0, 0.0, 1.0])
    assert best_threshold(odds, answered, null) == (0.5, pytest.approx(0.95))
    assert best_threshold(odds, np.ones(4), np.zeros(4)) == (3.0, 1.0)
    threshold, score = best_threshold(odds, np.zeros(4), np.ones(4))
    assert threshold < -1.0 and score == 1.0
