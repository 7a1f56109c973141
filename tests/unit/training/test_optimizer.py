"""Which parameters decay."""

import torch

from dist_bert.model.bert import BertForPreTraining
from dist_bert.training.optimizer import parameter_groups
from tests.support.synthetic import TINY_MODEL


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
