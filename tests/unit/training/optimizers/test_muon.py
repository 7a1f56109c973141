"""Newton-Schulz's singular values, which rank computes which matrix, Muon's groups and steps."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from dist_bert.model.bert import BertForPreTraining
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.optimizers.build import own_optimizer
from dist_bert.training.optimizers.matrices import Exchange, Matrix, Span, stacked
from dist_bert.training.optimizers.muon import Muon
from dist_bert.training.optimizers.newton_schulz import orthogonalized, update_scale
from dist_bert.training.optimizers.own_optimizer import OwnOptimizer
from tests.support.synthetic import TINY_MODEL


@pytest.mark.parametrize("shape", [(24, 24), (24, 37), (37, 24), (1, 5)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = orthogonalized(matrix, 5)
    assert found.shape == shape and found.dtype == torch.float32
    values = torch.linalg.svdvals(matrix)
    moved = torch.linalg.svdvals(found)[values / values.norm() > 0.01]
    assert moved.min() > 0.65 and moved.max() < 1.2
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(
        (left.T @ found @ right.T).diagonal().sum(), torch.linalg.svdvals(found).sum()
    )


def test_one_step_is_the_quintic_of_the_singular_values() -> None:
    matrix = torch.diag(torch.tensor([3.0, 4.0]))
    expected = [3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5 for x in (0.6, 0.8)]
    assert orthogonalized(matrix, 1).diagonal().tolist() == pytest.approx(expected)
    assert not orthogonalized(torch.zeros(3, 5), 5).any()


def test_an_update_has_a_root_mean_square_of_a_fifth() -> None:
    """Of an exactly orthogonal one, whose elements have a mean square of 1 / max(rows, columns)."""
    rows, columns = 13, 29
    orthogonal = torch.linalg.qr(torch.randn(columns, rows))[0].T
    update = orthogonal * update_scale((rows, columns))
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2)


def test_every_cut_matrix_has_one_owner_that_gets_all_of_it() -> None:
    """Three matrices of 6, then one of 8, over ranks that hold 5, 5, 5, 5 and 6 elements."""
    matrices = [*stacked("a", (9, 2), 3), Matrix("b", 0, 2, 4)]
    held: list[dict[str, Span]] = [
        {"a": (0, 5)}, {"a": (5, 5)}, {"a": (10, 5)}, {"a": (15, 3), "b": (0, 2)}, {"b": (2, 6)},
    ]  # fmt: skip
    exchanges = [Exchange.of(matrices, held, rank) for rank in range(len(held))]
    owned = [[m for m, _ in e.owned] for e in exchanges]
    assert owned == [[matrices[0]], [matrices[1]], [matrices[2]], [], [matrices[3]]]
    assert all(e.is_needed and not e.whole for e in exchanges)
    for (rank, one), (other, two) in itertools.product(enumerate(exchanges), repeat=2):
        assert one.num_sent[other] == two.num_received[rank]
    assert [sum(e.num_sent) for e in exchanges] == [5, 5, 5, 5, 6]
    for exchange in exchanges:
        for matrix, parts in exchange.owned:
            elements = [first + i for _, first, size in parts for i in range(size)]
            assert sorted(elements) == list(range(matrix.size))


def test_what_lies_whole_on_a_rank_is_not_sent() -> None:
    matrices = stacked("a", (4, 3), 2)
    exchanges = [Exchange.of(matrices, [{"a": (0, 6)}, {"a": (6, 6)}], rank) for rank in (0, 1)]
    assert [list(e.whole) for e in exchanges] == [[matrices[0]], [matrices[1]]]
    assert not any(e.is_needed or e.sent or e.owned for e in exchanges)


def make_muon(**params: Any) -> tuple[BertForPreTraining, OwnOptimizer]:
    values = {"train_batch_size": 3, "optimizer": {"type": "muon", "params": {"lr": 0.1, **params}}}
    model = BertForPreTraining(TINY_MODEL)
    optimizer = own_optimizer(model, DeepSpeedConfig.from_values(values, "case", 1))
    assert optimizer is not None and isinstance(optimizer.rule, Muon)
    return model, optimizer


def test_only_the_layers_matrices_are_muons() -> None:
    model, optimizer = make_muon(weight_decay=0.3, matrix_lr_factor=5.0)
    matrices, embeddings_and_heads, vectors = optimizer.param_groups
    kinds = ("qkv", "attention_output", "intermediate", "output")
    layers = range(TINY_MODEL.num_hidden_layers)
    expected = [f"encoder.layers.{i}.{kind}.weight" for i in layers for kind in kinds]
    assert matrices["names"] == expected
    hidden = TINY_MODEL.hidden_size
    qkv = [m for m in matrices["matrices"] if m.name == expected[0]]
    assert [(m.start, m.rows, m.columns) for m in qkv] == [
        (i * hidden * hidden, hidden, hidden) for i in range(3)
    ]
    assert not embeddings_and_heads["matrices"] and not vectors["matrices"]
    assert "encoder.word_embeddings.weight" in embeddings_and_heads["names"]
    assert {"mlm_dense.weight", "nsp.weight"} <= set(embeddings_and_heads["names"])
    assert all(p.ndim == 1 for p in vectors["params"])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.3, 0.0]
    assert [g["lr_factor"] for g in optimizer.param_groups] == [5.0, 1.0, 1.0]
    assert sum(len(g["names"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    _, other = make_muon(weight_decay=0.3, matrix_weight_decay=0.0)
    assert [g["weight_decay"] for g in other.param_groups] == [0.0, 0.3, 0.0]


def test_the_halves_of_a_gated_feed_forward_are_two_matrices() -> None:
    config = dataclasses.replace(TINY_MODEL, feed_forward="geglu")
    values = {"train_batch_size": 3, "optimizer": {"type": "Muon", "params": {"lr": 0.1}}}
    deepspeed = DeepSpeedConfig.from_values(values, "case", 1)
    optimizer = own_optimizer(BertForPreTraining(config), deepspeed)
    assert optimizer is not None and isinstance(optimizer.rule, Muon)
    name = "encoder.layers.0.intermediate.weight"
    found = [m for m in optimizer.param_groups[0]["matrices"] if m.name == name]
    inner, hidden = config.intermediate_size, config.hidden_size
    assert [(m.start, m.rows, m.columns) for m in found] == [
        (i * inner * hidden, inner, hidden) for i in range(2)
    ]


def test_the_size_of_a_gradient_does_not_count() -> None:
    assert math.isclose(update_scale((24, 37)), 0.2 * math.sqrt(37))
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalized(1000 * matrix, 5), orthogonalized(matrix, 5))
