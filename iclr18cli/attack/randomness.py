"""Random models: their own randomness held apart, and expectation over it (EoT, Athalye et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Expected(nn.Module):
    """The mean logits of a random model over several draws, as a model: what EoT attacks and what it is judged by.

    Args:
        model: Maps inputs to logits, with a draw of its own in each pass.
        draws: Passes per evaluation, at least 1.

    Raises:
        ValueError: `draws` is below 1.
    """

    def __init__(self, model: nn.Module, draws: int):
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws must be >= 1; received {draws}")
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of `draws` outputs, (B, K)."""
        total = self.model(x)
        for _ in range(self.draws - 1):
            total = total + self.model(x)
        return total / self.draws


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators that a model (or a foreign attack) draws from, and put them back afterwards."""
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    with seeded(cuda, seed):
        yield


@contextmanager
def seeded(gpus: Sequence[int], seed: int) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of some GPUs, and put them back afterwards."""
    with torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed: it also seeds the devices that fork_rng does not save.
        torch.default_generator.manual_seed(seed)
        for index in gpus:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
