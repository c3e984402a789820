"""`wrm train`: Algorithm 1 and the baselines it is compared with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18_wrm.algorithm import (
    fgm,
    ifgm,
    pgm,
    smooth_labels,
    soft_cross_entropy,
    surrogate_ascent,
    transport_cost,
)
from iclr18_wrm.config import TrainConfig
from iclr18_wrm.derivatives import Loss
from iclr18_wrm.evaluate import MEASURED_AFTER_TRAINING, measure
from iclr18_wrm.schedule import Schedule
from iclr18cli.certify.capping import cap_layers_, capped_layers
from iclr18cli.data.augment import GaussianNoise
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError
from iclr18cli.models.measures import accuracy
from iclr18cli.models.modes import evaluating
from iclr18cli.models.registry import build, suggest

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run


def train(config: TrainConfig, run: Run) -> None:
    """Minimise mean loss at the perturbed points: SGD on F(theta) = E phi_gamma(theta; Z), Algorithm 1."""
    check(config)
    read = partial(open_split, config.dataset, data_dir=run.settings.data_dir, download=run.settings.download)
    data, test = read("train"), read("test")
    if config.limit:
        data = data.take(config.limit)
    net, name, kwargs = network(config, data)
    net = run.prepare(net)
    fit(net, data, config, run)
    run.save_model(net, model=name, kwargs=kwargs, split=data)
    placed = test.to(run.device)
    final = measure(
        net,
        placed.take(MEASURED_AFTER_TRAINING),
        gamma=config.gamma,
        inner_steps=config.inner_steps,
        progress=run.progress,
    )
    run.record("test", **final)
    kept = {name: final[name] for name in ("adversarial_loss", "rho_hat", "phi")}
    run.finish(accuracy=accuracy(net, placed), **kept, adversarial_points=final["n"])


def fit(net: nn.Module, data: Split, config: TrainConfig, run: Run, *, prefix: str = "") -> None:
    """Train a network in place; `prefix` tells the networks of one run apart in its metrics."""
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    run.track(**{f"{prefix}net": net, f"{prefix}optimizer": optimizer})
    capped = capped_layers(net, data.shape) if config.spectral_cap is not None else []
    scaler, plan = run.scaler, Schedule.of(config, len(data))
    augment = GaussianNoise(config.noise) if config.noise else None
    for x, y in run.epochs(data, config.epochs, batch_size=config.batch_size, augment=augment):
        targets = smooth_labels(y, len(data.classes), amount=config.label_smoothing) if config.label_smoothing else y
        optimizer.param_groups[0]["lr"] = config.learning_rate * plan.rate(run.step)
        with run.autocast():
            with evaluating(net):
                z = perturb(config, partial(per_example_loss, net, targets), x)
            if config.method == "ibp":
                loss = plan.interval_loss(net, x, y, config, data.range, run.step)
            else:
                loss = per_example_loss(net, targets, z).mean()  # Danskin: no gradient through z
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if config.spectral_cap is not None:
            cap_layers_(capped, config.spectral_cap)
        run.log(**{f"{prefix}loss": loss, f"{prefix}rho": transport_cost(z, x, cost=config.cost).mean()})
        run.values["epoch_loss"] = run.values.get("epoch_loss", 0.0) + loss.detach() * run.weight
        if run.epoch_ends:
            run.best(run.values.pop("epoch_loss"))


def perturb(config: TrainConfig, loss: Loss, x: Tensor) -> Tensor:
    """Return the points to train on: x itself (ERM), the penalised maximiser (WRM), or the worst found in a ball."""
    match config.method:
        case "wrm":
            return surrogate_ascent(
                loss,
                x,
                gamma=config.gamma,
                steps=config.inner_steps,
                schedule=config.schedule,
                step_size=config.inner_step_size,
                cost=config.cost,
            )
        case "erm" | "ibp":
            return x
        case "fgm":
            return fgm(loss, x, eps=budget(config), norm=config.norm)
        case "ifgm":
            return ifgm(loss, x, eps=budget(config), norm=config.norm, steps=config.inner_steps)
        case "pgm":
            return pgm(loss, x, eps=budget(config), norm=config.norm, steps=config.inner_steps)


def per_example_loss(net: nn.Module, targets: Tensor, x: Tensor) -> Tensor:
    """Return the cross-entropy of each example, (B,); targets are labels (B,) or soft labels (B, K)."""
    logits = net(x)
    if targets.is_floating_point():
        return soft_cross_entropy(logits, targets)
    return F.cross_entropy(logits, targets, reduction="none")


def network(config: TrainConfig, data: Split) -> tuple[nn.Module, str, dict[str, object]]:
    """Return (network, registry name, arguments) for the data's shape and classes."""
    name = suggest(data.shape) if config.model == "auto" else config.model
    kwargs: dict[str, object] = {"classes": len(data.classes), "activation": config.activation}
    kwargs |= {"input_shape": list(data.shape)}
    return build(name, **kwargs), name, kwargs


def budget(config: TrainConfig) -> float:
    """Return the radius of the ball methods; `check` has seen to it that there is one."""
    if config.eps is None:
        raise ValueError(f"method {config.method} needs eps; received None")
    return config.eps


def check(config: TrainConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UsageError: a ball method without a budget.
    """
    if config.method in ("fgm", "ifgm", "pgm", "ibp") and config.eps is None:
        raise UsageError(
            f"--method {config.method} needs a budget.",
            fix="--eps E; the paper takes sqrt(rho_hat) of the WRM run: see iclr18 wrm eval RUN",
        )
