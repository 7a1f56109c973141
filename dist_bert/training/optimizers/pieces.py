"""The pieces of a group's parameters that lie on this rank, and sums over whole parameters.

An optimizer is built on whole parameters. DeepSpeed then puts flat tensors, or float32 copies, in
their place, so that a step sees owners: tensors that hold pieces of parameters. Which piece lies
where is told once, by `dist_bert.checkpoint.fragments.places`.

Letters: M parameters of a group, K pieces of them on this rank. At most one is a parameter's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_bert.checkpoint.places import Place


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of one parameter group.

    Attributes:
        places: in the order of the group's parameters.
        owners: number in the group's `params`, of the owner of every piece.
        indices: (K,) int64 on the device, numbers of the pieces' parameters in the group.
        sizes: (M,) float32 on the device, elements of every whole parameter.
        is_sharded: the other ranks hold other pieces; else all ranks hold all parameters.
    """

    places: Sequence[Place]
    owners: Sequence[int]
    indices: Tensor
    sizes: Tensor
    is_sharded: bool

    @classmethod
    def of(cls, group: dict[str, Any], places: Sequence[Place], is_sharded: bool) -> "Pieces":
        """Those of a group with `params`, `names` and `shapes`, among the places of a rank."""
        numbers = {name: index for index, name in enumerate(group["names"])}
        owners = {id(owner): index for index, owner in enumerate(group["params"])}
        own = sorted((p for p in places if p.name in numbers), key=lambda p: numbers[p.name])
        device = group["params"][0].device
        return cls(
            own,
            [owners[id(place.owner)] for place in own],
            torch.tensor([numbers[p.name] for p in own], dtype=torch.int64, device=device),
            torch.tensor([float(shape.numel()) for shape in group["shapes"]], device=device),
            is_sharded,
        )

    def views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The pieces in tensors that are laid out as the owners are: (size,) each."""
        return [
            tensors[owner].view(-1).narrow(0, place.offset, place.size)
            for owner, place in zip(self.owners, self.places, strict=True)
        ]

    def norms(self, *tensors: Sequence[Tensor]) -> Tensor:
        """Euclidean norms of whole parameters: one all-reduce for all of them.

        Args:
            tensors: Q times tensors that are laid out as the owners are.

        Returns:
            (Q, M), the same on all ranks.
        """
        squares = torch.zeros(len(tensors), len(self.sizes), device=self.sizes.device)
        if self.places:
            for row, values in zip(squares, tensors, strict=True):
                of_pieces = torch.stack(list(torch._foreach_norm(self.views(values))))
                row.index_copy_(0, self.indices, of_pieces.float().square())
        if self.is_sharded:
            dist.all_reduce(squares)
        return squares.sqrt()

    def scale(self, tensors: Sequence[Tensor], factors: Tensor) -> None:
        """Multiplies every piece by its parameter's factor, in place.

        Args:
            tensors: laid out as the owners are.
            factors: (M,).
        """
        of_pieces = factors[self.indices].unbind()
        for view, factor in zip(self.views(tensors), of_pieces, strict=True):
            view.mul_(factor)


def gradients_of(group: dict[str, Any]) -> list[Tensor]:
    """The gradients of a group's owners; zeros for a parameter that took no part, as with ZeRO."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]]
