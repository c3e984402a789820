"""Layers that torch lacks, as modules, so that certificates meet them by type."""

# B batch · C channels · H height · W width

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iclr18cli.errors import UserError


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel (or per feature of a vector).

    The first layer of a network, so that attacks and certificates work on raw inputs. The constants come from the
    model's arguments, not from its weights file. As a linear map its operator norm is `(1 / std).max()`.

    Args:
        mean: One number per channel, or one for all, in the unit of the input.
        std: Likewise, each above 0.

    Shape:
        (B, C, *) to (B, C, *).

    Raises:
        ValueError: The lengths differ or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(f"mean and std must be equally long; received mean={mean!r}, std={std!r}")
        if not all(s > 0 for s in std):
            raise ValueError(f"std must be > 0; received std={std!r}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std."""
        along_channels = (-1, *(1,) * (x.dim() - 2))
        return (x - self.mean.view(along_channels)) / self.std.view(along_channels)

    def extra_repr(self) -> str:
        """Show the constants."""
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


class Residual(nn.Module):
    """Add what a block and its shortcut make of one input; the activation after the sum is the chain's next module.

    Args:
        block: Any module.
        shortcut: `nn.Identity`, or a module whose output has the block's shape.
    """

    def __init__(self, block: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.block, self.shortcut = block, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return block(x) + shortcut(x)."""
        return self.block(x) + self.shortcut(x)


class PadShortcut(nn.Module):
    """Take every `stride`-th pixel and append zero channels.

    He et al. (2016), shortcut option A. Linear, of operator norm at most 1.

    Args:
        stride: Step between the pixels kept.
        channels: Zero channels to append.
    """

    def __init__(self, stride: int, channels: int):
        super().__init__()
        self.stride, self.channels = stride, channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))

    def extra_repr(self) -> str:
        """Show the arguments."""
        return f"stride={self.stride}, channels={self.channels}"


class GroupSort(nn.Module):
    """Sort the channels of each group in descending order: (B, C, *) to (B, C, *).

    Anil, Lucas, Grosse (2019), section 4.1; groups of two are MaxMin. A sort permutes its inputs, so it is 1-Lipschitz
    in every norm, and where it is differentiable its Jacobian is a permutation: gradients keep their 2-norm, which ReLU
    does not offer. Not smooth where two channels of a group are equal.

    Args:
        size: Channels in a group, at least 2.

    Shape:
        (B, C, *) with C a multiple of `size`; channels that follow each other are one group.

    Raises:
        ValueError: `size` is below 2.

    Example:
        >>> GroupSort(2)(torch.tensor([[1.0, 2.0, 4.0, 3.0]])).tolist()
        [[2.0, 1.0, 4.0, 3.0]]
    """

    def __init__(self, size: int = 2):
        super().__init__()
        if size < 2:
            raise ValueError(f"size must be >= 2; received size={size!r}")
        self.size = size

    def check(self, channels: int) -> None:
        """Refuse a number of channels that cannot be grouped.

        Raises:
            UserError: It is no multiple of the group's size.
        """
        if channels % self.size:
            raise UserError(
                f"GroupSort in groups of {self.size} cannot follow a layer {channels} wide.",
                why=f"{channels} is no multiple of {self.size}",
                fix=f"use a width that is one, {(channels // self.size + 1) * self.size} for example",
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return every group sorted, the largest first."""
        self.check(x.shape[1])
        groups = x.unflatten(1, (-1, self.size))
        if self.size == 2:  # many times faster than a sort, and the same where no two are equal
            first, second = groups.unbind(2)
            return torch.stack([torch.maximum(first, second), torch.minimum(first, second)], 2).flatten(1, 2)
        return groups.sort(dim=2, descending=True).values.flatten(1, 2)

    def extra_repr(self) -> str:
        """Show the argument."""
        return f"size={self.size}"


def first_layer(
    input_shape: Sequence[int], mean: Sequence[float] | None, std: Sequence[float] | None
) -> list[nn.Module]:
    """Return [Normalize(mean, std)], or [] when neither is given.

    Raises:
        ValueError: Only one is given, or there is neither one number nor one per channel.
    """
    if mean is None and std is None:
        return []
    if mean is None or std is None:
        raise ValueError(f"mean and std go together; received mean={mean!r}, std={std!r}")
    if len(mean) not in (1, input_shape[0]):
        raise ValueError(f"mean must hold 1 or {input_shape[0]} numbers, one per channel; received mean={mean!r}")
    return [Normalize(mean, std)]
