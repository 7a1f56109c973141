"""Features: what every sample holds, token by token; and the micro-batches made of them."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dist_bert.data.batches import NO_LABEL, BatchShape
from dist_bert.finetuning.batches import evaluation_batches, micro_batch, samples_at, training_steps
from dist_bert.finetuning.examples import TextExample, WordsExample
from dist_bert.finetuning.features import (
    Features,
    fit_pair,
    spaces_before,
    text_features,
    word_features,
)
from dist_bert.finetuning.text_task import class_labels
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import CLS_ID, SEP_ID, Tokenizer, train_tokenizer
from tests.support import labelled
from tests.support.corpus import chinese_sentences, english_sentences


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    sentences = english_sentences(400, seed=1) + chinese_sentences(200, seed=2)
    return Tokenizer(train_tokenizer(sentences, folder, TokenizerConfig(vocab_size=601)))


def loop_of_the_published_code(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    while length_a + length_b > room:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b


def test_the_longer_text_loses() -> None:
    for lengths in itertools.product(range(9), range(9), range(2, 12)):
        assert fit_pair(*lengths) == loop_of_the_published_code(*lengths), lengths


def sample(features: Features, index: int) -> list[int]:
    return features.input_ids[features.offsets[index] : features.offsets[index + 1]].tolist()


def test_texts_and_pairs(tokenizer: Tokenizer) -> None:
    a, b = "The old lamp.", "Clara sold the lamp to Bruno."
    ids_a, ids_b = tokenizer.encode(a), tokenizer.encode(b)
    examples = [TextExample(a, b, ("no",), "1"), TextExample(b, b, ("yes",), "2")]
    room = len(ids_a) + len(ids_b) + 3
    features, num_cut = text_features(
        examples, tokenizer, room, class_labels(examples, ("yes", "no"), False)
    )
    assert num_cut == 1
    assert sample(features, 0) == [CLS_ID, *ids_a, SEP_ID, *ids_b, SEP_ID]
    kept_a, kept_b = fit_pair(len(ids_b), len(ids_b), room - 3)
    assert sample(features, 1) == [CLS_ID, *ids_b[:kept_a], SEP_ID, *ids_b[:kept_b], SEP_ID]
    assert features.segment_b_start.tolist() == [len(ids_a) + 2, kept_a + 2]
    assert features.sample_labels["labels"].tolist() == [1, 0]
    alone = [TextExample(a, None, ("no", "yes"), "1"), TextExample(b, None, (), "2")]
    features, num_cut = text_features(
        alone, tokenizer, 64, class_labels(alone, ("yes", "no"), True)
    )
    assert num_cut == 0
    assert sample(features, 0) == [CLS_ID, *ids_a, SEP_ID]
    assert features.segment_b_start.tolist() == [len(ids_a) + 2, len(ids_b) + 2]
    assert features.sample_labels["labels"].tolist() == [[1, 1], [0, 0]]
    unknown = [TextExample(a, None, None, "1")]
    assert text_features(unknown, tokenizer, 64, None)[0].sample_labels == {}


def test_a_label_stands_at_the_first_piece_of_its_word(tokenizer: Tokenizer) -> None:
    words = ("Quentin", "sold", "lamps", ".")
    pieces = tokenizer.encode_words(list(words), [True] * 4)
    assert len(pieces[0]) > 1 or len(pieces[2]) > 1, "a word of several pieces is what this is for"
    example = WordsExample(words, ("B-PER", "O", "B-THING", "O"), "1")
    tags = ("O", "B-PER", "I-PER", "B-THING", "I-THING")
    features, (places,), num_cut = word_features([example], tokenizer, 64, tags)
    assert num_cut == 0
    assert sample(features, 0) == [CLS_ID, *itertools.chain(*pieces), SEP_ID]
    starts = 1 + np.cumsum([0, *(len(ids) for ids in pieces)])[:-1]
    assert places.tolist() == starts.tolist()
    expected = np.full(len(sample(features, 0)), NO_LABEL)
    expected[starts] = [1, 0, 3, 0]
    assert features.token_labels is not None
    assert features.token_labels.tolist() == expected.tolist()
    assert features.num_labels.tolist() == [4]
    limit = int(starts[3]) + 1  # room for three words and [SEP]
    features, (places,), num_cut = word_features([example], tokenizer, limit, tags)
    assert (len(places), num_cut, features.num_labels.tolist()) == (3, 1, [3])


def test_ideographs_have_no_spaces_between_them() -> None:
    words = ("他", "买", "了", "Apple", "手机", "42", "部", "a", "b")
    assert spaces_before(words) == [True, False, False, True, True, True, True, True, True]


@pytest.fixture(scope="module")
def features(tokenizer: Tokenizer) -> Features:
    examples = labelled.texts(23)
    labels = class_labels(examples, labelled.LABELS, False)
    return text_features(examples, tokenizer, 64, labels)[0]


def test_every_epoch_has_each_sample_once_in_an_order_of_its_own() -> None:
    first, second = (samples_at(np.arange(s, s + 23), 23, seed=5) for s in (0, 23))
    assert sorted(first) == sorted(second) == list(range(23))
    assert first.tolist() != second.tolist() != list(range(23))
    across = samples_at(np.arange(20, 30), 23, seed=5)
    assert across.tolist() == [*first[20:], *second[:7]]


def real_samples(features: Features, batch: dict[str, object]) -> list[list[int]]:
    ids, bounds = np.asarray(batch["input_ids"]), np.asarray(batch["cu_seqlens"])
    count = int(str(batch["num_real_samples"]))
    return [ids[bounds[i] : bounds[i + 1]].tolist() for i in range(count)]


def test_a_global_batch_is_the_same_for_any_ranks_and_any_start(features: Features) -> None:
    def seen(shape: BatchShape, start: int, count: int) -> list[list[list[int]]]:
        streams = [
            training_steps(features, shape, rank, 7, start) for rank in range(shape.world_size)
        ]
        return [
            sorted(
                row
                for step in steps
                for batch in step.micro_batches
                for row in real_samples(features, batch)
            )
            for steps in itertools.islice(zip(*streams, strict=True), count)
        ]

    whole = seen(BatchShape(1, 1, 12), 0, 5)
    assert seen(BatchShape(2, 3, 2), 0, 5) == whole
    assert seen(BatchShape(3, 2, 2), 24, 3) == whole[2:]
    step = next(training_steps(features, BatchShape(2, 3, 2), 1, 7, 0))
    lengths = features.num_tokens[samples_at(np.arange(12), 23, 7)]
    assert (step.num_samples, step.num_tokens) == (12, lengths.sum())
    assert sorted(step.lengths) == sorted(lengths)
    assert {batch["num_samples"] for batch in step.micro_batches} == {12}


def test_labels_follow_their_samples(features: Features, tokenizer: Tokenizer) -> None:
    chosen = np.array([5, 2, 11])
    batch = micro_batch(features, chosen)
    assert batch["labels"].tolist() == features.sample_labels["labels"][chosen].tolist()
    assert real_samples(features, batch) == [sample(features, i) for i in chosen]
    assert "labels" not in micro_batch(features, chosen, with_labels=False)
    tags = ("O", "B-PER", "I-PER", "B-COUNT", "I-COUNT")
    words, _, _ = word_features(labelled.tagged(9), tokenizer, 64, tags)
    batch = micro_batch(words, np.array([7, 1]))
    assert words.token_labels is not None
    expected = [words.token_labels[words.offsets[i] : words.offsets[i + 1]] for i in (7, 1)]
    labels = batch["labels"][: len(np.concatenate(expected))]
    assert labels.tolist() == np.concatenate(expected).tolist()
    assert set(batch["labels"][len(labels) :].tolist()) <= {NO_LABEL}


@pytest.mark.parametrize("world_size", [1, 2, 5, 30])
def test_every_sample_is_scored_by_some_rank(features: Features, world_size: int) -> None:
    """With 30 ranks for 23 samples, some ranks repeat a sample rather than have none."""
    shape = BatchShape(1, world_size, 3)
    per_rank = [list(evaluation_batches(features, shape, rank)) for rank in range(world_size)]
    assert len({len(batches) for batches in per_rank}) == 1
    assert all(batch.samples.size for batches in per_rank for batch in batches)
    seen = [index for batches in per_rank for batch in batches for index in batch.samples.tolist()]
    assert set(seen) == set(range(23))
    assert world_size == 30 or len(seen) == 23
