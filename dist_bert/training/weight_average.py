"""An exponential average of the weights, in float32 beside the master weights that it is of.

Polyak and Juditsky 1992 (https://doi.org/10.1137/0330046) for averaging; the decay rises with the
step t as TensorFlow's `ExponentialMovingAverage` does with `num_updates`, so that the first weights
are soon forgotten: min(decay, (1 + t) / (10 + t)).

Each rank averages the tensors that its optimizer works on, whatever ZeRO has put into them: nothing
is sent. `dist_bert.checkpoint.fragments` finds them at the engine, for checkpoints.
"""

from typing import Any

import torch

from dist_bert.checkpoint import fragments


def start_average(engine: Any, decay: float) -> None:
    """Lets an engine have an average, which begins as its weights are; none where `decay` is 0."""
    if decay:
        owners = dict.fromkeys(place.owner for place in fragments.places(engine))
        engine.weight_averages = {owner: owner.detach().clone() for owner in owners}


@torch.no_grad()
def update_average(engine: Any, decay: float, step: int) -> None:
    """Takes the weights after a step into the average; does nothing where there is none.

    Args:
        engine: after `start_average`.
        decay: its highest value, 0 to below 1.
        step: number of the optimizer step, from 1.
    """
    averages = fragments.averages(engine)
    if averages:
        share = 1.0 - decay_at(decay, step)
        torch._foreach_lerp_(list(averages.values()), list(averages), share)


def decay_at(decay: float, step: int) -> float:
    """The share of the average that a step keeps."""
    return min(decay, (1 + step) / (10 + step))
