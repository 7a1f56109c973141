"""Documents in common: exact for small data sets, an estimate with a known error for large ones."""

import base64

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.data.document_sketch import SKETCH_SIZE, decoded, encoded, num_in_common


def sketch(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """As a manifest gives it back."""
    return decoded(encoded(np.unique(hashes)[:SKETCH_SIZE]))


def hashes(first: int, count: int) -> NDArray[np.uint64]:
    """Of `count` texts, of which those with equal numbers are equal."""
    texts = np.random.default_rng(5).integers(0, 2**64, 600_000, np.uint64)
    return texts[first : first + count]


def test_small_data_sets_are_compared_exactly() -> None:
    one, other = sketch(hashes(0, 3_000)), sketch(hashes(2_800, 4_095))
    assert num_in_common(one, other) == num_in_common(other, one) == 200
    assert num_in_common(one, sketch(hashes(3_000, 3_000))) == 0


def test_a_small_part_of_large_data_sets_is_seen() -> None:
    """20,000 of 300,000: 4,096 / 300,000 of them are expected in the sketches, 273 +- 17."""
    one, other = sketch(hashes(0, 300_000)), sketch(hashes(280_000, 300_000))
    assert num_in_common(one, other) == pytest.approx(20_000, rel=4 * 17 / 273)
    assert num_in_common(one, sketch(hashes(300_000, 300_000))) == 0


def test_a_small_set_inside_a_large_one_is_seen() -> None:
    """1,000 in 300,000, of which 14 +- 4 are below the limit of the large one's sketch."""
    inside = num_in_common(sketch(hashes(0, 300_000)), sketch(hashes(1_000, 1_000)))
    assert inside == pytest.approx(1_000, rel=4 * 4 / 14) and inside > 0


def test_a_data_set_is_itself() -> None:
    whole = sketch(hashes(0, 300_000))
    assert num_in_common(whole, whole) == pytest.approx(300_000, rel=4 * 64 / 4_096)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("AAAA", "has 3 bytes"),
        ("%", "padding|discontinuous|base64"),
        (5, "bytes-like"),
        (base64.b64encode(bytes(16)).decode(), "does not ascend"),
        (base64.b64encode(bytes(8 * SKETCH_SIZE + 8)).decode(), "has 32776 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_sketch_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        decoded(text)


def test_an_empty_one_is_of_no_documents() -> None:
    assert num_in_common(decoded(""), sketch(hashes(0, 10))) == 0
