"""Questions on long contexts as samples: windows, max context, labels."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.data.batches import NO_LABEL
from dist_bert.finetuning.examples import Answer, QuestionExample
from dist_bert.finetuning.question_task import QuestionTask
from dist_bert.finetuning.question_windows import (
    END,
    OTHER,
    START,
    Window,
    token_class_labels,
    windows_of,
    with_few_null_windows,
)
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import CLS_ID, SEP_ID, Tokenizer, train_tokenizer
from tests.support.corpus import chinese_sentences, english_sentences

SENTENCES = english_sentences(1_500, seed=1) + chinese_sentences(500, seed=2)
CONTEXT = "  ".join(english_sentences(30, seed=3)) + "".join(chinese_sentences(20, seed=4))
QUESTION = "Who carried the lantern?"
SIZES: dict[str, Any] = {"max_seq_length": 47, "doc_stride": 17, "max_question_tokens": 11}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    config = TokenizerConfig(vocab_size=701, character_coverage=1.0, lower_case=True)
    return Tokenizer(train_tokenizer(SENTENCES, tmp_path_factory.mktemp("tokenizer"), config))


def example(context: str = CONTEXT, *answers: Answer) -> QuestionExample:
    return QuestionExample("q1", QUESTION, context, answers, "train.json, question q1")


def windows(tokenizer: Tokenizer, one: QuestionExample, **changes: Any) -> list[Window]:
    return windows_of(one, tokenizer, **{**SIZES, "is_training": True, **changes})


def answer_in(context: str, text: str, occurrence: int = 0) -> Answer:
    start = -1
    for _ in range(occurrence + 1):
        start = context.index(text, start + 1)
    return Answer(text, start)


def test_a_short_context_is_one_sample(tokenizer: Tokenizer) -> None:
    context = " The  lamp was old."
    (window,) = windows(tokenizer, example(context, answer_in(context, "lamp was")))
    question = tokenizer.encode(QUESTION)
    ids, offsets = tokenizer.encode_with_offsets(context)
    assert window.input_ids.tolist() == [CLS_ID, *question, SEP_ID, *ids, SEP_ID]
    assert window.input_ids.dtype == np.int32
    assert window.segment_b_start == len(question) + 2
    assert (window.begin, window.end) == (0, len(ids)) and window.is_max_context.all()
    np.testing.assert_array_equal(window.offsets, offsets)
    first, last = window.start_position, window.end_position
    begin = window.segment_b_start
    stretch = window.offsets[first - begin, 0], window.offsets[last - begin, 1]
    assert context[slice(*stretch)] == "lamp was"
    assert not window.question.is_cut
    classes = token_class_labels(window)
    assert np.flatnonzero(classes == START).tolist() == [first]
    assert np.flatnonzero(classes == END).tolist() == [last]
    assert len(classes) == len(window.input_ids) and (classes == OTHER).sum() == len(classes) - 2


@pytest.mark.parametrize("num_tokens", [1, 29, 30, 31, 46, 47, 48, 100, 211])
@pytest.mark.parametrize("stride", [1, 7, 15, 29, 30, 99])
def test_windows_and_max_context_are_those_of_the_paper(
    tokenizer: Tokenizer, num_tokens: int, stride: int
) -> None:
    word = next(w for w in ("the", "was", "old") if len(tokenizer.encode(f"{w} {w}")) == 2)
    prefix = len(tokenizer.encode(QUESTION)) + 2
    room = 30
    made = windows(
        tokenizer,
        example(" ".join([word] * num_tokens)),
        max_seq_length=prefix + room + 1,
        doc_stride=stride,
    )
    expected, start = [], 0
    while True:
        length = min(num_tokens - start, room)
        expected.append((start, start + length))
        if start + length == num_tokens:
            break
        start += min(length, stride)
    assert [(window.begin, window.end) for window in made] == expected
    owners = []
    for token in range(num_tokens):
        scores = {
            number: min(token - begin, end - 1 - token) + 0.01 * (end - begin)
            for number, (begin, end) in enumerate(expected)
            if begin <= token < end
        }
        owners.append(max(scores, key=lambda number: scores[number]))  # the first of equals
    for number, window in enumerate(made):
        is_owner = [owner == number for owner in owners[window.begin : window.end]]
        assert window.is_max_context.tolist() == is_owner
    assert all(len(window.input_ids) <= prefix + room + 1 for window in made)


def test_the_answer_is_labelled_in_the_windows_that_have_all_of_it(tokenizer: Tokenizer) -> None:
    text = english_sentences(30, seed=3)[7]
    made = windows(tokenizer, example(CONTEXT, answer_in(CONTEXT, text[:-1])))
    assert len(made) > 20
    has_answer = 0
    ids, offsets = tokenizer.encode_with_offsets(CONTEXT)
    start = CONTEXT.index(text)
    first = int(np.flatnonzero(offsets[:, 0] == start)[-1])
    last = int(np.flatnonzero(offsets[:, 1] == start + len(text) - 1)[0])
    for window in made:
        begin = window.segment_b_start
        assert window.input_ids[begin:-1].tolist() == ids[window.begin : window.end]
        if window.begin <= first and last < window.end:
            assert window.start_position == first - window.begin + begin
            assert window.end_position == last - window.begin + begin
            has_answer += 1
        else:
            assert (window.start_position, window.end_position) == (0, 0)
            assert (token_class_labels(window) == OTHER).all()
    assert 1 <= has_answer <= 3


def test_few_windows_without_the_answer_are_learnt_from(tokenizer: Tokenizer) -> None:
    text = english_sentences(30, seed=3)[7]
    one = example(CONTEXT, answer_in(CONTEXT, text[:-1]))
    made = windows(tokenizer, one)
    null = [window for window in made if not window.start_position]
    for most in (1, 3, len(null) - 1):
        kept = with_few_null_windows(made, most)
        assert kept == sorted(kept, key=lambda window: window.begin)
        assert [w for w in made if w.start_position] == [w for w in kept if w.start_position]
        places = [null.index(window) for window in kept if not window.start_position]
        assert len(places) == most
        gaps = np.diff([-places[0] - 1, *places, 2 * len(null) - 1 - places[-1]])
        assert gaps.max() - gaps.min() <= 2, "spread over the whole context"
    assert with_few_null_windows(made, len(null)) == made
    task = QuestionTask(tokenizer, **SIZES, max_answer_tokens=9, as_token_classes=False)
    thinned = dataclasses.replace(task, max_null_windows=3)
    prepared = thinned.prepare([one, one], is_training=True)
    num_kept = len(made) - len(null) + 3
    assert prepared.bounds.tolist() == [0, num_kept, 2 * num_kept]
    assert prepared.notes[1] == f"{2 * (len(null) - 3)} windows without the answer are left out"
    assert len(task.prepare([one], is_training=True).windows) == len(made)
    assert len(thinned.prepare([one], is_training=False).windows) == len(made), "all are read"


@pytest.mark.parametrize(
    "context,text,stretch,is_widened",
    [
        ("The old lamp.", "old", "old", False),
        ("The old lamp.", " old ", "old", False),  # spaces around an answer are none of it
        ("The old lamp.", "ld la", None, True),
        ("𠀀👍🏽 the old ½ lamp", "½", "½", False),
        ("𠀀👍🏽 the old ½ lamp", "𠀀", None, None),
        ("昨天，老师看见了灯笼。", "灯笼", "灯笼", False),
        ("Ｔｈｅ ｏｌｄ lamp", "ｏｌｄ", "ｏｌｄ", False),
    ],
)
def test_answers_take_whole_pieces(
    tokenizer: Tokenizer, context: str, text: str, stretch: str | None, is_widened: bool | None
) -> None:
    (window,) = windows(tokenizer, example(context, answer_in(context, text)))
    begin = window.segment_b_start
    first, last = window.start_position - begin, window.end_position - begin
    got = context[window.offsets[first, 0] : window.offsets[last, 1]]
    answer = window.question.answer
    assert answer is not None and text.strip() in got
    if stretch is not None:
        assert got == stretch
    if is_widened is not None:
        assert answer.is_widened == is_widened


def test_the_first_answer_with_a_place_is_learnt(tokenizer: Tokenizer) -> None:
    context = "The old lamp and the old \u200b basket."
    answers = (
        Answer("39764.0", None),
        answer_in(context, "\u200b"),  # no piece shows it
        answer_in(context, "old", 1),
        answer_in(context, "lamp"),
    )
    (window,) = windows(tokenizer, example(context, *answers))
    place = window.start_position - window.segment_b_start
    assert window.offsets[place].tolist() == [21, 24]


def test_what_has_no_place_is_not_learnt(tokenizer: Tokenizer) -> None:
    one = example("The old lamp.", Answer("39764.0", None))
    assert windows(tokenizer, one) == []
    (window,) = windows(tokenizer, one, is_training=False)
    assert (window.start_position, window.end_position) == (NO_LABEL, NO_LABEL)
    assert (token_class_labels(window) == NO_LABEL).all()
    unknown = dataclasses.replace(one, answers=None)
    (window,) = windows(tokenizer, unknown, is_training=False)
    assert window.start_position == NO_LABEL
    with pytest.raises(UserError, match="question q1: has no answers; training needs them"):
        windows(tokenizer, unknown)


def test_no_answer_is_learnt_as_such(tokenizer: Tokenizer) -> None:
    for window in windows(tokenizer, example(CONTEXT)):
        assert (window.start_position, window.end_position) == (0, 0)
        assert (token_class_labels(window) == OTHER).all()


def test_an_answer_of_one_token_is_a_start(tokenizer: Tokenizer) -> None:
    (window,) = windows(tokenizer, example("The old lamp.", Answer(".", 12)))
    assert window.start_position == window.end_position
    classes = token_class_labels(window)
    assert np.flatnonzero(classes).tolist() == [window.start_position]
    assert classes[window.start_position] == START


@pytest.mark.parametrize("start", [-1, 5, 12, 400])
def test_a_wrong_place_is_never_learnt(tokenizer: Tokenizer, start: int) -> None:
    one = example("The old lamp.", answer_in("The old lamp.", "old"), Answer("lamp", start))
    with pytest.raises(UserError, match=rf"q1: the answer 'lamp' must be at character {start} of"):
        windows(tokenizer, one, is_training=False)


def test_a_long_question_is_cut(tokenizer: Tokenizer) -> None:
    one = dataclasses.replace(example("The old lamp."), question=CONTEXT)
    (window,) = windows(tokenizer, one)
    assert window.question.is_cut
    assert window.input_ids[1:12].tolist() == tokenizer.encode(CONTEXT)[:11]
    assert window.segment_b_start == 13
    with pytest.raises(UserError, match=r"max_seq_length = 14: must be above .* \(11\) \+ 3"):
        windows(tokenizer, one, max_seq_length=14)
    assert windows(tokenizer, one, max_seq_length=15)[0].input_ids.size == 15


def test_a_context_without_visible_text_is_one_sample(tokenizer: Tokenizer) -> None:
    (window,) = windows(tokenizer, example(" \u200b "))
    assert window.input_ids[-2:].tolist() == [SEP_ID, SEP_ID]
    assert (window.begin, window.end, window.offsets.shape) == (0, 0, (0, 2))


def test_a_context_is_encoded_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = tokenizer.encode_with_offsets

    def counted(text: str) -> tuple[list[int], NDArray[np.int64]]:
        calls.append(text)
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode_with_offsets", counted)
    context = f"{CONTEXT} The end."
    made = [windows(tokenizer, example(context)) for _ in range(5)]
    assert calls == [context]
    assert len({id(window.question.context) for each in made for window in each}) == 1
    assert made[0][3].offsets.base is made[4][7].offsets.base is made[0][0].question.context.offsets
