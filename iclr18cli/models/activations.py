"""The activations a network can be given by name, each as a module, so that certificates can walk the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from iclr18cli.errors import UsageError, did_you_mean
from iclr18cli.models.layers import GroupSort

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "relu": nn.ReLU,
        "leaky-relu": nn.LeakyReLU,  # slope 0.01 below zero
        "elu": nn.ELU,  # alpha = 1: the only value with a continuous derivative
        # Above its threshold nn.Softplus returns x itself. At the default of 20 that is a jump of 2e-9, visible in
        # float64 and outside every smoothness bound; at 40 it is below rounding.
        "softplus": lambda: nn.Softplus(threshold=40.0),
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "silu": nn.SiLU,
        "gelu": nn.GELU,
        "maxmin": lambda: GroupSort(2),  # even widths only
        "groupsort": lambda: GroupSort(4),  # widths that are multiples of 4
    }
)


def activation(name: str) -> nn.Module:
    """Return a new activation module by name.

    Args:
        name: relu, leaky-relu, elu, softplus, tanh, sigmoid, silu, gelu, maxmin or groupsort. All but the first two
            and the last two have a Lipschitz continuous derivative, which sound WRM certificates need. The last two
            sort channels in groups of 2 and of 4 and keep gradients at their length, for tight Lipschitz bounds.

    Returns:
        A module without parameters that is not in place; all but the last two work element by element.

    Raises:
        UsageError: `name` is none of these.

    Example:
        >>> activation("elu")
        ELU(alpha=1.0)
    """
    if name not in ACTIVATIONS:
        raise UsageError(
            f"There is no activation {name!r}.",
            why=f"known: {', '.join(ACTIVATIONS)}",
            fix=did_you_mean(str(name), ACTIVATIONS),
        )
    return ACTIVATIONS[name]()
