"""Tells a finite loss that jumps from the noise of a run, by the running median of its losses."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

_WINDOW = 100  # steps
_FEWEST = 20  # below it, median and deviation are too rough to judge by
_LEAST_JUMP = 0.1  # share of the median: where losses hardly differ, any change would be a spike


class LossSpikes:
    """The last losses, without those that were spikes themselves."""

    def __init__(self, threshold: float, losses: Sequence[float] = ()) -> None:
        """Begins with the losses of the steps before.

        Args:
            threshold: median absolute deviations above the median from which on a loss is a spike;
                of normal noise, 8 are 5.4 standard deviations. 0 = none is.
            losses: of a resumed run, oldest first.
        """
        self._threshold = threshold
        self._losses = deque(losses, maxlen=_WINDOW)

    @classmethod
    def of_rows(cls, threshold: float, rows: Sequence[Mapping[str, float]]) -> "LossSpikes":
        """The same from a run's metrics."""
        last = [row for row in rows if "train/loss" in row and "train/spike" not in row][-_WINDOW:]
        return cls(threshold, [row["train/loss"] for row in last])

    def measure(self, loss: float) -> float:
        """The loss as a multiple of the median if it is a spike; if not, 0, and it is kept."""
        if not math.isfinite(loss):
            return 0.0
        if self._threshold and len(self._losses) >= _FEWEST:
            median = statistics.median(self._losses)
            deviation = statistics.median(abs(known - median) for known in self._losses)
            if loss - median > max(self._threshold * deviation, _LEAST_JUMP * median):
                return loss / median
        self._losses.append(loss)
        return 0.0
