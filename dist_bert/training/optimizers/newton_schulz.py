"""The nearest orthogonal matrix, nearly: Newton-Schulz iterations as in Muon.

Keller Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/: a quintic whose
coefficients raise small singular values fast and leave all of them near 1 instead of at it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the quintic a x + b x^3 + c x^5
_EPS = 1e-7  # added to the norm; a matrix of zeros stays one
_MOST_ELEMENTS = 1 << 25  # of the matrices that are done together: their copies take memory


def orthogonalized(matrices: Sequence[Tensor], num_steps: int) -> list[Tensor]:
    """Replaces the singular values of matrices by values near 1; equal shapes are done together.

    In bf16 on a GPU, whose products it is made of; else in the matrices' type.

    Args:
        matrices: (rows, columns) each, float32; stay as they are.
        num_steps: number of iterations; after 5, singular values above about 0.001 of the norm
            are between 0.68 and 1.13.

    Returns:
        (rows, columns) each, float32.
    """
    found: list[Tensor] = list(matrices)
    by_shape: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(place)
    for (rows, columns), places in by_shape.items():
        size = max(1, _MOST_ELEMENTS // (rows * columns))
        for begin in range(0, len(places), size):
            together = places[begin : begin + size]
            stack = torch.stack([matrices[place] for place in together])
            results = _iterated(stack if rows <= columns else stack.mT, num_steps)
            results = results if rows <= columns else results.mT
            for place, result in zip(together, results.to(stack.dtype).unbind(), strict=True):
                found[place] = result
    return found


def _iterated(wide: Tensor, num_steps: int) -> Tensor:
    """Of (matrices, rows, columns) with no more rows than columns: the smaller Gram matrices."""
    x = wide.bfloat16() if wide.is_cuda else wide
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + _EPS)
    for _ in range(num_steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        x = torch.baddbmm(x, polynomial, x, beta=_A)
    return x


def update_scale(shape: torch.Size | tuple[int, int]) -> float:
    """What an orthogonal update is multiplied by to have the size of AdamW's.

    0.2 sqrt(max(rows, columns)): its root mean square then is 0.2, about AdamW's, so that AdamW's
    learning rate and weight decay fit (Liu et al. 2025, "Muon is Scalable for LLM Training",
    section 2.2, https://arxiv.org/abs/2502.16982).
    """
    return 0.2 * float(max(shape)) ** 0.5
