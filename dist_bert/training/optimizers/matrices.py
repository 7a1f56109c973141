"""Whole matrices out of the pieces of ZeRO: each goes to one rank, and comes back in pieces.

A parameter may hold several matrices, one above the other: queries, keys and values. A matrix that
lies on one rank stays there. One that is cut by a border between ranks goes to the rank with the
largest part of it, the first of them; two all-to-alls carry all that are cut, there and back.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_bert.checkpoint.places import Place

Span = tuple[int, int]  # first element, number of elements


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One matrix of a parameter."""

    name: str  # of the parameter
    start: int  # first element in the flattened parameter
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    def part(self, held: Span) -> Span:
        """What a run of the parameter's elements holds of the matrix, told from its start."""
        first = max(self.start, held[0])
        return first - self.start, max(0, min(self.start + self.size, sum(held)) - first)


def stacked(name: str, shape: Sequence[int], num_matrices: int) -> list[Matrix]:
    """The matrices of a parameter (rows, columns), which lie one above the other."""
    rows, columns = shape[0] // num_matrices, shape[1]
    return [Matrix(name, i * rows * columns, rows, columns) for i in range(num_matrices)]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What one rank holds of a list of matrices, owns of them, and sends for it.

    Attributes:
        whole: matrices that lie on this rank.
        sent: pieces of cut matrices, in the order in which they are sent: by owner, then by list.
        num_sent: elements for every rank.
        num_received: elements from every rank.
        owned: cut matrices of this rank, each with its parts: first element in what is received,
            first element in the matrix, number.
        is_needed: a matrix is cut between some ranks; the same on all.
    """

    whole: Sequence[Matrix]
    sent: Sequence[tuple[Matrix, Span]]
    num_sent: Sequence[int]
    num_received: Sequence[int]
    owned: Sequence[tuple[Matrix, list[tuple[int, int, int]]]]
    is_needed: bool

    @classmethod
    def of(
        cls, matrices: Sequence[Matrix], held: Sequence[dict[str, Span]], rank: int
    ) -> "Exchange":
        """The part of a rank.

        Args:
            matrices: all of them, in the same order on all ranks.
            held: for every rank, name of a parameter -> what it holds of it.
            rank: of this process.
        """
        whole: list[Matrix] = []
        sent: list[list[tuple[Matrix, Span]]] = [[] for _ in held]
        parts: list[list[tuple[Matrix, Span]]] = [[] for _ in held]  # by the rank they come from
        owned: list[Matrix] = []
        is_cut = False
        for matrix in matrices:
            spans = [matrix.part(own.get(matrix.name, (0, 0))) for own in held]
            sizes = [size for _, size in spans]
            owner = sizes.index(max(sizes))
            if sizes[owner] == matrix.size:
                whole += [matrix] if owner == rank else []
                continue
            is_cut = True
            if sizes[rank]:
                sent[owner].append((matrix, spans[rank]))
            if owner == rank:
                owned.append(matrix)
                for source, span in enumerate(spans):
                    if span[1]:
                        parts[source].append((matrix, span))
        places: dict[Matrix, list[tuple[int, int, int]]] = {matrix: [] for matrix in owned}
        received = 0
        for matrix, (first, size) in (piece for pieces in parts for piece in pieces):
            places[matrix].append((received, first, size))
            received += size
        return cls(
            whole,
            [piece for pieces in sent for piece in pieces],
            [sum(size for _, (_, size) in pieces) for pieces in sent],
            [sum(size for _, (_, size) in pieces) for pieces in parts],
            list(places.items()),
            is_needed=is_cut,
        )


class WholeMatrices:
    """Applies a function to whole matrices, of which this rank may hold parts."""

    def __init__(
        self,
        matrices: Sequence[Matrix],
        places: Sequence[Place],
        device: torch.device,
        is_sharded: bool,
    ) -> None:
        """Agrees with the other ranks on who does what; called by all ranks together.

        Args:
            matrices: all of them, in the same order on all ranks.
            places: of this rank's pieces.
            device: on which they lie.
            is_sharded: the other ranks hold other pieces; else every rank holds all.
        """
        names = {matrix.name for matrix in matrices}
        self._device = device
        self._places = {place.name: place for place in places if place.name in names}
        own = {name: (place.start, place.size) for name, place in self._places.items()}
        held: list[Any] = [own]
        if is_sharded:
            held = [None] * dist.get_world_size()
            dist.all_gather_object(held, own)
        self._exchange = Exchange.of(matrices, held, dist.get_rank() if is_sharded else 0)

    def apply(
        self, function: Callable[[Sequence[Tensor]], Sequence[Tensor]], values: dict[str, Tensor]
    ) -> None:
        """Replaces every matrix by the function of it, in place.

        Args:
            function: matrices, (rows, columns) each, to as many of the same shapes.
            values: name of a parameter -> (size,) this rank's piece of it.
        """
        exchange = self._exchange
        own = [self._view(values, matrix, (0, matrix.size)) for matrix in exchange.whole]
        shapes = [(matrix.rows, matrix.columns) for matrix in exchange.whole]
        pieces = [self._view(values, matrix, span) for matrix, span in exchange.sent]
        received = self._sent_to_owners(pieces) if exchange.is_needed else torch.empty(0)
        for matrix, parts in exchange.owned:
            whole = received.new_empty(matrix.size)
            for place, first, size in parts:
                whole[first : first + size] = received[place : place + size]
            own.append(whole)
            shapes.append((matrix.rows, matrix.columns))
        if own:
            found = [view.view(shape) for view, shape in zip(own, shapes, strict=True)]
            torch._foreach_copy_(found, list(function(found)))
        for (_, parts), whole in zip(exchange.owned, own[len(exchange.whole) :], strict=True):
            for place, first, size in parts:
                received[place : place + size] = whole[first : first + size]
        if exchange.is_needed:
            self._send_back(received, pieces)

    def _sent_to_owners(self, pieces: Sequence[Tensor]) -> Tensor:
        """Sends the pieces of cut matrices; returns those of this rank's own."""
        sent = torch.cat([torch.empty(0, device=self._device), *pieces])
        received = sent.new_empty(sum(self._exchange.num_received))
        num_sent, num_received = list(self._exchange.num_sent), list(self._exchange.num_received)
        dist.all_to_all_single(received, sent, num_received, num_sent)
        return received

    def _send_back(self, received: Tensor, pieces: Sequence[Tensor]) -> None:
        """Sends the pieces back to where they came from, and puts those of this rank there."""
        sent = received.new_empty(sum(self._exchange.num_sent))
        num_sent, num_received = list(self._exchange.num_sent), list(self._exchange.num_received)
        dist.all_to_all_single(sent, received, num_sent, num_received)
        for piece, result in zip(pieces, sent.split([len(p) for p in pieces]), strict=True):
            piece.copy_(result)

    def _view(self, values: dict[str, Tensor], matrix: Matrix, span: Span) -> Tensor:
        """A part of a matrix, (size,), in this rank's piece of its parameter."""
        first, size = span
        start = matrix.start + first - self._places[matrix.name].start
        return values[matrix.name].narrow(0, start, size)
