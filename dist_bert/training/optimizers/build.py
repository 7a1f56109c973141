"""Builds the optimizers of ours from the DeepSpeed JSON, and their groups from a model."""

from typing import Any

from torch import Tensor, nn

from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.optimizers.kinds import own_kind
from dist_bert.training.optimizers.lamb import Lamb

OwnOptimizer = Lamb


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
    return Lamb(_groups(model, config.weight_decay), config.peak_lr, **settings)


def optimizer_metrics(engine: Any) -> dict[str, float]:
    """What an optimizer of ours tells of its last step, as metrics; waits for the device."""
    optimizer = getattr(engine, "basic_optimizer", None)
    if not isinstance(optimizer, OwnOptimizer):
        return {}
    return {f"train/{name}": value for name, value in optimizer.metrics().items()}


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of `dist_bert.training.optimizer.parameter_groups`, with names and shapes."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in named if p.ndim > 1]
    vectors = [(name, p) for name, p in named if p.ndim == 1]
    return [
        {**_group(matrices), "weight_decay": weight_decay, "has_trust_ratio": True},
        {**_group(vectors), "weight_decay": 0.0, "has_trust_ratio": False},
    ]


def _group(named: list[tuple[str, nn.Parameter]]) -> dict[str, Any]:
    tensors: list[Tensor] = [p for _, p in named]
    return {
        "params": tensors,
        "names": [name for name, _ in named],
        "shapes": [p.shape for p in tensors],
    }
