"""StableAdamW: AdamW that slows down where a gradient is larger than its history (2023).

Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
Algorithm 2, https://arxiv.org/abs/2304.13013: the update clipping of AdaFactor for AdamW. With u
the second moment of a parameter,

    RMS = sqrt(mean(g^2 / max(u, eps^2))),    w = w - lr / max(1, RMS) (m / (sqrt(u) + eps) + d w)

The moments are averages whose bias is corrected as they are formed: their decay at step t is
beta (1 - beta^(t-1)) / (1 - beta^t).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_bert.training.optimizers.moments import EXP_AVG, EXP_AVG_SQ, direction, move_moments
from dist_bert.training.optimizers.pieces import Pieces, gradients_of


@dataclasses.dataclass(frozen=True)
class StableAdamW:
    """Updates groups with `weight_decay`."""

    betas: tuple[float, float]  # decay of both moments
    eps: float  # added to the root of the second moment

    def state_names(self, group: dict[str, Any]) -> Sequence[str]:
        """Both moments."""
        return EXP_AVG, EXP_AVG_SQ

    def update(self, group: dict[str, Any], states: Sequence[dict[str, Any]], step: int) -> None:
        """One update of a group, in place."""
        gradients = gradients_of(group)
        decays = debiased(self.betas[0], step), debiased(self.betas[1], step)
        averages, squares = move_moments(states, gradients, decays)
        updates = direction(averages, squares, self.eps, (1.0, 1.0))
        if group["weight_decay"]:
            torch._foreach_add_(updates, group["params"], alpha=group["weight_decay"])
        group["pieces"].scale(updates, self._shares(group["pieces"], gradients, squares))
        torch._foreach_add_(group["params"], updates, alpha=-group["lr"])

    def _shares(self, pieces: Pieces, gradients: list[Tensor], squares: list[Tensor]) -> Tensor:
        """(M,) share of the learning rate that every parameter gets."""
        roots = torch._foreach_sqrt(squares)
        torch._foreach_clamp_min_(roots, max(self.eps, torch.finfo(torch.float32).tiny))
        (norms,) = pieces.norms(torch._foreach_div(gradients, roots))
        return clipped_share(norms / pieces.sizes.sqrt())


def debiased(beta: float, step: int) -> float:
    """The decay that keeps a moving average free of bias: 0 at step 1, `beta` in the end."""
    return beta * (1.0 - beta ** (step - 1)) / (1.0 - beta**step)


def clipped_share(rms: Tensor) -> Tensor:
    """1 / max(1, RMS), elementwise."""
    return rms.clamp(min=1.0).reciprocal()
