"""Options of `iclr18 attack`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from iclr18cli.attack.stages import AUTOATTACK, BUDGET_OPTIONS, Stage, plan
from iclr18cli.errors import UsageError
from iclr18cli.plugin import Option

USUAL_EPS = {"linf": 0.1, "l2": 0.5, "l1": 5.0}
"""Radius of an attack inside a ball when none is given."""

SWEPT = 9
"""Radii of a sweep from 0 to eps when none are listed."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What to attack with, and how hard. A budget that is not given is the attack's own standard."""

    attack: Annotated[
        str,
        Option(
            "Attack by name, several with commas (each on what the last left), or autoattack; see the list below.",
            metavar="NAME",
        ),
    ] = "pgd"
    suite: Annotated[Literal["standard"] | None, Option("standard: the full AutoAttack in the norm given.")] = None
    norm: Annotated[Literal["linf", "l2", "l1"], Option("Norm of the perturbation of one input.")] = "linf"
    eps: Annotated[
        float | None,
        Option(
            "Radius in the units of the model's inputs (images: [0, 1]). By default 0.1 (linf), 0.5 (l2), 5 (l1); "
            "for minimal-norm attacks alone: none.",
            min=0,
        ),
    ] = None
    sweep: Annotated[Literal["eps"] | None, Option("Draw the curve of robust accuracy over the radius.")] = None
    radii: Annotated[tuple[float, ...], Option("Radii of the sweep; by default nine from 0 to eps.", min=0)] = ()
    steps: Annotated[int | None, Option("Gradient steps per start.", min=1)] = None
    restarts: Annotated[int | None, Option("Starts per example.", min=1)] = None
    step_size: Annotated[float | None, Option("Length of a step in the norm; 0: 2.5 * eps / steps.", min=0)] = None
    loss: Annotated[Literal["cross-entropy", "margin", "dlr"] | None, Option("What the attack raises.")] = None
    queries: Annotated[int | None, Option("Forward passes per example of an attack without gradients.", min=1)] = None
    target_classes: Annotated[int | None, Option("Wrong classes that a targeted attack tries in turn.", min=1)] = None
    searches: Annotated[int | None, Option("Values of its constant that a minimal-norm attack tries.", min=1)] = None
    target: Annotated[
        str | None,
        Option("Aim at a class: likeliest, least-likely, random, or its number.", metavar="CLASS"),
    ] = None
    eot: Annotated[int, Option("Passes of a random model whose mean is attacked and judged.", min=1)] = 1
    from_: Annotated[
        str | None,
        Option("Transfer attack: make the points on RUN2's model, with momentum, and try them here.", metavar="RUN2"),
    ] = None
    diagnose: Annotated[bool, Option("Look for signs of masked gradients afterwards.")] = True
    save_examples: Annotated[bool, Option("Keep the adversarial points, and a picture of some.")] = False
    limit: Annotated[int, Option("Attack the first LIMIT examples; 0: all.", min=0)] = 0
    split: Annotated[str, Option("Split of the data set.", metavar="SPLIT")] = "test"
    batch_size: Annotated[int, Option("Examples per batch; 0: from memory.", min=0)] = 0

    @property
    def name(self) -> str:
        """The attack that is meant, with `--suite` and `--from` taken into account."""
        if self.from_:
            return "transfer"
        return AUTOATTACK if self.suite else self.attack

    @property
    def budget(self) -> dict[str, Any]:
        """The fields of `Budget` that were given."""
        return {name: value for name in BUDGET_OPTIONS if (value := getattr(self, name)) is not None}

    def radius(self, stages: list[Stage]) -> float:
        """Return eps, or what is usual for these attacks."""
        if self.eps is not None:
            return self.eps
        nearest = bool(stages) and all(stage.spec.kind == "minimal" for stage in stages)
        return float("inf") if nearest and not self.sweep else USUAL_EPS[self.norm]

    def check(self, **needs: Any) -> list[Stage]:
        """Return the stages that are asked for (none for a transfer attack, whose model is not known here).

        Args:
            needs: What is known of the model, see `iclr18cli.attack.registry.find`.

        Raises:
            UsageError: Options that contradict each other, unknown names, or a model that an attack does not serve.
        """
        if self.suite and self.attack not in ("pgd", AUTOATTACK):
            raise UsageError("--suite and --attack exclude each other.", fix="leave one of them out")
        if self.from_ and (self.suite or self.attack != "pgd"):
            raise UsageError(
                "--from is an attack of its own; it goes without --attack and --suite.",
                why="MI-FGSM climbs the other model's loss, and this model is only asked for its answer",
            )
        if self.radii and not self.sweep:
            raise UsageError("--radii lists the radii of a sweep.", fix="--sweep eps --radii 0.1 --radii 0.2")
        return [] if self.from_ else plan(self.name, self.norm, options=self.budget, **needs)
