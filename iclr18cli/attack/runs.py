"""Attack what a command line names, a run or one's own model, and keep what was found beside it.

N points of the sample
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from iclr18cli import launch
from iclr18cli.attack import pictures
from iclr18cli.attack.config import SWEPT, AttackConfig
from iclr18cli.attack.curve import evaluate_curve
from iclr18cli.attack.evaluation import Evaluated, evaluate_model
from iclr18cli.attack.setting import Effort
from iclr18cli.attack.threat import Threat
from iclr18cli.certify.result import software
from iclr18cli.errors import UsageError
from iclr18cli.run.atomic import digest

if TYPE_CHECKING:
    from iclr18cli.run.opened import Subject

POINTS = "index\tlabel\tclean\tadversarial\tbroken_by\tnearest"
"""Columns of the table of points: broken_by names the attack, nearest is the norm of the smallest error found."""


def attack_run(
    run: Subject,
    config: AttackConfig | None = None,
    *,
    source: nn.Module | None = None,
) -> Evaluated:
    """Attack a model on the data it is opened with.

    Args:
        run: A run or one's own model.
        config: What to do; by default that of the command line.
        source: Model that a transfer attack makes its points on.

    Raises:
        UsageError: The run's model is no classifier, or an attack, its norm or an option does not exist or fit.
        UserError: See `iclr18cli.attack.evaluation.attack_model`.
    """
    config = config or AttackConfig()
    card = run.card
    if card.task != "classify":
        raise UsageError(
            f"`iclr18 attack` works on classifiers; this run's model is for the task '{card.task}'.",
            why="an attack here changes one input until its predicted class is wrong",
            fix=f"iclr18 {run.technique} eval, or certify: they measure what this model is for.",
        )
    stages = config.check(bounded=card.range is not None)  # a wrong name is told before data and weights are read
    points = run.split(config.split, config.limit)
    eps = config.radius(stages)
    radii: tuple[float, ...] = ()
    if config.sweep:
        radii = config.radii or tuple(eps * i / (SWEPT - 1) for i in range(SWEPT))
    effort = Effort(
        eot=config.eot,
        target=config.target or "",
        source=source,
        diagnose=config.diagnose,
        batch_size=config.batch_size,
        seed=run.seed,
        keep_points=config.save_examples,
        parts=_parts(run, config, points.digest()),
    )
    model = run.model()
    work = len(points) * max(1, len(stages)) * max(1, len(radii))
    with run.progress(work // launch.world().size, f"attack {run.label}") as bar:
        asked: dict[str, Any] = {"attack": config.name, "budget": config.budget}
        asked["effort"] = replace(effort, progress=bar.advance)
        if radii:
            return evaluate_curve(model, points, norm=config.norm, radii=radii, domain=card.range, **asked)
        return evaluate_model(model, points, threat=Threat(config.norm, eps, card.range), **asked)


def _parts(run: Subject, config: AttackConfig, data: str) -> Path | None:
    """Return the folder for finished batches: its name is made from all that their contents depend on."""
    facts = {"config": repr(config), "data": data, "model": run.card.sha256, "seed": run.seed, **software()}
    return run.keep("attack", f".{digest(facts)[:16]}.parts", each_rank=True)


def keep_files(run: Subject, config: AttackConfig, evaluated: Evaluated, stem: str) -> dict[str, str]:
    """Write the table of points, and where asked for the curve, the examples and their picture; return the paths.

    Args:
        run: Where they are kept; without a place for files nothing is written.
        config: What was asked for.
        evaluated: What was found.
        stem: Beginning of the files' names.
    """
    from iclr18cli.models import weights
    from iclr18cli.run.atomic import write_bytes

    written: dict[str, str] = {}

    def note(kind: str, path: Path | None, write: Any) -> None:
        if path is not None:
            write(path)
            written[kind] = str(path)

    table = points_table(evaluated)
    note("points", run.keep("attack", f"{stem}-points.tsv"), lambda path: write_bytes(path, table.encode()))
    if config.sweep:
        figure = pictures.curves({run.label: evaluated.report})
        note("curve", run.keep("plots", f"attack-{stem}.png"), lambda path: pictures.save(figure, path))
    found, split, adversarial = evaluated.found, evaluated.split, evaluated.found.points
    if config.save_examples and adversarial is not None:
        tensors = {
            "clean": split.inputs().cpu(), "adversarial": adversarial, "label": split.y.cpu(),
            "predicted": found.predicted, "robust": found.robust, "nearest": found.nearest,
        }  # fmt: skip
        note("examples", run.keep("attack", f"{stem}-examples.safetensors"),
             lambda path: write_bytes(path, weights.dumps(tensors)))  # fmt: skip
        if pictures.can_show(split):
            grid = pictures.grid(split, found)
            note("grid", run.keep("plots", f"attack-{stem}-examples.png"), lambda path: pictures.save(grid, path))
    return written


def points_table(evaluated: Evaluated) -> str:
    """Return one line per point, tab-separated, under the heading `POINTS`."""
    found, names = evaluated.found, [str(stage["attack"]) for stage in evaluated.found.stages]
    rows = zip(
        evaluated.split.y.tolist(), found.correct.tolist(), found.predicted.tolist(), found.broken_by.tolist(),
        found.nearest.tolist(), strict=True,
    )  # fmt: skip
    lines = [POINTS]
    for index, (label, right, predicted, by, nearest) in enumerate(rows):
        clean = label if right else predicted
        lines.append(f"{index}\t{label}\t{clean}\t{predicted}\t{names[by] if by >= 0 else '-'}\t{nearest:.6g}")
    return "\n".join(lines) + "\n"
