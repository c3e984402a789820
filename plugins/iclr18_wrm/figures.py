"""The paper's figures: `wrm boundary` (Figure 1), `wrm curves` (Figures 3 and 4a), and Figure 2 for `wrm certify`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from iclr18_wrm.algorithm import converged_ascent, pgm, transport_cost
from iclr18_wrm.config import BoundaryConfig, CurvesConfig, TrainConfig
from iclr18_wrm.evaluate import example_loss, measure, trained_gamma
from iclr18_wrm.train import fit, network
from iclr18cli.certify.sound import certify
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split, batches
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating
from iclr18cli.report.plot import COLOURS, new_figure, save
from iclr18cli.run.atomic import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun

ANGLES = 180
BATCH = 500


def boundary(config: BoundaryConfig, run: Run) -> dict[str, Any]:
    """Train WRM, ERM and FGM on rings with ELU and with ReLU, and draw where each changes its mind; Figure 1.

    WRM comes first, because FGM's default budget is sqrt(rho_hat) of WRM, as in the paper.
    """
    read = partial(open_split, data_dir=run.settings.data_dir, download=run.settings.download)
    data, test = read(f"rings:{config.points}", "train"), read("rings", "test").to(run.device)
    radii: dict[str, dict[str, np.ndarray]] = {}
    rows: list[dict[str, Any]] = []
    for activation in ("elu", "relu"):
        eps = config.eps
        for method in ("wrm", "erm", "fgm"):
            torch.manual_seed(run.seed)  # the same start for every method
            settings = TrainConfig(
                dataset="rings",
                model="wrm/2-4-2",
                activation=activation,
                method=method,
                gamma=config.gamma,
                eps=eps,
                inner_steps=config.inner_steps,
                epochs=config.epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
            )
            net = run.prepare(network(settings, data)[0])
            fit(net, data, settings, run, prefix=f"{activation}_{method}_")
            found = measure(net, test, gamma=config.gamma, inner_steps=config.inner_steps)
            if method == "wrm" and eps is None:
                eps = math.sqrt(found["rho_hat"])
            radius = radii.setdefault(activation, {})[method] = decision_radius(net, run.device)
            rows.append(
                {
                    "activation": activation,
                    "method": method,
                    "accuracy": found["accuracy"],
                    "rho_hat": found["rho_hat"],
                    "mean radius": float(np.nanmean(radius)),
                    "max / min radius": float(np.nanmax(radius) / np.nanmin(radius)),
                }
            )
    run.figure("boundary", boundary_figure(radii, data))
    write_json(run.path / "artifacts" / "boundary.json", {"angles": ANGLES, "radii": radii, "rows": rows})
    run.finish(**{f"{row['activation']}_{row['method']}_radius": row["mean radius"] for row in rows})
    return {"decision boundaries": rows}


def decision_radius(net: nn.Module, device: torch.device, *, reach: float = 4.0, grid: int = 801) -> np.ndarray:
    """Return per angle the smallest radius where the prediction is not that at the origin; NaN: none to `reach`."""
    angle = torch.linspace(0, 2 * math.pi, ANGLES + 1, device=device)[:-1]
    radius = torch.linspace(0, reach, grid, device=device)
    points = torch.stack([angle.cos(), angle.sin()], 1)[:, None, :] * radius[None, :, None]
    with evaluating(net), torch.no_grad():
        inside = net(points.reshape(-1, 2)).argmax(1).reshape(ANGLES, grid)
    changed = inside != inside[:, :1]
    first = changed.float().argmax(1)
    found = torch.where(changed.any(1), radius[first], torch.full_like(angle, float("nan")))
    return found.double().cpu().numpy()


def boundary_figure(radii: dict[str, dict[str, np.ndarray]], data: Split) -> Figure:
    """Draw the decision boundaries over the training points; the true one lies between the two grey circles."""
    figure, axes = new_figure(1, len(radii), size=(4.6 * len(radii), 4.4))
    angle = np.linspace(0, 2 * math.pi, ANGLES + 1)
    x, y = data.x.numpy(), data.y.numpy()
    for panel, (activation, by_method) in zip(np.atleast_1d(axes), radii.items(), strict=True):
        for label, colour in ((0, "#9ecae1"), (1, "#fdae6b")):
            panel.scatter(*x[y == label][:1500].T, s=2, color=colour, linewidths=0)
        for circle in (math.sqrt(2) / 1.3, math.sqrt(2) * 1.3):
            panel.plot(circle * np.cos(angle), circle * np.sin(angle), color="0.6", linewidth=0.8)
        for (method, radius), colour in zip(by_method.items(), COLOURS, strict=False):
            closed = np.append(radius, radius[0])
            panel.plot(
                closed * np.cos(angle), closed * np.sin(angle), color=colour, linewidth=1.6, label=method.upper()
            )
        panel.set_title(activation.upper())
        panel.set_aspect("equal")
        panel.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
        panel.legend(frameon=False, loc="upper right")
    return figure


def curves(config: CurvesConfig, runs: Sequence[OpenedRun]) -> dict[str, Any]:
    """Measure and draw PGM error against eps in both norms (Figure 3), and rho_test against 1/gamma_adv (Figure 4a)."""
    splits = [run.split("test", config.limit) for run in runs]
    if len({split.digest() for split in splits}) > 1:
        raise UserError("The runs were trained on different data sets.", why=", ".join(s.name for s in splits))
    x = splits[0].inputs().flatten(1)
    C = {"l2": x.norm(dim=1).mean().item(), "linf": x.abs().amax(1).mean().item()}
    ratios = [config.max_ratio * k / (config.points - 1) for k in range(config.points)]
    C_2 = C["l2"]
    gammas = [float(g) for g in np.geomspace(10 * 0.04 * C_2, 0.02 * C_2, config.points)]
    rows: list[dict[str, Any]] = []
    names = [
        run.path.name
        if len({str(r.config.get("method")) for r in runs}) < len(runs)
        else str(run.config.get("method")).upper()
        for run in runs
    ]
    with runs[0].progress(len(runs) * 3 * config.points, "curves") as bar:
        for run, split, name in zip(runs, splits, names, strict=True):
            net, placed = run.model(), split.to(run.device)
            for norm in ("l2", "linf"):
                for ratio in ratios:
                    error = pgm_error(net, placed, eps=ratio * C[norm], norm=norm, steps=config.steps)
                    rows.append({"run": name, "curve": f"pgm-{norm}", "x": ratio, "value": error})
                    bar.advance()
            for gamma in gammas:
                rows.append({"run": name, "curve": "rho", "x": 1 / gamma, "value": mean_cost(net, placed, gamma=gamma)})
                bar.advance()
    folder = Path(config.figures) if config.figures else runs[0].path / "plots"
    files = [str(save(figure, folder / f"{stem}.png")) for stem, figure in curve_figures(rows).items()]
    return {"n": len(splits[0]), "C_2": C["l2"], "C_inf": C["linf"], "points": rows, "figures": files}


def pgm_error(net: nn.Module, split: Split, *, eps: float, norm: Any, steps: int) -> float:
    """Return the share of points that are wrong after PGM (an attack: a lower bound of the worst error)."""
    wrong = 0
    with evaluating(net):
        for x, y in batches(split, BATCH):
            z = pgm(example_loss(net, y), x, eps=eps, norm=norm, steps=steps) if eps else x
            with torch.no_grad():
                wrong += int((net(z).argmax(1) != y).sum())
    return wrong / len(split)


def mean_cost(net: nn.Module, split: Split, *, gamma: float) -> float:
    """Return rho_test(gamma_adv) = E c(T_gamma_adv(Z), Z) with a converged adversary."""
    return sum(float(transport_cost(z, x).double().sum()) for x, _, z in worst_points(net, split, gamma=gamma)) / len(
        split
    )


def worst_points(net: nn.Module, split: Split, *, gamma: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (x, y, z) per batch with z the converged maximiser of loss - gamma c."""
    found = []
    with evaluating(net):
        for x, y in batches(split, BATCH):
            z, _ = converged_ascent(example_loss(net, y), x, gamma=gamma, tolerance=1e-3, max_steps=300)
            found.append((x, y, z))
    return found


