"""What happens between two steps; whole runs are in tests/integration/test_faults.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from dist_bert.checkpoint import checkpoint
from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.training import session as module
from dist_bert.training.session import _Session


@pytest.mark.parametrize(
    ("saved_step", "expected"), [(4, "weights of step 4, grown at 7"), (7, "weights of step 7")]
)
def test_going_back_over_a_border_of_phases_changes_the_model_again(
    monkeypatch: pytest.MonkeyPatch, saved_step: int, expected: str
) -> None:
    """The model of a phase with longer samples is changed before its first step, here 7."""
    engine = SimpleNamespace(weights="of step 9")

    def load(engine: Any, *others: Any) -> TrainState:
        engine.weights = f"weights of step {saved_step}"
        return TrainState(saved_step)

    def before_step(engine: Any, step: int) -> None:
        if step == 7:
            engine.weights += ", grown at 7"

    def nothing(*arguments: Any) -> None:
        pass

    monkeypatch.setattr(checkpoint, "load", load)
    monkeypatch.setattr(module, "latest_checkpoint", lambda run_dir: run_dir)
    going = object.__new__(_Session)
    run = SimpleNamespace(output_dir="run", max_skipped_steps=3)
    shape = SimpleNamespace(global_batch_size=5)
    going.run = run  # type: ignore[assignment]
    going.job = SimpleNamespace(  # type: ignore[assignment]
        run=run, identity=dict, may_differ=None, batch_shape=lambda step: shape
    )
    for name, value in {
        "_engine": engine,
        "_setup": SimpleNamespace(before_step=before_step),
        "_progress": SimpleNamespace(flush=nothing),
        "_saves": SimpleNamespace(finish=nothing),
        "_watchdog": SimpleNamespace(beat=nothing),
        "_console": SimpleNamespace(say=nothing),
        "_has_rolled_back": False,
    }.items():
        setattr(going, name, value)
    record: Any = SimpleNamespace(must_roll_back=True, spike=0.0, state=TrainState(9, 45))
    going.recover(record)
    assert engine.weights == expected
