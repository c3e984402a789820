"""Attacks of the package torchattacks 3.5.1, with its traps closed. The only module that imports it.

`torchattacks:NAME` is the attack of the table's row NAME. What the package does, and what is done about it here:

* It clamps to [0, 1] in silence: inputs are checked before, and a model with another range is shown over [0, 1].
* Many attacks take four axes only: other inputs are shown as (B, d, 1, 1). What needs pictures is refused others.
* It puts the whole model back in training mode afterwards: it sees a wrapper; every flag is restored.
* It draws from, and reseeds, the global generators, NumPy's and every GPU's included: they are saved and restored.
* It fails under no_grad and inference_mode, prints where a model has no parameters, and takes 10 classes for granted.
* It returns the last iterate of one start: each example keeps the best of what several starts return, x included.
* Attacks with momentum divide by the mean gradient, NaN where it is 0: such an example is left at x.
* CW and EAD hold masked logits for zeros, so negative ones break them: every example's logits are shifted above 0.
* CW cannot move coordinates at 0 or 1: they are moved inside by 0.001 first. DeepFool halts on the boundary: what it
  leaves is tried again with an overshoot of 0.5. AutoAttack runs 10 steps: it is put together from its parts with 100.

B batch · S examples not broken yet · X the axes of one input
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli.attack.losses import Goal
from iclr18cli.attack.randomness import seeded
from iclr18cli.attack.survivors import Survivors, climbing, judge, look
from iclr18cli.attack.threat import Budget, Threat, per_example
from iclr18cli.attack.torchattacks_table import OVERSHOOTS, PREFIX, TABLE, Row, Values
from iclr18cli.errors import UserError


def __getattr__(name: str) -> Any:
    """Return the attack of a row of the table, to be called as `iclr18cli.attack.registry` says."""
    if name in TABLE and not TABLE[name].refused:
        return partial(attack_with, TABLE[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class UnitBox(nn.Module):
    """Show a model with inputs of any shape in [lo, hi] as one with inputs (B, C, H, W) in [0, 1].

    Args:
        model: The model.
        x_BX: Inputs whose shape, type and device the model takes.
        domain: (lo, hi).
        positive: Shift the logits of each example by a constant, so that the least is 1.
        on_cpu: Inputs and logits of the box are on the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        x_BX: Tensor,
        domain: tuple[float, float],
        *,
        positive: bool = False,
        on_cpu: bool = False,
    ):
        super().__init__()
        self.model, self.low, self.width, self.positive = model, domain[0], domain[1] - domain[0], positive
        self.shape, self.dtype, self.device = tuple(x_BX.shape[1:]), x_BX.dtype, x_BX.device
        # torchattacks asks the first parameter for the device and prints if there is none.
        mark = torch.empty(0, device="cpu" if on_cpu else x_BX.device)
        self.device_mark = nn.Parameter(mark, requires_grad=False)

    def forward(self, u: Tensor) -> Tensor:
        """Return the logits of the inputs that `u` stands for."""
        logits = self.model(self.inputs(u)).to(u.device)
        return logits - logits.detach().amin(1, keepdim=True) + 1 if self.positive else logits

    def inputs(self, u: Tensor) -> Tensor:
        """Map from the unit box to the model's inputs."""
        x = u.reshape(len(u), *self.shape).to(self.device, self.dtype)
        return x if (self.low, self.width) == (0.0, 1.0) else self.low + self.width * x

    def unit(self, x: Tensor) -> Tensor:
        """Map the model's inputs into the unit box, with four axes."""
        u = x if (self.low, self.width) == (0.0, 1.0) else (x - self.low) / self.width
        return (u if u.dim() == 4 else u.reshape(len(u), -1, 1, 1)).clamp(0, 1).to(self.device_mark.device)


