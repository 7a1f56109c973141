"""What the optimizer's update takes: operations of Muon's iterations, and bytes of memory moved.

Operations are those of matrix products, 2 for each multiplication and addition, as
`dist_bert.model.flops` counts them. Bytes are what every kernel reads and writes, as if nothing
stayed in a cache: the update of the other optimizers is bound by them. Without gradient clipping
and the copy into 16-bit weights, which are alike for all optimizers. Compared with the tensors of
every kernel by tests/unit/tools/test_update_plan.py.

Letters: m rows and n columns of a matrix, the smaller one m.
"""

import dataclasses
import re

from dist_bert.model.config import ModelConfig
from dist_bert.training.zero_layout import ZeroLayout, parameter_shapes

# Bytes an element of a group; float32. Of the moments and the direction of Adam: 76.
_DECAYED = {"AdamW": 28, "Lamb": 116, "StableAdamW": 140, "Muon": 96}
_VECTORS = {"AdamW": 28, "Lamb": 88, "StableAdamW": 128, "Muon": 96}
_MOMENTUM = 52  # of Muon's matrices, beside the iterations
_LAYER_WEIGHT = re.compile(r"encoder\.layers\.\d+\.(\w+)\.weight")


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """One update on one rank, on average over the ranks."""

    newton_schulz_flops: float  # 0 but for Muon
    traffic_bytes: float


def plan_update(layout: ZeroLayout) -> UpdatePlan:
    """The update of a rank's part; at ZeRO 0 every rank does all of it."""
    share = 1.0 / (layout.num_ranks if layout.stage else 1)
    matrices = layer_matrices(layout.model) if layout.optimizer == "Muon" else []
    iterations = layout.newton_schulz_steps
    flops = sum(newton_schulz_flops(rows, columns, iterations) for rows, columns in matrices)
    *own, decayed, vectors = (sum(group) for group in layout.groups)
    traffic = _DECAYED[layout.optimizer] * decayed + _VECTORS[layout.optimizer] * vectors
    traffic += _MOMENTUM * sum(own)
    traffic += sum(newton_schulz_bytes(rows, columns, iterations) for rows, columns in matrices)
    return UpdatePlan(share * flops, share * traffic)


def layer_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of all that Muon makes orthogonal: matrices may share a parameter."""
    found = []
    for name, shape in parameter_shapes(model).items():
        kind = _LAYER_WEIGHT.fullmatch(name)
        if kind and len(shape) == 2:
            is_gated = kind[1] == "intermediate" and model.feed_forward == "geglu"
            number = 3 if kind[1] == "qkv" else 2 if is_gated else 1
            found += number * [(shape[0] // number, shape[1])]
    return found


def newton_schulz_flops(rows: int, columns: int, num_steps: int) -> int:
    """Of `dist_bert.training.optimizers.newton_schulz`: x x^T and its use on x, and its square."""
    m, n = sorted((rows, columns))
    return num_steps * (4 * m * m * n + 2 * m**3)


def newton_schulz_bytes(rows: int, columns: int, num_steps: int, size: int = 2) -> int:
    """Read and written by the iterations of one matrix, with its cast, norm and scale.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        num_steps: number of iterations.
        size: bytes of an element while it iterates: 2 on a GPU, whose kernels cast it before and
            after, else 4.
    """
    m, n = sorted((rows, columns))
    casts = 2 * (4 + size) if size < 4 else 0
    # The norm reads it; its copy beside others of its shape, division and scale read and write.
    once = casts + 3 * size + 16
    return num_steps * size * (3 * m * n + 4 * m * m) + once * m * n


def flops_share(layout: ZeroLayout, step_flops: float) -> float:
    """Of Muon's iterations in all operations of a step.

    Args:
        layout: of the run.
        step_flops: of forward and backward over the global batch, `dist_bert.model.flops`.
    """
    own = layout.num_ranks * plan_update(layout).newton_schulz_flops
    return own / (own + step_flops)
