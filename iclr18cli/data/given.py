"""Tensors that a Python caller gives, as a split."""

# N points · B batch

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.modes import device_of

INSPECTED = 128
"""Points a model is tried on before it is measured."""


def split_of(
    model: nn.Module, x: Tensor, y: Tensor, input_range: tuple[float, float] | None, *, classes: int | None = None
) -> Split:
    """Return inputs and labels as a split named "tensors", on the model's device.

    Args:
        model: Says on which device; anything else about it is not looked at.
        x: (N, *shape), floating or uint8 (images, which become x / 255).
        y: (N,) whole numbers.
        input_range: (low, high) that x lies in; None: all of R^d.
        classes: Number of classes; None: those up to the largest label.

    Raises:
        UserError: Shapes, types or values do not fit, or x leaves the range.

    Example:
        >>> split_of(nn.Identity(), torch.zeros(2, 3), torch.tensor([0, 1]), (0.0, 1.0)).shape
        (3,)
    """
    x, y = torch.as_tensor(x).detach(), torch.as_tensor(y).detach()
    if x.dim() < 2 or y.shape != x.shape[:1] or not len(x):
        raise UserError(
            "x must be (N, *shape) with at least one point, and y (N,) with a label for each.",
            why=f"received x {tuple(x.shape)} and y {tuple(y.shape)}",
            fix="give labels as class numbers, not one-hot" if y.dim() == 2 else "give as many labels as inputs",
        )
    if y.is_floating_point() or y.is_complex() or int(y.min()) < 0:
        raise UserError(
            "y must hold class numbers from 0.",
            why=f"received {y.dtype} from {y.min().item()} to {y.max().item()}".replace("torch.", ""),
            fix="y.long(), counted from 0",
        )
    if x.dtype == torch.uint8:
        if input_range != (0.0, 1.0):
            raise UserError(
                "uint8 images are divided by 255, so they lie in [0, 1].",
                why=f"input_range is {input_range}",
                fix="leave input_range at (0, 1), or give floating-point inputs",
            )
    elif not x.is_floating_point():
        raise UserError(f"x is {x.dtype}; inputs are floating-point numbers.".replace("torch.", ""), fix="x.float()")
    else:
        x = x.to(torch.float32)
        low, high = (float(v) for v in x.aminmax())
        if not (low > -torch.inf and high < torch.inf):
            raise UserError("The inputs hold NaN or infinite values.", fix="remove them")
        if input_range is not None and not (input_range[0] <= low and high <= input_range[1]):
            raise UserError(
                f"The inputs reach from {low:.6g} to {high:.6g}, outside input_range "
                f"({input_range[0]:g}, {input_range[1]:g}).",
                why="eps and the range are in the units of x, and normalisation belongs into the model",
                fix="give raw inputs and put iclr18cli.models.layers.Normalize(mean, std) first in the model; or "
                "input_range=None",
            )
    device = device_of(model, x.device)
    names = tuple(str(label) for label in range(max(classes or 0, int(y.max()) + 1)))
    return Split(x.to(device), y.to(device, torch.int64), names, "tensors", "test", input_range)


def given(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    input_range: tuple[float, float] | None,
    *,
    classes: int | None = None,
    look: bool = True,
) -> tuple[Split, tuple[str, ...]]:
    """Return inputs and labels as a split, and what a look at the model on some of them found, a sentence each.

    Args:
        model, x, y, input_range, classes: See `split_of`.
        look: Whether to look.

    Raises:
        UserError: As `split_of` and `iclr18cli.models.inspection.inspect`.
    """
    from iclr18cli.models.inspection import inspect

    if not isinstance(model, nn.Module):
        inspect(model, x, y)  # says what it is instead
    split = split_of(model, x, y, input_range, classes=classes)
    if not look:
        return split, ()
    few = spread(split)
    found = inspect(model, few.inputs(), few.y, classes)
    return split, (*found.notes, *found.warnings)


def spread(split: Split) -> Split:
    """Return up to `INSPECTED` points from all over a split: of sorted data the first would be of one class only."""
    return split.take(torch.linspace(0, len(split) - 1, min(INSPECTED, len(split))).long())
