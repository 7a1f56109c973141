"""StableAdamW: AdamW that slows down where a gradient is larger than its history (2023).

Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
Algorithm 2, https://arxiv.org/abs/2304.13013: the update clipping of AdaFactor for AdamW. With u
the second moment of a parameter,

    RMS = sqrt(mean(g^2 / max(u, eps^2))),    w = w - lr / max(1, RMS) (m / (sqrt(u) + eps) + d w)

The moments are averages whose bias is corrected as they are formed: their decay at step t is
beta (1 - beta^(t-1)) / (1 - beta^t).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_bert.checkpoint.places import Place
from dist_bert.training.optimizers.moments import EXP_AVG, EXP_AVG_SQ, direction, move_moments
from dist_bert.training.optimizers.pieces import Pieces, count_step, gradients_of, states_of


class StableAdamW(torch.optim.Optimizer):
    """Takes groups with `params`, `names`, `shapes` and `weight_decay`."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Begins without state; `bind` comes before the first step that counts.

        Args:
            groups: of whole parameters.
            lr: learning rate.
            betas: decay of both moments.
            eps: added to the root of the second moment.
        """
        super().__init__([dict(group) for group in groups], {"lr": lr})
        self._betas, self._eps = betas, eps
        self._is_bound = False

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
            gradients = gradients_of(group)
            decays = debiased(self._betas[0], step), debiased(self._betas[1], step)
            averages, squares = move_moments(states, gradients, decays)
            updates = direction(averages, squares, self._eps, (1.0, 1.0))
            if group["weight_decay"]:
                torch._foreach_add_(updates, group["params"], alpha=group["weight_decay"])
            group["pieces"].scale(updates, self._shares(group["pieces"], gradients, squares))
            torch._foreach_add_(group["params"], updates, alpha=-group["lr"])

    def metrics(self) -> dict[str, float]:
        """Nothing beyond what all optimizers tell."""
        return {}

    def _shares(self, pieces: Pieces, gradients: list[Tensor], squares: list[Tensor]) -> Tensor:
        """(M,) share of the learning rate that every parameter gets."""
        roots = torch._foreach_sqrt(squares)
        torch._foreach_clamp_min_(roots, max(self._eps, torch.finfo(torch.float32).tiny))
        (norms,) = pieces.norms(torch._foreach_div(gradients, roots))
        return clipped_share(norms / pieces.sizes.sqrt())


def debiased(beta: float, step: int) -> float:
    """The decay that keeps a moving average free of bias: 0 at step 1, `beta` in the end."""
    return beta * (1.0 - beta ** (step - 1)) / (1.0 - beta**step)


def clipped_share(rms: Tensor) -> Tensor:
    """1 / max(1, RMS), elementwise."""
    return rms.clamp(min=1.0).reciprocal()
