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

from iclr18cli.certify.infinity_norms import infinity_norm
from iclr18cli.certify.norms import Norm, double, matrix_norm, operator_norm
from iclr18cli.certify.slopes import plain, slopes
from iclr18cli.errors import UserError
from iclr18cli.models.layers import GroupSort, Residual

Loss = Literal["cross-entropy", "error-probability"]
InputNorm = Literal["l2", "linf"]
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
    """What is known of the part of the network already walked: (K, L) and the shape of its output.

    With the norm linf only K means something: it bounds the map from and to infinity-norms.
    """

    shape: Shape
    memory: int = 2**31
    norm: InputNorm = "l2"
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
        model: Nested Sequentials of affine layers (see `operator_norm`), activations (see `slopes`), GroupSort,
            MaxPool2d and Residual; treated as in evaluation mode, parameters untouched.
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
    walk = _Walk(tuple(input_shape), memory)
    with torch.no_grad():
        _visit(model, "", walk, last=True)
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


@dataclass(frozen=True)
class Chain:
    """A chain of modules: (constant, output shape) of its first 0, 1, 2, ... modules, and the norms of its layers."""

    after: list[tuple[float, Shape]]
    norms: list[tuple[str, Norm]]

    @property
    def constant(self) -> float:
        """Return the Lipschitz constant of the whole chain."""
        return self.after[-1][0]

    @property
    def shape(self) -> Shape:
        """Return the shape of the chain's output, without the batch."""
        return self.after[-1][1]


def chain_constant(
    modules: Sequence[tuple[str, nn.Module]],
    input_shape: Sequence[int],
    *,
    norm: InputNorm = "l2",
    memory: int = 2**31,
) -> Chain:
    """Bound |f(x) - f(x')| / |x - x'| for a chain of modules, both measured in the 2-norm or both in the infinity-norm.

    Args:
        modules: (path, module) in order; the kinds that `smoothness` can walk. Empty: the identity, K = 1.
        input_shape: Shape of one input, without the batch.
        norm: "l2" or "linf".
        memory: Bytes the matrices of one layer may take.

    Raises:
        UserError: A module has no known constant.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> [round(chain_constant([("0", layer)], (2,), norm=norm).constant, 9) for norm in ("l2", "linf")]
        [5.0, 7.0]
    """
    walk = _Walk(tuple(input_shape), memory, norm)
    after = [(walk.K, walk.shape)]
    with torch.no_grad():
        for path, module in modules:
            _visit(module, path, walk)
            after.append((walk.K, walk.shape))
    return Chain(after, walk.norms)


def layers_of(module: nn.Module, path: str = "") -> list[tuple[str, nn.Module]]:
    """Return (path, module) of a network in order, nested Sequentials opened."""
    if not (isinstance(module, nn.Sequential) and plain(module, (nn.Sequential,))):
        return [(path, module)]
    # Not named_children(): that leaves out a module that comes twice.
    children = [(name, child) for name, child in module._modules.items() if child is not None]
    return [found for name, child in children for found in layers_of(child, f"{path}.{name}" if path else name)]


def _visit(module: nn.Module, path: str, walk: _Walk, *, last: bool = False) -> None:
    """Walk one module; `last` while nothing comes after it."""
    if isinstance(module, nn.Sequential) and plain(module, (nn.Sequential,)):
        children = layers_of(module, path)
        for position, (inner, child) in enumerate(children):
            _visit(child, inner, walk, last=last and position == len(children) - 1)
        return
    if isinstance(module, Residual) and plain(module, (Residual,)):
        _add(module, path, walk)
        return
    if isinstance(module, nn.MaxPool2d) and plain(module, (nn.MaxPool2d,)):
        _max_pool(module, walk)
        return
    if isinstance(module, GroupSort) and plain(module, (GroupSort,)):
        module.check(walk.shape[0])
        walk.kinks.append("GroupSort is not differentiable where two channels of a group are equal")
        walk.compose(1.0, 0.0)
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
    bound = operator_norm if walk.norm == "l2" else infinity_norm
    try:
        norm = bound(module, walk.shape, memory=walk.memory)
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


def _add(module: Residual, path: str, walk: _Walk) -> None:
    """Walk both branches from the same input: (K_f + K_g, L_f + L_g)."""
    branches = []
    for name, branch in (("block", module.block), ("shortcut", module.shortcut)):
        inner = _Walk(walk.shape, walk.memory, walk.norm, norms=walk.norms, kinks=walk.kinks)
        _visit(branch, f"{path}.{name}", inner)
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
    overlap = math.prod(multiplicity(size, stride, dilation, walk.shape[1:])) if walk.norm == "l2" else 1
    walk.compose(math.sqrt(overlap), 0.0)
