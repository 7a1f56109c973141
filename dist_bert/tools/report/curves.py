"""A metric's values as a few points that can be drawn: nothing that stands out is lost.

Raw points are all values, or the lowest and the highest of each of some equal stretches; the smooth
curve is the mean of each of some longer stretches. Values that are NaN (skipped steps) are left
out. Not for: drawing (`dist_bert.tools.report.plots`).
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_RAW_POINTS = 2_000
MAX_MEANS = 200
_MEANS_PER_ROOT = 2.5  # root of the number of rows: 600 rows are 61 means of 10


def raw_rows(values: Floats) -> NDArray[np.int64]:
    """The rows whose values are shown: all, or of each stretch the lowest and the highest one."""
    rows = np.flatnonzero(~np.isnan(values))
    if len(rows) <= MAX_RAW_POINTS:
        return rows
    edges = stretches(len(rows), MAX_RAW_POINTS // 2)
    shown = [
        start + extreme(values[rows[start:stop]])
        for start, stop in itertools.pairwise(edges)
        for extreme in (np.argmin, np.argmax)
    ]
    return rows[np.unique(shown)]


def means(values: Floats, *places: Floats) -> tuple[Floats, ...]:
    """Means of `values` over stretches of equal numbers of rows, and those of each of `places`.

    Args:
        values: (N,) of one metric.
        places: (N,) each; where the rows stand on an axis.

    Returns:
        (M,) for `values` and for each of `places`, M as `num_means` says.
    """
    rows = np.flatnonzero(~np.isnan(values))
    if not len(rows):
        return tuple(np.zeros(0) for _ in (values, *places))
    edges = stretches(len(rows), num_means(len(rows)))
    sizes = np.diff(edges)
    return tuple(np.add.reduceat(column[rows], edges[:-1]) / sizes for column in (values, *places))


def num_means(num_rows: int) -> int:
    """How many means are shown of so many rows."""
    return min(MAX_MEANS, math.ceil(_MEANS_PER_ROOT * math.sqrt(num_rows)))


def mean_length(num_rows: int) -> int:
    """How many rows a mean is of, rounded up."""
    return -(-num_rows // num_means(num_rows))


def stretches(num_rows: int, most: int) -> NDArray[np.int64]:
    """Borders of at most `most` stretches of nearly equal length: (stretches + 1,)."""
    count = min(num_rows, most)
    return np.arange(count + 1) * num_rows // count


def spread(num_rows: int, most: int) -> list[int]:
    """At most `most` of the rows of a table, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, num_rows - 1, min(num_rows, most)).tolist()})
