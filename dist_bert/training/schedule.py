"""The learning rate of every step: a pure function, without state that a resume could lose."""

import dataclasses
import math

from dist_bert.common.settings import setting

_WITH_DECAY_STEPS = ("wsd", "wsd_sqrt")
SCHEDULES = ("linear", "cosine", "constant", *_WITH_DECAY_STEPS)


@dataclasses.dataclass(frozen=True)
class LrSchedule:
    """The learning rate over a number of steps, as shares of its peak.

    `wsd_sqrt` decays as 1 - sqrt(share of the decay that is over), which ends lower than a line
    (Haegele et al. 2024, arXiv 2405.18392, section 3).

    Attributes:
        num_steps: optimizer steps that it covers.
        warmup_steps: over which it rises linearly to the peak.
        name: its shape after that.
        decay_steps: last steps, over which `wsd` and `wsd_sqrt` fall.
        min_lr_ratio: where it ends.
        start: where the warm-up begins.
    """

    num_steps: int
    warmup_steps: int = 0
    name: str = "constant"
    decay_steps: int = 0
    min_lr_ratio: float = 0.0
    start: float = 0.0

    def problems(self) -> list[str]:
        """All that contradicts each other, each as one sentence."""
        problems = []
        if self.warmup_steps > self.num_steps:
            problems.append(
                f"warmup_steps = {self.warmup_steps} is above num_train_steps = {self.num_steps}"
            )
        most = self.num_steps - self.warmup_steps
        if self.name in _WITH_DECAY_STEPS and not 0 < self.decay_steps <= most:
            problems.append(
                f"decay_steps = {self.decay_steps}: {self.name} needs 1 to num_train_steps -"
                " warmup_steps"
            )
        if self.name not in _WITH_DECAY_STEPS and self.decay_steps > 0:
            problems.append(
                f"decay_steps = {self.decay_steps}: does nothing with schedule = {self.name}, only"
                f" with {' and '.join(_WITH_DECAY_STEPS)}"
            )
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            problems.append(f"min_lr_ratio = {self.min_lr_ratio}: must be 0 to 1")
        elif self.name == "constant" and self.min_lr_ratio:
            problems.append(
                f"min_lr_ratio = {self.min_lr_ratio}: does nothing with schedule = constant"
            )
        return problems

    def share(self, step: int) -> float:
        """Of the peak, at a step from 1 to `num_steps`."""
        if step < self.warmup_steps:
            return self.start + (1.0 - self.start) * (step / self.warmup_steps)
        decay_steps = self.num_steps - self.warmup_steps
        if self.name in _WITH_DECAY_STEPS:
            decay_steps = self.decay_steps
        remaining = self.num_steps - step
        if self.name == "constant" or remaining >= decay_steps:
            return 1.0
        remaining_share = remaining / decay_steps
        if self.name == "cosine":
            remaining_share = 0.5 - 0.5 * math.cos(math.pi * remaining_share)
        elif self.name == "wsd_sqrt":
            remaining_share = 1.0 - math.sqrt(1.0 - remaining_share)
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * remaining_share


def schedule_setting(default: str, more: tuple[str, ...] = ()) -> str:
    """The setting that names a shape; `more` are names with a meaning of the caller's."""
    text = (
        "lr after the warm-up; wsd = constant, then linear over decay_steps; wsd_sqrt = the same"
        " with a decay of 1 - sqrt"
    )
    name: str = setting(default, text, (*more, *SCHEDULES))
    return name
