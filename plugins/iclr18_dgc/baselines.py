"""Gradient Dropping (Aji and Heafield 2017), the sparse baseline of the paper."""

from __future__ import annotations

from typing import Any

from torch import nn

from iclr18_dgc.schedule import Schedule
from iclr18_dgc.state import DGCState


def gradient_dropping(model: nn.Module, schedule: Schedule | float = 0.001, **options: Any) -> DGCState:
    """Return a state that accumulates gradients as they are; momentum comes after aggregation, from the optimiser.

    v <- v + g, the largest entries of v are sent, and `SGD(lr, momentum=m, weight_decay=lambda)` steps on their mean.
    An entry that waits T steps loses the factor sum_{tau < T} m^tau that momentum would have given it, Eq. (4) to (6).

    Args:
        model: As of `DGCState`.
        schedule: Density; for a fair comparison the same warm-up as DGC.
        **options: Of `DGCState`.

    Raises:
        ValueError: momentum, nesterov, masking or weight_decay is given: they are the optimiser's here.
    """
    given = {"momentum", "nesterov", "masking", "weight_decay"} & set(options)
    if given:
        raise ValueError(f"Gradient Dropping leaves {', '.join(sorted(given))} to the optimiser; received {options!r}")
    return DGCState(model, schedule=schedule, momentum=0.0, masking=False, **options)
