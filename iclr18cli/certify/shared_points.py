"""Work on many points, shared among ranks: every rank does a part and all get the whole, in the order of the points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from iclr18cli import launch
from iclr18cli.errors import UserError

P = TypeVar("P")
R = TypeVar("R")


def in_parts(parts: Sequence[P], work: Callable[[P], R]) -> list[R]:
    """Return `work(part)` for every part, in order; rank r does the parts r, r + N, r + 2 N, ….

    What a part gives must not depend on the others, so that the number of ranks changes nothing. Every rank must call
    it with the same parts.

    Raises:
        UserError: A part is refused; on every rank, see `alike`.
    """
    ranks = launch.world()
    if ranks.size == 1:
        return [work(part) for part in parts]
    whole: list[Any] = [None] * len(parts)
    told = _of_all(lambda: [_moved(work(part), "cpu") for part in parts[ranks.rank :: ranks.size]])
    for rank, of_rank in enumerate(told):
        whole[rank :: ranks.size] = of_rank
    return whole


def alike(work: Callable[[], R]) -> R:
    """Return what `work` gives on this rank; what one rank refuses, all refuse.

    A refused method is followed by the next one: a rank that is alone in it would hear what the others say of another.

    Raises:
        UserError: That of the first rank that has one.
    """
    if launch.world().size == 1:
        return work()
    results: list[R] = []
    _of_all(lambda: results.append(work()))
    return results[0]


def _of_all(work: Callable[[], R]) -> list[R]:
    """Return what `work` gives on each rank, or raise the first of their errors on all."""
    result, refused = list[R](), None
    try:
        result.append(work())
    except UserError as error:
        refused = error
    everyone = launch.world().gather((result, refused))
    for _, first in everyone:
        if first is not None:
            raise first
    return [given for results, _ in everyone for given in results]


def slices(count: int, size: int) -> list[slice]:
    """Return `range(count)` in slices of at most `size`, small enough for every rank to have one.

    Example:
        >>> slices(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, min(size, -(-count // launch.world().size)))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def agreed(size: int) -> int:
    """Return the first rank's batch size: what fits into the free memory is not the same on every machine."""
    return launch.world().broadcast(size)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    return value


def joined(results: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """Return the parts of a tensor end to end on a device."""
    return torch.cat([result.to(device) for result in results])
