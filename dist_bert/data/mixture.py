"""Which sample stands at each position of a phase that reads several data sets.

    position --Mixture--> data set and place in it --SampleOrder--> epoch, block, row

All of it is computed, for any position and any stretch of them, so the state stays one integer.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dist_bert.data.sample_order import WINDOW_BLOCKS, SampleOrder

_BITS = 64
_RANGE = 1 << _BITS
_STEP = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd


class Mixture:
    """Deals positions to data sets by weights, evenly: any stretch of them has its shares.

    Position i stands at the fraction i / golden ratio of a circle whose arcs are the weights. No
    sequence of steps covers a circle more evenly (its discrepancy is of the order of log n / n;
    Knuth, TAOCP 3, section 6.4, theorem S). The number of positions before any one that fall on an
    arc has a closed form.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Takes a positive weight for each data set; only their ratios matter."""
        total = sum(weights)
        before = (np.cumsum([0.0, *weights]) / total)[:-1].tolist()
        # Behind a weight that is nearly all, a bound rounds to the whole circle: beyond 64 bits.
        self._bounds = [*(min(round(bound * _RANGE), _RANGE - 1) for bound in before), _RANGE]

    def deal(self, start: int, stop: int) -> NDArray[np.intp]:
        """The data set of each of the positions [start, stop)."""
        positions = np.arange(start, stop, dtype=np.uint64) * np.uint64(_STEP)  # modulo 2^64
        inner = np.array(self._bounds[1:-1], dtype=np.uint64)
        return np.searchsorted(inner, positions, "right")

    def counts(self, stop: int) -> list[int]:
        """The number of the positions [0, stop) that each data set gets."""
        below = [_number_below(bound, stop) for bound in self._bounds]
        return [after - before for before, after in itertools.pairwise(below)]


def _number_below(bound: int, stop: int) -> int:
    """How many i in [0, stop) have i * _STEP modulo 2^64 below a bound of at most 2^64.

    `x mod m < b` is `floor(x / m) - floor((x - b) / m)` for 0 <= b <= m.
    """
    # The second sum is shifted by whole turns, so that what is divided is never negative.
    return stop - (
        _sum_of_floors(stop, _RANGE, _STEP, _RANGE - bound) - _sum_of_floors(stop, _RANGE, _STEP, 0)
    )


def _sum_of_floors(count: int, divisor: int, factor: int, offset: int) -> int:
    """The sum of floor((factor * i + offset) / divisor) for i in [0, count), as by Euclid.

    Graham, Knuth and Patashnik, Concrete Mathematics, section 3.5.
    """
    total = 0
    while count > 0:
        total += (count - 1) * count // 2 * (factor // divisor) + count * (offset // divisor)
        factor, offset = factor % divisor, offset % divisor
        highest = factor * count + offset
        count, offset = divmod(highest, divisor)
        divisor, factor = factor, divisor
    return total


class MixedOrder:
    """The sample at each position of a phase, over the blocks of all its data sets.

    Each data set goes on in its own epochs where earlier phases left it.
    """

    window_blocks = WINDOW_BLOCKS

    def __init__(
        self, orders: Sequence[SampleOrder], weights: Sequence[float], consumed: Sequence[int]
    ) -> None:
        """Takes the data sets of a phase.

        Args:
            orders: of each; blocks are numbered through, in this order.
            weights: of each, by samples.
            consumed: samples of each that the phases before have used.
        """
        self._orders = orders
        self._mixture = Mixture(weights)
        self._consumed = consumed
        sizes = [order.num_blocks for order in orders]
        self._first_blocks = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)

    def locate(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Epoch, block and row of the samples at positions [start, stop) of the phase."""
        found = np.empty((3, stop - start), np.int64)
        owners = self._mixture.deal(start, stop)
        for number, (begin, end) in enumerate(self._places(start, stop)):
            if begin < end:
                epochs, blocks, rows = self._orders[number].locate(begin, end)
                found[:, owners == number] = epochs, blocks + self._first_blocks[number], rows
        return found[0], found[1], found[2]

    def blocks_near(self, start: int, stop: int) -> NDArray[np.int64]:
        """The blocks of the windows with positions [start, stop), about as they will be needed."""
        blocks, when = [], []
        for number, (begin, end) in enumerate(self._places(start, stop)):
            if begin < end:
                near = self._orders[number].blocks_near(begin, end)
                blocks.append(near + self._first_blocks[number])
                when.append(np.arange(near.size) / near.size)
        return np.concatenate(blocks)[np.argsort(np.concatenate(when), kind="stable")]

    def consumed(self, stop: int) -> list[int]:
        """Samples of each data set that are used before a position of the phase."""
        counts = self._mixture.counts(stop)
        return [used + count for used, count in zip(self._consumed, counts, strict=True)]

    def _places(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Of each data set, the places in its own stream that these positions use."""
        return list(zip(self.consumed(start), self.consumed(stop), strict=True))
