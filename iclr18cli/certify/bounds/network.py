"""A network as a chain of steps that bounds can walk: affine layers, activations, max-pooling and residual sums."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from iclr18cli.certify.slopes import SOFTPLUS_THRESHOLD, plain
from iclr18cli.errors import UserError
from iclr18cli.models.layers import Normalize, PadShortcut, Residual

AFFINE = (
    nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.Identity,
    nn.Dropout, nn.Dropout2d, Normalize, PadShortcut,
)  # fmt: skip
"""Layers that are affine in evaluation mode."""

MONOTONE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Tanh, nn.Sigmoid)
"""Activations that rise, so that an interval goes to the interval of its ends."""


@dataclass(frozen=True)
class Step:
    """One step of a chain: `kind` is affine, activation, pool or sum; a sum has the chains of its two branches."""

    kind: str
    path: str
    layer: nn.Module
    branches: tuple[list[Step], list[Step]] | None = None


def chain(model: nn.Module, path: str = "") -> list[Step]:
    """Return the steps of a network, nested Sequentials laid out flat.

    Raises:
        UserError: A layer has no known bounds (attention, recurrence, a forward of its own, hooks).
    """
    if isinstance(model, nn.Sequential) and plain(model, (nn.Sequential,)):
        # Not named_children(): that leaves out a module that comes twice.
        children = [(name, child) for name, child in model._modules.items() if child is not None]
        return [step for name, child in children for step in chain(child, f"{path}.{name}" if path else name)]
    if isinstance(model, Residual) and plain(model, (Residual,)):
        for branch in (model.block, model.shortcut):
            first = next(iter(branch.modules() if not isinstance(branch, nn.Sequential) else branch), None)
            if getattr(first, "inplace", False):
                raise UserError(
                    f"Layer '{path}' changes its input in place before the other branch reads it.", fix="inplace=False"
                )
        branches = (chain(model.block, f"{path}.block"), chain(model.shortcut, f"{path}.shortcut"))
        return [Step("sum", path, model, branches)]
    for kind, known in (("affine", AFFINE), ("activation", MONOTONE), ("pool", (nn.MaxPool2d,))):
        if plain(model, known):
            _check(model, path)
            return [Step(kind, path, model)]
    names = ", ".join(dict.fromkeys(c.__name__ for c in (*AFFINE, *MONOTONE, nn.MaxPool2d, Residual)))
    raise UserError(
        f"No bounds are known for layer '{path or type(model).__name__}' ({type(model).__name__}).",
        why=f"known: {names}, in nested Sequentials, each with its own forward and without hooks",
        fix="build the network from these layers, or certify it by smoothing",
    )


def _check(layer: nn.Module, path: str) -> None:
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_var is None:
        raise UserError(
            f"Layer '{path}' mixes the examples of a batch, so it has no bounds for one.",
            why=f"{type(layer).__name__} with track_running_stats=False",
            fix="train with running statistics",
        )
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        raise UserError(
            f"No bounds are known for layer '{path}': padding_mode={layer.padding_mode!r}.", fix="padding_mode='zeros'"
        )
    if isinstance(layer, nn.Softplus) and layer.threshold < SOFTPLUS_THRESHOLD:
        raise UserError(
            f"Layer '{path}' jumps at its threshold of {layer.threshold:g}: no bounds are known.",
            fix="Softplus with the default threshold",
        )
    if isinstance(layer, nn.ELU) and layer.alpha <= 0:
        raise UserError(f"Layer '{path}' does not rise: ELU with alpha = {layer.alpha:g}.", fix="alpha > 0")
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope < 0:
        raise UserError(f"Layer '{path}' does not rise: a negative slope below 0.", fix="negative_slope >= 0")
