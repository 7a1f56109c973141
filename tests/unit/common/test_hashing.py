"""Hashes: frozen values (another one would change every data set), bijections, statistics."""

import math

import numpy as np
import pytest

from dist_bert.common.hashing import below, hash32_grid, hash64, permuted, uniform


def test_values_are_frozen() -> None:
    # Of 0 and 1: the first outputs of splitmix64 with these seeds, as published.
    assert hash64(np.arange(3)).tolist() == [
        0xE220A8397B1DCDAF,
        0x910A2DEC89025CC1,
        0x975835DE1C9756CE,
    ]
    assert int(hash64(1, 2)) == 0xBCD9DBB49673066B
    assert int(hash64(2, 1)) == 0xE06DD043328BD285
    largest = np.array([2**64 - 1], np.uint64)
    assert hash64("mask", 7, largest).tolist() == [0x789696B5BB7D77AF]
    assert uniform("u", np.arange(2)).tolist() == [0.15437013911914188, 0.427913425294418]
    assert below(1_000, "b", np.arange(5)).tolist() == [410, 309, 514, 56, 345]
    assert hash32_grid(hash64(np.arange(2)), 3).tolist() == [
        [1171869111, 908586603, 491906843],
        [2886405376, 3356767301, 2981502168],
    ]
    assert permuted(np.arange(11), 11, "p", 3).tolist() == [5, 4, 8, 1, 3, 0, 9, 6, 10, 2, 7]
    assert permuted(np.array([0, 123456789]), 10**9, 1).tolist() == [441956716, 323775430]


def test_arrays_broadcast_and_dtypes_do_not_matter() -> None:
    rows, columns = np.arange(3)[:, None], np.arange(5, dtype=np.uint16)
    grid = hash64("x", rows, columns)
    assert grid.shape == (3, 5) and grid.dtype == np.uint64
    assert grid[2, 4] == hash64("x", 2, 4)
    assert np.unique(grid).size == 15


def test_one_bit_of_a_key_changes_half_of_the_hash() -> None:
    keys = np.arange(1, 4_001, dtype=np.uint64)
    for bit in range(64):
        changed = hash64(keys) ^ hash64(keys ^ np.uint64(1 << bit))
        share = np.bitwise_count(changed).mean() / 64
        assert abs(share - 0.5) < 0.006  # sigma 0.001


@pytest.mark.parametrize("bound", [3, 17, 1_000])
def test_below_is_even(bound: int) -> None:
    counts = np.bincount(below(bound, "even", np.arange(200_003)), minlength=bound)
    assert counts.size == bound
    expected = 200_003 / bound
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - (bound - 1)) < 5 * math.sqrt(2 * bound)


def test_below_takes_a_bound_for_each() -> None:
    bounds = np.array([1, 2, 3, 2**31])
    drawn = np.stack([below(bounds, "bounds", seed, np.arange(4)) for seed in range(200)])
    assert (drawn >= 0).all() and (drawn < bounds).all()
    assert drawn[:, :3].max(axis=0).tolist() == [0, 1, 2]
    assert drawn[:, 3].max() > 2**30


def test_uniform_is_even_in_0_to_1() -> None:
    numbers = uniform("uniform", np.arange(100_003))
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    assert abs(numbers.mean() - 0.5) < 0.005  # sigma 0.0009
    assert abs(numbers.var() - 1 / 12) < 0.002


def test_grid_depends_on_row_key_and_column_alone() -> None:
    keys = hash64("grid", np.arange(7))
    grid = hash32_grid(keys, 13)
    assert np.array_equal(hash32_grid(keys[[5, 2]], 29)[:, :13], grid[[5, 2]])


def test_grid_has_no_number_twice_in_a_row() -> None:
    """Every step is a bijection of the column: masking takes equal numbers for one word."""
    grid = np.sort(hash32_grid(hash64("distinct", np.arange(3)), 65_536), axis=1)
    assert (np.diff(grid.astype(np.int64), axis=1) > 0).all()


def test_grid_is_even_and_its_columns_are_independent() -> None:
    grid = hash32_grid(hash64("even", np.arange(20_011)), 31)
    numbers = grid / 2**32
    assert abs(numbers.mean(axis=0) - 0.5).max() < 0.012  # sigma 0.002
    correlations = np.asarray(np.corrcoef(numbers, rowvar=False))[np.triu_indices(31, 1)]
    assert abs(correlations).max() < 0.04  # sigma 0.007
    assert abs(correlations.std() * math.sqrt(20_011) - 1) < 0.15


@pytest.mark.parametrize("size", [*range(1, 40), 255, 256, 257, 1_000, 1_023, 10_007])
def test_permuted_is_a_bijection(size: int) -> None:
    places = permuted(np.arange(size), size, "bijection", size)
    assert np.array_equal(np.sort(places), np.arange(size))


def test_permuted_finds_any_part_at_once() -> None:
    size = 3_001
    whole = permuted(np.arange(size), size, "part", 1)
    assert np.array_equal(permuted(np.arange(700, 711), size, "part", 1), whole[700:711])
    assert not np.array_equal(permuted(np.arange(size), size, "part", 2), whole)


def test_permuted_reaches_every_permutation_and_mixes() -> None:
    seen = {tuple(permuted(np.arange(4), 4, "all", key).tolist()) for key in range(1_000)}
    assert len(seen) == 24
    size = 10_007
    places = permuted(np.arange(size), size, "mix", 5)
    assert abs(np.corrcoef(places, np.arange(size))[0, 1]) < 0.05  # sigma 0.01
    assert np.mean(np.diff(places) == 1) < 0.001  # neighbours stay neighbours by chance only
