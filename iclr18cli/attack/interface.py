"""Attacks from Python, on any torch model and tensors: `iclr18cli.attack.evaluate`.

N points · B batch · K classes
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from iclr18cli.attack.evaluation import attack_model
from iclr18cli.attack.report import AttackReport
from iclr18cli.attack.search import Progress
from iclr18cli.attack.stages import BUDGET_OPTIONS
from iclr18cli.attack.threat import Norm, Threat
from iclr18cli.data.given import given
from iclr18cli.errors import UsageError
from iclr18cli.models.doubts import joined


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    attack: str = "pgd",
    input_range: tuple[float, float] | None = (0.0, 1.0),
    classes: int | None = None,
    look: bool = True,
    batch_size: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    eot: int = 1,
    target: str = "",
    source: nn.Module | None = None,
    diagnose: bool = True,
    **budget: Any,
) -> AttackReport:
    """Measure the robust accuracy of a model on points that an adversary may move by `eps`: an upper bound of it.

    Args:
        model: Maps (B, *shape) to (B, K) logits. Held in evaluation mode; every flag and gradient is left as it was.
        x: (N, *shape), float in `input_range`, or uint8 images, divided by 255 here; any device.
        y: (N,) labels in 0 .. K - 1.
        eps: Radius in the units of x; 0: clean accuracy; infinite, for attacks that look for the nearest error.
        norm: "linf", "l2" or "l1", over all coordinates of one input.
        attack: Name of an attack, several separated by commas, or "autoattack"; `iclr18 attack --help` lists them.
        input_range: (low, high) that every input stays in; None: all of R^d.
        classes: K that is expected; None: any that holds the labels.
        look: First look for what makes numbers wrong (probabilities, normalisation, randomness, …); what is found is
            in the report's warnings.
        batch_size: Points per batch; 0: from memory.
        seed: Seed of all randomness; global generators are left alone.
        progress: Called as progress(n, robust=share).
        eot, target, source, diagnose: See `iclr18cli.attack.setting.Effort`.
        budget: Fields of `iclr18cli.attack.threat.Budget` that differ from the attack's own standard: steps, restarts,
            step_size, loss, queries, target_classes, searches.

    Returns:
        The report: `.value` robust accuracy, `.clean`, `.survivors`, `.warnings`, `.to_text()`, `.to_json()`.

    Raises:
        UserError: The model, inputs or labels do not fit together; it says what would mend it.
        UsageError: There is no such attack or option, or the attack does not serve the norm.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.2], [0.4], [0.9]]), torch.tensor([0, 0, 1])
        >>> net = nn.Linear(1, 2)                    # class 1 beyond 0.5
        >>> _ = net.weight.data.copy_(torch.tensor([[0.0], [1.0]])), net.bias.data.copy_(torch.tensor([0.5, 0.0]))
        >>> report = evaluate(net, x, y, eps=0.2, attack="pgd,square", steps=10)
        >>> report.clean.correct, report.survivors
        (3, [0, 2])
    """
    unknown = set(budget) - set(BUDGET_OPTIONS)
    if unknown:
        raise UsageError(
            f"evaluate takes no {', '.join(sorted(unknown))}.", fix=f"a budget is made of {', '.join(BUDGET_OPTIONS)}"
        )
    split, said = given(model, x, y, input_range, classes=classes, look=look)
    report = attack_model(
        model, split, attack=attack, threat=Threat(norm, eps, input_range), budget=budget, batch_size=batch_size,
        seed=seed, progress=progress, eot=eot, target=target, source=source, diagnose=diagnose,
    )  # fmt: skip
    return replace(report, warnings=joined(said, report.warnings))
