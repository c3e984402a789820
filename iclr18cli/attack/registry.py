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

from collections.abc import Callable
from typing import Any

from iclr18cli.attack.builtin import BUILTIN
from iclr18cli.errors import UsageError, did_you_mean
from iclr18cli.plugin import AttackSpec, resolve


def attacks() -> dict[str, AttackSpec]:
    """Return every attack by name, the built-in ones first."""
    from iclr18cli.manager import plugins

    return {spec.name: spec for spec in (*BUILTIN, *plugins().attacks())}


def find(name: str, norm: str, task: str = "classify") -> AttackSpec:
    """Return the attack of this name if it offers the norm and serves the task.

    Raises:
        UsageError: Unknown name, or a norm or a task that the attack does not offer.
    """
    known = attacks()
    if name not in known:
        raise UsageError(f"There is no attack '{name}'.", fix=did_you_mean(name, known))
    spec = known[name]
    if norm not in spec.norms:
        others = [other.name for other in known.values() if norm in other.norms and task in other.tasks]
        raise UsageError(
            f"Attack '{name}' does not offer the norm '{norm}'.",
            why=f"it offers {', '.join(spec.norms)}",
            fix=f"--attack {' or '.join(others)}" if others else f"--norm {spec.norms[0]}",
        )
    if task not in spec.tasks:
        others = [other.name for other in known.values() if task in other.tasks and norm in other.norms]
        raise UsageError(
            f"Attack '{name}' does not work on models for the task '{task}'.",
            why=f"it works on: {', '.join(spec.tasks)}",
            fix=f"--attack {' or '.join(others)}"
            if others
            else f"No attack here does; attack a model for: {', '.join(spec.tasks)}.",
        )
    return spec


def load(name: str, norm: str, task: str = "classify") -> Callable[..., Any]:
    """Return the function of an attack, see the module's text; raises as `find` does."""
    return resolve(find(name, norm, task).run)
