"""Builds the optimizers of ours from the DeepSpeed JSON, and their groups from a model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.optimizers.kinds import own_kind
from dist_bert.training.optimizers.lamb import Lamb
from dist_bert.training.optimizers.matrices import stacked
from dist_bert.training.optimizers.muon import Muon
from dist_bert.training.optimizers.own_optimizer import OwnOptimizer
from dist_bert.training.optimizers.stable_adamw import StableAdamW

Named = Sequence[tuple[str, nn.Parameter]]

_LAYER_WEIGHT = re.compile(r"encoder\.layers\.\d+\.(\w+)\.weight")


def own_optimizer(model: nn.Module, config: DeepSpeedConfig) -> OwnOptimizer | None:
    """The optimizer of ours that the JSON names; None where it is DeepSpeed's to build.

    It is to be handed to `deepspeed.initialize`, then bound.
    """
    kind = own_kind(config.values)
    if kind is None:
        return None
    params = config.values["optimizer"]["params"]
    settings = {name: params.get(name, default) for name, default in kind.settings.items()}
    settings["betas"] = tuple(settings["betas"])
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    lr, decay = config.peak_lr, config.weight_decay
    if kind.name == "Muon":
        factor = settings.pop("matrix_lr_factor")
        given = settings.pop("matrix_weight_decay")
        groups = _muon_groups(named, decay, factor, decay if given is None else given)
        return OwnOptimizer(groups, lr, Muon(**settings))
    rule = Lamb(**settings) if kind.name == "Lamb" else StableAdamW(**settings)
    return OwnOptimizer(_groups(named, decay), lr, rule)


def optimizer_metrics(engine: Any) -> dict[str, float]:
    """What LAMB tells of its last step, as metrics; waits for the device."""
    rule = getattr(getattr(engine, "basic_optimizer", None), "rule", None)
    if not isinstance(rule, Lamb):
        return {}
    return {f"train/{name}": value for name, value in rule.metrics().items()}


def _groups(named: Named, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of `dist_bert.training.optimizer.parameter_groups`, with names and shapes."""
    decayed = _group([(name, p) for name, p in named if p.ndim > 1])
    others = _group([(name, p) for name, p in named if p.ndim == 1])
    return [
        {**decayed, "weight_decay": weight_decay, "has_trust_ratio": True},
        {**others, "weight_decay": 0.0, "has_trust_ratio": False},
    ]


def _muon_groups(
    named: Named, weight_decay: float, lr_factor: float, matrix_weight_decay: float
) -> list[dict[str, Any]]:
    """The matrices of the encoder's layers, then the groups of the others."""
    layers = [(name, p) for name, p in named if p.ndim == 2 and _LAYER_WEIGHT.fullmatch(name)]
    own = {name for name, _ in layers}
    shapes = {name: p.shape for name, p in layers}
    matrices = [m for name, p in layers for m in stacked(name, p.shape, _num_stacked(name, shapes))]
    others = _groups([item for item in named if item[0] not in own], weight_decay)
    first = {**_group(layers), "weight_decay": matrix_weight_decay, "lr_factor": lr_factor}
    return [
        {**first, "matrices": matrices},
        *({**group, "lr_factor": 1.0, "matrices": []} for group in others),
    ]


def _num_stacked(name: str, shapes: Mapping[str, torch.Size]) -> int:
    """How many matrices a layer's weight holds, one above the other.

    Queries, keys and values; in a GeGLU, the activated half and the gate.
    """
    found = _LAYER_WEIGHT.fullmatch(name)
    assert found is not None
    if found[1] == "intermediate":
        return shapes[name][0] // shapes[name.replace(".intermediate.", ".output.")][1]
    return 3 if found[1] == "qkv" else 1


def _group(named: Named) -> dict[str, Any]:
    return {
        "params": [p for _, p in named],
        "names": [name for name, _ in named],
        "shapes": [p.shape for _, p in named],
    }
