"""Tells a finite loss that jumps from the noise of a run, by the running median of its losses."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence

_WINDOW = 100  # steps
_FEWEST = 20  # below it, median and deviation are too rough to judge by
_LEAST_JUMP = 0.1  # share of the median: where losses hardly differ, any change would be a spike


class LossSpikes:
    """The last losses, without those that were spikes themselves."""

    def __init__(
        self,
        threshold: float,
        losses: Sequence[tuple[int, float]] = (),
        comparable_since: Callable[[int], int] = lambda step: 0,
    ) -> None:
        """Begins with the losses of the steps before.

        Args:
            threshold: median absolute deviations above the median from which on a loss is a spike;
                of normal noise, 8 are 5.4 standard deviations. 0 = none is.
            losses: of a resumed run, with their steps, oldest first.
            comparable_since: the step after which losses are on the same data as a step's.
        """
        self._threshold = threshold
        self._comparable_since = comparable_since
        self._losses: deque[tuple[int, float]] = deque(losses, maxlen=_WINDOW)

    def measure(self, step: int, loss: float) -> float:
        """The loss as a multiple of the median if it is a spike; if not, 0, and it is kept."""
        if not math.isfinite(loss):
            return 0.0
        since = self._comparable_since(step)
        known = [loss for step, loss in self._losses if step > since]
        if self._threshold and len(known) >= _FEWEST:
            median = statistics.median(known)
            deviation = statistics.median(abs(own - median) for own in known)
            if loss - median > max(self._threshold * deviation, _LEAST_JUMP * median):
                return loss / median
        self._losses.append((step, loss))
        return 0.0


def usual_losses(rows: Sequence[Mapping[str, float]]) -> list[tuple[int, float]]:
    """The last steps and losses in a run's metrics that were no spikes."""
    last = [row for row in rows if "train/loss" in row and "train/spike" not in row][-_WINDOW:]
    return [(int(row["step"]), row["train/loss"]) for row in last]
