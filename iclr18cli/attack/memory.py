"""How many examples of a model fit into memory, forward and backward."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from iclr18cli.models.modes import evaluating

CPU_BYTES = 64 * 2**20
"""On a CPU a batch beyond the caches only gets slower."""

LARGEST = 8192


def batch_size_for(model: nn.Module, x: Tensor, *, share: float = 0.25) -> int:
    """Return a power of two: the batch whose activations and gradients fill at most `share` of the free memory.

    The activations of every leaf module are counted on the few examples given, doubled for their gradients and doubled
    again for what functions between modules keep. A power of two, so that the answer, and with it the random starts,
    does not hang on the last free megabyte.

    Args:
        model: Maps `x` to outputs.
        x: (few, *shape) example inputs on the model's device.
        share: Part of the free memory to use, in (0, 1].

    Returns:
        Between 1 and 8192.
    """
    seen = 0

    def count(module: nn.Module, arguments: object, output: object) -> None:
        nonlocal seen
        if isinstance(output, Tensor):
            seen += output.numel() * output.element_size()

    handles = [m.register_forward_hook(count) for m in model.modules() if next(m.children(), None) is None]
    try:
        with torch.no_grad(), evaluating(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    per_example = 4 * (seen + x.numel() * x.element_size()) / max(1, len(x))
    fitting = int(share * free_bytes(x.device) / max(1.0, per_example))
    return max(1, min(LARGEST, 1 << max(0, fitting.bit_length() - 1)))


def free_bytes(device: torch.device) -> int:
    """Return the bytes a computation on the device may take: its free memory, on a CPU not more than serves speed."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        free = 2**31
    return min(free, 4 * CPU_BYTES)
