"""Plain updates of whole parameters, one after the other, as the papers write them: no ZeRO.

What the optimizers of dist_bert/training/optimizers are compared with.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, dict[str, Tensor]]


def clip(model: nn.Module, max_norm: float) -> None:
    """Scales all gradients so that their norm is at most `max_norm`, as DeepSpeed does."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / (total + 1e-6)))


def moments(state: dict[str, Tensor], gradient: Tensor, betas: list[float]) -> tuple[Tensor, ...]:
    m = state.get("m", torch.zeros_like(gradient))
    v = state.get("v", torch.zeros_like(gradient))
    state["m"] = betas[0] * m + (1 - betas[0]) * gradient
    state["v"] = betas[1] * v + (1 - betas[1]) * gradient**2
    return state["m"], state["v"]


@torch.no_grad()
def lamb(model: nn.Module, states: State, step: int, params: dict[str, Any]) -> dict[str, float]:
    """You et al. 2020, Algorithm 2; returns the ratios."""
    betas, ratios = params["betas"], {}
    for name, w in model.named_parameters():
        assert w.grad is not None
        m, v = moments(states.setdefault(name, {}), w.grad, betas)
        r = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + params["eps"])
        ratio = 1.0
        if w.ndim > 1:
            r = r + params["weight_decay"] * w
            ratios[name] = ratio = float(w.norm() / r.norm())
        w.sub_(params["lr"] * ratio * r)
    return ratios


UPDATES = {"Lamb": lamb}
