"""Velocity and residual of parameters that are exchanged together, each laid end to end in one flat tensor.

DDP makes its buckets anew after the first step, so nothing is remembered by bucket: a slab is found by the names of
its parameters, and takes over what was remembered under these names elsewhere.
"""

# n entries of a slab: all its tensors laid end to end · D entries of those sent whole · K entries sent of the others

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from iclr18_dgc.compression import entries
from iclr18_dgc.rule import Rule
from iclr18_dgc.selection import select


def is_compressed(parameter: Tensor, rule: Rule) -> bool:
    """Return whether a tensor is sparsified: neither bias nor norm (at most one axis), nor too small to gain by it."""
    return parameter.dim() > 1 and parameter.numel() >= rule.dense_below


class Slab:
    """u, v and the momentum of weight decay of some parameters, in the order they are exchanged in.

    Tensors that are sent whole have a u as well: the mean over the workers of m u_k + g_k is the ordinary momentum of
    the mean gradient, since both are linear. Their v is empty after each step, and their u is never masked.

    Args:
        parameters: Name -> parameter; one dtype and device.
        rule: Settings.

    Attributes:
        u, v: (n,) in the dtype of the parameters, float32 for half precision.
        decay: (n,) momentum of weight decay; None without it.
        kept: (D,) positions of the tensors that are sent whole.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rule: Rule):
        self.parameters, self.rule = dict(parameters), rule
        self.names = tuple(parameters)
        first = next(iter(parameters.values()))
        self.dtype = torch.float32 if first.dtype in (torch.float16, torch.bfloat16) else first.dtype
        self.places: dict[str, slice] = {}
        at = 0
        for name, parameter in parameters.items():
            self.places[name] = slice(at, at + parameter.numel())
            at += parameter.numel()
        self.n, self.itemsize = at, first.element_size()
        self.u = torch.zeros(at, dtype=self.dtype, device=first.device)
        self.v = torch.zeros_like(self.u)
        decays = any(rule.decay_of(name) for name in parameters)
        self.decay = torch.zeros_like(self.u) if decays else None
        self.compressed = [name for name, p in parameters.items() if is_compressed(p, rule)]
        self._counts: tuple[float, list[int]] = (0.0, [])

    @cached_property
    def kept(self) -> Tensor:
        """Positions of the tensors that are sent whole."""
        whole = torch.ones(self.n, dtype=torch.bool)
        for name in self.compressed:
            whole[self.places[name]] = False
        return whole.nonzero().view(-1).to(self.u.device)

    @cached_property
    def compressed_entries(self) -> int:
        """Number of entries of the tensors that are sparsified."""
        return self.n - len(self.kept)

    def counts(self, density: float) -> list[int]:
        """Return how many entries of each sparsified tensor are sent."""
        if self._counts[0] != density:
            self._counts = density, [entries(self.parameters[name].numel(), density) for name in self.compressed]
        return self._counts[1]

    def select(self, candidate: Tensor, density: float, generator: torch.Generator, magnitude: Tensor) -> Tensor:
        """Return the positions (K,) of the entries to send: top-k of each tensor by itself.

        Args:
            candidate: (n,) the v to choose from.
            density: Share of each tensor that is sent.
            generator: Of the sample.
            magnitude: (n,) scratch memory.
        """
        if not self.compressed:
            return torch.empty(0, dtype=torch.int64, device=candidate.device)
        torch.abs(candidate, out=magnitude)
        chosen = []
        for name, k in zip(self.compressed, self.counts(density), strict=True):
            place = self.places[name]
            index = select(
                magnitude[place], k, selection=self.rule.selection, ratio=self.rule.sample_ratio, generator=generator
            )
            chosen.append(index.add_(place.start))
        return torch.cat(chosen)

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Return the flat part of each parameter."""
        return [flat[place] for place in self.places.values()]

    def shaped(self, flat: Tensor, name: str) -> Tensor:
        """Return the part of a parameter in its shape."""
        return flat[self.places[name]].view(self.parameters[name].shape)

    @torch.no_grad()
    def add_decay_(self, out: Tensor) -> None:
        """Add what momentum SGD would take from weight decay alone: d <- m d + lambda w; nesterov: lambda w + m d.

        Momentum is linear, so this and the momentum of the gradient add up to momentum SGD with weight decay. w is the
        same on all ranks, and so is d: nothing is sent.
        """
        if self.decay is None:
            return
        for name, place in self.places.items():
            if (rate := self.rule.decay_of(name)) > 0:
                weight = self.parameters[name].reshape(-1).to(self.dtype)
                d = self.decay[place].mul_(self.rule.momentum).add_(weight, alpha=rate)
                if self.rule.nesterov:
                    out[place].add_(weight, alpha=rate).add_(d, alpha=self.rule.momentum)
                else:
                    out[place].add_(d)
