"""A set in two parts: the share, no text on both sides, the same choice everywhere."""

import pytest

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import Answer, QuestionExample, TextExample, WordsExample
from dist_bert.finetuning.splitting import split_examples


def texts(numbers: range) -> list[TextExample]:
    return [TextExample(f"text {number}", None, ("red",), f"line {number}") for number in numbers]


def test_a_share_is_kept_apart_in_the_order_of_the_set() -> None:
    examples = texts(range(1_003))
    training, held_out = split_examples(examples)
    assert len(held_out) == 100 and len(training) == 903
    assert sorted([*training, *held_out], key=examples.index) == examples
    for part in (training, held_out):
        assert part == sorted(part, key=examples.index)
    assert len(split_examples(examples, 0.37)[1]) == 371


def test_the_choice_is_of_the_text_and_the_seed() -> None:
    examples = texts(range(1_000))
    held_out = split_examples(examples)[1]
    assert [example.text_a for example in held_out[:3]] == ["text 2", "text 6", "text 7"]
    reordered = split_examples(examples[::-1])[1]
    assert reordered == held_out[::-1]  # and not of the place
    other_seed = split_examples(examples, seed=7)[1]
    assert 2 < len(set(held_out) & set(other_seed)) < 25  # 10 by chance
    # nearly the same where the set has grown
    grown = split_examples(texts(range(1_050)))[1]
    assert len(set(held_out) - set(grown)) <= 10


def test_examples_that_stand_twice_stay_together() -> None:
    examples = [example for example in texts(range(100)) for _ in range(3)]
    training, held_out = split_examples(examples)
    assert len(held_out) == 30 and not set(training) & set(held_out)
    words = [WordsExample((f"word{n % 50}", "x"), ("O", "O"), f"line {n}") for n in range(100)]
    learnt, kept = split_examples(words)
    assert len(kept) == 10 and not {e.words for e in learnt} & {e.words for e in kept}


def test_no_text_of_a_pair_is_on_both_sides() -> None:
    # premise n with hypotheses 2n and 2n + 1; every tenth premise shares one with the next
    pairs = [
        TextExample(f"premise {n}", f"hypothesis {m}", ("red",), "")
        for n in range(200)
        for m in (2 * n, 2 * n + 1 + (n % 10 == 0))
    ]
    training, held_out = split_examples(pairs)
    assert len(held_out) == 40
    for part in ("text_a", "text_b"):
        assert not {getattr(e, part) for e in training} & {getattr(e, part) for e in held_out}
    by_seed = (split_examples(pairs, seed=seed)[1] for seed in range(9))
    assert any(e.text_a == "premise 10" for part in by_seed for e in part)  # linked ones, too


def test_a_text_that_is_everywhere_is_learnt_from() -> None:
    common = [TextExample("it is so", f"hypothesis {n}", ("red",), "") for n in range(300)]
    rare = [TextExample(f"premise {n}", f"reason {n}", ("red",), "") for n in range(100)]
    for seed in range(5):
        _, held_out = split_examples([*common, *rare], seed=seed)
        assert len(held_out) == 40 and set(held_out) <= set(rare)


def test_questions_on_a_context_stay_together() -> None:
    examples = [
        QuestionExample(str(n), f"question {n}?", f"context {n // 5}", (Answer("c", 0),), "")
        for n in range(200)
    ]
    training, held_out = split_examples(examples, 0.2)
    assert len(held_out) == 40
    assert not {e.context for e in training} & {e.context for e in held_out}


@pytest.mark.parametrize("examples", [texts(range(9)), texts(range(1)) * 20, []])
def test_what_cannot_be_divided_is_told(examples: list[TextExample]) -> None:
    smallest = {9: 1, 20: 20, 0: 0}[len(examples)]
    message = (
        rf"eval_share = 0\.1: of {len(examples)} examples these are {len(examples) // 10}, fewer"
        rf" than the smallest group .* \({smallest}\); give a file to score on \(--eval\)"
    )
    with pytest.raises(UserError, match=message):
        split_examples(examples)
