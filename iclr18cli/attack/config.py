"""Options of `iclr18 attack`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What to attack with, and how hard."""

    attack: Annotated[
        str, Option("Attack by name: pgd, fgsm, pgd-torchattacks, noise, or a plugin's.", metavar="NAME")
    ] = "pgd"
    norm: Annotated[Literal["linf", "l2"], Option("Norm of the perturbation of one input.")] = "linf"
    eps: Annotated[float, Option("Radius in the units of the model's inputs (images: [0, 1]).", min=0)] = 0.1
    steps: Annotated[int, Option("Gradient steps per restart.", min=1)] = 40
    restarts: Annotated[int, Option("Starts per example; the first is the clean input.", min=1)] = 5
    step_size: Annotated[float, Option("Length of a step in the norm; 0: 2.5 * eps / steps.", min=0)] = 0.0
    loss: Annotated[Literal["cross-entropy", "margin"], Option("What the attack raises.")] = "cross-entropy"
    limit: Annotated[int, Option("Attack the first LIMIT examples; 0: all.", min=0)] = 0
    split: Annotated[str, Option("Split of the data set.", metavar="SPLIT")] = "test"
    batch_size: Annotated[int, Option("Examples per batch; 0: from memory.", min=0)] = 0
