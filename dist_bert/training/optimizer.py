"""What the optimizer is given: parameter groups, and the learning rate of every step.

The optimizer itself is DeepSpeed's to build, from its JSON. The learning rate is a pure function of
the step: a schedule without state has nothing to save, so it cannot go wrong on resume.
"""

import math
from typing import Any

from torch import nn

from dist_bert.training.config import TrainingConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and embeddings with weight decay; biases and LayerNorms without.

    As in google-research/bert `optimization.py`; the ones without are exactly those of one
    dimension.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def lr_share(step: int, run: TrainingConfig) -> float:
    """The learning rate of an optimizer step as a share of its peak.

    Args:
        step: number of the step, from 1 to `num_train_steps`.
        run: gives schedule, warmup_steps, decay_steps, num_train_steps and min_lr_ratio.
    """
    if step < run.warmup_steps:
        return step / run.warmup_steps
    decay_steps = run.num_train_steps - run.warmup_steps
    if run.schedule == "wsd":
        decay_steps = run.decay_steps
    remaining = run.num_train_steps - step
    if run.schedule == "constant" or remaining >= decay_steps:
        return 1.0
    remaining_share = remaining / decay_steps
    if run.schedule == "cosine":
        remaining_share = 0.5 - 0.5 * math.cos(math.pi * remaining_share)
    return run.min_lr_ratio + (1.0 - run.min_lr_ratio) * remaining_share
