"""The learning rate at exact points, and which parameters decay."""

import math
from itertools import pairwise

import pytest
import torch

from dist_bert.model.bert import BertForPreTraining
from dist_bert.training.config import TrainingConfig
from dist_bert.training.optimizer import lr_share, parameter_groups
from tests.support.synthetic import TINY_MODEL

STEPS, WARMUP, DECAY = 110, 10, 30
SCHEDULES = ("linear", "cosine", "constant", "wsd")


def run_of(schedule: str, min_lr_ratio: float = 0.0, warmup_steps: int = WARMUP) -> TrainingConfig:
    return TrainingConfig(
        num_train_steps=STEPS,
        warmup_steps=warmup_steps,
        schedule=schedule,
        decay_steps=DECAY if schedule == "wsd" else 0,
        min_lr_ratio=min_lr_ratio,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_the_warm_up_is_a_line_from_0_to_the_peak(schedule: str, min_lr_ratio: float) -> None:
    run = run_of(schedule, min_lr_ratio)
    assert [lr_share(step, run) for step in (1, 2, 5, 9, 10)] == [0.1, 0.2, 0.5, 0.9, 1.0]
    assert lr_share(11, run) == pytest.approx(1.0, abs=0.011)


@pytest.mark.parametrize(
    "schedule,quarter,half,three_quarters,end",  # of the 100 steps after the warm-up
    [
        ("linear", 0.75, 0.5, 0.25, 0.0),
        ("cosine", 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5), 0.0),
        ("constant", 1.0, 1.0, 1.0, 1.0),
        ("wsd", 1.0, 1.0, 25 / 30, 0.0),
    ],
)
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_the_decay_at_exact_points(
    schedule: str, quarter: float, half: float, three_quarters: float, end: float,
    min_lr_ratio: float,
) -> None:  # fmt: skip
    run = run_of(schedule, min_lr_ratio)
    expected = [min_lr_ratio + (1 - min_lr_ratio) * s for s in (quarter, half, three_quarters, end)]
    assert [lr_share(step, run) for step in (35, 60, 85, 110)] == pytest.approx(expected, abs=1e-12)


def test_wsd_is_constant_until_its_decay_steps() -> None:
    run = run_of("wsd")
    shares = {step: lr_share(step, run) for step in (79, 80, 81, 95, 109)}
    assert shares == pytest.approx({79: 1.0, 80: 1.0, 81: 29 / 30, 95: 0.5, 109: 1 / 30})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.3, 1.0])
def test_it_rises_to_the_peak_and_never_again(schedule: str, min_lr_ratio: float) -> None:
    shares = [lr_share(step, run_of(schedule, min_lr_ratio)) for step in range(1, STEPS + 1)]
    assert all(a < b for a, b in pairwise(shares[:WARMUP]))
    assert max(shares) == shares[WARMUP - 1] == 1.0
    assert all(a >= b for a, b in pairwise(shares[WARMUP - 1 :]))
    assert min(shares[WARMUP:]) >= min_lr_ratio


def test_without_warm_up_and_with_nothing_else() -> None:
    assert lr_share(1, run_of("linear", warmup_steps=0)) == pytest.approx(109 / 110)
    only_warmup = run_of("linear", warmup_steps=STEPS)
    assert [lr_share(step, only_warmup) for step in (1, 55, 110)] == [1 / 110, 0.5, 1.0]


def test_exactly_the_matrices_decay() -> None:
    model = BertForPreTraining(TINY_MODEL)
    decaying, others = parameter_groups(model, 0.01)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    grouped = [*decaying["params"], *others["params"]]
    assert len(grouped) == len(names) and set(grouped) == set(names), "each exactly once"
    for name in (names[parameter] for parameter in decaying["params"]):
        assert name.endswith(".weight") and "norm" not in name
    for name in (names[parameter] for parameter in others["params"]):
        assert name.endswith("bias") or "norm" in name
    assert {"encoder.word_embeddings.weight", "nsp.weight", "encoder.layers.1.qkv.weight"} <= {
        names[parameter] for parameter in decaying["params"]
    }


def test_frozen_parameters_belong_to_no_group() -> None:
    model = torch.nn.Linear(3, 5)
    model.weight.requires_grad_(False)
    decaying, others = parameter_groups(model, 0.01)
    assert decaying["params"] == [] and others["params"] == [model.bias]
