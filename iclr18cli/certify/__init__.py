"""Certificates: what holds for a model, with its verdict and its limits.

`smoothing(model, x, y, sigma=…)` and its like certify any torch model they can; they are imported when they are asked
for, torch with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iclr18cli.certify.interface import (
        certificates,
        crown,
        ibp,
        lipschitz,
        smoothing,
        wasserstein,
        wasserstein_smoothing,
    )

__all__ = ["certificates", "crown", "ibp", "lipschitz", "smoothing", "wasserstein", "wasserstein_smoothing"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from iclr18cli.certify import interface

        return getattr(interface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
