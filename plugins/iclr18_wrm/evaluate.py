"""`wrm eval`: what the paper measures, with its fixed number of ascent steps and with a converged adversary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18_wrm.algorithm import converged_ascent, hessian_top, stationarity_residual, surrogate_ascent, transport_cost
from iclr18_wrm.config import EvalConfig
from iclr18_wrm.derivatives import Loss
from iclr18cli import launch
from iclr18cli.certify.shared_points import in_parts, slices
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

MEASURED_AFTER_TRAINING = 1000
"""Test points that the adversary moves in the short measurement that ends a training; accuracy is on all of them."""

BATCH = 500


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on a split of its data set."""
    split = run.split(config.split, config.limit).to(run.device)
    gamma = config.gamma if config.gamma is not None else trained_gamma(run)
    metrics = measure(
        run.model(),
        split,
        gamma=gamma,
        inner_steps=config.inner_steps,
        converged=(config.tolerance, config.max_steps) if config.converged else None,
        hessian_limit=(config.hessian_limit or len(split)) if config.hessian else 0,
        progress=run.progress,
    )
    return {"dataset": split.name, "split": split.split, **metrics}


def trained_gamma(run: OpenedRun) -> float:
    """Return the penalty a run was trained with.

    Raises:
        UserError: another technique made the run.
    """
    gamma = run.config.get("gamma")
    if not isinstance(gamma, int | float):
        raise UserError(
            f"{run.path} was not trained with a gamma.", why=f"'{run.technique}' made it", fix="give --gamma"
        )
    return float(gamma)


def measure(
    net: nn.Module,
    split: Split,
    *,
    gamma: float,
    inner_steps: int,
    converged: tuple[float, int] | None = None,
    hessian_limit: int = 0,
    progress: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Return the paper's quantities for one network on one split.

    Args:
        net: Logits in, evaluation mode is held here.
        split: On the network's device.
        gamma: Penalty on the squared distance.
        inner_steps: T_adv of the authors' schedule.
        converged: (tolerance, max_steps) to solve the inner problem to stationarity as well.
        hessian_limit: Number of points whose Hessian is looked at, clean and perturbed; 0: none.
        progress: Console progress factory.

    Returns:
        n, gamma, error, accuracy, clean_loss; adversarial_loss, rho_hat, phi, residual_mean, residual_max, fooled;
        these with the prefix `converged_`; nonconcave_clean, nonconcave_perturbed (shares of points with lambda_max >=
        2 gamma, from below where Lanczos is used) and hessian_max.
    """
    sums: dict[str, float] = {}

    def measured(at: slice) -> tuple[dict[str, float], list[Tensor]]:
        x, y = split.inputs(at), split.y[at]
        loss, own, tops = example_loss(net, y), dict[str, float](), list[Tensor]()
        with torch.no_grad():
            logits = net(x)
            _add(own, error=(logits.argmax(1) != y).sum(), clean_loss=F.cross_entropy(logits, y, reduction="sum"))
        z = surrogate_ascent(loss, x, gamma=gamma, steps=inner_steps)
        _add(own, **_at(net, loss, z, x, y, gamma))
        if at.start < hessian_limit:
            part = slice(0, hessian_limit - at.start)
            some = example_loss(net, y[part])
            # At the fixed-step points: a converged maximiser has lambda_max <= 2 gamma by necessity.
            tops = [hessian_top(some, x[part]), hessian_top(some, z[part])]
        if converged is not None:
            z, _ = converged_ascent(loss, x, gamma=gamma, tolerance=converged[0], max_steps=converged[1], start=z)
            _add(own, **{f"converged_{name}": value for name, value in _at(net, loss, z, x, y, gamma).items()})
        bar.advance(len(y))
        return own, tops

    with evaluating(net), (progress or _silent)(len(split) // launch.world().size, "measure") as bar:
        results = in_parts(slices(len(split), BATCH), measured)
    for own, _ in results:
        _add(sums, **own)
    metrics = {"n": len(split), "gamma": gamma, "accuracy": 1 - sums["error"] / len(split)}
    metrics |= {name: value if name.endswith("_max") else value / len(split) for name, value in sums.items()}
    if hessian_limit:
        clean, perturbed = (torch.cat([tops[i] for _, tops in results if tops]) for i in (0, 1))
        metrics |= {
            "hessian_n": len(clean),
            "nonconcave_clean": (clean >= 2 * gamma).double().mean().item(),
            "nonconcave_perturbed": (perturbed >= 2 * gamma).double().mean().item(),
            "hessian_max": torch.maximum(clean.max(), perturbed.max()).item(),
        }
    return metrics


def example_loss(net: nn.Module, y: Tensor) -> Loss:
    """Return x -> cross-entropy of each example, (B,)."""
    return lambda x: F.cross_entropy(net(x), y, reduction="none")


def _at(net: nn.Module, loss: Loss, z: Tensor, x: Tensor, y: Tensor, gamma: float) -> dict[str, Tensor]:
    residual = stationarity_residual(loss, z, x, gamma=gamma)
    with torch.no_grad():
        logits = net(z)
        cost, value = transport_cost(z, x), F.cross_entropy(logits, y, reduction="none")
    return {
        "adversarial_loss": value.sum(),
        "rho_hat": cost.sum(),
        "phi": (value - gamma * cost).sum(),
        "fooled": (logits.argmax(1) != y).sum(),
        "residual_mean": residual.sum(),
        "residual_max": residual.max(),
    }


def _add(sums: dict[str, float], **values: Tensor | float) -> None:
    for name, value in values.items():
        number = float(value)
        sums[name] = max(sums.get(name, 0.0), number) if name.endswith("_max") else sums.get(name, 0.0) + number


def _silent(total: int | None, label: str) -> Any:
    from iclr18cli.console import Console

    return Console(quiet=True).progress(total, label)
