"""How much training fits into a time limit: the steps of the quickstart, from steps it measured.

Pure arithmetic. Not for: planning runs on GPUs (`dist_bert.tools.plan`).
"""

import dataclasses
from collections.abc import Sequence

_MARGIN = 0.85  # of the time that is left: validations, a lost step or two, a busier machine
_WORTHWHILE_SHARE = 0.4  # of all steps, below which a smaller model learns more in the same time


@dataclasses.dataclass(frozen=True)
class Phase:
    """Training on samples of one length.

    Attributes:
        sequence_length: tokens of a sample at most.
        train_batch_size: samples of a step.
        cost: time of a step, in steps of the first phase.
        most_steps: how many are taken where there is time enough.
        least_steps: how many are taken in any case: fewer would show nothing.
        share: of the time for training.
    """

    sequence_length: int
    train_batch_size: int
    cost: float
    most_steps: int
    least_steps: int
    share: float

    def num_steps(self, seconds: float, step_seconds: float) -> int:
        """Steps that fit.

        Args:
            seconds: for this phase.
            step_seconds: of a step of this phase.
        """
        return min(self.most_steps, max(self.least_steps, int(seconds / step_seconds)))


def training_seconds(limit: float, elapsed: float, other: float) -> float:
    """Time for training steps within a limit, all in seconds.

    Args:
        limit: for everything.
        elapsed: since the start of everything.
        other: what else is still to do besides training steps.
    """
    return max(0.0, _MARGIN * (limit - elapsed - other))


def is_worthwhile(phases: Sequence[Phase], seconds: float, step_seconds: float) -> bool:
    """Whether enough steps of a model fit for it to learn more than a smaller one would.

    Args:
        phases: of the whole training.
        seconds: for all its steps.
        step_seconds: of a step of the first phase.
    """
    full = sum(phase.most_steps * phase.cost for phase in phases)
    return seconds >= _WORTHWHILE_SHARE * full * step_seconds


def next_steps(phases: Sequence[Phase], seconds: float, step_seconds: float) -> int:
    """Steps of the first of the phases that are still to come, which share the time that is left.

    Args:
        phases: that are still to come.
        seconds: for all their steps.
        step_seconds: of a step of the first of them.
    """
    first = phases[0]
    share = first.share / sum(phase.share for phase in phases)
    return first.num_steps(share * seconds, step_seconds)


def all_steps(phases: Sequence[Phase], seconds: float, step_seconds: float) -> list[int]:
    """Steps of each of the phases, which share a time.

    Args:
        phases: all that are still to come.
        seconds: for all their steps.
        step_seconds: of a step of cost 1.
    """
    counts: list[int] = []
    for done, phase in enumerate(phases):
        counts.append(next_steps(phases[done:], seconds, step_seconds * phase.cost))
        seconds = max(0.0, seconds - counts[-1] * step_seconds * phase.cost)
    return counts


def run_settings(num_steps: int) -> dict[str, int]:
    """Run settings whose values follow from the number of steps."""
    interval = max(1, num_steps // 8)
    return {
        "warmup_steps": min(100, interval),
        "log_interval": min(50, interval),
        "checkpoint_interval": min(100, interval),
        "validation_interval": 2 * interval,
    }


def settled(step_seconds: Sequence[float]) -> float:
    """Seconds of a step once the first ones, which pay for set-up, are over: their median."""
    kept = sorted(step_seconds[len(step_seconds) // 2 :])
    return kept[len(kept) // 2]
