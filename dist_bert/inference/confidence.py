"""How far a score on held-out samples may be off: 95 % confidence intervals of ratios of sums.

The masked tokens of a sample are no independent draws, nor are the samples of a document: they
share a topic, a writer, a context. Counting tokens would give intervals several times too narrow,
so the unit is the document (a cluster of all its predictions). The question that an interval
answers: within which bounds would the score on other documents of the same kind lie?

Method: a score is a ratio R = sum(y) / sum(n) over clusters, y a loss or the right answers and n
the predictions, both random. Linearised, its variance is m / (m - 1) * sum((y - R n)^2) / sum(n)^2
over m clusters; the interval is R -+ t * its root, with Student's t of m - 1 degrees of freedom.
Where all clusters score exactly alike (all answers right) its width is 0.

Source: Cochran 1977, "Sampling Techniques", chapters 6 (ratio estimators) and 9A (clusters of
unequal size); Miller 2024, "Adding Error Bars to Evals" (https://arxiv.org/abs/2411.00640),
section 2.2; the quantile is Abramowitz and Stegun 1964, 26.7.5.
"""

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score and its confidence interval."""

    value: float
    low: float | None  # None where all is from one cluster, which tells nothing about others
    high: float | None

    def map(self, function: Callable[[float], float]) -> "Estimate":
        """The estimate of an increasing function of the score."""
        low, high = (bound if bound is None else function(bound) for bound in (self.low, self.high))
        return Estimate(function(self.value), low, high)


def estimate_ratio(
    sums: NDArray[Any],
    counts: NDArray[Any],
    clusters: NDArray[np.integer],
    bounds: tuple[float, float] = (0.0, math.inf),
) -> Estimate:
    """The mean per prediction, with its interval.

    Args:
        sums: (B,) of each sample, over its predictions: losses, or right answers.
        counts: (B,) predictions of each sample; one without any says nothing, and is left out.
        clusters: (B,) the document of each sample.
        bounds: values that the score can have; the interval stays within.
    """
    counts_something = counts > 0
    _, cluster = np.unique(clusters[counts_something], return_inverse=True)
    y = np.bincount(cluster, sums[counts_something].astype(np.float64))  # (m,)
    n = np.bincount(cluster, counts[counts_something].astype(np.float64))
    assert n.size, "a group of samples without a prediction has no score"
    ratio = float(y.sum() / n.sum())
    if n.size == 1:
        return Estimate(ratio, None, None)
    variance = n.size / (n.size - 1) * np.square(y - ratio * n).sum() / n.sum() ** 2
    margin = student_t(n.size - 1) * math.sqrt(variance)
    low, high = bounds
    return Estimate(ratio, max(low, ratio - margin), min(high, ratio + margin))


def student_t(degrees_of_freedom: int) -> float:
    """Quantile of Student's t for a two-sided interval of `LEVEL`; at most 0.8 % too small."""
    if degrees_of_freedom == 1:
        return math.tan(math.pi * LEVEL / 2)
    if degrees_of_freedom == 2:
        return LEVEL * math.sqrt(2 / (1 - LEVEL**2))
    z, v = NormalDist().inv_cdf((1 + LEVEL) / 2), degrees_of_freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
