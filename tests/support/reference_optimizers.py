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


@torch.no_grad()
def stable_adamw(
    model: nn.Module, states: State, step: int, params: dict[str, Any]
) -> dict[str, float]:
    """Wortsman et al. 2023, Algorithm 2; returns the root mean squares."""
    betas = [b * (1 - b ** (step - 1)) / (1 - b**step) for b in params["betas"]]
    found = {}
    for name, w in model.named_parameters():
        assert w.grad is not None
        v, u = moments(states.setdefault(name, {}), w.grad, betas)
        eps = torch.tensor(params["eps"])
        found[name] = rms = float((w.grad**2 / torch.maximum(u, eps**2)).mean().sqrt())
        lr = params["lr"] / max(1.0, rms)
        decay = params["weight_decay"] if w.ndim > 1 else 0.0
        w.copy_(w - lr * decay * w - lr * v / (u.sqrt() + eps))
    return found


def newton_schulz(matrix: Tensor, num_steps: int) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(num_steps):
        if x.shape[0] <= x.shape[1]:
            gram = x @ x.T
            x = a * x + b * (gram @ x) + c * (gram @ gram @ x)
        else:
            gram = x.T @ x
            x = a * x + b * (x @ gram) + c * (x @ gram @ gram)
    return x


@torch.no_grad()
def muon(model: nn.Module, states: State, step: int, params: dict[str, Any]) -> dict[str, float]:
    """Jordan et al. 2024 and Liu et al. 2025; AdamW for what is no matrix of a layer."""
    betas, mu = params["betas"], params["momentum"]
    for name, w in model.named_parameters():
        assert w.grad is not None
        state = states.setdefault(name, {})
        if "layers." in name and w.ndim == 2:
            state["m"] = mu * state.get("m", torch.zeros_like(w)) + (1 - mu) * w.grad
            nesterov = mu * state["m"] + (1 - mu) * w.grad
            lr = params["lr"] * params["matrix_lr_factor"]
            w.mul_(1 - lr * params["matrix_weight_decay"])
            parts = 3 if "qkv" in name else 1
            for part, direction in zip(w.chunk(parts), nesterov.chunk(parts), strict=True):
                scale = 0.2 * math.sqrt(max(part.shape))
                part.sub_(lr * scale * newton_schulz(direction, params["newton_schulz_steps"]))
        else:
            m, v = moments(state, w.grad, betas)
            w.mul_(1 - params["lr"] * (params["weight_decay"] if w.ndim > 1 else 0.0))
            root = (v / (1 - betas[1] ** step)).sqrt() + params["eps"]
            w.sub_(params["lr"] * m / (1 - betas[0] ** step) / root)
    return {}


UPDATES = {"Lamb": lamb, "StableAdamW": stable_adamw, "Muon": muon}
