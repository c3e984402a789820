"""The attacks every installation has. Torch-free."""

from __future__ import annotations

from iclr18cli.plugin import AttackSpec

BUILTIN: tuple[AttackSpec, ...] = (
    AttackSpec(
        name="pgd",
        run="iclr18cli.attack.pgd:pgd",
        summary="Projected gradient ascent: restarts, best iterate per example, any input shape and range.",
        norms=("linf", "l2"),
    ),
    AttackSpec(
        name="fgsm",
        run="iclr18cli.attack.torchattacks:fgsm",
        summary="One signed gradient step (torchattacks): a weak attack, for comparison.",
        norms=("linf",),
    ),
    AttackSpec(
        name="pgd-torchattacks",
        run="iclr18cli.attack.torchattacks:pgd",
        summary="PGD and PGDL2 of torchattacks: last iterate, random starts; a cross-check of pgd.",
        norms=("linf", "l2"),
    ),
    AttackSpec(
        name="noise",
        run="iclr18cli.attack.pgd:noise",
        summary="Random points of the ball: the baseline every other attack must beat.",
        norms=("linf", "l2"),
    ),
)
