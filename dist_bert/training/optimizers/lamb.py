"""LAMB: Adam whose update of every matrix has the matrix's own size (You et al. 2020).

"Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", Algorithm 2,
https://arxiv.org/abs/1904.00962. With r Adam's direction, d the weight decay and w a parameter:

    u = r + d w,    w = w - lr ratio u,    ratio = phi(|w|) / |u|,    1 where |w| or |u| is 0

phi is the identity, as in the authors' code. As there (google-research/albert, lamb_optimizer.py),
the parameters without weight decay, biases and LayerNorms, have no ratio. The moments' bias is
corrected as in Algorithm 2; `bias_correction: false` is the authors' code.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_bert.training.optimizers.moments import (
    EXP_AVG,
    EXP_AVG_SQ,
    corrections_of,
    direction,
    move_moments,
)
from dist_bert.training.optimizers.pieces import gradients_of


@dataclasses.dataclass
class Lamb:
    """Updates groups with `weight_decay` and `has_trust_ratio`."""

    betas: tuple[float, float]  # decay of both moments
    eps: float  # added to the root of the second moment
    bias_correction: bool  # of the moments
    min_trust_ratio: float  # a lower ratio is raised to it
    max_trust_ratio: float | None  # a higher ratio is lowered to it; None = no bound
    # (M,) of the last step, on the device
    trust_ratios: Tensor | None = dataclasses.field(default=None, init=False)

    def state_names(self, group: dict[str, Any]) -> Sequence[str]:
        """Both moments."""
        return EXP_AVG, EXP_AVG_SQ

    def update(self, group: dict[str, Any], states: Sequence[dict[str, Any]], step: int) -> None:
        """One update of a group, in place."""
        averages, squares = move_moments(states, gradients_of(group), self.betas)
        corrections = corrections_of(self.betas, step) if self.bias_correction else (1.0, 1.0)
        updates = direction(averages, squares, self.eps, corrections)
        if group["weight_decay"]:
            torch._foreach_add_(updates, group["params"], alpha=group["weight_decay"])
        if group["has_trust_ratio"]:
            weight_norms, update_norms = group["pieces"].norms(group["params"], updates)
            bounds = self.min_trust_ratio, self.max_trust_ratio
            self.trust_ratios = trust_ratio(weight_norms, update_norms, *bounds)
            group["pieces"].scale(updates, self.trust_ratios)
        torch._foreach_add_(group["params"], updates, alpha=-group["lr"])

    def metrics(self) -> dict[str, float]:
        """Smallest, median and largest ratio of the last step; waits for the device."""
        if self.trust_ratios is None:
            return {}
        ratios = self.trust_ratios
        lowest, middle, highest = torch.stack(
            [ratios.min(), ratios.median(), ratios.max()]
        ).tolist()
        return {
            "trust_ratio_min": lowest,
            "trust_ratio_median": middle,
            "trust_ratio_max": highest,
        }


def trust_ratio(
    weight_norms: Tensor, update_norms: Tensor, lowest: float, highest: float | None
) -> Tensor:
    """|w| / |u| within bounds; 1 where one of them is 0.

    Args:
        weight_norms: (M,).
        update_norms: (M,), of the updates with weight decay and without learning rate.
        lowest: bound of the ratio.
        highest: bound of the ratio; None = none.
    """
    is_defined = (weight_norms > 0) & (update_norms > 0)
    ratios = (weight_norms / update_norms).clamp(min=lowest, max=highest)
    return torch.where(is_defined, ratios, torch.ones_like(ratios))
