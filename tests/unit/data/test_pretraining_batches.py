"""Batches of pretraining: the same samples for every shape of a batch, masked anew each epoch."""

from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.common.hashing import hash64
from dist_bert.data.batches import NO_LABEL, BatchShape, StepBatch, unpad
from dist_bert.data.masking import MaskingVocabulary, draw_masks, restore
from dist_bert.data.pretraining_batches import FreshMasks, training_batches, validation_batches
from dist_bert.data.reader import Columns, SampleReader
from tests.support.synthetic import (
    VOCAB_SIZE,
    DataSet,
)
from tests.unit.data.conftest import NUM_TRAIN, SEED, gathered, make_order

NUM_VALIDATION = 19
VOCABULARY = MaskingVocabulary(vocab_size=VOCAB_SIZE, num_reserved_pieces=5)
Sample = tuple[Any, ...]


@pytest.fixture(scope="module")
def held_out(data_set: DataSet) -> SampleReader:
    return SampleReader(data_set.folder, data_set.manifest, "validation")


def samples_of(batch: dict[str, Any]) -> list[Sample]:
    """All that a micro-batch says of each of its samples; the last one may be padding."""
    samples = []
    is_label = batch["masked_lm_labels"] != NO_LABEL
    bounds = list(pairwise(batch["cu_seqlens"].tolist()))[: batch["next_sentence_label"].size]
    for i, (start, stop) in enumerate(bounds):
        is_own = (batch["masked_lm_positions"] >= start) & (batch["masked_lm_positions"] < stop)
        is_own &= is_label
        tokens = [batch[n][start:stop] for n in ("input_ids", "token_type_ids", "position_ids")]
        positions = batch["masked_lm_positions"][is_own] - start
        columns = [*tokens, positions, batch["masked_lm_labels"][is_own]]
        label = int(batch["next_sentence_label"][i])
        samples.append((*(tuple(column.tolist()) for column in columns), label))
    return samples


def original_of(sample: Sample) -> tuple[int, ...]:
    ids = list(sample[0])
    for position, label in zip(sample[3], sample[4], strict=True):
        ids[position] = label
    return tuple(ids)


def number_of_original(data_set: DataSet) -> dict[tuple[int, ...], int]:
    rows = [row for block in data_set.originals["train"] for row in block.tolist()]
    return {tuple(t for t in row if t): number for number, row in enumerate(rows)}


def steps_of(
    reader: SampleReader, shape: BatchShape, num_steps: int, start: int = 0, fresh: bool = True
) -> list[list[StepBatch]]:
    """The first steps of each rank."""
    masks = FreshMasks(VOCABULARY, SEED) if fresh else None
    return [
        list(islice(training_batches(reader, make_order(), shape, rank, start, masks), num_steps))
        for rank in range(shape.world_size)
    ]


def apply(masks: FreshMasks, columns: Columns, epochs: NDArray[Any], numbers: NDArray[Any]) -> None:
    """With as many predictions as are stored."""
    masks.apply(columns, epochs, numbers, columns["num_masked"].astype(np.int64))


SHAPES_OF_12 = [BatchShape(1, 1, 12), BatchShape(3, 2, 2), BatchShape(2, 3, 2), BatchShape(4, 3, 1)]


@pytest.mark.parametrize("shape", SHAPES_OF_12)
def test_every_shape_sees_the_same_samples_in_every_step(
    data_set: DataSet, reader: SampleReader, shape: BatchShape
) -> None:
    numbers = number_of_original(data_set)
    assert len(numbers) == NUM_TRAIN
    per_rank = steps_of(reader, shape, 11)  # 132 samples: almost five epochs
    whole = steps_of(reader, SHAPES_OF_12[0], 11)[0]
    for step, reference in enumerate(whole):
        batches = [rank_steps[step] for rank_steps in per_rank]
        micro_batches = [micro for batch in batches for micro in batch.micro_batches]
        assert {len(batch.micro_batches) for batch in batches} == {shape.accumulation_steps}
        samples = [sample for micro in micro_batches for sample in samples_of(micro)]
        assert sorted(samples) == sorted(samples_of(reference.micro_batches[0]))

        located = make_order().locate(step * 12, step * 12 + 12)
        expected = sorted(reader.sample_numbers(*located[1:]).tolist())
        assert sorted(numbers[original_of(sample)] for sample in samples) == expected

        lengths = [len(sample[0]) for sample in samples]
        num_masked = sum(len(sample[3]) for sample in samples)
        for batch in batches:
            assert (batch.num_samples, batch.num_tokens) == (12, sum(lengths))
            assert sorted(batch.lengths) == sorted(lengths)
            for micro in batch.micro_batches:
                assert micro["next_sentence_label"].size == shape.micro_batch_size
                assert (micro["num_masked"], micro["num_samples"]) == (num_masked, 12)


