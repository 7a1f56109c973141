"""The average at exact values; layouts, checkpoints and scripts: tests/integration."""

from types import SimpleNamespace

import pytest
import torch

from dist_bert.training.weight_average import decay_at, update_average


def test_the_decay_rises_to_its_value() -> None:
    assert [decay_at(0.75, step) for step in (1, 2, 26, 27, 1_000)] == pytest.approx(
        [2 / 11, 3 / 12, 0.75, 0.75, 0.75]
    )
    assert decay_at(0.75, 25) == 26 / 35
    assert decay_at(0.1, 1) == 0.1, "a lower one at once"


def test_an_average_by_hand() -> None:
    owner = torch.tensor([4.0, -8.0], requires_grad=True)
    average = torch.tensor([8.0, 8.0])
    engine = SimpleNamespace(weight_averages={owner: average})
    update_average(engine, decay=0.75, step=100)
    assert average.tolist() == [7.0, 4.0] and owner.tolist() == [4.0, -8.0]


def test_no_average_is_no_work() -> None:
    update_average(SimpleNamespace(), decay=0.0, step=1)
