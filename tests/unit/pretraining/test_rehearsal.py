"""Which steps `--check` takes; whole checks are in tests/integration/test_check.py."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.pretraining import rehearsal
from dist_bert.pretraining.rehearsal import Rehearsal

FALLING, FLOOR, UPDATE = "without update", "at the floor of the loss scale", "update"


def checked(
    monkeypatch: pytest.MonkeyPatch, precision: str, steps: list[str], loss: float = 7.25
) -> tuple[list[str], list[str]]:
    """What is said and found, where the first steps are such and all others updates."""
    said: list[str] = []

    class Loop:
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            pass

        def steps(self, batches: Any, state: TrainState) -> Iterator[Any]:
            for step, kind in enumerate(itertools.chain(steps, itertools.repeat(UPDATE)), start=1):
                yield SimpleNamespace(
                    state=TrainState(state.step + step),
                    batch=None,
                    metrics=torch.tensor([loss, 0.0, 0.0, 0.0]),
                    is_skipped=kind != UPDATE,
                    must_roll_back=kind == FLOOR,
                )

    monkeypatch.setattr(rehearsal, "TrainingLoop", Loop)
    monkeypatch.setattr(rehearsal, "StopAgreement", lambda noted: None)
    monkeypatch.setattr(rehearsal, "training_stream", lambda *arguments: iter(()))
    monkeypatch.setattr(rehearsal, "flops_of_batches", lambda *arguments: 1.0)
    monkeypatch.setattr(dist, "all_reduce", lambda *arguments: None)
    job: Any = SimpleNamespace(
        run=None, lr=None, model=None, deepspeed=SimpleNamespace(precision=precision)
    )
    watchdog: Any = SimpleNamespace(beat=None)
    rehearsed = Rehearsal(job, said.append, watchdog)
    rehearsed._engine = SimpleNamespace(device=torch.device("cpu"))
    readers: Any = {"place": SimpleNamespace(has_pairs=True)}
    found, _ = rehearsed._take_steps_from(readers, TrainState(5))
    return said, found


def test_two_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,), found = checked(monkeypatch, "bf16", [])
    assert line.startswith("checked  2 steps after step 5: losses 7.2500, 7.2500, ")
    assert line.endswith(" GiB a rank") and not found


def test_with_fp16_two_updates_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's memory and time, and whether it works, are known after an update."""
    (line,), found = checked(monkeypatch, "fp16", [FALLING] * 3)
    assert line.startswith("checked  5 steps after step 5: ") and not found
    assert line.endswith(" GiB a rank, 3 without update to find the loss scale")


@pytest.mark.parametrize(
    ("precision", "steps", "expected"),
    [("bf16", [FALLING], [6]), ("fp16", [*[FALLING] * 4, FLOOR], [10])],
)
def test_gradients_that_are_not_finite_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, precision: str, steps: list[str], expected: list[int]
) -> None:
    _, found = checked(monkeypatch, precision, steps)
    for step, problem in zip(expected, found, strict=True):
        assert problem.startswith(f"step {step}: loss or gradient is not finite: ")


def test_a_loss_that_is_not_finite_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = checked(monkeypatch, "fp32", [], float("nan"))
    assert len(found) == 2
