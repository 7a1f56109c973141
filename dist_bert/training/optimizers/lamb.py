"""LAMB: Adam whose update of every matrix has the matrix's own size (You et al. 2020).

"Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", Algorithm 2,
https://arxiv.org/abs/1904.00962. With r Adam's direction, d the weight decay and w a parameter:

    u = r + d w,    w = w - lr ratio u,    ratio = phi(|w|) / |u|,    1 where |w| or |u| is 0

phi is the identity, as in the authors' code. As there (google-research/albert, lamb_optimizer.py),
the parameters without weight decay, biases and LayerNorms, have no ratio. The moments' bias is
corrected as in Algorithm 2; `bias_correction: false` is the authors' code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_bert.checkpoint.places import Place
from dist_bert.training.optimizers.moments import (
    EXP_AVG,
    EXP_AVG_SQ,
    corrections_of,
    direction,
    move_moments,
)
from dist_bert.training.optimizers.pieces import Pieces, count_step, gradients_of, states_of


class Lamb(torch.optim.Optimizer):
    """Takes groups with `params`, `names`, `shapes`, `weight_decay` and `has_trust_ratio`."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        bias_correction: bool,
        min_trust_ratio: float,
        max_trust_ratio: float | None,
    ) -> None:
        """Begins without state; `bind` comes before the first step that counts.

        Args:
            groups: of whole parameters.
            lr: learning rate.
            betas: decay of both moments.
            eps: added to the root of the second moment.
            bias_correction: of the moments.
            min_trust_ratio: a lower ratio is raised to it.
            max_trust_ratio: a higher ratio is lowered to it; None = no bound.
        """
        super().__init__([dict(group) for group in groups], {"lr": lr})
        self._betas, self._eps = betas, eps
        self._corrects = bias_correction
        self._bounds = min_trust_ratio, max_trust_ratio
        self._is_bound = False
        self.trust_ratios: Tensor | None = None  # (M,) of the last step, on the device

    def bind(self, places: Sequence[Place], is_sharded: bool) -> None:
        """Learns what lies where, after DeepSpeed has replaced the parameters."""
        for group in self.param_groups:
            group["pieces"] = Pieces.of(group, places, is_sharded)
        self._is_bound = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of `param_groups`; before `bind`, only makes the state."""
        for group in self.param_groups:
            states = states_of(self, group, (EXP_AVG, EXP_AVG_SQ))
            if not self._is_bound:
                continue
            step = count_step(states)
            averages, squares = move_moments(states, gradients_of(group), self._betas)
            corrections = corrections_of(self._betas, step) if self._corrects else (1.0, 1.0)
            updates = direction(averages, squares, self._eps, corrections)
            if group["weight_decay"]:
                torch._foreach_add_(updates, group["params"], alpha=group["weight_decay"])
            if group["has_trust_ratio"]:
                weight_norms, update_norms = group["pieces"].norms(group["params"], updates)
                self.trust_ratios = trust_ratio(weight_norms, update_norms, *self._bounds)
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
