"""The order of samples: a pure function of one integer, each sample once an epoch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.data.sample_order import SampleOrder
from tests.support.synthetic import (
    TRAIN_LAYOUT,
    layout_columns,
)
from tests.unit.data.conftest import NUM_TRAIN, SEED, make_order

Located = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def pairs_of(located: Located) -> list[tuple[int, int]]:
    return list(zip(located[1].tolist(), located[2].tolist(), strict=True))


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
