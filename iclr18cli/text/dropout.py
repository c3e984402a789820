"""Dropout for recurrent language models, drawn as masks first, so that two passes can share some or none of them.

T steps · B sequences · V words · E entries of an embedding · H hidden units · G gates

Locked dropout has one mask for all steps (Gal and Ghahramani 2016); weight drop zeroes entries of the
hidden-to-hidden matrices, one mask for all steps and sequences (Wan et al. 2013; Merity et al. 2017, section 2);
embedding dropout zeroes whole words. All are inverted: what is kept is divided by 1 - p.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

GROUPS = ("embedding", "weights", "input", "hidden", "output")


@dataclass(frozen=True)
class Masks:
    """Factors 0 or 1 / (1 - p) of one pass; None: nothing is dropped.

    Attributes:
        embedding: (V, 1).
        weights: For each layer (G H, H).
        input: (1 or T, B, E).
        hidden: Between the layers, (1 or T, B, H) each.
        output: (1 or T, B, E or H).
    """

    embedding: Tensor | None = None
    weights: tuple[Tensor, ...] | None = None
    input: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None
    output: Tensor | None = None

    def sharing(self, other: Masks, groups: tuple[str, ...]) -> Masks:
        """Return these masks, those of some groups taken from another pass."""
        return replace(self, **{group: getattr(other, group) for group in groups})

    def beside(self, other: Masks) -> Masks:
        """Return the masks of both passes as one of twice as many sequences; those all sequences share are these."""

        def joined(one: Tensor | None, two: Tensor | None) -> Tensor | None:
            return None if one is None or two is None else torch.cat((one, two), 1)

        hidden = None
        if self.hidden is not None and other.hidden is not None:
            hidden = tuple(torch.cat(pair, 1) for pair in zip(self.hidden, other.hidden, strict=True))
        return replace(
            self, input=joined(self.input, other.input), hidden=hidden, output=joined(self.output, other.output)
        )


def mask(shape: tuple[int, ...], p: float, like: Tensor) -> Tensor | None:
    """Return a mask of a shape, of the type and device of `like`; None for p = 0.

    Raises:
        ValueError: p is not in [0, 1).
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must lie in [0, 1); received {p}")
    if not p:
        return None
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - p).div_(1 - p)


def apply(x: Tensor, factor: Tensor | None) -> Tensor:
    """Return x times a mask, x itself without one."""
    return x if factor is None else x * factor
