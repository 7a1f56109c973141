"""Scores of predicted numbers; correlations by scipy.

Source: Wang et al. 2019, "GLUE" (https://arxiv.org/abs/1804.07461) scores STS-B by both
correlations; Devlin et al. 2019, "BERT", table 1, by Spearman's.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from dist_bert.finetuning.scores.result import Scores


def regression_scores(gold: NDArray[np.floating], predicted: NDArray[np.floating]) -> Scores:
    """Scores if every example has a number.

    A correlation with constant numbers is undefined, and 0 here.

    Args:
        gold: (N,) the numbers of the examples, N at least 1.
        predicted: (N,) the predicted numbers.
    """
    assert gold.shape == predicted.shape == (len(gold),) and len(gold)
    is_defined = np.ptp(gold) > 0 and np.ptp(predicted) > 0
    values = {
        "spearman": float(spearmanr(gold, predicted).statistic) if is_defined else 0.0,
        "pearson": float(pearsonr(gold, predicted).statistic) if is_defined else 0.0,
        "mean_absolute_error": float(np.abs(gold - predicted).mean()),
    }
    return Scores(values, [], None, main="spearman")
