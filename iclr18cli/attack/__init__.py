"""Attacks on single inputs: what an adversary may do, those that try, and what they found.

`evaluate(model, x, y, eps=…)` attacks any torch model; it is imported when it is asked for, torch with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iclr18cli.attack.interface import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from iclr18cli.attack import interface

        return getattr(interface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
