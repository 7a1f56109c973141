"""Operations and bytes of an update by arithmetic, against what its kernels are given."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dist_bert.checkpoint.places import Place
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.tools.plan.update import (
    flops_share,
    layer_matrices,
    newton_schulz_bytes,
    newton_schulz_flops,
    plan_update,
)
from dist_bert.tools.plan.workload import Workload
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.optimizers.build import own_optimizer
from dist_bert.training.optimizers.newton_schulz import orthogonalized, update_scale
from dist_bert.training.optimizers.own_optimizer import OwnOptimizer
from tests.unit.training.test_memory import MODEL, MODERN, make_layout

OWN = ("Lamb", "StableAdamW", "Muon")


COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default)


class Traffic(TorchDispatchMode):
    """Sums the bytes of all tensors that kernels read, and of those that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            is_written = [a.alias_info and a.alias_info.is_write for a in func._schema.arguments]
            # By place: a matrix and its transpose are one. What is added into was read, too.
            read = {t.data_ptr(): t for arg in args for t in tensors(arg)}
            pairs = zip(args, is_written, strict=False)  # defaults are not among the arguments
            written = [t for arg, own in pairs if own for t in tensors(arg)]
            written += [t for t in tensors(result) if t.data_ptr() not in read]
            if func in COPIES:  # what they replace is not read
                for replaced in tensors(args[0]):
                    del read[replaced.data_ptr()]
            self.num_bytes += sum(t.nbytes for t in (*read.values(), *written))
        return result


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


def make(name: str, model: ModelConfig) -> OwnOptimizer:
    params = {"lr": 0.1, "weight_decay": 0.1}
    values = {"train_batch_size": 1, "optimizer": {"type": name, "params": params}}
    bert = BertForPreTraining(model)
    optimizer = own_optimizer(bert, DeepSpeedConfig.from_values(values, "case", 1))
    assert optimizer is not None
    optimizer.bind([Place(n, 0, p, 0, p.numel()) for n, p in bert.named_parameters()], False)
    for parameter in bert.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("shape", [(64, 64), (48, 101), (101, 48)])
def test_newton_schulz_by_its_kernels(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        found = orthogonalized([matrix], 5)[0].mul_(update_scale(shape))
    assert found.numel() == matrix.numel()
    assert flops.get_total_flops() == newton_schulz_flops(*shape, 5)
    assert traffic.num_bytes == pytest.approx(newton_schulz_bytes(*shape, 5, size=4), rel=0.01)


@pytest.mark.parametrize("name", OWN)
def test_an_update_by_its_kernels(name: str) -> None:
    optimizer = make(name, MODEL)
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        optimizer.step()
    layout = make_layout(optimizer=name, num_ranks=1, newton_schulz_steps=5)
    planned = plan_update(layout)
    assert flops.get_total_flops() == planned.newton_schulz_flops
    expected = planned.traffic_bytes
    if name == "Muon":  # this is no GPU
        for rows, columns in layer_matrices(MODEL):
            expected += newton_schulz_bytes(rows, columns, 5, size=4)
            expected -= newton_schulz_bytes(rows, columns, 5)
    assert traffic.num_bytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("changes", [{}, MODERN])
def test_the_matrices_are_those_that_muon_has(changes: dict[str, Any]) -> None:
    model = dataclasses.replace(MODEL, **changes)
    matrices = make("Muon", model).param_groups[0]["matrices"]
    assert layer_matrices(model) == [(m.rows, m.columns) for m in matrices]


def test_muons_share_of_a_step_falls_with_its_tokens() -> None:
    """BERT-base: 3,600 H^3 operations an update; the figures of docs/performance.md."""
    layout = make_layout(ModelConfig(), optimizer="Muon", num_ranks=8, newton_schulz_steps=5)
    assert 8 * plan_update(layout).newton_schulz_flops == 3_600 * 768**3
    every_rank = dataclasses.replace(layout, stage=0)
    assert plan_update(every_rank).newton_schulz_flops == 3_600 * 768**3
    flops = Workload.of_length(128, ModelConfig()).flops(ModelConfig(), 256)  # 32,768 tokens
    assert flops_share(layout, flops) == pytest.approx(0.0837, abs=1e-4)
    assert flops_share(layout, 8 * flops) == pytest.approx(0.0113, abs=1e-4)