def attack_with(
    row: Row,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Run one attack of torchattacks on the points that the model gets right.

    Args:
        row: Which one, a row of `TABLE`.
        model, x, y, threat, generator, targets: As for `iclr18cli.attack.pgd.pgd`.
        budget: The fields that the row reads count.

    Returns:
        (B, *shape) like x. Kind "ball": the first misclassified point that a start returned, else the one of highest
        cross-entropy, x included. Kind "minimal": the misclassified point that was returned, x where none was.

    Raises:
        UserError: The inputs have no declared range or lie outside it; or the attack does not serve their shape, the
            number of classes, the norm, the loss or an infinite eps.
    """
    budget = budget or Budget(**row.standard)
    _check_request(row, x, threat, budget, targets)
    threat.admit(x)
    generator = generator or torch.Generator().manual_seed(0)
    with climbing(model):
        run = Survivors(x, Goal("cross-entropy", y, targets))
        if len(run) == 0 or threat.eps == 0:
            return run.points()
        with torch.no_grad():
            classes = model(run.x_SX[:1]).shape[1]
        _check_classes(row, classes, budget)
        seen = look(model, run.x_SX, run.goal)[:2] if row.gradients else judge(model, run.x_SX, run.goal)
        run.note(run.x_SX, *seen)
        for number in range(_runs(row, budget)):
            run.thin()
            if len(run) == 0:
                break
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            z_SX = _one_run(row, model, run, threat, budget, classes, number, seed)
            run.note(z_SX, *judge(model, z_SX, run.goal))
        best_BX, _, broken_B = run.all()
        if row.kind == "ball":
            return best_BX
        return torch.where(per_example(broken_B, best_BX), best_BX, x.detach())


def _one_run(
    row: Row, model: nn.Module, run: Survivors, threat: Threat, budget: Budget, classes: int, number: int, seed: int
) -> Tensor:
    """Return what one call of the package gives, inside the threat set ("ball") or the domain ("minimal")."""
    domain = threat.domain or (0.0, 1.0)
    box = UnitBox(model, run.x_SX, domain, positive=row.positive, on_cpu=row.on_cpu).eval()
    values = Values(row, budget, threat.norm, threat.eps / box.width, box.width, classes, number, seed)
    with _own_randomness(seed):
        attack = _make(row, box, values)
        labels_S = run.goal.y
        if run.goal.targets is not None and row.targeted == "labels":
            labels_S = run.goal.targets
            attack.set_mode_targeted_by_label(quiet=True)
        elif run.goal.targets is not None or row.package == "JSMA":  # which aims at (y + 1) % 10 otherwise
            aim_S = _aim(model, run).to(box.device_mark.device)
            attack.set_mode_targeted_by_function(lambda images, labels: aim_S, quiet=True)
        u_SX = attack(box.unit(run.x_SX).clamp(row.inside, 1 - row.inside), labels_S)
    z_SX = box.inputs(u_SX.detach())
    z_SX = torch.where(per_example(z_SX.flatten(1).isfinite().all(1), z_SX), z_SX, run.x_SX)
    return threat.bring_back(z_SX, run.x_SX) if row.kind == "ball" else threat.clip(z_SX)  # the way there rounds


def _make(row: Row, box: UnitBox, values: Values) -> Any:
    """Return the package's attack with its arguments, on the model in its box."""
    import torchattacks as package

    if row.package == "AutoAttack":
        eps, norm, seed, classes = (values.of(name) for name in ("eps", "norm", "seed", "all_classes"))
        shared = {"norm": norm, "eps": eps, "seed": seed}
        targets = min(10, classes)  # classes it counts: one more than it aims at
        return package.MultiAttack(
            [
                package.APGD(box, steps=100, loss="ce", **shared),
                package.APGDT(box, steps=100, n_classes=targets, **shared),
                package.FAB(box, steps=100, multi_targeted=True, n_classes=targets, **shared),
                package.Square(box, n_queries=5000, **shared),
            ]
        )
    given = {argument: values.of(name) for argument, name in row.gives.items()}
    return getattr(package, row.package)(box, **given, **row.fixed)


def _runs(row: Row, budget: Budget) -> int:
    counts = {"once": 1, "restarts": budget.restarts, "searches": budget.searches, "overshoots": len(OVERSHOOTS)}
    return counts[row.runs]


def _aim(model: nn.Module, run: Survivors) -> Tensor:
    """Return the classes to reach, by default the likeliest wrong ones."""
    if run.goal.targets is not None:
        return run.goal.targets
    with torch.no_grad():
        return model(run.x_SX).scatter(1, run.goal.y[:, None], -torch.inf).argmax(1)


def _check_request(row: Row, x: Tensor, threat: Threat, budget: Budget, targets: Tensor | None) -> None:
    """Refuse what can be seen to be impossible without a look at the model."""
    name, shape = PREFIX + row.name, tuple(x.shape[1:])
    if threat.domain is None:
        raise UserError(
            "torchattacks cannot attack inputs without a declared range.",
            why="it clamps every input to [0, 1]",
            fix="--attack pgd     (any shape, any range)",
        )
    if threat.norm not in row.norms:
        raise UserError(f"{name} does not offer the norm '{threat.norm}'.", why=f"it offers {', '.join(row.norms)}")
    if row.kind == "ball" and math.isinf(threat.eps):
        raise UserError(f"{name} needs a finite eps.", why="it searches a ball", fix="--attack fab-t or --eps E")
    if targets is not None and row.targeted == "no":
        raise UserError(f"{name} cannot aim at a class.", fix="--attack pgd")
    climbs_one_loss = row.kind == "ball" and "step" in row.gives.values()
    if budget.loss != "cross-entropy" and budget.loss not in row.losses and (row.losses or climbs_one_loss):
        raise UserError(f"{name} has no loss '{budget.loss}'.", fix="--attack pgd or apgd")
    if row.images and (len(shape) != 3 or shape[0] not in row.images):
        channels = " or ".join(str(count) for count in row.images)
        raise UserError(
            f"{name} takes images (C, H, W) with {channels} channels; these inputs have shape {shape}.",
            fix="--attack pgd or apgd     (any shape)",
        )
    if row.square and shape[1] != shape[2]:
        raise UserError(f"{name} takes square images; these are {shape[1]} x {shape[2]}.", fix="--attack pgd or apgd")
    size = math.prod(shape)
    if row.coordinates and size > row.coordinates:
        raise UserError(
            f"{name} takes at most {row.coordinates} coordinates; these inputs have {size}.",
            why="it builds several tables of all pairs of them, tens of seconds an image",
            fix="--attack fmn --norm l1",
        )


def _check_classes(row: Row, classes: int, budget: Budget) -> None:
    needed = 3 if row.losses and budget.loss == "dlr" else row.classes
    if classes < needed:
        raise UserError(
            f"{PREFIX}{row.name} needs {needed} classes; the model has {classes}.",
            why="its loss is in units of the spread of the largest logits",
            fix="--attack pgd or apgd on the cross-entropy",
        )


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seed the global generators that torchattacks draws from, and put them back afterwards.

    All of them: its `torch.random.manual_seed` reaches every GPU, and OnePixel draws from NumPy's.
    """
    import numpy as np

    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    before = np.random.get_state()
    with seeded(gpus, seed):
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)
