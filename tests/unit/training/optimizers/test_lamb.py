"""Trust ratios at exact values, and LAMB's steps on parameters that lie whole or in pieces."""

import math
from typing import Any

import pytest
import torch

from dist_bert.checkpoint.places import Place
from dist_bert.training.optimizers.lamb import Lamb, trust_ratio
from dist_bert.training.optimizers.own_optimizer import OwnOptimizer

SETTINGS: dict[str, Any] = {
    "betas": (0.5, 0.75),
    "eps": 1e-12,
    "bias_correction": True,
    "min_trust_ratio": 0.0,
    "max_trust_ratio": None,
}


def test_trust_ratio_is_weight_by_update_within_its_bounds() -> None:
    weights, updates = torch.tensor([6.0, 0.0, 5.0, 1.0]), torch.tensor([2.0, 3.0, 0.0, 50.0])
    assert trust_ratio(weights, updates, 0.0, None).tolist() == pytest.approx([3.0, 1, 1, 0.02])
    assert trust_ratio(weights, updates, 0.1, 2.0).tolist() == pytest.approx([2.0, 1, 1, 0.1])
    assert not torch.isnan(trust_ratio(torch.zeros(3), torch.zeros(3), 0.0, None)).any()


def lamb(parameters: dict[str, torch.Tensor], decay: float, **changes: Any) -> OwnOptimizer:
    def group(ndim: int) -> dict[str, Any]:
        named = [(name, p) for name, p in parameters.items() if p.ndim == ndim]
        return {
            "params": [p for _, p in named],
            "names": [name for name, _ in named],
            "shapes": [p.shape for _, p in named],
            "weight_decay": decay if ndim == 2 else 0.0,
            "has_trust_ratio": ndim == 2,
        }

    return OwnOptimizer([group(2), group(1)], 0.1, Lamb(**{**SETTINGS, **changes}))


def rule_of(optimizer: OwnOptimizer) -> Lamb:
    assert isinstance(optimizer.rule, Lamb)
    return optimizer.rule


def whole(parameters: dict[str, torch.Tensor]) -> list[Place]:
    return [Place(name, 0, p, 0, p.numel()) for name, p in parameters.items()]


def parameters() -> dict[str, torch.Tensor]:
    matrix, vector = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0])
    matrix.grad, vector.grad = torch.full((2, 2), 0.25), torch.tensor([-2.0, 8.0])
    return {"matrix": matrix, "vector": vector}


def test_the_first_step_by_hand() -> None:
    """Adam's first direction is the gradient's sign: a norm of 2 for the matrix, of 5 its weight.

    The vector has no ratio.
    """
    own = parameters()
    optimizer = lamb(own, decay=0.0)
    optimizer.bind(whole(own), is_sharded=False)
    optimizer.step()
    assert own["matrix"].flatten().tolist() == pytest.approx([2.75, 3.75, -0.25, -0.25])
    assert own["vector"].tolist() == pytest.approx([1.1, 1.9])
    assert rule_of(optimizer).metrics() == {
        "trust_ratio_min": 2.5,
        "trust_ratio_median": 2.5,
        "trust_ratio_max": 2.5,
    }


def test_weight_decay_is_part_of_the_update_whose_norm_counts() -> None:
    own = parameters()
    optimizer = lamb(own, decay=0.5)
    optimizer.bind(whole(own), is_sharded=False)
    optimizer.step()
    norm = math.sqrt(2.5**2 + 3.0**2 + 1.0 + 1.0)
    expected = [w - 0.1 * 5.0 / norm * u for w, u in ((3.0, 2.5), (4.0, 3.0), (0, 1), (0, 1))]
    assert own["matrix"].flatten().tolist() == pytest.approx(expected)
    assert own["vector"].tolist() == pytest.approx([1.1, 1.9]), "has none"


def test_without_bias_correction_the_first_moments_are_small() -> None:
    """m = g / 2, v = g^2 / 4: the direction is the sign all the same; then m = 3/4 g, v = 7/16."""
    own = parameters()
    optimizer = lamb(own, decay=0.0, bias_correction=False)
    optimizer.bind(whole(own), is_sharded=False)
    optimizer.step()
    assert own["vector"].tolist() == pytest.approx([1.1, 1.9])
    optimizer.step()
    moved = 0.1 * 0.75 / math.sqrt(7 / 16)
    assert own["vector"].tolist() == pytest.approx([1.1 + moved, 1.9 - moved])


def test_pieces_in_flat_owners_train_as_whole_parameters() -> None:
    """Padding behind them stays zero."""
    own, flat = parameters(), parameters()
    matrix = torch.cat([flat["matrix"].flatten(), torch.zeros(3)])
    matrix.grad = torch.cat([torch.full((4,), 0.25), torch.zeros(3)])
    vector = flat["vector"]
    plain, cut = lamb(own, decay=0.5), lamb(flat, decay=0.5)
    cut.param_groups[0]["params"] = [matrix]
    plain.bind(whole(own), is_sharded=False)
    cut.bind([Place("vector", 0, vector, 0, 2), Place("matrix", 0, matrix, 0, 4)], is_sharded=False)
    for _ in range(3):
        plain.step()
        cut.step()
    assert torch.equal(matrix[:4], own["matrix"].flatten()) and not matrix[4:].any()
    assert torch.equal(vector, own["vector"])


def test_before_it_is_bound_a_step_only_makes_state() -> None:
    """DeepSpeed steps once with zero gradients to have the state of 16-bit weights."""
    own = parameters()
    optimizer = lamb(own, decay=0.5)
    optimizer.step()
    assert torch.equal(own["matrix"], parameters()["matrix"])
    state = optimizer.state[own["matrix"]]
    assert state["step"] == 0 and not state["exp_avg"].any() and state["exp_avg"].shape == (2, 2)
    assert rule_of(optimizer).metrics() == {}
