"""Muon for the matrices of the encoder's layers, AdamW for all the rest.

Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with the scale and the weight
decay of Liu et al. 2025, "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982. For
a matrix w of (rows, columns) with gradient g:

    m = mu m + (1 - mu) g,    o = orthogonalized(mu m + (1 - mu) g),
    w = w - lr (0.2 sqrt(max(rows, columns)) o + d w)

Without Nesterov's step, o is made of m. Queries, keys and values lie one above the other in a
parameter, and are three matrices. Embeddings, heads and vectors are AdamW's (Loshchilov and Hutter
2019, https://arxiv.org/abs/1711.05101).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_bert.checkpoint.places import Place
from dist_bert.training.optimizers.matrices import WholeMatrices
from dist_bert.training.optimizers.moments import (
    EXP_AVG,
    EXP_AVG_SQ,
    corrections_of,
    direction,
    move_moments,
)
from dist_bert.training.optimizers.newton_schulz import orthogonalized, update_scale
from dist_bert.training.optimizers.pieces import Pieces, count_step, gradients_of, states_of

_MOMENTUM = "momentum"


class Muon(torch.optim.Optimizer):
    """Takes groups with `params`, `names`, `shapes`, `weight_decay`, `lr_factor` and `matrices`.

    `matrices` lists those of the group's parameters; it is empty where AdamW updates the group. The
    learning rate of a group is its `lr`, which is the same for all, times its `lr_factor`.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        nesterov: bool,
        newton_schulz_steps: int,
    ) -> None:
        """Begins without state; `bind` comes before the first step that counts.

        Args:
            groups: of whole parameters.
            lr: learning rate.
            betas: decay of AdamW's moments.
            eps: added to the root of AdamW's second moment.
            momentum: decay of Muon's moving average of gradients.
            nesterov: whether the gradient counts once more than the average has it.
            newton_schulz_steps: iterations of `orthogonalized`.
        """
        super().__init__([dict(group) for group in groups], {"lr": lr})
        self._betas, self._eps = betas, eps
        self._momentum, self._nesterov = momentum, nesterov
        self._num_iterations = newton_schulz_steps
        self._is_bound = False

    def bind(self, places: Sequence[Place], is_sharded: bool) -> None:
        """Learns what lies where, after DeepSpeed has replaced the parameters.

        Called by all ranks together.
        """
        for group in self.param_groups:
            if group["matrices"]:
                pieces = Pieces.of(group, places, is_sharded)
                device = group["params"][0].device
                whole = WholeMatrices(group["matrices"], pieces.places, device, is_sharded)
                group["pieces"], group["whole"] = pieces, whole
        self._is_bound = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of `param_groups`; before `bind`, only makes the state."""
        for group in self.param_groups:
            names = (_MOMENTUM,) if group["matrices"] else (EXP_AVG, EXP_AVG_SQ)
            states = states_of(self, group, names)
            if not self._is_bound:
                continue
            step = count_step(states)
            if group["matrices"]:
                updates = self._orthogonal_updates(group, states)
            else:
                averages, squares = move_moments(states, gradients_of(group), self._betas)
                corrections = corrections_of(self._betas, step)
                updates = direction(averages, squares, self._eps, corrections)
            lr = group["lr"] * group["lr_factor"]
            torch._foreach_mul_(group["params"], 1.0 - lr * group["weight_decay"])
            torch._foreach_add_(group["params"], updates, alpha=-lr)

    def metrics(self) -> dict[str, float]:
        """Nothing beyond what all optimizers tell."""
        return {}

    def _orthogonal_updates(
        self, group: dict[str, Any], states: Sequence[dict[str, Any]]
    ) -> list[Tensor]:
        gradients = gradients_of(group)
        averages = [state[_MOMENTUM] for state in states]
        torch._foreach_lerp_(averages, gradients, 1.0 - self._momentum)
        if self._nesterov:
            updates = list(torch._foreach_lerp(gradients, averages, self._momentum))
        else:
            updates = [average.clone() for average in averages]
        pieces: Pieces = group["pieces"]
        names = [place.name for place in pieces.places]
        views = dict(zip(names, pieces.views(updates), strict=True))
        group["whole"].apply(self._update_of, views)
        return updates

    def _update_of(self, matrix: Tensor) -> Tensor:
        return orthogonalized(matrix, self._num_iterations).mul_(update_scale(matrix.shape))
