"""Lipschitz constants K of a network's loss in its input, and L of that loss's gradient, from the layers' norms.

A map f has (K, L) where K bounds |Df| and L bounds |D^2 f[u, u]| over unit u, everywhere. Then g after f has
(K_g K_f, L_g K_f^2 + K_g L_f) and f + g has the sums. For a chain of layers and activations this recursion is the
formula of the wrm card, section 5. L is None where the map is not smooth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from iclr18cli.certify.norms import Norm, double, matrix_norm, operator_norm
from iclr18cli.certify.slopes import plain, slopes
from iclr18cli.errors import UserError
from iclr18cli.models.layers import Residual

Loss = Literal["cross-entropy", "error-probability"]
Shape = tuple[int, ...]

HEADS: dict[str, tuple[float, float]] = {
    "cross-entropy": (math.sqrt(2), 1 / 2),
    "error-probability": (math.sqrt(2) / 4, 1 / (3 * math.sqrt(3))),
}
"""Bounds of gradient and Hessian of the loss in the logits, for any number of classes.

Cross-entropy: |p - e_y| <= sqrt 2, |diag p - p p^T| <= 1/2. Error probability 1 - p_y with q = p_y: the gradient is
q |e_y - p| <= sqrt 2 q (1 - q) <= sqrt 2 / 4. In the Hessian, row y has the absolute sum 2 q (1 - q) |1 - 2 q|, and
every other row at most that maximum, so Gershgorin gives max 2 q (1 - q) |1 - 2 q| = 1/(3 sqrt 3) = 0.1925, which two
classes attain. (The certification card states 8/27, which is looser.)
"""

OUTWARD = 1 + 1e-12


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    """Constants that hold on all of R^d, as upper bounds.

    Args:
        K: Lipschitz constant of the loss in the input, 2-norm.
        L: Lipschitz constant of the loss's gradient; infinite where `smooth` is false.
        K_logits, L_logits: The same of the logits, up to a constant added to all of them, which no loss here sees.
        norms: (path, bound) of every affine layer, in order.
        smooth: Whether the loss is continuously differentiable with a finite L.
        reason: Why it is not; empty where it is.
    """

    K: float
    L: float
    K_logits: float
    L_logits: float
    norms: list[tuple[str, Norm]] = field(default_factory=list)
    smooth: bool = True
    reason: str = ""


@dataclass
class _Walk:
    """What is known of the part of the network already walked: (K, L) and the shape of its output."""

    shape: Shape
    K: float = 1.0
    L: float = 0.0
    norms: list[tuple[str, Norm]] = field(default_factory=list)
    kinks: list[str] = field(default_factory=list)

    def compose(self, K: float, L: float) -> None:
        """Put a map with (K, L) after the part walked."""
        self.K, self.L = K * self.K * OUTWARD, (L * self.K**2 + K * self.L) * OUTWARD


def smoothness(
    model: nn.Module, input_shape: Sequence[int], *, loss: Loss = "cross-entropy", memory: int = 2**31
) -> Smoothness:
    """Bound how fast a network's loss and its gradient change with the input; wrm card, section 5.

    Both losses stay the same when a constant is added to all logits, so a dense last layer counts with the mean of its
    rows taken off; for two classes that makes logistic regression exact, L = |w|^2 / 4.

    Args:
        model: Nested Sequentials of affine layers (see `operator_norm`), activations (see `slopes`), MaxPool2d and
            Residual; treated as in evaluation mode, parameters untouched.
        input_shape: Shape of one input, without the batch.
        loss: "cross-entropy" in nats or "error-probability", 1 - p_y.
        memory: Bytes the matrices of one layer may take.

    Raises:
        UserError: A layer has no known constants (attention, recurrence, other normalisation).
        ValueError: Unknown loss.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> round(smoothness(net, (2,)).L, 9)    # |w_1 - w_2|^2 / 4
        6.25
    """
    if loss not in HEADS:
        raise ValueError(f"loss must be one of {', '.join(HEADS)}; received loss={loss!r}")
    walk = _Walk(tuple(input_shape))
    with torch.no_grad():
        _visit(model, "", walk, memory, last=True)
    slope, curvature = HEADS[loss]
    K_logits, L_logits = walk.K, walk.L
    walk.compose(slope, curvature)
    smooth = not walk.kinks
    return Smoothness(
        K=walk.K,
        L=walk.L if smooth else math.inf,
        K_logits=K_logits,
        L_logits=L_logits if smooth else math.inf,
        norms=walk.norms,
        smooth=smooth,
        reason="; ".join(dict.fromkeys(walk.kinks)),
    )


def _visit(module: nn.Module, path: str, walk: _Walk, memory: int, *, last: bool = False) -> None:
    """Walk one module; `last` while nothing comes after it."""
    if isinstance(module, nn.Sequential) and plain(module, (nn.Sequential,)):
        children = list(module.named_children())
        for position, (name, child) in enumerate(children):
            inner = f"{path}.{name}" if path else name
            _visit(child, inner, walk, memory, last=last and position == len(children) - 1)
        return
    if isinstance(module, Residual) and plain(module, (Residual,)):
        _add(module, path, walk, memory)
        return
    if isinstance(module, nn.MaxPool2d) and plain(module, (nn.MaxPool2d,)):
        _max_pool(module, walk)
        return
    constants = slopes(module)
    if constants is not None:
        slope, curvature, kink = constants
        if math.isinf(slope):
            raise UserError(
                f"No Lipschitz constant is known for layer '{path}': {kink}.", fix="use the default threshold"
            )
        if curvature is None:
            walk.kinks.append(kink)
        walk.compose(slope, curvature or 0.0)
        return
    try:
        norm = operator_norm(module, walk.shape, memory=memory)
    except UserError as error:
        raise UserError(
            f"No Lipschitz constant is known for layer '{path or type(module).__name__}' ({type(module).__name__}).",
            why=" ".join(part for part in (error.what, error.why) if part),
            fix=error.fix or "certify by a method that needs no layer norms",
        ) from error
    if last and isinstance(module, nn.Linear):
        weight = double(module.weight)
        norm = Norm(matrix_norm(weight - weight.mean(0)), "exact, centred", norm.output_shape)
    walk.norms.append((path or type(module).__name__, norm))
    walk.shape = norm.output_shape
    walk.compose(norm.value, 0.0)


def _add(module: Residual, path: str, walk: _Walk, memory: int) -> None:
    """Walk both branches from the same input: (K_f + K_g, L_f + L_g)."""
    branches = []
    for name, branch in (("block", module.block), ("shortcut", module.shortcut)):
        inner = _Walk(walk.shape, norms=walk.norms, kinks=walk.kinks)
        _visit(branch, f"{path}.{name}", inner, memory)
        branches.append(inner)
    walk.shape = branches[0].shape
    walk.compose(sum(b.K for b in branches), sum(b.L for b in branches))


def _max_pool(module: nn.MaxPool2d, walk: _Walk) -> None:
    """A maximum over a window is 1-Lipschitz in it; a pixel lies in several windows where they overlap."""
    from iclr18cli.certify.convolution import multiplicity

    size, stride, dilation = (
        (value, value) if isinstance(value, int) else tuple(value)
        for value in (module.kernel_size, module.stride, module.dilation)
    )
    walk.shape = tuple(module(torch.empty(1, *walk.shape, device="meta")).shape[1:])
    walk.kinks.append("MaxPool2d is not differentiable where two pixels of a window are equal")
    walk.compose(math.sqrt(math.prod(multiplicity(size, stride, dilation, walk.shape[1:]))), 0.0)
