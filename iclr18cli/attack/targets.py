"""Which class a targeted attack aims at, for every point.

N points · K classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclr18cli.data.tensors import Split, batches
from iclr18cli.errors import UsageError
from iclr18cli.models.modes import evaluating

RULES = ("likeliest", "least-likely", "random")


def choose_targets(
    model: nn.Module, split: Split, rule: str, classes: int, *, batch_size: int, seed: int = 0
) -> Tensor:
    """Return a wrong class for every point, (N,) int64 on the CPU.

    Args:
        model: Maps inputs to (B, K) logits.
        split: The points, on the model's device.
        rule: "likeliest" or "least-likely" wrong class, a "random" one, or the number of a class; points of that class
            aim at the likeliest wrong one.
        classes: K.
        batch_size: Points per batch.
        seed: Seed of the random rule.

    Raises:
        UsageError: The rule is none of these, or no class has that number.
    """
    number = int(rule) if rule.isascii() and rule.isdigit() else -1
    if rule not in RULES and not 0 <= number < classes:
        raise UsageError(
            f"--target '{rule}' names no class.", fix=f"one of {', '.join(RULES)}, or a number from 0 to {classes - 1}"
        )
    if rule == "random":
        generator = torch.Generator().manual_seed(seed)
        shift_N = torch.randint(1, classes, (len(split),), generator=generator)
        return (split.y.cpu() + shift_N) % classes
    chosen = []
    with torch.no_grad(), evaluating(model):
        for x_BX, y_B in batches(split, batch_size):
            logits_BK = model(x_BX)
            sign = -1 if rule == "least-likely" else 1
            best_B = (sign * logits_BK).scatter(1, y_B[:, None], -torch.inf).argmax(1)
            chosen.append(torch.where(y_B == number, best_B, number) if number >= 0 else best_B)
    return torch.cat(chosen).cpu()
