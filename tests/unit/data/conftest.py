"""A small data set, and what the tests of its readers, its order and its batches share."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_format import Manifest
from tests.support.synthetic import (
    TRAIN_LAYOUT,
    DataSet,
    layout_columns,
    write_data_set,
)

NUM_TRAIN = 27
SEED = 7


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_data_set(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def reader(data_set: DataSet) -> SampleReader:
    return SampleReader(data_set.folder, Manifest.load(data_set.folder), "train")


def make_order(seed: int = SEED) -> SampleOrder:
    """The order of the training samples."""
    return SampleOrder(*layout_columns(TRAIN_LAYOUT), seed)


def gathered(reader: SampleReader, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    blocks = np.repeat(np.arange(6), reader.block_sizes)[numbers]
    return reader.gather(blocks, numbers - reader._first_sample[blocks])
