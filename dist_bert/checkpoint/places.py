"""A place in what the inner optimizer works on: where a run of a parameter's elements lies."""

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a fragment lies in one of the tensors that the inner optimizer was given."""

    name: str  # of the parameter
    start: int  # in the flattened parameter
    owner: Tensor
    offset: int  # in the flattened owner
    size: int
