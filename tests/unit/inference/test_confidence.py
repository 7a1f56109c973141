"""Confidence intervals: the formula by hand, and how often they hold the truth on made-up data."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_bert.inference.confidence import Estimate, estimate_ratio, student_t


def test_the_interval_by_hand() -> None:
    # documents 7 and 9; the sample without a prediction belongs to a third one and says nothing
    sums = np.array([3.0, 5.0, 4.0, 0.0])
    counts = np.array([2, 2, 1, 0])
    documents = np.array([9, 7, 9, 8])
    got = estimate_ratio(sums, counts, documents)
    ratio = 12 / 5
    residuals = [5 - ratio * 2, 7 - ratio * 3]  # 7, then 9
    margin = 12.7062047 * math.sqrt(2 / 1 * sum(r * r for r in residuals) / 25)
    assert got.value == ratio
    assert got.high == pytest.approx(ratio + margin, rel=1e-6)
    assert got.low == pytest.approx(max(0.0, ratio - margin), rel=1e-6)


def test_an_interval_stays_within_what_a_score_can_be() -> None:
    right = np.array([3, 0, 4, 4])
    got = estimate_ratio(right, np.full(4, 4), np.arange(4), bounds=(0.0, 1.0))
    assert got.low is not None and got.high == 1.0
    assert 0.0 <= got.low < got.value == 11 / 16
    same = estimate_ratio(np.full(4, 4), np.full(4, 4), np.arange(4), bounds=(0.0, 1.0))
    assert same == Estimate(1.0, 1.0, 1.0)


def test_one_document_tells_nothing_about_others() -> None:
    got = estimate_ratio(np.array([2.0, 5.0]), np.array([3, 4]), np.array([1, 1]))
    assert got == Estimate(1.0, None, None)
    assert got.map(math.exp) == Estimate(math.e, None, None)


def test_a_function_of_a_score_takes_the_interval_along() -> None:
    assert Estimate(2.0, 1.0, 4.0).map(math.sqrt) == Estimate(math.sqrt(2), 1.0, 2.0)


@pytest.mark.parametrize(
    ("degrees_of_freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (10, 2.22814), (30, 2.04227)],
)
def test_students_t_is_that_of_the_tables(degrees_of_freedom: int, quantile: float) -> None:
    assert student_t(degrees_of_freedom) == pytest.approx(quantile, rel=0.008)
    assert student_t(100_000) == pytest.approx(1.95996, rel=1e-4)


def draw(
    rng: np.random.Generator, num_documents: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Losses, predictions and documents of samples; truth is 4.0 per prediction.

    Documents differ in their level (by 0.5) and in size (1 to 15 samples), samples within one too
    (by 0.3), and what is short is no easier: the ratio is unbiased up to its own order.
    """
    num_samples = rng.integers(1, 16, num_documents)
    documents = np.repeat(np.arange(num_documents), num_samples)
    counts = rng.integers(3, 21, documents.size)
    level = 4.0 + rng.normal(0, 0.5, num_documents)[documents]
    level += rng.normal(0, 0.3, documents.size)
    losses = rng.gamma(2.0, level / 2.0, (21, documents.size))  # mean `level` each
    is_prediction = np.arange(21)[:, None] < counts
    return (losses * is_prediction).sum(0), counts, documents


@pytest.mark.parametrize("num_documents", [8, 60])
def test_intervals_hold_the_truth_as_often_as_they_say(num_documents: int) -> None:
    rng = np.random.default_rng(num_documents)
    num_trials, num_held, num_held_by_samples = 1_500, 0, 0
    for _ in range(num_trials):
        losses, counts, documents = draw(rng, num_documents)
        for clusters in (documents, np.arange(documents.size)):
            got = estimate_ratio(losses, counts, clusters)
            assert got.low is not None and got.high is not None
            is_held = got.low <= 4.0 <= got.high
            if clusters is documents:
                num_held += is_held
            else:
                num_held_by_samples += is_held
    # 95 % have a standard error of 0.56 %; few clusters of unequal size cost some percent
    lowest = 0.92 if num_documents == 8 else 0.935
    assert lowest <= num_held / num_trials <= 0.97
    assert num_held_by_samples / num_trials < 0.88  # as if samples of a document were independent
