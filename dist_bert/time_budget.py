"""How much training fits into a time limit: the sizes of the quickstart, from steps it measured.

Pure arithmetic. Not for: planning runs on GPUs (`dist_bert.planning`).
"""

import dataclasses
from collections.abc import Sequence

_MARGIN = 0.85  # of the time that is left: validations, a lost step or two, a busier machine


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps of the run on short samples, and of the one on long samples that follows."""

    short_steps: int
    long_steps: int


FULL = Schedule(2_000, 800)  # more steps are not taken, however fast the machine
LEAST = Schedule(100, 40)  # fewer would show nothing
_WORTHWHILE_SHARE = 0.6  # of FULL, below which a smaller model learns more in the same time
_SHORT_SHARE = 0.55  # of the training time


def training_seconds(limit: float, elapsed: float, other: float) -> float:
    """Time for training steps within a limit, all in seconds.

    Args:
        limit: for everything.
        elapsed: since the start of everything.
        other: what else is still to do besides training steps.
    """
    return max(0.0, _MARGIN * (limit - elapsed - other))


def is_worthwhile(seconds: float, step_seconds: float, long_to_short: float) -> bool:
    """Whether enough steps of a model fit for it to learn more than a smaller one would.

    Args:
        seconds: for training steps.
        step_seconds: of a step on short samples.
        long_to_short: seconds of a step on long samples divided by those of one on short samples.
    """
    full = FULL.short_steps + FULL.long_steps * long_to_short
    return seconds >= _WORTHWHILE_SHARE * full * step_seconds


def schedule(seconds: float, step_seconds: float, long_to_short: float) -> Schedule:
    """The steps that fit, arguments as in `is_worthwhile`; `LEAST` where even these do not."""
    short = int(_SHORT_SHARE * seconds / step_seconds)
    long = int((1 - _SHORT_SHARE) * seconds / (step_seconds * long_to_short))
    return Schedule(
        min(FULL.short_steps, max(LEAST.short_steps, short)),
        min(FULL.long_steps, max(LEAST.long_steps, long)),
    )


def long_steps(seconds: float, step_seconds: float) -> int:
    """Steps on long samples that fit once only these are left to do."""
    return min(FULL.long_steps, max(LEAST.long_steps, int(seconds / step_seconds)))


def run_flags(num_steps: int) -> str:
    """Flags of launch/pretrain.py whose values follow from the number of steps."""
    warmup = min(100, max(1, num_steps // 8))
    interval = max(1, num_steps // 8)
    return (
        f"--num_train_steps {num_steps} --warmup_steps {warmup}"
        f" --log_interval {min(50, interval)} --checkpoint_interval {interval}"
        f" --validation_interval {2 * interval}"
    )


def settled(step_seconds: Sequence[float]) -> float:
    """Seconds of a step once the first ones, which pay for set-up, are over: their median."""
    kept = sorted(step_seconds[len(step_seconds) // 2 :])
    return kept[len(kept) // 2]
