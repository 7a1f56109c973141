"""Operations that torch refuses on a GPU under `torch.use_deterministic_algorithms`.

Of its documentation, what a language model might use; so that the CPU's tests see what would end a
run on a GPU.
"""

from collections.abc import Iterable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_REFUSED = (
    "nll_loss2d",
    "put_.",
    "histc",
    "bincount",
    "median.dim",
    "kthvalue",
    "cumsum",  # of floating point
    "scatter_reduce",
    "_embedding_bag",
    "_ctc_loss",
    "grid_sampler",
)


def refused(names: Iterable[str]) -> set[str]:
    """Those of some operators' names, such as aten.add.Tensor, that may be refused."""
    return {name for name in names if name.removeprefix("aten.").startswith(_REFUSED)}


class Names(TorchDispatchMode):
    """Collects the names of what is dispatched within."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.add(str(op))
        return op(*args, **(kwargs or {}))
