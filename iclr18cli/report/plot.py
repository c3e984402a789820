"""Figures in one house style, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart with any colour vision."""


def new_figure(rows: int = 1, columns: int = 1, *, size: tuple[float, float] | None = None) -> tuple[Figure, Any]:
    """Return (figure, axes) with light grids; axes is one Axes or an array of them, as matplotlib gives it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=size or (4.8 * columns, 3.4 * rows), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns)
    for one in [axes] if rows * columns == 1 else axes.flat:
        one.set_prop_cycle(color=COLOURS)
        one.grid(True, alpha=0.25, linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG under a temporary name and rename it."""
    from iclr18cli.run.atomic import replacing

    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def metric_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw every metric of one or more runs over the step, a panel each.

    Args:
        runs: Name of a run -> the lines of its metrics.jsonl.

    Raises:
        ValueError: no run holds a line.
    """
    bookkeeping = {"step", "epoch", "time", "split"}
    series: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for run, records in runs.items():
        for line in records:
            for name, value in line.items():
                if name not in bookkeeping and isinstance(value, int | float):
                    series.setdefault((line.get("split", "train"), name), {}).setdefault(run, []).append(
                        (line["step"], value)
                    )
    if not series:
        raise ValueError("there are no metrics to draw; received runs without a line in metrics.jsonl")
    drawn = {key: lines for key, lines in series.items() if any(len(points) > 1 for points in lines.values())} or series
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = new_figure(rows, columns)
    panels = [axes] if len(drawn) == 1 and rows * columns == 1 else list(axes.flat)
    for panel, ((split, name), lines) in zip(panels, drawn.items(), strict=False):
        for run, points in lines.items():
            panel.plot(*zip(*points, strict=True), label=run, marker="o" if len(points) == 1 else None, linewidth=1.2)
        panel.set_title(f"{name} ({split})")
        panel.set_xlabel("step")
    for panel in panels[len(drawn) :]:
        panel.set_visible(False)
    if len(runs) > 1:
        panels[0].legend(frameon=False, fontsize=7)
    return figure
