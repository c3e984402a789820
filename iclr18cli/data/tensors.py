"""Labelled data held once in memory, and the order it is visited in.

N examples · B batch · d features of one input
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError

Index = Tensor | slice | list[int]


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a labelled set, stored as it came: images stay uint8 until a batch is asked for.

    Args:
        x: (N, *shape), uint8 (images, channels first) or float32.
        y: (N,) int64, in 0 .. len(classes) - 1.
        classes: Names of the classes, in the order of the labels.
        name: The reference as the user wrote it, "mnist" or "npz:/x/y.npz".
        split: "train" or "test".
        range: (low, high) that `inputs()` lies in; None: all of R^d.

    Raises:
        UserError: The split is empty.
        ValueError, TypeError: Shapes or types do not fit together.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    range: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.x.dtype not in (torch.uint8, torch.float32):
            raise TypeError(f"x must be uint8 or float32; received {self.x.dtype}")
        if self.y.dtype != torch.int64:
            raise TypeError(f"y must be int64; received {self.y.dtype}")
        if self.x.dim() < 2 or self.y.dim() != 1 or len(self.x) != len(self.y):
            raise ValueError(
                f"x must be (N, *shape) and y (N,); received {tuple(self.x.shape)} and {tuple(self.y.shape)}"
            )
        if self.x.dtype == torch.uint8 and self.range != (0.0, 1.0):
            raise ValueError(f"uint8 inputs have the range (0, 1); received {self.range}")
        if len(self.x) == 0:
            raise UserError(
                f"The {self.split} split of '{self.name}' is empty.", fix="Give it at least one example per class."
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one input, without the batch."""
        return tuple(self.x.shape[1:])

    def inputs(self, index: Index | None = None) -> Tensor:
        """Return inputs as a model takes them: float32 in `range`, on the device of `x`.

        Args:
            index: Which examples, in this order; None: all. With float32 storage and None or a slice the result is a
                view of the storage: do not write into it.

        Returns:
            (B, *shape) float32; uint8 is divided by 255.
        """
        x_BX = self.x if index is None else self.x[index]
        return x_BX.to(torch.float32).div_(255) if x_BX.dtype == torch.uint8 else x_BX

    def take(self, which: int | Tensor) -> Split:
        """Return the first `which` examples (all, if there are fewer), or those at an index tensor, in its order.

        Raises:
            ValueError: The count is below 1.
        """
        if isinstance(which, int):
            if which < 1:
                raise ValueError(f"the number of examples must be >= 1; received {which}")
            if which >= len(self):
                return self
            return dataclasses.replace(self, x=self.x[:which], y=self.y[:which])
        index = which.to(self.x.device)
        return dataclasses.replace(self, x=self.x[index], y=self.y[index])

    def to(self, device: torch.device | str) -> Split:
        """Return the split with its storage on `device`; uint8 crosses as uint8, a quarter of the bytes."""
        x, y = self.x.to(device), self.y.to(device)
        return self if x is self.x and y is self.y else dataclasses.replace(self, x=x, y=y)

    def digest(self) -> str:
        """Return the SHA-256 of types, shapes and bytes of `x` and `y`, in order."""
        sha256 = hashlib.sha256()
        for tensor in (self.x, self.y):
            array = tensor.detach().cpu().contiguous().numpy()
            sha256.update(f"{array.dtype.str} {array.shape}\n".encode())
            sha256.update(array.data)
        return sha256.hexdigest()


def batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, y) in order, the last batch as short as it comes: for evaluation.

    Args:
        split: The data; batches stay on its device.
        batch_size: Examples per batch, at least 1.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1; received {batch_size}")
    for start in range(0, len(split), batch_size):
        part = slice(start, start + batch_size)
        yield split.inputs(part), split.y[part]


def order(length: int, *, seed: int, epoch: int) -> Tensor:
    """Return the permutation in which an epoch visits the data.

    A function of its arguments alone, drawn on the CPU whatever the device of the data, so that a resumed run, another
    device and every rank of a group see the same order.

    Args:
        length: Number of examples N.
        seed: The run's seed, any integer.
        epoch: Number of the epoch, from 0.

    Returns:
        (N,) int64 on the CPU, a permutation of 0 .. N - 1.

    Example:
        >>> order(5, seed=0, epoch=0).sort().values.tolist()
        [0, 1, 2, 3, 4]
    """
    # Hashed, because seed + epoch would give seed 0, epoch 1 the order of seed 1, epoch 0.
    key = hashlib.sha256(f"order seed={seed} epoch={epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return torch.randperm(length, generator=generator)


class Order:
    """The examples of batch t: whole batches of a permutation that is a function of (seed, name, epoch) alone.

    For techniques that take their batches by number, not by epoch (`Run.steps`); a short last batch is left out.

    Args:
        length: Number of examples, at least `batch_size`.
        batch_size: B.
        seed: The run's.
        name: What is visited, where a technique visits several sets.
        device: Where the numbers are put.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int, name: str, device: torch.device):
        self.length, self.batch_size, self.seed = length, batch_size, derived_seed(seed, "order", name)
        self.device, self.epoch = device, -1
        self.batches: tuple[Tensor, ...] = ()

    def at(self, t: int) -> Tensor:
        """Return the numbers of the examples of batch t, (B,), on the device."""
        epoch, place = divmod(t, self.length // self.batch_size)
        if epoch != self.epoch:
            permutation = order(self.length, seed=self.seed, epoch=epoch).to(self.device)
            self.batches, self.epoch = permutation.split(self.batch_size), epoch
        return self.batches[place]
