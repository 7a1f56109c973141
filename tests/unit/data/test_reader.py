"""Samples by block and row: what is gathered is what was stored."""

from pathlib import Path

import numpy as np
import pytest

from dist_bert.common.errors import UserError
from dist_bert.data.reader import SampleReader
from dist_bert.data.shard_format import FIELD_SHAPES
from tests.support.synthetic import (
    TRAIN_LAYOUT,
    VALIDATION_LAYOUT,
    DataSet,
    block_shapes,
    layout_columns,
    write_data_set,
)
from tests.unit.data.conftest import NUM_TRAIN

NUM_VALIDATION = 19


def test_the_data_set_of_these_tests_has_blocks_of_different_shapes(data_set: DataSet) -> None:
    shapes = [s for split in data_set.manifest.splits.values() for s in block_shapes(split)]
    for column in list(zip(*shapes, strict=True))[:2]:
        assert len(set(column)) == len(column) == 8
    assert len({max_masked for *_, max_masked in shapes}) > 1
    for layout, count in ((TRAIN_LAYOUT, NUM_TRAIN), (VALIDATION_LAYOUT, NUM_VALIDATION)):
        assert layout_columns(layout)[1].sum() == count


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
