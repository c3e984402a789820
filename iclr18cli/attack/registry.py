"""Attacks by name: the built-in ones and those of plugins. Torch-free.

The function an `AttackSpec` names is called as

    run(model, x, y, *, threat: Threat, budget: Budget, generator: torch.Generator) -> x_adv

model:      an nn.Module from (B, *shape) to (B, K) logits; in evaluation mode, parameters without gradient.
x:          (B, *shape) float inputs inside `threat.domain`, on the model's device; every one is classified correctly.
y:          (B,) int64 true classes.
threat:     `iclr18cli.attack.threat.Threat`: norm, eps and domain (None: all of R^d).
budget:     `iclr18cli.attack.threat.Budget`; the fields that `AttackSpec.uses` names mean something to the attack.
generator:  the only source of randomness, on the CPU; the global generators must be left as they were.
targets:    keyword, only where `AttackSpec.targeted`: (B,) classes to reach; None: any wrong class will do.
x_adv:      like x and inside the domain. Kind "ball": |x_adv - x| <= eps. Kind "minimal": the nearest misclassified
            point that was found, x itself where none was; eps may be infinite. Both are checked; leaving the threat
            set is a bug.

An attack that cannot serve an input (shape, range) raises `UserError` with the reason and what to use instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from iclr18cli.attack.builtin import BUILTIN
from iclr18cli.errors import UsageError, did_you_mean
from iclr18cli.plugin import AttackSpec, resolve


def attacks() -> dict[str, AttackSpec]:
    """Return every attack by name, the built-in ones first."""
    from iclr18cli.manager import plugins

    return {spec.name: spec for spec in (*BUILTIN, *plugins().attacks())}


def find(
    name: str,
    norm: str,
    task: str = "classify",
    *,
    classes: int | None = None,
    shape: Sequence[int] | None = None,
    bounded: bool | None = None,
) -> AttackSpec:
    """Return the attack of this name if it offers the norm and serves the model.

    Args:
        name: "pgd", "torchattacks/bim".
        norm: Of the perturbation.
        task: Of the model.
        classes: Number of classes; None: not known.
        shape: Of one input, without the batch; None: not known.
        bounded: Whether the inputs have a declared range; None: not known.

    Raises:
        UsageError: Unknown name, an attack that is not offered, or a norm, a task, a number of classes, a shape or
            inputs without a range that it does not serve.
    """
    known = attacks()
    if name not in known:
        raise UsageError(f"There is no attack '{name}'.", fix=did_you_mean(name, known))
    spec = known[name]
    if spec.refused:
        why, _, instead = spec.refused.partition("; instead: ")
        raise UsageError(f"Attack '{name}' is not offered.", why=why, fix=instead)
    # Of an attack that fits, our own ones are named: those of torchattacks are many.
    near = [other for other in known.values() if not other.refused and "/" not in other.name]
    near = [other for other in near if norm in other.norms and _misfit(other, task, classes, shape, bounded) is None]
    others = "--attack " + " or ".join(other.name for other in near) if near else ""
    if norm not in spec.norms:
        raise UsageError(
            f"Attack '{name}' does not offer the norm '{norm}'.",
            why=f"it offers {', '.join(spec.norms)}",
            fix=others or f"--norm {spec.norms[0]}",
        )
    misfit = _misfit(spec, task, classes, shape, bounded)
    if misfit is not None:
        what, why = misfit
        raise UsageError(f"Attack '{name}' {what}.", why=why, fix=others or "No attack here fits this model.")
    return spec


def _misfit(
    spec: AttackSpec, task: str, classes: int | None, shape: Sequence[int] | None, bounded: bool | None
) -> tuple[str, str] | None:
    """Return what an attack does not do for a model and why, or None if all that is known of the model fits."""
    if task not in spec.tasks:
        return f"does not work on models for the task '{task}'", f"it works on: {', '.join(spec.tasks)}"
    if spec.bounded and bounded is False:
        return "needs inputs with a declared range", "it clamps every input to that range"
    if spec.images and shape is not None and (len(shape) != 3 or shape[0] not in spec.images):
        channels = " or ".join(str(count) for count in spec.images)
        return f"takes images (C, H, W) with {channels} channels", f"the inputs have shape {tuple(shape)}"
    if classes is not None and classes < spec.classes:
        return f"needs {spec.classes} classes", f"the model has {classes}"
    return None


def load(name: str, norm: str, task: str = "classify") -> Callable[..., Any]:
    """Return the function of an attack, see the module's text; raises as `find` does."""
    return resolve(find(name, norm, task).run)
