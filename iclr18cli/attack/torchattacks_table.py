"""Every attack of torchattacks 3.5.1, one row each: what it takes from us and what it can serve. Torch-free.

Inputs reach the package in the unit box [0, 1]; radii and step lengths are in its units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from iclr18cli.plugin import AttackSpec

if TYPE_CHECKING:
    from iclr18cli.attack.threat import Budget

PREFIX = "torchattacks/"

OVERSHOOTS = (0.02, 0.5)
"""Overshoots of DeepFool, the larger one for points that the first leaves on the boundary."""

NORMS = {"linf": "Linf", "l2": "L2"}

READS = {
    "steps": ("steps",),
    "ten_steps": ("steps",),
    "step": ("step_size", "steps"),
    "only_step": ("step_size",),
    "iterations": ("queries",),
    "iteration_step": ("step_size", "queries"),
    "generations": ("queries",),
    "population": ("queries",),
    "queries": ("queries",),
    "restarts": ("restarts",),
    "classes": ("target_classes",),
    "loss": ("loss",),
    "trade_off": ("searches",),
    "searches": ("searches",),
}
"""Fields of `Budget` behind each value that an argument of the package may be given, see `Values`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One class of the package.

    Args:
        name: Ours, after "torchattacks/".
        package: The class in the package.
        summary: One line; it ends in what is weak about the attack.
        norms: Norms it searches in; for "minimal" those in which it looks for a near error.
        gives: Its arguments that we set, and the value each of them gets, see `Values`.
        fixed: Its arguments that are always the same, where we leave the package's default.
        kind, standard, gradients, classes, images: As in `AttackSpec`.
        runs: What one call repeats on the points still right: "once", "restarts" (with new random numbers),
            "searches" (with a larger trade-off constant), "overshoots" (with a larger overshoot).
        targeted: "no"; "map": it is told targets beside the labels; "labels": in place of them.
        losses: The names of our losses there.
        inside: How far inside the unit box the inputs are moved first.
        positive: The model is shown with every logit above 0, each example's shifted by a constant.
        square: It needs images as high as wide.
        coordinates: Most coordinates of one input; 0: any number.
        on_cpu: The package's part of the work is done on the CPU; the model stays where it is.
        refused: Why it is not offered, and after "; instead: " what is.
    """

    name: str
    package: str
    summary: str
    norms: tuple[str, ...] = ()
    gives: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["ball", "minimal"] = "ball"
    runs: Literal["once", "restarts", "searches", "overshoots"] = "once"
    standard: Mapping[str, Any] = field(default_factory=dict)
    targeted: Literal["no", "map", "labels"] = "no"
    gradients: bool = True
    classes: int = 2
    images: tuple[int, ...] = ()
    losses: Mapping[str, str] = field(default_factory=dict)
    inside: float = 0.0
    positive: bool = False
    square: bool = False
    coordinates: int = 0
    on_cpu: bool = False
    refused: str = ""

    def uses(self) -> tuple[str, ...]:
        """Return the fields of `Budget` that the attack reads."""
        read = [name for value in self.gives.values() for name in READS.get(value, ())]
        if self.runs in ("restarts", "searches"):
            read.append(self.runs)
        return tuple(dict.fromkeys(read))

    def spec(self) -> AttackSpec:
        """Return the record of the attack."""
        return AttackSpec(
            name=PREFIX + self.name, summary=self.summary, norms=self.norms, kind=self.kind, uses=self.uses(),
            run="" if self.refused else f"iclr18cli.attack.torchattacks:{self.name}", standard=self.standard,
            targeted=self.targeted != "no", gradients=self.gradients, classes=self.classes, images=self.images,
            bounded=True, refused=self.refused,
        )  # fmt: skip


@dataclass(frozen=True)
class Values:
    """What the arguments of the package may be given; lengths are in units of the box.

    Args:
        row, budget: The attack and what it may spend.
        norm_name: Norm of the threat.
        eps: Radius.
        width: Of the domain.
        all_classes: Classes of the model.
        run: Number of the run, from 0.
        seed: Of this run.
    """

    row: Row
    budget: Budget
    norm_name: str
    eps: float
    width: float
    all_classes: int
    run: int
    seed: int

    def of(self, name: str) -> Any:
        """Return the value of that name."""
        budget, own_step = self.budget, self.budget.step_size / self.width
        iterations = max(1, budget.queries // 256)  # of SPSA: 128 samples, two passes each
        population = min(400, max(10, budget.queries // 10))  # of OnePixel; 400 is the paper's
        made = {
            "norm": NORMS.get(self.norm_name),
            "steps": budget.steps,
            "ten_steps": max(10, budget.steps),  # the package divides by a tenth of it
            "step": own_step or 2.5 * self.eps / budget.steps,
            "only_step": own_step or 1.25 * self.eps,  # Wong, Rice and Kolter 2020
            "iterations": iterations,
            "iteration_step": own_step or 2.5 * self.eps / iterations,
            "population": population,
            "generations": max(1, budget.queries // population - 1),
            "classes": min(budget.target_classes + 1, self.all_classes),
            "trade_off": 10.0**self.run,
            "overshoot": OVERSHOOTS[min(self.run, len(OVERSHOOTS) - 1)],
            "loss": self.row.losses.get(budget.loss),
        }
        return made[name] if name in made else getattr(budget if hasattr(budget, name) else self, name)


ASCENT = {"eps": "eps", "alpha": "step", "steps": "steps"}
ONE_CALL = {"batch_max": 2**31}  # it splits the batch, but not the targets
COLOUR = (3,)
PICTURE = (1, 3)


def _ascent(name: str, package: str, summary: str, *, norms: tuple[str, ...] = ("linf",), **more: Any) -> Row:
    """Return the row of an attack with a radius, a step length and a number of steps."""
    return Row(name=name, package=package, summary=summary, norms=norms, **{"gives": ASCENT, "targeted": "map"} | more)


_ONE_STEP_AND_ASCENTS = (
    Row(name="fgsm", package="FGSM", summary="One signed gradient step: weak.", norms=("linf",),
        gives={"eps": "eps"}, targeted="map"),
    Row(name="ffgsm", package="FFGSM", summary="One signed step of 1.25 eps from a random start: weak.",
        norms=("linf",), gives={"eps": "eps", "alpha": "only_step"}, runs="restarts", targeted="map"),
    _ascent("rfgsm", "RFGSM", "Signed steps after a random sign step; last iterate.", runs="restarts"),
    _ascent("bim", "BIM", "Signed steps from x; last iterate."),
    _ascent("pgd", "PGD", "Signed steps from random starts; last iterate.", runs="restarts"),
    _ascent("pgdl2", "PGDL2", "Gradient steps of equal length from random starts; last iterate.", norms=("l2",),
            runs="restarts"),
    _ascent("eotpgd", "EOTPGD", "PGD with two gradients a step: for random models.", runs="restarts"),
    _ascent("tpgd", "TPGD", "Climbs the divergence from the clean prediction (TRADES); last iterate.", targeted="no",
            runs="restarts"),
    _ascent("pgdrs", "PGDRS", "PGD on the mean under Gaussian noise of 0.5: for smoothed models.", runs="restarts",
            fixed=ONE_CALL),
    _ascent("pgdrsl2", "PGDRSL2", "PGDL2 on the mean under Gaussian noise of 0.5: for smoothed models.",
            norms=("l2",), runs="restarts", fixed=ONE_CALL),
    _ascent("upgd", "UPGD", "Signed steps with momentum; last iterate.", gives=ASCENT | {"loss": "loss"},
            losses={"cross-entropy": "ce", "dlr": "dlr"}),
    _ascent("jitter", "Jitter", "PGD on rescaled, noised probabilities; last iterate.", runs="restarts"),
)  # fmt: skip

_TRANSFER = (
    _ascent("mifgsm", "MIFGSM", "Momentum: made to transfer; last iterate."),
    _ascent("nifgsm", "NIFGSM", "Nesterov momentum: made to transfer; last iterate."),
    _ascent("sinifgsm", "SINIFGSM", "Nesterov momentum over five scales of the input: made to transfer."),
    _ascent("vmifgsm", "VMIFGSM", "Momentum with tuned variance, six gradients a step: made to transfer.",
            runs="restarts"),
    _ascent("vnifgsm", "VNIFGSM", "Nesterov momentum with tuned variance: made to transfer.", runs="restarts"),
    _ascent("difgsm", "DIFGSM", "Gradients at resized, padded copies: made to transfer; square images.",
            runs="restarts", images=PICTURE, square=True),
    _ascent("tifgsm", "TIFGSM", "Blurred gradients at resized copies: made to transfer; square colour images.",
            runs="restarts", images=COLOUR, square=True),
    Row(name="pifgsm", package="PIFGSM", summary="Patch-wise noise: made to transfer; colour images.",
        norms=("linf",), gives={"max_epsilon": "eps", "num_iter_set": "steps"}, images=COLOUR),
    Row(name="pifgsmpp", package="PIFGSMPP", summary="Patch-wise noise, blurred: made to transfer; colour images.",
        norms=("linf",), gives={"max_epsilon": "eps", "num_iter_set": "steps"}, images=COLOUR, targeted="labels"),
)  # fmt: skip

_AUTOMATIC = (
    Row(name="apgd", package="APGD", summary="Auto-PGD from random starts.", norms=("linf", "l2"),
        gives={"norm": "norm", "eps": "eps", "steps": "steps", "loss": "loss", "seed": "seed"}, runs="restarts",
        standard={"steps": 100, "restarts": 1}, losses={"cross-entropy": "ce", "dlr": "dlr"}),
    Row(name="apgdt", package="APGDT", summary="Auto-PGD on the targeted DLR loss, class by class.",
        norms=("linf", "l2"), classes=4, runs="restarts", standard={"steps": 100, "restarts": 1},
        gives={"norm": "norm", "eps": "eps", "steps": "steps", "n_classes": "classes", "seed": "seed"}),
    Row(name="fab", package="FAB", kind="minimal", norms=("linf", "l2"), standard={"steps": 100, "restarts": 1},
        summary="Steps onto the nearest linearised boundary, one backward pass per class.",
        gives={"norm": "norm", "eps": "eps", "steps": "steps", "n_restarts": "restarts", "seed": "seed",
               "n_classes": "all_classes"}),
    Row(name="square", package="Square", norms=("linf", "l2"), gradients=False, images=PICTURE, targeted="map",
        summary="Random squares, kept if they lower the margin: no gradients; square images.", square=True,
        gives={"norm": "norm", "eps": "eps", "n_queries": "queries", "seed": "seed"}),
    Row(name="autoattack", package="AutoAttack", norms=("linf", "l2"), classes=4, images=PICTURE, square=True,
        summary="APGD, APGDT, FAB and Square with the standard 100 steps and 5,000 queries (the package's own: 10)."),
    Row(name="spsa", package="SPSA", norms=("linf",), gradients=False, runs="restarts", standard={"restarts": 1},
        summary="Gradients from finite differences, 256 queries each: weak at few queries.",
        gives={"eps": "eps", "nb_iter": "iterations", "lr": "iteration_step"}, fixed={"max_batch_size": 8}),
)  # fmt: skip

_NEAREST = (
    Row(name="cw", package="CW", kind="minimal", norms=("l2",), runs="searches", targeted="map", inside=1e-3,
        summary="Adam on distance and margin for c = 1, 10, 100, ...; one early stop for the whole batch.",
        positive=True, gives={"c": "trade_off", "steps": "steps"}, standard={"steps": 200, "searches": 3}),
    Row(name="deepfool", package="DeepFool", kind="minimal", norms=("l2",), runs="overshoots",
        summary="Linearises the boundary, one image at a time; stops short of it, so overshoots of 0.02 and 0.5.",
        gives={"steps": "steps", "overshoot": "overshoot"}, standard={"steps": 50}),
    Row(name="eadl1", package="EADL1", kind="minimal", norms=("l1",), targeted="map", positive=True,
        summary="Elastic net with a search over c, the l1-nearest kept; 10 steps per c at least.",
        gives={"max_iterations": "ten_steps", "binary_search_steps": "searches"},
        standard={"steps": 100, "searches": 9}),
    Row(name="eaden", package="EADEN", kind="minimal", norms=("l2", "l1"), targeted="map", positive=True,
        summary="Elastic net with a search over c, the nearest in |d|^2 + 0.001 |d|_1 kept.",
        gives={"max_iterations": "ten_steps", "binary_search_steps": "searches"},
        standard={"steps": 100, "searches": 9}),
    Row(name="sparsefool", package="SparseFool", kind="minimal", norms=("l1",),
        summary="Few coordinates, judged by |d|_1; one image at a time, slow.",
        gives={"steps": "steps"}, standard={"steps": 10}),
    Row(name="onepixel", package="OnePixel", kind="minimal", norms=("l1",), gradients=False, images=PICTURE,
        summary="Evolves one pixel, |d|_1 at most the number of channels: weak; one image at a time.", runs="restarts",
        gives={"steps": "generations", "popsize": "population"}, standard={"restarts": 1}, on_cpu=True),
    Row(name="jsma", package="JSMA", kind="minimal", norms=("l1",), targeted="map", coordinates=1024,
        summary="Sets pairs of coordinates to the top, a tenth of all at most; judged by |d|_1, which it ignores."),
)  # fmt: skip

_REFUSED = (
    Row(name="pixle", package="Pixle", summary="Copies patches of pixels elsewhere.",
        refused="it copies up to 100 pixels at a time and neither bounds nor shrinks any distance; "
                "instead: --attack torchattacks/onepixel, sparsefool or pgd with --norm l1"),
    Row(name="gn", package="GN", summary="Adds Gaussian noise.",
        refused="it adds Gaussian noise once, in no ball and without a look at the model; instead: --attack noise"),
    Row(name="vanila", package="VANILA", summary="Returns the input.",
        refused="it returns its input; instead: the clean accuracy, which every report states"),
    Row(name="lgv", package="LGV", summary="Attacks an ensemble of retrained copies.",
        refused="it first trains copies of the model on its training set; instead: --from RUN, a transfer attack"),
    Row(name="multiattack", package="MultiAttack", summary="Runs several attacks.",
        refused="it is a list of attacks; instead: --attack A,B,C, each on the points the last left"),
)  # fmt: skip

TABLE: dict[str, Row] = {
    row.name: row for row in (*_ONE_STEP_AND_ASCENTS, *_TRANSFER, *_AUTOMATIC, *_NEAREST, *_REFUSED)
}
"""Every class of torchattacks 3.5.1 by our name."""
