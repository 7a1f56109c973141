"""Samples dealt to ranks and micro-batches by their lengths, and laid end to end."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.data.batches import NO_LABEL, BatchShape, deal, deal_by_tokens, unpad
from dist_bert.data.reader import SampleReader
from tests.support.synthetic import (
    write_data_set,
)
from tests.unit.data.conftest import NUM_TRAIN, gathered


def bookish_lengths(num_steps: int, size: int) -> NDArray[np.int64]:
    """A third of the samples fill the length of 128, the others are of all lengths from 5."""
    rng = np.random.default_rng(1)
    return np.minimum(128, 5 + rng.lognormal(4.2, 0.7, (num_steps, size)).astype(np.int64))


SHAPES = [BatchShape(2, 4, 16), BatchShape(3, 2, 5), BatchShape(5, 1, 7), BatchShape(1, 8, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_dealing_gives_every_sample_to_one_place(shape: BatchShape) -> None:
    lengths = bookish_lengths(11, shape.global_batch_size)
    dealt = deal(lengths, shape)
    a, w, m = shape.accumulation_steps, shape.world_size, shape.micro_batch_size
    assert dealt.shape == (11, a, w, m)
    for step in dealt:
        assert sorted(step.reshape(-1)) == list(range(a * w * m))


@pytest.mark.parametrize("shape", SHAPES)
def test_micro_batches_hold_similar_lengths_longest_first(shape: BatchShape) -> None:
    lengths = bookish_lengths(11, shape.global_batch_size)
    for step, dealt in zip(lengths, deal(lengths, shape), strict=True):
        tokens = step[dealt]  # (A, W, M)
        assert (np.diff(tokens, axis=2) <= 0).all()
        for longer, shorter in pairwise(tokens):
            assert longer.min() >= shorter.max()


@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_of_a_micro_step_carry_almost_equal_tokens(shape: BatchShape) -> None:
    """Two ranks differ by the longest less the shortest sample of the micro-step, at most.

    In every round a rank is off by no more than the round's range, and the ranges do not overlap.
    Back and forth, the rounds also make up for each other: dealt in one direction, the first rank
    would always have most, 2 to 4 % more than the mean of the ranks in these shapes.
    """
    lengths = bookish_lengths(300, shape.global_batch_size)
    steps = np.arange(300)[:, None, None, None]
    tokens = lengths[steps, deal(lengths, shape)]  # (K, A, W, M)
    per_rank = tokens.sum(axis=3)
    spread = per_rank.max(axis=2) - per_rank.min(axis=2)
    assert (spread <= tokens.max(axis=(2, 3)) - tokens.min(axis=(2, 3))).all()
    if shape.micro_batch_size > 4:
        assert (per_rank.max(axis=2) / per_rank.mean(axis=2)).mean() < 1.015


@pytest.mark.parametrize("numbers", [[22, 4, 14, 0, 20], [3], list(range(NUM_TRAIN))])
def test_unpadding_is_what_a_literal_reading_gives(
    reader: SampleReader, numbers: list[int]
) -> None:
    columns = gathered(reader, np.array(numbers))
    tokens: list[tuple[int, int, int]] = []
    predictions: list[tuple[int, int]] = []
    cu_seqlens = [0]
    for i in range(len(numbers)):
        for prediction in range(columns["num_masked"][i]):
            place = int(columns["masked_lm_positions"][i, prediction])
            label = int(columns["masked_lm_labels"][i, prediction])
            predictions.append((len(tokens) + place, label))
        for position in range(columns["num_tokens"][i]):
            is_b = int(position >= columns["segment_b_start"][i])
            tokens.append((int(columns["input_ids"][i, position]), is_b, position))
        cu_seqlens.append(len(tokens))
    longest = int(columns["num_tokens"].max())
    while missing := -len(tokens) % 64:  # cut into samples no longer than the real ones
        tokens += [(0, 0, 0)] * min(missing, longest)
        cu_seqlens.append(len(tokens))
    predictions += [(0, NO_LABEL)] * (-len(predictions) % 64)

    batch = unpad(columns)
    assert batch.pop("max_seqlen") == -(-longest // 8) * 8
    assert batch["cu_seqlens"].dtype == np.int32
    assert batch.pop("cu_seqlens").tolist() == cu_seqlens
    expected = {
        "input_ids": [piece for piece, _, _ in tokens],
        "token_type_ids": [segment for _, segment, _ in tokens],
        "position_ids": [position for _, _, position in tokens],
        "masked_lm_positions": [place for place, _ in predictions],
        "masked_lm_labels": [label for _, label in predictions],
        "next_sentence_label": columns["next_sentence_label"].tolist(),
    }
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        assert batch[name].dtype == np.int64
        assert batch[name].tolist() == values


def test_samples_of_a_single_segment_have_no_label(tmp_path: Path, reader: SampleReader) -> None:
    data_set = write_data_set(tmp_path, train=((5, 3),), pair_objective="none")
    single = SampleReader(tmp_path, data_set.manifest, "train")
    assert reader.has_pairs and not single.has_pairs
    batch = unpad(single.gather(np.zeros(5, int), np.arange(5)))
    assert batch["next_sentence_label"].tolist() == [NO_LABEL] * 5
    assert batch["next_sentence_label"].dtype == np.int64
    assert not batch["token_type_ids"].any()


def test_nothing_is_added_where_the_shape_is_right() -> None:
    columns = {
        "input_ids": np.arange(128).reshape(2, 64),
        "num_tokens": np.array([64, 64]),
        "segment_b_start": np.array([3, 5]),
        "masked_lm_positions": np.arange(64).reshape(2, 32),
        "masked_lm_labels": np.full((2, 32), 7),
        "num_masked": np.array([32, 32]),
        "next_sentence_label": np.array([0, 1]),
    }
    batch = unpad(columns)
    assert batch["cu_seqlens"].tolist() == [0, 64, 128] and batch["max_seqlen"] == 64
    assert batch["input_ids"].tolist() == list(range(128))
    assert batch["masked_lm_labels"].tolist() == [7] * 64


# --- deal_by_tokens


@pytest.mark.parametrize(("size", "world_size"), [(512, 1), (512, 8), (4_096, 8), (4_096, 64)])
def test_dealing_by_tokens_fills_micro_batches_equally(size: int, world_size: int) -> None:
    for lengths in bookish_lengths(5, size):
        parts = deal_by_tokens(lengths, world_size, 2_048)
        assert np.bincount(np.concatenate(parts), minlength=size).tolist() == [1] * size
        tokens = np.array([lengths[part].sum() for part in parts])
        least = np.ceil(lengths.sum() / (world_size * 2_048))
        assert tokens.max() <= 2_048 and least <= len(parts) / world_size <= least + 1
        assert tokens.max() - tokens.min() <= 128, "one sample"
        pairs = np.array([(lengths[part] ** 2).sum() for part in parts])
        assert pairs.max() < 1.2 * pairs.mean(), "so is the work of attention"


def test_samples_that_fill_a_micro_batch_are_alone() -> None:
    lengths = np.array([100, 100, 1, 100, 1, 100])
    parts = deal_by_tokens(lengths, 2, 101)
    assert len(parts) == 4 and sorted(lengths[part].sum() for part in parts) == [100, 100, 101, 101]
    assert [part.tolist() for part in deal_by_tokens(lengths, 6, 500)] == [
        [0], [1], [3], [5], [2], [4]
    ]  # fmt: skip
