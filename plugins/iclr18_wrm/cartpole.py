"""`wrm cartpole`: Table 1, regular against robust tabular Q-learning on changed cart-poles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from iclr18_wrm.config import CartpoleConfig
from iclr18_wrm.qlearning import ENVIRONMENTS, MAX_STEPS, QTable, evaluate, train
from iclr18cli.report.plot import new_figure
from iclr18cli.run.atomic import write_json

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run

PAPER = {
    "original": ("399.7 +- 0.1", "400.0 +- 0.0"),
    "light": ("400.0 +- 0.0", "400.0 +- 0.0"),
    "long": ("400.0 +- 0.0", "400.0 +- 0.0"),
    "soft g": ("400.0 +- 0.0", "400.0 +- 0.0"),
    "heavy": ("150.1 +- 4.7", "334.0 +- 3.7"),
    "short": ("245.2 +- 4.8", "400.0 +- 0.0"),
    "strong g": ("189.8 +- 2.3", "398.5 +- 0.3"),
}
"""Table 1 of the paper: regular, robust; mean +- standard error over 1000 trials."""


def cartpole(config: CartpoleConfig, run: Run) -> dict[str, Any]:
    """Train `agents` agents of each kind, run every environment, keep the table beside the paper's, and draw it."""
    lengths: dict[str, dict[str, list[float]]] = {name: {"regular": [], "robust": []} for name in ENVIRONMENTS}
    errors: dict[str, dict[str, list[float]]] = {name: {"regular": [], "robust": []} for name in ENVIRONMENTS}
    kinds = {"regular": None, "robust": config.gamma}
    with run.progress(2 * config.agents * config.episodes, "episodes") as bar:
        for seed in range(run.seed, run.seed + config.agents):
            for kind, gamma in kinds.items():
                agent: QTable = train(gamma, episodes=config.episodes, seed=seed, each_episode=lambda *_: bar.advance())
                for name, environment in ENVIRONMENTS.items():
                    found = evaluate(agent, environment, trials=config.trials, seed=seed)
                    lengths[name][kind].append(float(found.mean()))
                    errors[name][kind].append(float(found.std(ddof=1) / math.sqrt(config.trials)))
    rows = [
        {
            "environment": name,
            **{kind: float(np.mean(values)) for kind, values in by_kind.items()},
            **{f"{kind}_agents": values for kind, values in by_kind.items()},
            **{f"{kind}_standard_errors": errors[name][kind] for kind in kinds},
            "paper_regular": PAPER[name][0],
            "paper_robust": PAPER[name][1],
        }
        for name, by_kind in lengths.items()
    ]
    write_json(run.path / "artifacts" / "cartpole.json", {"rows": rows, "trials": config.trials, "gamma": config.gamma})
    figure, axes = new_figure(size=(6.4, 3.4))
    places = np.arange(len(rows))
    for offset, kind in ((-0.2, "regular"), (0.2, "robust")):
        axes.bar(places + offset, [row[kind] for row in rows], 0.38, label=kind)
        for place, name in zip(places, lengths, strict=True):
            axes.plot([place + offset] * config.agents, lengths[name][kind], "k.", markersize=3)
    axes.set_xticks(places, list(lengths))
    axes.set_ylabel(f"steps upright (cap {MAX_STEPS})")
    axes.legend(frameon=False)
    run.figure("cartpole", figure)
    run.finish(**{f"{row['environment']} {kind}".replace(" ", "_"): row[kind] for row in rows for kind in kinds})
    shown = ("environment", "regular", "robust", "paper_regular", "paper_robust")
    return {"mean episode length": [{name: row[name] for name in shown} for row in rows]}
