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
from dist_bert.training.optimizers.newton_schulz import orthogonalized, update_scale
from dist_bert.training.optimizers.pieces import Pieces, gradients_of

_MOMENTUM = "momentum"


@dataclasses.dataclass(frozen=True)
class Muon:
    """Updates groups with `weight_decay`, `lr_factor` and `matrices`.

    `matrices` lists those of the group's parameters; it is empty where AdamW updates the group. The
    learning rate of a group is its `lr`, which is the same for all, times its `lr_factor`.
    """

    betas: tuple[float, float]  # decay of AdamW's moments
    eps: float  # added to the root of AdamW's second moment
    momentum: float  # decay of Muon's moving average of gradients
    nesterov: bool  # whether the gradient counts once more than the average has it
    newton_schulz_steps: int  # iterations of `orthogonalized`

    def state_names(self, group: dict[str, Any]) -> Sequence[str]:
        """Muon's momentum, or both of AdamW's moments."""
        return (_MOMENTUM,) if group["matrices"] else (EXP_AVG, EXP_AVG_SQ)

    def update(self, group: dict[str, Any], states: Sequence[dict[str, Any]], step: int) -> None:
        """One update of a group, in place."""
        if group["matrices"]:
            updates = self._orthogonal_updates(group, states)
        else:
            averages, squares = move_moments(states, gradients_of(group), self.betas)
            corrections = corrections_of(self.betas, step)
            updates = direction(averages, squares, self.eps, corrections)
        lr = group["lr"] * group["lr_factor"]
        torch._foreach_mul_(group["params"], 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(group["params"], updates, alpha=-lr)

    def _orthogonal_updates(
        self, group: dict[str, Any], states: Sequence[dict[str, Any]]
    ) -> list[Tensor]:
        gradients = gradients_of(group)
        averages = [state[_MOMENTUM] for state in states]
        torch._foreach_lerp_(averages, gradients, 1.0 - self.momentum)
        if self.nesterov:
            updates = list(torch._foreach_lerp(gradients, averages, self.momentum))
        else:
            updates = [average.clone() for average in averages]
        pieces: Pieces = group["pieces"]
        names = [place.name for place in pieces.places]
        views = dict(zip(names, pieces.views(updates), strict=True))
        group["whole"].apply(self._update_of, views)
        return updates

    def _update_of(self, matrix: Tensor) -> Tensor:
        return orthogonalized(matrix, self.newton_schulz_steps).mul_(update_scale(matrix.shape))
