"""How many documents two data sets have in common, from the smallest hashes of each.

A manifest keeps the smallest hashes of a data set's documents: a sample of its texts that is the
same sample of any other data set, because equal texts have equal hashes. Of two sketches, those
below the smaller of both limits are comparable (Broder 1997, "On the resemblance and containment of
documents", section 4, for one hash function).
"""

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

# 44 kB of a manifest. If 1 in 1,000 documents of the larger of two data sets is in the other one,
# 4 of them are expected here, and none is with a probability of 2 %.
SKETCH_SIZE = 4_096
_ALL_HASHES = 2.0**64


def encoded(smallest: NDArray[np.uint64]) -> str:
    """A sketch for a manifest.

    Args:
        smallest: the `SKETCH_SIZE` smallest distinct hashes, ascending; all if there are fewer.
    """
    return base64.b64encode(smallest.astype("<u8").tobytes()).decode()


def decoded(text: str) -> NDArray[np.uint64]:
    """Inverse of `encoded`.

    Raises:
        ValueError: it is no sketch.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError(str(error)) from None
    if len(data) % 8 or len(data) > 8 * SKETCH_SIZE:
        raise ValueError(f"has {len(data)} bytes")
    hashes = np.frombuffer(data, "<u8").astype(np.uint64)
    if np.any(hashes[1:] <= hashes[:-1]):
        raise ValueError("does not ascend")
    return hashes


def num_in_common(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Estimated number of texts that two data sets both have; exact where both list all of theirs.

    Args:
        one: decoded sketch of a data set.
        other: that of another.
    """
    limits = [int(s[-1]) + 1 for s in (one, other) if s.size == SKETCH_SIZE]
    share = min(limits, default=_ALL_HASHES) / _ALL_HASHES  # of all texts that are compared
    return float(np.intersect1d(one, other, assume_unique=True).size / share)
