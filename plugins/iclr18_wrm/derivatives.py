"""First and second derivatives of a loss in its input, one example at a time, many at once."""

# B batch · X the axes of one input · D coordinates of one input · J Lanczos vectors

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
"""x (B, X) -> one loss per example (B,), labels inside; the loss of an example may depend on that example alone."""


def per_example(value_B: Tensor, like_BX: Tensor) -> Tensor:
    """Shape one number per example so that it broadcasts over the inputs."""
    return value_B.reshape(-1, *[1] * (like_BX.ndim - 1))


def input_gradient(loss: Loss, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return (loss (B,), its gradient in the input (B, X)), detached; no parameter gradient is made or touched.

    The losses count as a sum, so an example's gradient does not depend on the size of the batch.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        loss_B = loss(z)
        # The gradient of the sum without the sum: two operations less in the innermost loop of all.
        (grad_BX,) = torch.autograd.grad(loss_B, z, torch.ones_like(loss_B))
    return loss_B.detach(), grad_BX


def hessian_top(loss: Loss, x: Tensor, *, iterations: int = 20, exact_up_to: int = 64, seed: int = 0) -> Tensor:
    """Return the largest eigenvalue of the Hessian of the loss in the input, per example (gamma's condition).

    Exact, column by column, for inputs of at most `exact_up_to` coordinates. Above that Lanczos with full
    re-orthogonalisation on Hessian-vector products: a *lower* bound that tightens with `iterations`, so a share of
    points above 2 gamma counted with it is a lower estimate. At kinks (ReLU) autograd's Hessian leaves them out.

    Args:
        loss: x -> (B,); twice differentiable by autograd.
        x: (B, X).
        iterations: Lanczos steps, each one double backward.
        exact_up_to: Largest number of coordinates with the exact Hessian.
        seed: Of the starting vector, which all examples share: the batch composition changes nothing.

    Returns:
        (B,) eigenvalues, signed: a loss that is concave in x has a negative one.

    Raises:
        ValueError: iterations < 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be >= 1; received iterations={iterations!r}")
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (grad_BX,) = torch.autograd.grad(loss(x).sum(), x, create_graph=True)

    def product(v_BD: Tensor) -> Tensor:
        if not grad_BX.requires_grad:  # affine in x
            return torch.zeros_like(v_BD)
        (hv_BX,) = torch.autograd.grad(grad_BX, x, v_BD.view_as(x), retain_graph=True, materialize_grads=True)
        return hv_BX.flatten(1)

    dimensions = x[0].numel()
    if dimensions <= exact_up_to:
        identity_DD = torch.eye(dimensions, dtype=x.dtype, device=x.device)
        hessian_BDD = torch.stack([product(row.expand(len(x), -1)) for row in identity_DD], dim=1)
        return torch.linalg.eigvalsh((hessian_BDD + hessian_BDD.mT) / 2)[:, -1]
    return _lanczos_top(product, x.detach().flatten(1), min(iterations, dimensions), seed)


def _lanczos_top(product: Callable[[Tensor], Tensor], like_BD: Tensor, iterations: int, seed: int) -> Tensor:
    """Return the top Ritz value per example after the given number of Hessian-vector products."""
    start_D = torch.randn(like_BD.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v_BD = (start_D / start_D.norm()).to(like_BD).expand_as(like_BD)
    basis_JBD, diagonal, off_diagonal = [v_BD], [], []
    scale_B = torch.zeros_like(like_BD[:, 0])
    for _ in range(iterations):
        w_BD = product(v_BD)
        diagonal.append((v_BD * w_BD).sum(1))
        for _ in range(2):  # Gram-Schmidt once is not enough in float32
            stacked_JBD = torch.stack(basis_JBD)
            w_BD = w_BD - torch.einsum("jb,jbd->bd", torch.einsum("jbd,bd->jb", stacked_JBD, w_BD), stacked_JBD)
        beta_B = w_BD.norm(dim=1)
        scale_B = torch.maximum(scale_B, diagonal[-1].abs() + beta_B)
        alive_B = beta_B > 10 * torch.finfo(beta_B.dtype).eps * scale_B
        # An exhausted Krylov space continues with zero vectors; their zero must not pass for an eigenvalue.
        v_BD = torch.where(alive_B[:, None], w_BD / beta_B[:, None], 0.0)
        off_diagonal.append(torch.where(alive_B, beta_B, 0.0))
        basis_JBD.append(v_BD)
    diagonal_BJ = torch.stack(diagonal, dim=1)
    exhausted_BJ = torch.stack([(v == 0).all(1) for v in basis_JBD[:-1]], dim=1)
    # The first Rayleigh quotient never exceeds the top Ritz value, so it is a neutral filling.
    diagonal_BJ = torch.where(exhausted_BJ, diagonal_BJ[:, :1], diagonal_BJ)
    off_BJ = torch.stack(off_diagonal[:-1], dim=1) if iterations > 1 else diagonal_BJ[:, :0]
    tridiagonal = torch.diag_embed(diagonal_BJ) + torch.diag_embed(off_BJ, 1) + torch.diag_embed(off_BJ, -1)
    return torch.linalg.eigvalsh(tridiagonal)[:, -1]
