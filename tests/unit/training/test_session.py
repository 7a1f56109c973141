"""What happens between two steps; whole runs are in tests/integration/test_faults.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from dist_bert.checkpoint import checkpoint
from dist_bert.checkpoint.checkpoint import TrainState
from dist_bert.common.errors import UserError
from dist_bert.training import session as module
from dist_bert.training.session import _Session


class Run:
    """A session between two steps, of a checkpoint and a model that step 7 begins with changing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, saved_step: int) -> None:
        self.said: list[str] = []
        self.engine = SimpleNamespace(weights="of step 9")

        def load(engine: Any, *others: Any) -> TrainState:
            engine.weights = f"weights of step {saved_step}"
            return TrainState(saved_step)

        monkeypatch.setattr(checkpoint, "load", load)
        monkeypatch.setattr(module, "latest_checkpoint", lambda run_dir: run_dir)
        run = SimpleNamespace(output_dir="run", max_skipped_steps=3)
        self.session = object.__new__(_Session)
        for name, value in {
            "run": run,
            "job": SimpleNamespace(
                run=run,
                identity=dict,
                may_differ=None,
                batch_shape=lambda step: SimpleNamespace(global_batch_size=min(step, 8)),
            ),
            "_engine": self.engine,
            "_setup": SimpleNamespace(before_step=self.before_step),
            "_progress": SimpleNamespace(flush=lambda: None),
            "_saves": SimpleNamespace(finish=lambda: None),
            "_watchdog": SimpleNamespace(beat=lambda doing: None),
            "_console": SimpleNamespace(say=self.said.append),
            "_has_rolled_back": False,
        }.items():
            setattr(self.session, name, value)

    def before_step(self, engine: Any, step: int) -> None:
        if step == 7:
            engine.weights += ", grown at 7"


def skipped(spike: float = 0.0) -> Any:
    """The record of a step that was one too many, behind a ramp of 1 to 8 samples a step."""
    return SimpleNamespace(must_roll_back=True, spike=spike, state=TrainState(9, 44))


@pytest.mark.parametrize(
    ("saved_step", "expected"), [(4, "weights of step 4, grown at 7"), (7, "weights of step 7")]
)
def test_going_back_over_a_border_of_phases_changes_the_model_again(
    monkeypatch: pytest.MonkeyPatch, saved_step: int, expected: str
) -> None:
    """The model of a phase with longer samples is changed before its first step, here 7."""
    run = Run(monkeypatch, saved_step)
    run.session.recover(skipped())
    assert run.engine.weights == expected


@pytest.mark.parametrize(
    ("spike", "what", "advice"),
    [(0.0, "loss or gradient was not finite", "try a lower lr"),
     (2.5, "the loss was a spike", "raise spike_threshold")],
)  # fmt: skip
def test_too_many_skipped_steps_are_named_for_what_they_are(
    monkeypatch: pytest.MonkeyPatch, spike: float, what: str, advice: str
) -> None:
    run = Run(monkeypatch, saved_step=4)
    run.session.recover(skipped(spike))
    told = f"step 9: {what} in 3 steps (samples 21 to 43 of the stream)"
    (line,) = run.said
    assert line.startswith(f"{told}: rolled back to the weights of step 4; ")
    with pytest.raises(UserError) as caught:
        run.session.recover(skipped(spike))
    after = f"{told}, also after rolling back to a checkpoint: {advice}"
    assert str(caught.value).startswith(after)
