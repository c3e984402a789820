"""The attacks every installation has. Torch-free."""

from __future__ import annotations

from iclr18cli.attack.torchattacks_table import TABLE
from iclr18cli.plugin import AttackSpec

ALL = ("linf", "l2", "l1")

OWN: tuple[AttackSpec, ...] = (
    AttackSpec(
        name="pgd",
        run="iclr18cli.attack.pgd:pgd",
        summary="Projected gradient ascent: restarts, best iterate per example, any input shape and range.",
        norms=ALL,
        targeted=True,
    ),
    AttackSpec(
        name="fgsm",
        run="iclr18cli.attack.pgd:fgsm",
        summary="One steepest step of length eps: a weak attack, for comparison.",
        norms=ALL,
        uses=("loss",),
        targeted=True,
    ),
    AttackSpec(
        name="apgd",
        run="iclr18cli.attack.apgd:apgd",
        summary="Auto-PGD: gradient ascent that finds its own step sizes.",
        norms=ALL,
        uses=("steps", "restarts", "loss"),
        standard={"steps": 100, "restarts": 1},
        targeted=True,
    ),
    AttackSpec(
        name="apgd-ce",
        run="iclr18cli.attack.apgd:apgd_ce",
        summary="Auto-PGD on the cross-entropy.",
        norms=ALL,
        uses=("steps", "restarts"),
        standard={"steps": 100, "restarts": 1},
        targeted=True,
    ),
    AttackSpec(
        name="apgd-dlr",
        run="iclr18cli.attack.apgd:apgd_dlr",
        summary="Auto-PGD on the DLR loss, which no rescaling of the logits hides.",
        norms=ALL,
        uses=("steps", "restarts"),
        standard={"steps": 100, "restarts": 1},
        targeted=True,
        classes=3,
    ),
    AttackSpec(
        name="apgd-t",
        run="iclr18cli.attack.apgd:apgd_targeted",
        summary="Auto-PGD on the targeted DLR loss, one likely wrong class after the other.",
        norms=ALL,
        uses=("steps", "restarts", "target_classes"),
        standard={"steps": 100, "restarts": 1},
    ),
    AttackSpec(
        name="square",
        run="iclr18cli.attack.square:square",
        summary="Random windows, kept where they help: no gradients.",
        norms=ALL,
        uses=("queries",),
        targeted=True,
        gradients=False,
    ),
    AttackSpec(
        name="random-search",
        run="iclr18cli.attack.pgd:random_search",
        summary="Random steps of a radius that adapts, kept where they help: no gradients, few coordinates.",
        norms=ALL,
        uses=("queries",),
        targeted=True,
        gradients=False,
    ),
    AttackSpec(
        name="noise",
        run="iclr18cli.attack.pgd:noise",
        summary="Random points of the ball: the baseline every other attack must beat.",
        norms=ALL,
        uses=("steps", "restarts", "loss"),
        gradients=False,
    ),
    AttackSpec(
        name="fab-t",
        run="iclr18cli.attack.fab:fab_targeted",
        summary="Walks along one boundary of the true class after another; nearest error.",
        norms=ALL,
        kind="minimal",
        uses=("steps", "restarts", "target_classes"),
        standard={"steps": 100, "restarts": 1},
    ),
    AttackSpec(
        name="fab",
        run="iclr18cli.attack.fab:fab",
        summary="Walks along the nearest of all boundaries, a backward pass for each class; nearest error.",
        norms=ALL,
        kind="minimal",
        uses=("steps", "restarts", "target_classes"),
        standard={"steps": 100, "restarts": 1},
    ),
    AttackSpec(
        name="deepfool",
        run="iclr18cli.attack.deepfool:deepfool",
        summary="Steps onto the nearest linearised boundary: fast, near, not nearest.",
        norms=("l2", "linf"),
        kind="minimal",
        uses=("steps", "target_classes"),
        standard={"steps": 50},
    ),
    AttackSpec(
        name="cw",
        run="iclr18cli.attack.carlini_wagner:carlini_wagner_l2",
        summary="Carlini and Wagner: distance and margin at once, with a search for the trade-off; nearest error.",
        norms=("l2",),
        kind="minimal",
        uses=("steps", "searches", "step_size"),
        standard={"steps": 200, "searches": 9},
    ),
    AttackSpec(
        name="fmn",
        run="iclr18cli.attack.fmn:fmn",
        summary="Fast minimum norm: a ball that shrinks while the point stays wrong; nearest error.",
        norms=ALL,
        kind="minimal",
        uses=("steps", "step_size"),
        standard={"steps": 100},
    ),
)

REMOVED: tuple[AttackSpec, ...] = (
    AttackSpec(
        name="pgd-torchattacks",
        run="",
        summary="Now torchattacks/pgd and torchattacks/pgdl2.",
        norms=(),
        refused="every attack of torchattacks bears its own name now; "
        "instead: --attack torchattacks/pgd (linf) or torchattacks/pgdl2 (l2)",
    ),
)

BUILTIN: tuple[AttackSpec, ...] = (*OWN, *(row.spec() for row in TABLE.values()), *REMOVED)
