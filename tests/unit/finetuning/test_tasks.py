"""Each task whole, from examples to scores: a tiny model learns 32 of them by heart."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_bert.data.batches import BatchShape
from dist_bert.finetuning.batches import evaluation_batches, scores_of_batches, training_steps
from dist_bert.finetuning.examples import TextExample
from dist_bert.finetuning.heads import start_from
from dist_bert.finetuning.question_task import QuestionTask
from dist_bert.finetuning.regression_task import RegressionTask
from dist_bert.finetuning.text_task import TextTask
from dist_bert.finetuning.word_task import WordTask, entities, likeliest_tags
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.micro_batches import to_device
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.support import labelled
from tests.support.corpus import chinese_sentences, english_sentences

MODEL = ModelConfig(
    vocab_size=607,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=101,
    max_position_embeddings=67,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
CPU = torch.device("cpu")
SHAPE = BatchShape(accumulation_steps=1, world_size=1, micro_batch_size=16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    sentences = english_sentences(400, seed=1) + chinese_sentences(200, seed=2)
    return Tokenizer(train_tokenizer(sentences, folder, TokenizerConfig(vocab_size=601)))


def learnt_by_heart(task: Any, examples: Sequence[Any]) -> tuple[Any, Any, float]:
    """Trains on examples; returns what was prepared to score them, the answers, and the loss.

    Training ends when 20 steps in a row have almost no loss: how many steps that takes differs
    between processors, whose sums differ in their last bits.
    """
    prepared = task.prepare(examples, is_training=True)
    torch.manual_seed(3)
    head = task.new_head(MODEL)
    start_from(head, BertForPreTraining(MODEL), initializer_range=0.1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.0)
    steps = training_steps(prepared.features, SHAPE, rank=0, seed=4, start_sample=0)
    losses: list[float] = []
    for step in itertools.islice(steps, 2000):
        (micro_batch,) = step.micro_batches
        loss, _ = head(**to_device(micro_batch, CPU))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) >= 20 and max(losses[-20:]) < 1e-3:
            break
    held_out = task.prepare(examples, is_training=False)
    batches = evaluation_batches(held_out.features, SHAPE, rank=0)
    scores = dict(scores_of_batches(head.eval(), batches, CPU))
    logits = [scores[sample] for sample in range(len(held_out.features))]
    return held_out, task.answers(held_out, logits), task.loss(held_out, logits)


def test_pairs_are_learnt(tokenizer: Tokenizer) -> None:
    examples = labelled.pairs(32)
    task = TextTask(tokenizer, 64, ("equal", "other"), has_several_labels=False)
    prepared, answers, loss = learnt_by_heart(task, examples)
    assert [(answer["label"],) for answer in answers] == [e.labels for e in examples]
    assert task.scores(prepared, answers).values["accuracy"] == 1.0
    assert loss < 0.2
    assert all(sum(a["probabilities"].values()) == pytest.approx(1, abs=1e-5) for a in answers)


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_numbers_are_learnt_on_any_scale(tokenizer: Tokenizer, scale: float) -> None:
    examples = [
        dataclasses.replace(example, target=scale * (example.target or 0.0) - 7.0)
        for example in labelled.rated_pairs(32)
    ]
    targets = np.array([example.target for example in examples], np.float64)
    task = RegressionTask(tokenizer, 64, float(targets.mean()), float(targets.std()))
    prepared, answers, loss = learnt_by_heart(task, examples)
    found = [answer["score"] for answer in answers]
    np.testing.assert_allclose(found, targets, atol=0.2 * targets.std())
    scores = task.scores(prepared, answers)
    assert (scores.main, list(scores.values)) == (
        "spearman",
        ["spearman", "pearson", "mean_absolute_error"],
    )
    assert scores.values["pearson"] > 0.99
    errors = (np.array(found) - targets) / targets.std()
    assert loss == pytest.approx(float(np.mean(errors**2)), rel=1e-3) and loss < 0.04


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_answers_have_the_digits_of_any_scale(tokenizer: Tokenizer, scale: float) -> None:
    targets = [scale * number for number in (1.25, 1.5, 1.75)]
    examples = [TextExample("A lamp.", None, None, "", target) for target in targets]
    task = RegressionTask(tokenizer, 64, scale, scale)
    prepared = task.prepare(examples, is_training=False)
    answers = task.answers(prepared, [np.array([target], np.float32) for target in targets])
    assert [answer["score"] for answer in answers] == pytest.approx(targets, rel=1e-6, abs=0.0)
    assert task.scores(prepared, answers).values["spearman"] == 1.0


@pytest.mark.parametrize("num_labels", [1, 3])
def test_texts_are_learnt(tokenizer: Tokenizer, num_labels: int) -> None:
    examples = labelled.texts(32, num_labels)
    task = TextTask(tokenizer, 64, labelled.LABELS, has_several_labels=num_labels > 1)
    prepared, answers, loss = learnt_by_heart(task, examples)
    told = [tuple(answer["labels"]) if num_labels > 1 else (answer["label"],) for answer in answers]
    assert told == [e.labels for e in examples]
    scores = task.scores(prepared, answers)
    assert scores.values[scores.main] == 1.0
    assert loss < 0.2


def test_tags_are_learnt(tokenizer: Tokenizer) -> None:
    examples = labelled.tagged(32)
    classes = ("O", "B-COUNT", "I-COUNT", "B-PER", "I-PER")
    task = WordTask(tokenizer, 64, classes)
    prepared, answers, loss = learnt_by_heart(task, examples)
    assert [tuple(answer["tags"]) for answer in answers] == [e.tags for e in examples]
    assert task.scores(prepared, answers).values["f1"] == 1.0
    assert loss < 0.2
    found = next(answer["entities"] for answer in answers if answer["entities"])
    assert found[0].keys() == {"type", "words", "begin"}


@pytest.mark.parametrize(
    "is_chinese,as_token_classes", [(False, False), (False, True), (True, False)]
)
def test_answers_are_learnt(tokenizer: Tokenizer, is_chinese: bool, as_token_classes: bool) -> None:
    """Contexts of several windows, every fifth without an answer."""
    examples = labelled.questions(32, is_chinese=is_chinese)
    task = QuestionTask(tokenizer, 48, 16, 15, 12, as_token_classes, may_lack_answers=True)
    prepared, answers, loss = learnt_by_heart(task, examples)
    assert len(prepared.windows) > len(examples)
    expected = []
    for begin in prepared.bounds[:-1]:
        question = prepared.windows[begin].question
        tokens = question.answer  # an answer that ends inside a piece takes all of it
        offsets = question.context.offsets
        span = (offsets[tokens.first, 0], offsets[tokens.last, 1]) if tokens else (0, 0)
        expected.append(question.context.text[slice(*span)])
    assert [answer["answer"] for answer in answers] == expected
    assert is_chinese or task.scores(prepared, answers).values["f1"] == 1.0
    assert loss < 0.2


def test_the_threshold_of_no_answer_is_found_on_labelled_questions(tokenizer: Tokenizer) -> None:
    """Every answer is outscored by [CLS] by 1, every missing one by 3: the threshold is 1."""
    examples = labelled.questions(10)
    task = QuestionTask(tokenizer, 64, 32, 15, 12, False, may_lack_answers=True)
    prepared = task.prepare(examples, is_training=False)
    logits = []
    for window in prepared.windows:
        rows = np.full((len(window.input_ids), 2), -50.0, np.float32)
        if window.start_position or not window.question.example.answers:
            place = window.start_position or window.segment_b_start
            rows[place, 0] = rows[window.end_position or place, 1] = 0.0
        rows[0] = 0.5 if window.question.example.answers else 1.5
        logits.append(rows)
    assert {answer["answer"] for answer in task.answers(prepared, logits)} == {""}
    tuned = task.tuned(prepared, logits)
    assert tuned.null_score_threshold == pytest.approx(1.0)
    answers = tuned.answers(prepared, logits)
    assert task.scores(prepared, answers).values["f1"] == 1.0
    assert task.with_settings({"f1": 1.0, **tuned.tuned_settings()}) == tuned
    always = dataclasses.replace(task, may_lack_answers=False)
    assert always.tuned_settings() == {} and always.with_settings({"f1": 1.0}) == always


def test_only_valid_sequences_of_tags_are_told() -> None:
    """Against all sequences, one by one."""
    classes = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    rng = np.random.default_rng(1)

    def is_valid(tags: Sequence[str]) -> bool:
        before = "O"
        for tag in tags:
            if tag.startswith("I-") and before[2:] != tag[2:]:
                return False
            before = tag
        return True

    num_changed = 0
    for _ in range(40):
        logits = rng.normal(size=(4, len(classes))).astype(np.float32)
        valid = [tags for tags in itertools.product(classes, repeat=4) if is_valid(tags)]
        likelihood = {
            tags: sum(logits[i, classes.index(tag)] for i, tag in enumerate(tags)) for tags in valid
        }
        best = max(likelihood, key=lambda tags: likelihood[tags])
        assert tuple(likeliest_tags(logits, classes)) == best
        num_changed += [classes[i] for i in logits.argmax(1)] != list(best)
    assert num_changed > 5
    assert likeliest_tags(np.zeros((0, 5), np.float32), classes) == []


def test_entities_of_tags() -> None:
    tags = ["B-creative-work", "I-creative-work", "O", "B-PER", "B-PER", "I-PER"]
    assert entities(tags) == [("creative-work", 0, 2), ("PER", 3, 4), ("PER", 4, 6)]


def test_words_behind_the_end_are_tagged_outside(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (example,) = labelled.tagged(1)
    task = WordTask(tokenizer, 6, ("O", "B-PER", "I-PER", "B-COUNT", "I-COUNT"))
    prepared = task.prepare([example], is_training=False)
    assert "1 of 1 sentences are longer than 6 tokens" in prepared.notes[0]
    num_kept = len(prepared.first_pieces[0])
    logits = [np.tile(np.array([0, 9, 0, 0, 0], np.float32), (6, 1))]
    (answer,) = task.answers(prepared, logits)
    assert answer["tags"] == ["B-PER"] * num_kept + ["O"] * (len(example.words) - num_kept)
