"""Where a model lives, and how it is put into a mode for a while and given back exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Return the device of a model's first parameter or buffer; `default` where it has neither."""
    return next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), default)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Hold a model in evaluation mode with frozen parameters inside the block, then restore it.

    An ascent on the input needs no gradient of any parameter: freezing them saves that work in the backward pass and
    leaves every `.grad` as it was. Evaluation mode makes each example's loss depend on that example alone (batch
    normalisation, dropout). Both flags are restored one by one, also after an exception: a model may well be half in
    training mode and half frozen.

    Args:
        module: Any model.

    Yields:
        The same module.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
        >>> with evaluating(net):
        ...     net[1].training, net[0].weight.requires_grad
        (False, False)
        >>> net[1].training, net[0].weight.requires_grad
        (True, True)
    """
    modes = [(part, part.training) for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield module
    finally:
        # The attribute, not .train(mode): that one recurses and would overwrite the flags of the submodules.
        for part, training in modes:
            part.training = training
        for parameter, required in flags:
            parameter.requires_grad_(required)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Keep parameters out of the backward pass inside the block; modes, and so dropout, stay as they are."""
    flags = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in flags:
            parameter.requires_grad_(required)