def curve_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Draw Figure 3 (two panels) and Figure 4a from the rows of `curves`."""
    runs = list(dict.fromkeys(row["run"] for row in rows))

    def draw(panel: Any, curve: str, *, scale: float = 1.0) -> None:
        for run in runs:
            points = [(row["x"], scale * row["value"]) for row in rows if row["run"] == run and row["curve"] == curve]
            panel.plot(*zip(*points, strict=True), marker=".", label=run)

    errors, panels = new_figure(1, 2)
    for panel, norm, name in zip(panels, ("l2", "linf"), ("2", "inf"), strict=True):
        draw(panel, f"pgm-{norm}", scale=100)
        panel.set(xlabel=f"eps / C_{name}", ylabel="error under PGM, %", title=f"PGM, {name}-norm")
    panels[0].legend(frameon=False)
    costs, panel = new_figure()
    draw(panel, "rho")
    panel.set(
        xlabel="1 / gamma_adv",
        ylabel="rho_test",
        xscale="log",
        yscale="log",
        title="Robustness to the penalised adversary",
    )
    panel.legend(frameon=False)
    return {"pgm-error": errors, "rho": costs}


def certificate_figure(run: OpenedRun, *, limit: int, inner_steps: int, points: int = 14) -> Figure:
    """Draw Figure 2: the paper's line, the test worst case that an adversary attains, and the sound bound.

    Blue: gamma rho + E_train phi_gamma from T_adv steps (estimate). Red: E_test loss at the converged adversary of a
    grid of gamma_adv, at its own rho. Black: the sound ladder on the same test points. Shaded: red above blue.
    """
    net, gamma = run.model(), trained_gamma(run)
    train, test = (run.split(name, limit).to(run.device) for name in ("train", "test"))
    estimate = measure(net, train, gamma=gamma, inner_steps=inner_steps)
    reached = []
    with run.progress(points, "figure 2") as bar:
        for gamma_adv in np.geomspace(8 * gamma, gamma / 1.5, points):
            worst = worst_points(net, test, gamma=float(gamma_adv))
            rho = sum(float(transport_cost(z, x).double().sum()) for x, _, z in worst) / len(test)
            with evaluating(net), torch.no_grad():
                loss = sum(float(example_loss(net, y)(z).double().sum()) for _, y, z in worst) / len(test)
            reached.append((rho, loss))
            bar.advance()
    rhos = np.linspace(0, max(max(rho for rho, _ in reached), 1.5 * estimate["rho_hat"], 1e-6), 200)
    line = gamma * rhos + estimate["phi"]
    found: np.ndarray = np.array(sorted(reached))
    figure, panel = new_figure(size=(5.4, 3.8))
    panel.plot(rhos, line, color=COLOURS[0], label=f"paper: gamma rho + E_train phi, {inner_steps} steps (estimate)")
    panel.plot(*found.T, color=COLOURS[1], marker=".", label="worst case found on test points (attack)")
    panel.axvline(estimate["rho_hat"], color="0.5", linewidth=1, linestyle=":", label="rho_hat")
    violated = np.interp(rhos, found[:, 0], found[:, 1], left=np.nan, right=np.nan) > line
    if violated.any():
        panel.fill_between(
            rhos,
            0,
            1,
            where=violated,
            transform=panel.get_xaxis_transform(),
            color=COLOURS[1],
            alpha=0.12,
            label="estimate violated",
        )
    proven = sound_curve(net, test, [float(rho) for rho in rhos[::20]])
    top = 1.6 * max(line.max(), found[:, 1].max())
    if proven is not None:
        panel.plot(rhos[::20], proven, color="black", label="sound bound on test points (proven)")
        if min(proven) > top:
            panel.annotate(
                f"sound bound: {min(proven):.3g} and more", (0.5, 0.97), xycoords="axes fraction", ha="center", va="top"
            )
    panel.set(xlabel="rho", ylabel="expected cross-entropy", ylim=(0, top), title=run.path.name)
    panel.legend(frameon=False, fontsize=7, loc="lower right")
    return figure


def sound_curve(net: nn.Module, split: Split, rhos: Sequence[float]) -> list[float] | None:
    """Return the sound ladder's value for every budget; None where it does not apply."""
    try:
        return [certificate.value for certificate in certify(net, split, rhos=rhos, attack_steps=0)]
    except UserError:
        return None
