"""What ranks send each other in an optimizer step, and how long it takes on given links.

Messages are those that DeepSpeed 0.19 hands to torch.distributed, measured by
tests/integration/test_plan.py; their time is that of a ring (Patarasuk and Yuan 2009,
https://doi.org/10.1016/j.jpdc.2008.09.002): a message of n bytes costs every rank 2 (N - 1) / N * n
bytes in an all-reduce, half of that in a reduce-scatter or an all-gather.
"""

import dataclasses
import math

from dist_bert.training.zero_layout import ZeroLayout

_FALLBACK_BUCKET = 500_000_000  # elements of a message without ZeRO
_FORWARD, _BACKWARD = 1 / 3, 2 / 3  # shares of a micro-step's arithmetic


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of message, over a whole optimizer step."""

    operation: str  # of torch.distributed
    what: str
    message_bytes: int  # sum of the messages, of one rank
    num_calls: int
    # Share of the step's arithmetic behind which it can hide; 0 where DeepSpeed waits for it.
    hiding_share: float

    def wire_bytes(self, num_ranks: int) -> float:
        """What every rank sends, and receives, in a ring."""
        rounds = 2 if self.operation == "all_reduce" else 1
        return rounds * (num_ranks - 1) / num_ranks * self.message_bytes

    def seconds(self, num_ranks: int, link: "Link") -> float:
        """Time on the wire: bytes over bandwidth, and a latency for each step of the ring."""
        rounds = 2 if self.operation == "all_reduce" else 1
        latency = self.num_calls * rounds * (num_ranks - 1) * link.latency_seconds
        return self.wire_bytes(num_ranks) / link.bytes_per_second(num_ranks) + latency


@dataclasses.dataclass(frozen=True)
class Link:
    """The network. A ring runs at the speed of its slowest link."""

    inside_bytes_per_second: float  # of one GPU to its neighbours in the node
    between_bytes_per_second: float  # of one node to the others, all its adapters together
    gpus_per_node: int
    latency_seconds: float  # of one message from one GPU to the next

    def bytes_per_second(self, num_ranks: int) -> float:
        """Bandwidth of a ring over so many GPUs, node by node."""
        if num_ranks <= self.gpus_per_node:
            return self.inside_bytes_per_second
        return min(self.inside_bytes_per_second, self.between_bytes_per_second)


@dataclasses.dataclass(frozen=True)
class CommunicationPlan:
    """All messages of an optimizer step."""

    num_ranks: int
    collectives: tuple[Collective, ...]

    @property
    def wire_bytes(self) -> float:
        """Sent by every rank in a step."""
        return sum(c.wire_bytes(self.num_ranks) for c in self.collectives)

    def seconds(self, link: Link) -> float:
        """Time of all messages one after the other."""
        return sum(c.seconds(self.num_ranks, link) for c in self.collectives)

    def exposed_seconds(self, link: Link, compute_seconds: float) -> float:
        """What is left of it where all that can hide behind arithmetic does so perfectly."""
        return sum(
            max(0.0, c.seconds(self.num_ranks, link) - c.hiding_share * compute_seconds)
            for c in self.collectives
        )


def plan_communication(layout: ZeroLayout) -> CommunicationPlan:
    """The messages of one optimizer step, as DeepSpeed sends them at each stage.

    ZeRO-1 reduces gradients once an update, ZeRO-2 and 3 once a micro-step. ZeRO-1 and 2 reduce by
    an all-reduce of whole buckets, of which every rank keeps its part, although a reduce-scatter
    would do: then all ranks get the new weights. So they send half as much again as ZeRO-0.
    ZeRO-3 gathers the weights once a micro-step, and keeps them until the backward pass is over.
    """
    size, steps = layout.weight_bytes, layout.accumulation_steps
    collectives: tuple[Collective, ...]
    if layout.stage == 0:
        calls = math.ceil(layout.num_parameters / _FALLBACK_BUCKET)
        message = size * layout.num_parameters
        collectives = (Collective("all_reduce", "gradients", message, calls, 0.0),)
    elif layout.stage == 3:
        collectives = _of_zero3(layout)
    else:
        reductions = steps if layout.stage == 2 else 1
        hiding_share = _BACKWARD * reductions / steps if layout.overlaps else 0.0
        collectives = (
            Collective(
                "all_reduce",
                "gradients",
                reductions * size * layout.num_parameters,
                reductions * _num_buckets(layout),
                hiding_share,
            ),
            Collective(
                "all_gather_into_tensor",
                "new weights",
                size * layout.num_padded,
                len(layout.groups),
                0.0,
            ),
        )
    return CommunicationPlan(layout.num_ranks, collectives)


def _of_zero3(layout: ZeroLayout) -> tuple[Collective, ...]:
    size, steps, ranks = layout.weight_bytes, layout.accumulation_steps, layout.num_ranks
    padded = [-(-n // ranks) * ranks for n in layout.sizes]
    persistent = sum(
        whole
        for whole, n in zip(padded, layout.sizes, strict=True)
        if n <= layout.persistence_threshold
    )
    return (
        Collective(
            "all_gather_into_tensor",
            "weights",
            size * steps * (sum(padded) - persistent),
            steps * _num_prefetches(layout),
            _FORWARD if layout.overlaps else 0.0,
        ),
        Collective(
            "all_gather_into_tensor",
            "small weights",
            size * persistent,
            sum(n <= layout.persistence_threshold for n in layout.sizes),  # one by one
            0.0,
        ),
        Collective(
            "reduce_scatter_tensor",
            "gradients",
            size * steps * sum(padded),
            steps * _num_buckets(layout),
            _BACKWARD if layout.overlaps else 0.0,
        ),
    )


def _num_buckets(layout: ZeroLayout) -> int:
    """Messages of one reduction: parameters are not cut, so a bucket is rarely full."""
    num_buckets, filled = 1, 0
    for size in layout.sizes:
        if filled and filled + size > layout.bucket_size:
            num_buckets, filled = num_buckets + 1, 0
        filled += size
    return num_buckets


def _num_prefetches(layout: ZeroLayout) -> int:
    """Messages of one gathering: parameters are added until a message has its size."""
    num_messages, filled = 0, 0
    for size in (n for n in layout.sizes if n > layout.persistence_threshold):
        num_messages += filled == 0
        filled = 0 if filled + size >= layout.prefetch_size else filled + size
    return num_messages
