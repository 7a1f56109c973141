"""Counter-based randomness: every random choice is a hash of the numbers that identify it.

There is no generator state, so a choice depends on (seed, purpose, document, copy, ...) and never
on the rank that draws it, the number of ranks, or earlier draws. All functions are vectorised over
numpy arrays and return the same numbers on every platform and numpy version.

Sources: splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators");
the 32-bit finaliser of MurmurHash3 (Appleby); permutation by a Feistel network over a grid
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Key: TypeAlias = int | str | NDArray[np.integer]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
_FEISTEL_ROUNDS = 6  # 4 suffice for pseudo-randomness; 6 keep small domains well mixed


def hash64(*keys: Key) -> NDArray[np.uint64]:
    """Hash of keys to uint64.

    Args:
        keys: non-negative integers, arrays of them (broadcast against each other), or strings that
            name a purpose. Their order matters.
    """
    state: NDArray[np.uint64] = np.zeros((), np.uint64)
    for key in keys:
        number = zlib.crc32(key.encode()) if isinstance(key, str) else key
        word = np.uint64(number & _MASK64) if isinstance(number, int) else number.astype(np.uint64)
        state = _mix64(state ^ word)
    return state


def uniform(*keys: Key) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits, one per hash of the keys."""
    return (hash64(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bound: int | NDArray[np.integer], *keys: Key) -> NDArray[np.int64]:
    """Integers in [0, bound), one per hash of the keys; `bound` is at most 2**31."""
    high = hash64(*keys) >> np.uint64(32)
    return ((high * np.asarray(bound).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def hash32_grid(row_keys: NDArray[np.uint64], num_columns: int) -> NDArray[np.uint32]:
    """A (rows, columns) grid of uint32 hashes, each of `row_keys[row]` and its column.

    Much cheaper than `hash64` per element; made for one key per sample and one column per token.
    """
    columns = np.arange(1, num_columns + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)
    grid = (row_keys >> np.uint64(32)).astype(np.uint32)[:, None] ^ columns
    grid += row_keys.astype(np.uint32)[:, None]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        grid ^= grid >> np.uint32(shift)
        grid *= np.uint32(factor)
    grid ^= grid >> np.uint32(16)
    return grid


def permuted(indices: NDArray[np.integer], size: int, *keys: Key) -> NDArray[np.int64]:
    """Images of `indices` under a keyed random permutation of range(size).

    No table: a permutation of a billion documents takes no memory, and any part of it can be
    computed directly.

    Args:
        indices: integers in [0, size).
        size: length of the permuted range, at least 1.
        keys: name the permutation, as in `hash64`.
    """
    width = int(np.ceil(np.sqrt(size)))
    height = -(-size // width)
    round_keys = [int(hash64(*keys, "feistel", r)) for r in range(_FEISTEL_ROUNDS)]
    result = _feistel(np.asarray(indices, np.int64), width, height, round_keys)
    pending = np.flatnonzero(result >= size)
    while pending.size:  # walk the cycle until the value is inside the range again
        result[pending] = _feistel(result[pending], width, height, round_keys)
        pending = pending[result[pending] >= size]
    return result


def _feistel(
    values: NDArray[np.int64], width: int, height: int, round_keys: list[int]
) -> NDArray[np.int64]:
    """One pass of the keyed bijection on range(width * height)."""
    upper = values // width
    left, right = (values - upper * width).astype(np.uint64), upper.astype(np.uint64)
    left_size, right_size = np.uint64(width), np.uint64(height)
    for key in round_keys:
        total = (hash64(key, right) >> np.uint64(1)) + left
        total -= total // left_size * left_size  # remainder: numpy vectorises only the division
        left, right = right, total
        left_size, right_size = right_size, left_size
    # After an even number of rounds, the sizes are in their original order.
    return (right * left_size + left).astype(np.int64)


def _mix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of splitmix64."""
    with np.errstate(over="ignore"):  # scalars warn where arrays wrap
        z = state + np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