def assert_equal_steps(got: list[StepBatch], expected: list[StepBatch]) -> None:
    for left, right in zip(got, expected, strict=True):
        assert left.num_tokens == right.num_tokens
        np.testing.assert_array_equal(left.lengths, right.lengths)
        for a, b in zip(left.micro_batches, right.micro_batches, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("size", [5, 40])  # 5 steps planned at once; a batch above the data set
def test_resuming_is_skipping(reader: SampleReader, size: int) -> None:
    shape = BatchShape(size // 5, 1, 5)
    whole = steps_of(reader, shape, 17)[0]
    for consumed in (1, 4, 5, 6, 11):
        resumed = steps_of(reader, shape, 17 - consumed, start=consumed * size)[0]
        assert_equal_steps(resumed, whole[consumed:])


def test_a_batch_may_exceed_the_data_set(data_set: DataSet, reader: SampleReader) -> None:
    numbers = number_of_original(data_set)
    batch = steps_of(reader, BatchShape(4, 1, 17), 1)[0][0]
    samples = [sample for micro in batch.micro_batches for sample in samples_of(micro)]
    counts = np.bincount([numbers[original_of(sample)] for sample in samples])
    assert counts.sum() == 68 and set(counts.tolist()) == {2, 3}  # 68 = 2 epochs of 27, and 14


def test_without_fresh_masks_every_epoch_is_as_stored(
    data_set: DataSet, reader: SampleReader
) -> None:
    epochs = [sorted(samples_of(step.micro_batches[0])) for step in epoch_steps(reader, False)]
    assert epochs[0] == epochs[1] == epochs[2]


def epoch_steps(reader: SampleReader, fresh: bool) -> list[StepBatch]:
    """Three epochs, each as one batch."""
    return steps_of(reader, BatchShape(1, 1, NUM_TRAIN), 3, fresh=fresh)[0]


# --- FreshMasks


def test_later_epochs_are_masked_anew(data_set: DataSet, reader: SampleReader) -> None:
    stored = [sorted(samples_of(s.micro_batches[0])) for s in epoch_steps(reader, False)]
    fresh = [sorted(samples_of(s.micro_batches[0])) for s in epoch_steps(reader, True)]
    assert fresh[0] == stored[0]
    by_original = [{original_of(s): s for s in epoch} for epoch in (stored[1], *fresh[1:])]
    assert by_original[0].keys() == by_original[1].keys() == by_original[2].keys()
    assert by_original[0].keys() == number_of_original(data_set).keys()
    for original in by_original[0]:
        assert len({len(epoch[original][3]) for epoch in by_original}) == 1, "num_masked stays"
    for a, b in ((0, 1), (0, 2), (1, 2)):
        moved = [by_original[a][o][3] != by_original[b][o][3] for o in by_original[0]]
        assert sum(moved) > NUM_TRAIN // 2, "most samples have their masks elsewhere"


def test_fresh_masks_are_keyed_by_sample_epoch_and_seed(reader: SampleReader) -> None:
    def draw(seed: int, epoch: int, numbers: NDArray[np.int64]) -> dict[int, Sample]:
        columns = gathered(reader, numbers)
        originals = restored(columns)
        apply(FreshMasks(VOCABULARY, seed), columns, np.full(numbers.size, epoch), numbers)
        np.testing.assert_array_equal(restored(columns), originals)
        return dict(zip(numbers.tolist(), samples_of(unpad(columns)), strict=True))

    everything = np.arange(NUM_TRAIN)
    reference = draw(SEED, 1, everything)
    shuffled = np.random.default_rng(0).permutation(NUM_TRAIN)
    assert draw(SEED, 1, shuffled) == reference
    for numbers in (shuffled[:1], shuffled[3:8]):  # other batches, other widths of padding
        assert draw(SEED, 1, numbers) == {n: reference[n] for n in numbers.tolist()}
    assert draw(SEED, 2, everything) != reference
    assert draw(SEED + 1, 1, everything) != reference

    columns = gathered(reader, np.array([3, 3]))
    apply(FreshMasks(VOCABULARY, SEED), columns, np.array([1, 1]), np.array([3, 4]))
    assert (columns["masked_lm_positions"][0] != columns["masked_lm_positions"][1]).any()


def test_fresh_masks_are_those_that_the_vocabulary_asks_for(reader: SampleReader) -> None:
    """As drawn for a shard, with the keys of the epoch: whole words and spans alike."""
    vocabulary = MaskingVocabulary(
        vocab_size=VOCAB_SIZE,
        num_reserved_pieces=5,
        word_starts=np.arange(VOCAB_SIZE) % 3 > 0,
        mean_span_length=4.0,
    )
    numbers = np.arange(NUM_TRAIN)
    columns, stored = (gathered(reader, numbers) for _ in range(2))
    apply(FreshMasks(vocabulary, SEED), columns, np.full(NUM_TRAIN, 3), numbers)
    keys = hash64(SEED, "fresh masks", np.full(NUM_TRAIN, 3), numbers)
    ids, positions, labels = draw_masks(
        restored(stored), stored["num_tokens"], stored["num_masked"], keys, vocabulary
    )
    np.testing.assert_array_equal(columns["input_ids"], ids)
    np.testing.assert_array_equal(columns["masked_lm_positions"], positions)
    np.testing.assert_array_equal(columns["masked_lm_labels"], labels)


def test_only_the_rows_of_later_epochs_change(reader: SampleReader) -> None:
    columns, stored = (gathered(reader, np.arange(NUM_TRAIN)) for _ in range(2))
    epochs = np.arange(NUM_TRAIN) % 2
    apply(FreshMasks(VOCABULARY, SEED), columns, epochs, np.arange(NUM_TRAIN))
    for field, column in columns.items():
        np.testing.assert_array_equal(column[epochs == 0], stored[field][epochs == 0])
    for field in ("input_ids", "masked_lm_positions", "masked_lm_labels"):
        assert (columns[field] != stored[field]).any()


def restored(columns: dict[str, NDArray[Any]]) -> NDArray[Any]:
    names = ("input_ids", "masked_lm_positions", "masked_lm_labels", "num_masked")
    return restore(*(columns[name] for name in names))


# --- validation_batches


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.parametrize("num_samples", [0, 3, 13, 19, 1_000])
def test_validation_sees_each_sample_once(
    data_set: DataSet,
    held_out: SampleReader,
    world_size: int,
    micro_batch_size: int,
    num_samples: int,
) -> None:
    count = min(num_samples or NUM_VALIDATION, NUM_VALIDATION)
    shape = BatchShape(5, world_size, micro_batch_size)
    ranks = [
        list(validation_batches(held_out, shape, rank, num_samples)) for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1, "no rank may wait for another"
    batches = [batch for rank in ranks for batch in rank]
    sizes = [batch["next_sentence_label"].size for batch in batches]
    assert min(sizes) >= 1 and max(sizes) <= 2 * micro_batch_size
    samples = [sample for batch in batches for sample in samples_of(batch)]
    rows = [row for block in data_set.originals["validation"] for row in block.tolist()]
    expected = [tuple(t for t in row if t) for row in rows[:count]]
    assert sorted(map(original_of, samples)) == sorted(expected)
    num_masked = sum(len(sample[3]) for sample in samples)
    assert {(b["num_masked"], b["num_samples"]) for b in batches} == {(num_masked, count)}


def test_more_ranks_than_validation_samples_are_refused(held_out: SampleReader) -> None:
    for num_samples, world_size in ((2, 3), (0, 20)):
        batches = validation_batches(held_out, BatchShape(1, world_size, 2), 0, num_samples)
        with pytest.raises(UserError, match=rf"for {world_size} ranks: increase validation"):
            next(batches)


# --- another share of masks


def falling(k: int) -> float:
    return 0.4 - 0.03 * k


def steps_at_rate(
    reader: SampleReader, shape: BatchShape, num_steps: int, done: int = 0
) -> list[list[StepBatch]]:
    """Steps of each rank, of which some are done; the share of masks falls from step to step."""
    masks = FreshMasks(VOCABULARY, SEED, 0.15, lambda k: falling(done + k))
    start = done * shape.global_batch_size
    return [
        list(training_batches(reader, make_order(), shape, rank, start, masks, num_steps - done))
        for rank in range(shape.world_size)
    ]


@pytest.mark.parametrize("shape", SHAPES_OF_12)
def test_a_share_that_falls_is_the_same_for_every_layout(
    data_set: DataSet, reader: SampleReader, shape: BatchShape
) -> None:
    whole = steps_at_rate(reader, SHAPES_OF_12[0], 9)[0]
    per_rank = steps_at_rate(reader, shape, 9)
    assert [len(steps) for steps in per_rank] == [9] * shape.world_size
    for step, reference in enumerate(whole):
        micro_batches = [m for steps in per_rank for m in steps[step].micro_batches]
        samples = [sample for micro in micro_batches for sample in samples_of(micro)]
        assert sorted(samples) == sorted(samples_of(reference.micro_batches[0]))
        num_masked = sum(len(sample[3]) for sample in samples)
        assert {micro["num_masked"] for micro in micro_batches} == {num_masked}
        assert all(original_of(sample) in number_of_original(data_set) for sample in samples)


def test_a_share_that_falls_resumes_inside_of_its_fall(reader: SampleReader) -> None:
    shape = BatchShape(2, 1, 6)
    whole = steps_at_rate(reader, shape, 9)[0]
    for done in (1, 4, 8):
        assert_equal_steps(steps_at_rate(reader, shape, 9, done)[0], whole[done:])


def test_the_first_epoch_is_masked_at_the_share_too(reader: SampleReader) -> None:
    steps = steps_at_rate(reader, BatchShape(1, 1, NUM_TRAIN), 4)[0]
    stored = steps_of(reader, BatchShape(1, 1, NUM_TRAIN), 1)[0][0]
    for k, step in enumerate(steps):
        expected = stored.num_masked * falling(k) / 0.15
        # of 27 short samples, some keep their one prediction
        assert 0.6 * expected < step.num_masked < 1.1 * expected


# --- micro-batches by tokens


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("most_tokens", [31, 60, 200, 10_000])
def test_micro_batches_by_tokens_have_the_same_samples(
    reader: SampleReader, world_size: int, most_tokens: int
) -> None:
    whole = steps_of(reader, BatchShape(1, 1, 12), 9)[0]
    shape = BatchShape(12 // world_size, world_size, 1, most_tokens)
    per_rank = steps_of(reader, shape, 9)
    for number, reference in enumerate(whole):
        parts = [steps[number] for steps in per_rank]
        assert len({len(part.micro_batches) for part in parts}) == 1, "collectives match"
        micro_batches = [micro for part in parts for micro in part.micro_batches]
        samples = [samples_of(micro) for micro in micro_batches]
        assert sorted(s for own in samples for s in own) == sorted(
            samples_of(reference.micro_batches[0])
        )
        tokens = [sum(len(sample[0]) for sample in own) for own in samples]
        assert min(tokens) > 0 and max(tokens) <= most_tokens
        for micro in micro_batches:
            assert (micro["num_masked"], micro["num_samples"]) == (reference.num_masked, 12)
        if most_tokens == 10_000:
            assert len(parts[0].micro_batches) == 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_validation_by_tokens_has_every_sample_once(
    held_out: SampleReader, world_size: int
) -> None:
    (whole,) = validation_batches(held_out, BatchShape(1, 1, NUM_VALIDATION), 0)
    shape = BatchShape(4, world_size, 1, 40)
    per_rank = [list(validation_batches(held_out, shape, rank)) for rank in range(world_size)]
    assert len({len(batches) for batches in per_rank}) == 1
    samples = [samples_of(micro) for batches in per_rank for micro in batches]
    assert sorted(s for own in samples for s in own) == sorted(samples_of(whole))
    assert all(0 < sum(len(sample[0]) for sample in own) <= 40 for own in samples)
