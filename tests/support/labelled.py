"""Labelled sets of all tasks, made from the sentences of `tests.support.corpus`."""

import json
import random
from pathlib import Path

from dist_bert.finetuning.examples import Answer, QuestionExample, TextExample, WordsExample
from tests.support.corpus import chinese_sentences, english_sentences

LABELS = ("calm", "even", "loud")


def pairs(count: int, seed: int = 0) -> list[TextExample]:
    """Two sentences; every third pair is of equal ones."""
    sentences = english_sentences(2 * count, seed)
    return [
        TextExample(
            sentences[i],
            sentences[i] if i % 3 == 0 else sentences[count + i],
            (("other", "equal")[i % 3 == 0],),
            f"pair {i}",
        )
        for i in range(count)
    ]


def texts(count: int, num_labels: int = 1, seed: int = 0) -> list[TextExample]:
    """Sentences with labels drawn by lot; up to `num_labels` of them, maybe none if several."""
    rng = random.Random(seed)
    return [
        TextExample(
            sentence,
            None,
            (rng.choice(LABELS),)
            if num_labels == 1
            else tuple(sorted(rng.sample(LABELS, rng.randint(0, num_labels)))),
            f"text {i}",
        )
        for i, sentence in enumerate(english_sentences(count, seed + 1))
    ]


def rated_pairs(count: int, seed: int = 0) -> list[TextExample]:
    """Pairs with the share of words that they have in common, from 0 to 5, as in STS-B."""
    examples = []
    for pair in pairs(count, seed):
        a, b = (set(text.lower().split()) for text in (pair.text_a, pair.text_b or ""))
        target = round(5 * len(a & b) / len(a | b), 3)
        examples.append(TextExample(pair.text_a, pair.text_b, None, pair.name, target))
    return examples


def tagged(count: int, seed: int = 0) -> list[WordsExample]:
    """English sentences in words; people are PER, a number and what it counts is a COUNT."""
    examples = []
    for i, sentence in enumerate(english_sentences(count, seed + 2)):
        words = sentence.replace(".", " .").replace(",", " ,").replace(";", " ;").split()
        tags: list[str] = []
        for place, word in enumerate(words):
            if word[0].isupper() and place and word[1:].islower():
                tags.append("B-PER")
            elif word.isdigit():
                tags.append("B-COUNT")
            elif tags and tags[-1] == "B-COUNT":
                tags.append("I-COUNT")
            else:
                tags.append("O")
        examples.append(WordsExample(tuple(words), tuple(tags), f"sentence {i}"))
    return examples


def questions(count: int, seed: int = 0, is_chinese: bool = False) -> list[QuestionExample]:
    """Which sentence of several begins in some way? Every fifth context has none."""
    examples = []
    for i in range(count):
        make = chinese_sentences if is_chinese else english_sentences
        sentences = make(4, seed + 100 + i)
        context = ("" if is_chinese else " ").join(sentences)
        answers: tuple[Answer, ...] = ()
        if i % 5 != 4:
            words = sentences[2] if is_chinese else sentences[2].split()
            end = min(3, len(words))
            text = words[:end] if is_chinese else " ".join(words[:end]).rstrip(".,;!?")
            answers = (Answer(str(text), context.index(str(text))),)
        asked = f"{i}: what comes third?" if not is_chinese else f"{i}：第三句是什么？"
        examples.append(QuestionExample(f"q{i}", asked, context, answers, f"question {i}"))
    return examples


def write_pairs(path: Path, examples: list[TextExample]) -> None:
    """TSV with a header."""
    rows = [f"{e.text_a}\t{e.text_b}\t{(e.labels or ('',))[0]}" for e in examples]
    path.write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]) + "\n", encoding="utf-8")


def write_rated_pairs(path: Path, examples: list[TextExample]) -> None:
    """TSV with GLUE's header of STS-B."""
    rows = [f"{i}\t{e.text_a}\t{e.text_b}\t{e.target:.3f}" for i, e in enumerate(examples)]
    header = "index\tsentence1\tsentence2\tscore"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def write_texts(path: Path, examples: list[TextExample]) -> None:
    """TSV with a header, labels joined by commas."""
    rows = [f"{e.text_a}\t{','.join(e.labels or ())}" for e in examples]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")


def write_tagged(path: Path, examples: list[WordsExample]) -> None:
    """CoNLL."""
    sentences = (
        "".join(f"{word}\t{tag}\n" for word, tag in zip(e.words, e.tags or (), strict=True))
        for e in examples
    )
    path.write_text("\n".join(sentences), encoding="utf-8")


def write_questions(path: Path, examples: list[QuestionExample]) -> None:
    """SQuAD 2.0, a paragraph a question."""
    paragraphs = [
        {
            "context": e.context,
            "qas": [
                {
                    "id": e.id,
                    "question": e.question,
                    "answers": [{"text": a.text, "answer_start": a.start} for a in e.answers or ()],
                    "is_impossible": e.answers == (),
                }
            ],
        }
        for e in examples
    ]
    contents = {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(contents), encoding="utf-8")
