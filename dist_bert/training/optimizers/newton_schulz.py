"""The nearest orthogonal matrix, nearly: Newton-Schulz iterations as in Muon.

Keller Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/: a quintic whose
coefficients raise small singular values fast and leave all of them near 1 instead of at it.
"""

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the quintic a x + b x^3 + c x^5
_EPS = 1e-7  # added to the norm; a matrix of zeros stays one


def orthogonalized(matrix: Tensor, num_steps: int) -> Tensor:
    """Replaces the singular values of a matrix by values near 1.

    In bf16 on a GPU, whose products it is made of; else in the matrix's type.

    Args:
        matrix: (rows, columns), float32; stays as it is.
        num_steps: number of iterations; after 5, singular values above about 0.001 of the norm
            are between 0.68 and 1.13.

    Returns:
        (rows, columns), float32.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT  # the smaller Gram matrix
    x = wide.bfloat16() if matrix.is_cuda else wide
    x = x / (x.norm() + _EPS)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    found = x if wide is matrix else x.mT
    return found.to(matrix.dtype)


def update_scale(shape: torch.Size | tuple[int, int]) -> float:
    """What an orthogonal update is multiplied by to have the size of AdamW's.

    0.2 sqrt(max(rows, columns)): its root mean square then is 0.2, about AdamW's, so that AdamW's
    learning rate and weight decay fit (Liu et al. 2025, "Muon is Scalable for LLM Training",
    section 2.2, https://arxiv.org/abs/2502.16982).
    """
    return 0.2 * float(max(shape)) ** 0.5
