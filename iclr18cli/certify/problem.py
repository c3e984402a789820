"""A model, its losses and the points, in the form a certificate works on."""

# N points · B batch · X the axes of one input · K classes

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.attack.memory import batch_size_for
from iclr18cli.certify.dual import Box, Loss
from iclr18cli.certify.shared_points import agreed, slices
from iclr18cli.certify.slopes import SOFTPLUS_THRESHOLD
from iclr18cli.certify.smoothness import Loss as LossName
from iclr18cli.certify.smoothness import Smoothness
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.modes import device_of


@dataclass(frozen=True)
class Problem:
    """A loss, its constants and the points to certify.

    Args:
        loss: In the type of x; the ascent uses it.
        exact_loss: The same for float64 points; every number that enters a bound comes from it.
        x, y: (N, X) and (N,).
        K, L: Upper bounds of the Lipschitz constants of the loss and of its gradient; L infinite: only S0 applies.
        box: (low, high) of the domain, or None.
        bound: Largest value of the loss, or None.
        batch_size: Points per evaluation.
    """

    loss: Loss
    exact_loss: Loss
    x: Tensor
    y: Tensor
    K: float
    L: float
    box: Box = None
    bound: float | None = None
    batch_size: int = 1024

    def batches(self) -> list[slice]:
        """Return slices over the points, in order."""
        return slices(len(self.x), self.batch_size)

    def take(self, index: Tensor) -> Problem:
        """Return the same problem on some of the points."""
        return replace(self, x=self.x[index], y=self.y[index])


def per_example_loss(model: nn.Module, loss: LossName) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (x, y) -> (B,) for a loss by name: cross-entropy in nats, or error-probability 1 - p_y.

    Raises:
        ValueError: Unknown loss.
    """
    if loss == "cross-entropy":
        return lambda x, y: F.cross_entropy(model(x), y, reduction="none")
    if loss == "error-probability":
        # 1 - p_y as the sum of the other probabilities keeps its digits where it is tiny.
        return lambda x, y: model(x).softmax(1).scatter(1, y[:, None], 0.0).sum(1)
    raise ValueError(f"loss must be 'cross-entropy' or 'error-probability'; received loss={loss!r}")


def exact_copy(model: nn.Module) -> nn.Module:
    """Return a float64 copy in evaluation mode without parameter gradients, with softplus free of its jump.

    A softplus whose jump is larger than rounding keeps it, so that it is refused where bounds are wanted. No activation
    of the copy works in place: a bound may need what went in.
    """
    double = copy.deepcopy(model).double().eval().requires_grad_(False)
    for module in double.modules():
        if isinstance(module, nn.Softplus) and module.threshold >= SOFTPLUS_THRESHOLD:
            module.threshold = max(module.threshold, 40.0)
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - not every module declares it
    return double


def check_labels(split: Split, classes: int, *, least: int = 1) -> None:
    """Refuse labels that are no classes of the model.

    Args:
        least: Classes that the model must have.

    Raises:
        UserError: The smallest or the largest label is outside 0 .. classes - 1, or there are too few classes.
    """
    low, high = int(split.y.min()), int(split.y.max())
    if classes < least or low < 0 or high >= classes:
        raise UserError(
            f"The labels of '{split.name}' do not fit the model's {classes} classes.",
            why=f"labels range from {low} to {high}",
            fix="certify on the data set the model was trained for",
        )


def problem_of(
    model: nn.Module,
    split: Split,
    *,
    loss: LossName,
    constants: Smoothness,
    box: Box = None,
    batch_size: int = 0,
) -> Problem:
    """Put a model and a split into the form the ladder works on; hold the model in `evaluating` meanwhile.

    Raises:
        UserError: Points lie outside the box, or labels outside the model's classes.
    """
    device = device_of(model, torch.device("cpu"))
    if device.type == "mps":  # no float64 there
        model, device = copy.deepcopy(model).cpu(), torch.device("cpu")
    x, y, double = split.inputs().to(device), split.y.to(device), exact_copy(model)
    if box is not None and not (float(x.min()) >= box[0] and float(x.max()) <= box[1]):
        raise UserError(
            f"Points lie outside the domain [{box[0]:g}, {box[1]:g}].",
            why=f"the inputs of '{split.name}' range from {float(x.min()):.6g} to {float(x.max()):.6g}",
            fix="certify without a box, or rescale the data",
        )
    with torch.no_grad():
        classes = double(x[:1].double()).shape[-1]
    check_labels(split, classes)
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    own = per_example_loss(model, loss)
    return Problem(
        lambda points, labels: own(points.to(kind), labels).to(points.dtype),
        per_example_loss(double, loss),
        x,
        y,
        constants.K,
        constants.L,
        box,
        1.0 if loss == "error-probability" else None,
        agreed(batch_size or batch_size_for(double, x[: min(8, len(x))].double())),
    )
