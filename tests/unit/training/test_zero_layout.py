"""Parameters and their parts by arithmetic, against the model's own."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_bert.common.errors import UserError
from dist_bert.common.settings import resolve
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.optimizer import parameter_groups
from dist_bert.training.optimizers.build import own_optimizer
from dist_bert.training.zero_layout import ZeroLayout, parameter_shapes
from tests.support.synthetic import TINY_MODEL
from tests.unit.training.test_memory import make_layout

ROOT = Path(__file__).parents[3]
MODELS = sorted((ROOT / "configs/model").glob("*.json"))


def load(values: dict[str, Any], num_ranks: int = 4) -> DeepSpeedConfig:
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3}}
    sizes = {"train_batch_size": 24}
    return DeepSpeedConfig.from_values({"optimizer": optimizer, **sizes, **values}, "x", num_ranks)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_parameter_has_its_name_shape_and_place(path: Path) -> None:
    config = resolve(ModelConfig, path)
    with torch.device("meta"):
        model = BertForPreTraining(config)
    real = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert list(parameter_shapes(config).items()) == list(real.items())
    layout = make_layout(config)
    assert layout.num_parameters == sum(p.numel() for p in model.parameters())
    groups = [[p.numel() for p in g["params"]] for g in parameter_groups(model, 0.01)]
    assert [list(group) for group in layout.groups] == groups


def test_muon_has_the_matrices_of_the_layers_for_itself() -> None:
    optimizer = {"type": "Muon", "params": {"lr": 1e-3}}
    config = load({"optimizer": optimizer, "zero_optimization": {"stage": 2}})
    own = own_optimizer(BertForPreTraining(TINY_MODEL), config)
    assert own is not None
    layout = ZeroLayout.of(TINY_MODEL, config)
    groups = [[p.numel() for p in group["params"]] for group in own.param_groups]
    assert [list(group) for group in layout.groups] == groups


def test_moments_and_the_largest_group_by_hand() -> None:
    """Groups of 17, 10 and 5 elements on 2 ranks: parts of 10, 6 and 4 at ZeRO 2."""
    sizes = {"groups": ((10, 7), (10,), (5,)), "sizes": (10, 7, 10, 5)}
    expected = {(0, "Muon"): (47, 32), (2, "Muon"): (30, 10), (2, "Lamb"): (40, 10)}
    for (stage, optimizer), (num_moments, num_in_largest) in expected.items():
        layout = make_layout(num_ranks=2, stage=stage, optimizer=optimizer)
        vars(layout).update(sizes)
        assert layout.num_moments == num_moments
        assert layout.num_in_largest_group == num_in_largest


def test_parts_of_every_stage() -> None:
    """By hand, on a model of two parameters with weight decay and one without."""
    sizes = {"groups": ((10, 7), (5,)), "sizes": (5, 10, 7)}
    layout = make_layout(num_ranks=4, stage=2)
    vars(layout).update(sizes)
    # 17 -> 24 in parts of 6: ranks 0, 1 hold the first parameter, 1 and 2 the second; 5 -> 8.
    assert (layout.num_parameters, layout.num_padded, layout.num_owned) == (22, 32, 8)
    assert layout.num_gradients == 10 + 7 + 5
    layout = make_layout(num_ranks=4, stage=3, persistence_threshold=7)
    vars(layout).update(sizes)
    assert (layout.num_padded, layout.num_owned) == (12 + 8 + 8, 7)
    assert (layout.num_persistent, layout.num_gradients) == (12, 7)
    plain = make_layout(num_ranks=4, stage=0)
    assert plain.num_padded == plain.num_owned == plain.num_gradients == plain.num_parameters


def test_a_part_of_the_gradients_is_never_less_than_the_largest_parameter() -> None:
    base = ModelConfig()
    largest = max(math.prod(shape) for shape in parameter_shapes(base).values())
    held = [make_layout(base, num_ranks=n).num_gradients for n in (1, 8, 64, 1_024)]
    assert held == sorted(held, reverse=True)
    assert held[0] == make_layout(base).num_parameters and held[-1] >= largest
    accumulating = make_layout(base, num_ranks=64, stage=1, accumulation_steps=2)
    assert accumulating.num_gradients == accumulating.num_parameters


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "zero2_fp32", "zero2_fp16"])
def test_shipped_configurations_are_covered(name: str) -> None:
    config = DeepSpeedConfig.load(ROOT / f"configs/{name}.json", 8)
    layout = ZeroLayout.of(TINY_MODEL, config)
    assert (layout.stage, layout.precision) == (config.zero_stage, config.precision)
    assert layout.overlaps == (layout.stage in (1, 3)), "at 2 it waits after every backward pass"
    assert layout.bucket_size == (50_000_000 if layout.stage else 500_000_000)
    assert layout.num_buffers == [0, 2, 1, 1][layout.stage]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {}}}, "offload_optimizer: is not"),
        ({"zero_optimization": {"stage": 1, "reduce_scatter": False}}, "reduce_scatter: is not"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast: is not planned for"),
    ],
)
def test_what_is_not_planned_for_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        ZeroLayout.of(TINY_MODEL, load(values))


def test_a_model_of_which_zero_3_keeps_no_weights_is_refused() -> None:
    huge = dataclasses.replace(ModelConfig(), hidden_size=3_072, num_hidden_layers=24)
    with pytest.raises(
        UserError, match=r"ZeRO-3 of 1,473,982,268 parameters: is planned for up to 1,000,"
    ):
        ZeroLayout.of(huge, load({"zero_optimization": {"stage": 3}}))
    assert (
        ZeroLayout.of(huge, load({"zero_optimization": {"stage": 2}})).num_parameters
        == 1_473_982_268
    )
