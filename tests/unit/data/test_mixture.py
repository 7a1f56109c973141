"""Positions are dealt to data sets evenly by weights, and any is known without the rest."""

from collections import Counter

import numpy as np
import pytest

from dist_bert.data.mixture import MixedOrder, Mixture
from dist_bert.data.reader import JointReader, SampleReader
from dist_bert.data.sample_order import SampleOrder
from tests.support.synthetic import DataSet, layout_columns, write_data_set

WEIGHTS = [(1.0,), (1, 1), (0.7, 0.3), (5, 1e-4, 2, 0.5), (1,) * 8, (0.25, 0.5, 0.25)]
BOOKS, WIKI = ((5, 3), (7,), (4, 2, 6)), ((9,), (2, 8))  # 27 and 19 samples


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_10_000_positions_have_the_shares_of_the_weights(weights: tuple[float, ...]) -> None:
    dealt = Mixture(weights).deal(0, 40_000)
    for number, weight in enumerate(weights):
        before = np.concatenate(([0], np.cumsum(dealt == number)))
        shares = (before[10_000:] - before[:-10_000]) / 10_000  # every stretch of so many
        assert np.abs(shares - weight / sum(weights)).max() < 0.001


@pytest.mark.parametrize("weights", WEIGHTS)
def test_counts_are_those_of_dealing_one_by_one(weights: tuple[float, ...]) -> None:
    mixture = Mixture(weights)
    dealt = mixture.deal(0, 3_000)
    for stop in (0, 1, 2, 7, 100, 1_234, 3_000):
        expected = np.bincount(dealt[:stop], minlength=len(weights)).tolist()
        assert mixture.counts(stop) == expected
    np.testing.assert_array_equal(mixture.deal(1_111, 2_222), dealt[1_111:2_222])


def test_a_weight_of_nothing_gets_nothing() -> None:
    for weights in ((1.0, 1e-20), (1e-20, 1.0), (2.0, 1e-20, 1e-30)):
        mixture = Mixture(weights)
        heaviest = weights.index(max(weights))
        assert set(mixture.deal(0, 1_000).tolist()) == {heaviest}
        assert mixture.counts(1_000)[heaviest] == 1_000


def test_far_away_positions_are_counted_and_dealt_alike() -> None:
    mixture, far = Mixture((2, 3, 5)), 3 * 10**15
    before, after = mixture.counts(far), mixture.counts(far + 500)
    dealt = np.bincount(mixture.deal(far, far + 500), minlength=3)
    assert [b - a for a, b in zip(before, after, strict=True)] == dealt.tolist()
    assert before == pytest.approx([0.2 * far, 0.3 * far, 0.5 * far], abs=20)


def order_of(weights: tuple[float, ...], consumed: tuple[int, ...] = (0, 0)) -> MixedOrder:
    orders = [SampleOrder(*layout_columns(layout), 7) for layout in (BOOKS, WIKI)]
    return MixedOrder(orders, weights, consumed)


def test_each_data_set_goes_through_its_own_epochs_where_it_was_left() -> None:
    order = order_of((2, 1), consumed=(20, 0))
    epochs, blocks, rows = order.locate(0, 90)
    of_books = blocks < 6
    expected = SampleOrder(*layout_columns(BOOKS), 7).locate(20, 20 + int(of_books.sum()))
    assert of_books.sum() == 61
    for got, wanted in zip((epochs, blocks, rows), expected, strict=True):
        np.testing.assert_array_equal(got[of_books], wanted)
    own = SampleOrder(*layout_columns(WIKI), 7).locate(0, 29)
    for got, wanted in zip((epochs, blocks - 6, rows), own, strict=True):
        np.testing.assert_array_equal(got[~of_books], wanted)
    assert order.consumed(90) == [81, 29]


def test_an_epoch_of_a_data_set_has_each_of_its_samples_once() -> None:
    epochs, blocks, rows = order_of((3, 1)).locate(0, 200)
    for number, size in ((0, 27), (1, 19)):
        own = (blocks >= 6) == bool(number)
        first = own & (epochs == 0)
        assert first.sum() == size
        seen = Counter(zip(blocks[first].tolist(), rows[first].tolist(), strict=True))
        assert set(seen.values()) == {1}


def test_any_stretch_is_that_of_the_whole() -> None:
    order = order_of((3, 1))
    whole = order.locate(0, 120)
    for start, stop in ((0, 1), (13, 14), (50, 77), (119, 120)):
        for part, of_whole in zip(order.locate(start, stop), whole, strict=True):
            np.testing.assert_array_equal(part, of_whole[start:stop])


def test_the_blocks_near_a_stretch_are_all_that_it_uses() -> None:
    order = order_of((3, 1))
    assert set(order.locate(5, 60)[1].tolist()) <= set(order.blocks_near(5, 60).tolist())
    only = order_of((1e9, 1))
    assert set(only.blocks_near(0, 20).tolist()) <= set(range(6))


# --- JointReader


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[DataSet]:
    folder = tmp_path_factory.mktemp("two")
    return [write_data_set(folder / "books", BOOKS), write_data_set(folder / "wiki", WIKI)]


def readers_of(two: list[DataSet]) -> list[SampleReader]:
    return [SampleReader(each.folder, each.manifest, "train") for each in two]


def test_a_joint_reader_gives_the_samples_of_each(two: list[DataSet]) -> None:
    own = readers_of(two)
    joint = JointReader(readers_of(two))
    assert joint.num_samples == 46
    _, blocks, rows = order_of((1, 1)).locate(0, 80)
    columns = joint.gather(blocks, rows)
    numbers = joint.sample_numbers(blocks, rows)
    for number, reader in enumerate(own):
        chosen = np.flatnonzero((blocks >= 6) == bool(number))
        own_blocks = blocks[chosen] - 6 * number
        alone = reader.gather(own_blocks, rows[chosen])
        for field, column in alone.items():
            of_joint = columns[field][chosen]
            width = column.shape[1] if column.ndim > 1 else None
            np.testing.assert_array_equal(of_joint[:, :width] if width else of_joint, column)
            assert not width or not of_joint[:, width:].any()
        np.testing.assert_array_equal(
            numbers[chosen], reader.sample_numbers(own_blocks, rows[chosen])
        )


def test_fields_of_different_types_are_widened(
    two: list[DataSet], tmp_path_factory: pytest.TempPathFactory
) -> None:
    wide = write_data_set(tmp_path_factory.mktemp("wide"), WIKI, vocab_size=70_000)
    joint = JointReader([*readers_of(two)[:1], SampleReader(wide.folder, wide.manifest, "train")])
    columns = joint.gather(np.array([6, 0, 8]), np.array([1, 2, 3]), ("input_ids",))
    assert columns["input_ids"].dtype == np.dtype("<u4")
    np.testing.assert_array_equal(
        columns["input_ids"][0][: wide.blocks["train"][0]["input_ids"].shape[1]],
        wide.blocks["train"][0]["input_ids"][1],
    )
