"""Largest singular values from Gram matrices, from above, with the rounding of float64 included."""

# n side of a Gram matrix

from __future__ import annotations

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps

EXACT_SIDE = 4096
"""Largest Gram matrix whose eigenvalues are computed for one layer (about five seconds on one core)."""


def double(tensor: Tensor) -> Tensor:
    """Return a detached float64 copy, on the CPU where the device has no float64."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def top_root(gram: Tensor, *, terms: int) -> float:
    """Return an upper bound of the root of the largest eigenvalue of a computed Gram matrix W W^T.

    Rounding moves a computed Gram matrix by at most about `terms` eps |W|_F^2 in norm, and the eigenvalue routine is
    backward stable; |W|_F^2 is the trace. Eight times both is added.

    Args:
        gram: (n, n) or a stack of them, float64 or complex128, symmetric up to rounding.
        terms: Longest sum that made one of its entries.
    """
    trace = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    top = torch.linalg.eigvalsh(gram)[..., -1]
    slack = 8 * EPS * (terms + gram.shape[-1]) * trace
    return float((top.clamp(min=0) + slack).amax().sqrt()) * (1 + 4 * EPS)


def matrix_norm(matrix: Tensor) -> float:
    """Return an upper bound of the largest singular value of a float64 matrix (or of the largest of a stack).

    Example:
        >>> round(matrix_norm(torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)), 9)
        2.0
    """
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    return top_root(wide @ wide.mH, terms=wide.shape[-1])


def gram_iteration(matrix: Tensor, *, steps: int) -> float:
    """Return |(W^T W)^(2^(t-1))|_F^(1/2^t) for t = `steps`: from above for every t, and falling towards |W|_2.

    Delattre et al. (2023), Gram iteration; wrm card section 5. Each power is divided by its Frobenius norm, so nothing
    overflows, and the rounding of each product is added on the way back.

    Args:
        matrix: (rows, columns) float64.
        steps: t >= 1; t = 1 is the root of |W^T W|_F.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1; received steps={steps!r}")
    return float(gram_bound(matrix, steps=steps))


def gram_bound(matrix: Tensor, *, steps: int) -> Tensor:
    """Return `gram_iteration` as a 0-dim tensor without waiting for the device; of a stack of matrices the largest."""
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    size = torch.linalg.matrix_norm(wide).clamp(min=torch.finfo(torch.float64).tiny)
    power = wide / size[..., None, None]
    n, terms, scales = wide.shape[-2], wide.shape[-1], []
    for step in range(steps):
        power = power @ power.mH if step == 0 else power @ power
        scale = torch.linalg.matrix_norm(power).clamp(min=torch.finfo(torch.float64).tiny)
        scales.append(scale)
        power = power / scale[..., None, None]
    bound = torch.ones_like(size)
    for step, scale in reversed(list(enumerate(scales))):
        # |A_i|_2 <= |A_i^2|_2^(1/2) and the computed square is off by at most terms eps |A_i|_F^2, with |A_i|_F = 1.
        bound = (bound * scale + 4 * EPS * (terms if step == 0 else n)).sqrt()
    return (bound * size * (1 + 16 * EPS * (terms + n))).amax()
