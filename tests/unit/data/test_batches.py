"""The data path: a pure function of one integer, the same samples for every shape of a batch."""

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.common.hashing import hash64
from dist_bert.data.batches import NO_LABEL, BatchShape, StepBatch, deal, unpad
from dist_bert.data.masking import MaskingVocabulary, draw_masks, restore
from dist_bert.data.pretraining_batches import FreshMasks, training_batches, validation_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_format import FIELD_SHAPES, Manifest
from tests.support.synthetic import (
    TRAIN_LAYOUT,
    VALIDATION_LAYOUT,
    VOCAB_SIZE,
    DataSet,
    block_shapes,
    layout_columns,
    write_data_set,
)

NUM_TRAIN, NUM_VALIDATION = 27, 19
SEED = 7
VOCABULARY = MaskingVocabulary(vocab_size=VOCAB_SIZE, num_reserved_pieces=5)
Located = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
Sample = tuple[Any, ...]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_data_set(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def reader(data_set: DataSet) -> SampleReader:
    return SampleReader(data_set.folder, Manifest.load(data_set.folder), "train")


@pytest.fixture(scope="module")
def held_out(data_set: DataSet) -> SampleReader:
    return SampleReader(data_set.folder, data_set.manifest, "validation")


def make_order(seed: int = SEED) -> SampleOrder:
    return SampleOrder(*layout_columns(TRAIN_LAYOUT), seed)


def pairs_of(located: Located) -> list[tuple[int, int]]:
    return list(zip(located[1].tolist(), located[2].tolist(), strict=True))


def test_the_data_set_of_these_tests_has_blocks_of_different_shapes(data_set: DataSet) -> None:
    shapes = [s for split in data_set.manifest.splits.values() for s in block_shapes(split)]
    for column in list(zip(*shapes, strict=True))[:2]:
        assert len(set(column)) == len(column) == 8
    assert len({max_masked for *_, max_masked in shapes}) > 1
    for layout, count in ((TRAIN_LAYOUT, NUM_TRAIN), (VALIDATION_LAYOUT, NUM_VALIDATION)):
        assert layout_columns(layout)[1].sum() == count


# --- SampleOrder


@pytest.mark.parametrize("window_blocks", [1, 2, 64])
def test_every_sample_comes_once_an_epoch(
    window_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_bert.data.sample_order.WINDOW_BLOCKS", window_blocks)
    order = make_order()
    _, sizes = layout_columns(TRAIN_LAYOUT)
    expected = [(block, row) for block, size in enumerate(sizes) for row in range(size)]
    epochs = []
    for epoch in range(5):
        located = order.locate(epoch * NUM_TRAIN, (epoch + 1) * NUM_TRAIN)
        assert set(located[0].tolist()) == {epoch}
        assert sorted(pairs_of(located)) == expected
        epochs.append(tuple(pairs_of(located)))
    assert len({*epochs, tuple(expected)}) == 6, "every epoch has an order of its own"


@pytest.mark.parametrize("window_blocks", [2, 64])
def test_any_position_is_found_from_anywhere(
    window_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_bert.data.sample_order.WINDOW_BLOCKS", window_blocks)
    whole = make_order().locate(0, 3 * NUM_TRAIN)  # 3 epochs, and 9 windows of 2 blocks
    order = make_order()
    for start in range(0, 3 * NUM_TRAIN):
        for stop in range(start + 1, min(start + 35, 3 * NUM_TRAIN + 1), 3):
            for got, expected in zip(order.locate(start, stop), whole, strict=True):
                np.testing.assert_array_equal(got, expected[start:stop])


def test_another_seed_is_another_order() -> None:
    orders = {tuple(pairs_of(make_order(seed).locate(0, NUM_TRAIN))) for seed in range(20)}
    assert len(orders) == 20


def test_the_blocks_of_a_shard_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dist_bert.data.sample_order.WINDOW_BLOCKS", 1
    )  # so that the order of blocks shows
    layout = ((5, 3), (7, 1, 8), (4, 2, 6), (9,))
    shard_of_block, sizes = layout_columns(layout)
    order = SampleOrder(shard_of_block, sizes, SEED)
    shard_orders, block_orders = set(), set()
    for epoch in range(12):
        blocks = order.locate(epoch * order.num_samples, (epoch + 1) * order.num_samples)[1]
        runs = [int(b) for i, b in enumerate(blocks) if i == 0 or b != blocks[i - 1]]
        assert sorted(runs) == list(range(9)), "a block is read in one go"
        shards = [int(shard_of_block[b]) for b in runs]
        shard_runs = [s for i, s in enumerate(shards) if i == 0 or s != shards[i - 1]]
        assert sorted(shard_runs) == [0, 1, 2, 3], "a shard is read in one go"
        shard_orders.add(tuple(shard_runs))
        block_orders.add(tuple(b for b in runs if shard_of_block[b] == 1))
    assert len(shard_orders) > 6 and len(block_orders) > 3, "both change from epoch to epoch"


def test_the_samples_of_a_window_really_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_bert.data.sample_order.WINDOW_BLOCKS", 4)
    order = SampleOrder(np.arange(8) // 2, np.full(8, 50), SEED)
    for window in range(4):  # of two epochs
        _, blocks, rows = order.locate(window * 200, (window + 1) * 200)
        assert len(set(blocks.tolist())) == 4
        for block in set(blocks.tolist()):
            # The mean place of 50 of 200 at random has a deviation of 7; unmixed, two of the four
            # blocks would lie 75 from the middle.
            places = np.flatnonzero(blocks == block)
            assert abs(places.mean() - 99.5) < 35
            in_order = np.corrcoef(np.arange(50), rows[blocks == block])[0, 1]
            assert abs(in_order) < 0.6, "rows are mixed too: 4 deviations of 1 / sqrt(50)"


def test_the_order_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    # A contract: with another order, every resumed run would see samples twice or never.
    def located(start: int, stop: int) -> list[list[int]]:
        return np.stack(make_order().locate(start, stop), axis=1).tolist()

    assert located(0, 5) == [[0, 2, 3], [0, 0, 0], [0, 4, 0], [0, 5, 1], [0, 5, 4]]
    monkeypatch.setattr("dist_bert.data.sample_order.WINDOW_BLOCKS", 2)
    assert located(25, 30) == [[0, 5, 0], [0, 5, 1], [1, 5, 1], [1, 5, 0], [1, 4, 0]]
    assert located(40, 44) == [[1, 2, 1], [1, 2, 2], [1, 2, 0], [1, 3, 0]]


def test_the_blocks_near_a_place_are_those_of_its_windows_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dist_bert.data.sample_order.WINDOW_BLOCKS", 2)
    order = make_order()
    windows = []  # of three epochs of 3 windows of 2 blocks: first position, end, blocks
    for epoch in range(3):
        blocks = order.blocks_near(epoch * NUM_TRAIN, (epoch + 1) * NUM_TRAIN).tolist()
        assert sorted(blocks) == list(range(6))
        start = epoch * NUM_TRAIN
        for pair in (blocks[:2], blocks[2:4], blocks[4:]):
            end = start + int(layout_columns(TRAIN_LAYOUT)[1][pair].sum())
            assert set(order.locate(start, end)[1].tolist()) == set(pair)
            windows.append((start, end, pair))
            start = end
    for start in range(0, 3 * NUM_TRAIN, 2):
        for stop in range(start + 1, min(start + 40, 3 * NUM_TRAIN + 1), 3):
            expected = [
                b for first, end, pair in windows if first < stop and end > start for b in pair
            ]
            assert order.blocks_near(start, stop).tolist() == expected


# --- SampleReader


def test_gathered_rows_are_those_of_the_blocks(data_set: DataSet, reader: SampleReader) -> None:
    assert reader.num_samples == NUM_TRAIN
    assert reader.block_sizes.tolist() == [5, 3, 7, 4, 2, 6]
    assert reader.shard_of_block.tolist() == [0, 0, 1, 2, 2, 2]
    rng = np.random.default_rng(0)
    for count in (1, 4, 40):  # 40 of 27: repeated samples too
        blocks = rng.integers(0, 6, count)
        rows = rng.integers(0, reader.block_sizes[blocks])
        columns = reader.gather(blocks, rows)
        assert list(columns) == list(FIELD_SHAPES)
        for field, column in columns.items():
            stored = [data_set.blocks["train"][b][field] for b in blocks]
            assert column.dtype == stored[0].dtype
            assert column.shape[1:] == max(values.shape[1:] for values in stored)
            for got, values, row in zip(column, stored, rows, strict=True):
                expected = values[row]
                if expected.ndim:
                    assert not got[expected.size :].any(), "0-padded behind the block's own width"
                    got = got[: expected.size]
                np.testing.assert_array_equal(got, expected)


def test_only_the_fields_that_are_asked_for_are_read(reader: SampleReader) -> None:
    columns = reader.gather(np.array([3, 0]), np.array([1, 4]), iter(["num_masked", "input_ids"]))
    assert list(columns) == ["num_masked", "input_ids"]


def test_sample_numbers_count_through_the_blocks(reader: SampleReader) -> None:
    blocks = np.repeat(np.arange(6), reader.block_sizes)
    rows = np.concatenate([np.arange(size) for size in reader.block_sizes])
    assert reader.sample_numbers(blocks, rows).tolist() == list(range(NUM_TRAIN))
    assert reader.sample_numbers(np.array([5, 2]), np.array([1, 6])).tolist() == [22, 14]


def test_a_split_without_samples_is_refused(tmp_path: Path) -> None:
    empty = write_data_set(tmp_path, validation=((), ()))
    with pytest.raises(UserError, match=r"has no validation samples.*validation_share"):
        SampleReader(tmp_path, empty.manifest, "validation")


# --- deal


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


# --- unpad


def gathered(reader: SampleReader, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    blocks = np.repeat(np.arange(6), reader.block_sizes)[numbers]
    return reader.gather(blocks, numbers - reader._first_sample[blocks])


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


# --- training_batches


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
            assert batch.num_token_pairs == sum(length**2 for length in lengths)
            for micro in batch.micro_batches:
                assert micro["next_sentence_label"].size == shape.micro_batch_size
                assert (micro["num_masked"], micro["num_samples"]) == (num_masked, 12)


def assert_equal_steps(got: list[StepBatch], expected: list[StepBatch]) -> None:
    for left, right in zip(got, expected, strict=True):
        assert (left.num_tokens, left.num_token_pairs) == (right.num_tokens, right.num_token_pairs)
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
        FreshMasks(VOCABULARY, seed).apply(columns, np.full(numbers.size, epoch), numbers)
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
    FreshMasks(VOCABULARY, SEED).apply(columns, np.array([1, 1]), np.array([3, 4]))
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
    FreshMasks(vocabulary, SEED).apply(columns, np.full(NUM_TRAIN, 3), numbers)
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
    FreshMasks(VOCABULARY, SEED).apply(columns, epochs, np.arange(NUM_TRAIN))
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
