"""Which attacks run one after the other, each on what the ones before it left standing. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iclr18cli.attack import registry
from iclr18cli.errors import UsageError
from iclr18cli.plugin import AttackSpec, resolve

AUTOATTACK = "autoattack"
STANDARD: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("apgd", {"loss": "cross-entropy", "steps": 100, "restarts": 1}),
    ("apgd-t", {"steps": 100, "restarts": 1, "target_classes": 9}),
    ("fab-t", {"steps": 100, "restarts": 1, "target_classes": 9}),
    ("square", {"queries": 5000}),
)
"""The standard version of AutoAttack (Croce and Hein 2020, section 6). A smaller budget never bears its name."""

STANDARD_L1: Mapping[str, Mapping[str, Any]] = {"apgd": {"restarts": 5}, "apgd-t": {"target_classes": 5}}
"""What the authors' standard version does otherwise in l1 (Croce and Hein 2021)."""

BUDGET_OPTIONS = ("steps", "restarts", "step_size", "loss", "queries", "target_classes", "searches")
"""Fields of `Budget`; an option that is not given takes the attack's own standard."""


@dataclass(frozen=True)
class Stage:
    """One attack of an evaluation and the fields of its `Budget` that differ from the defaults.

    `function` is the attack itself where it is bound to more than its record says (another model, for a transfer).
    """

    spec: AttackSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None

    def attack(self) -> Callable[..., Any]:
        """Return the attack, see `iclr18cli.attack.registry`."""
        return self.function or resolve(self.spec.run)


def plan(
    attack: str, norm: str, *, options: Mapping[str, Any] | None = None, task: str = "classify", **needs: Any
) -> list[Stage]:
    """Return the stages that a name, a comma-separated list of names, or "autoattack" stands for.

    Args:
        attack: "pgd", "apgd,square", "autoattack".
        norm: Norm of the perturbation.
        options: Fields of `Budget` that were asked for; a stage takes those it uses.
        task: Of the model.
        needs: What is known of the model, see `registry.find`.

    Raises:
        UsageError: Unknown name; a norm, a task or a model that an attack does not serve; an option that no stage
            reads; a budget given for "autoattack".
    """
    given = dict(options or {})
    names = [name.strip() for name in attack.split(",")]
    if AUTOATTACK in names:
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UsageError(
                f"'{AUTOATTACK}' names one fixed budget (100 steps, 5,000 queries); it takes no {flags}.",
                why="numbers under that name are compared across papers",
                fix=f"--attack {','.join(name for name, _ in STANDARD)} with a budget of your own",
            )
        if len(names) > 1:
            raise UsageError(f"'{AUTOATTACK}' is a list of attacks itself; name it alone.")
        more = STANDARD_L1 if norm == "l1" else {}
        return [
            Stage(registry.find(name, norm, task, **needs), {**own, **more.get(name, {})}) for name, own in STANDARD
        ]
    specs = [registry.find(name, norm, task, **needs) for name in names]
    unread = [name for name in given if not any(name in spec.uses for spec in specs)]
    if unread:
        flags = ", ".join("--" + name.replace("_", "-") for name in unread)
        reads = sorted({"--" + use.replace("_", "-") for spec in specs for use in spec.uses})
        raise UsageError(f"{attack} takes no {flags}.", fix=f"it reads {', '.join(reads)}" if reads else "leave it out")
    return [Stage(spec, {**spec.standard, **{k: v for k, v in given.items() if k in spec.uses}}) for spec in specs]
