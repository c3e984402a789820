"""Pictures of attacks: robust accuracy over the radius, and clean, adversarial and changed pixels side by side.

N points · C channels · H height · W width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from iclr18cli.attack.report import AttackCurve, clopper_pearson
from iclr18cli.attack.search import Found
from iclr18cli.data.tensors import Split
from iclr18cli.report.plot import new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["can_show", "curves", "grid", "save"]

SHOWN = 8
"""Examples in a grid."""


def curves(reports: Mapping[str, Any]) -> Figure:
    """Draw robust accuracy over the radius, a line per model with its 95 % interval.

    Args:
        reports: Name of a model -> its `AttackCurve`.
    """
    figure, axes = new_figure(size=(5.6, 3.8))
    report: AttackCurve
    for name, report in reports.items():
        eps = [point.eps for point in report.points]
        ends = [clopper_pearson(point.robust.correct, point.robust.n) for point in report.points]
        (line,) = axes.plot(eps, [100 * p.robust.accuracy for p in report.points], marker="o", markersize=3, label=name)
        low, high = ([100 * end[side] for end in ends] for side in (0, 1))
        axes.fill_between(eps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    first = next(iter(reports.values()))
    axes.set_xlabel(f"radius eps ({first.threat['norm']}, {first.threat['units']})")
    axes.set_ylabel("robust accuracy in % (upper bound)")
    axes.set_ylim(0, 102)
    axes.set_title(f"{first.attack}: {first.sample['dataset']}, {first.sample['n']} {first.sample['split']} points")
    axes.legend(frameon=False, fontsize=8)
    return figure


def can_show(split: Split) -> bool:
    """Return whether the inputs are images of one or three channels."""
    return len(split.shape) == 3 and split.shape[0] in (1, 3)


def grid(split: Split, found: Found) -> Figure:
    """Draw the first broken points (or the nearest errors) in three rows: clean, adversarial, difference around grey.

    Args:
        split: Images (N, C, H, W), C 1 or 3.
        found: With the adversarial points kept.
    """
    assert found.points is not None
    broken_N, near_N = found.correct & ~found.robust, found.correct & (found.nearest < torch.inf)
    shown = (broken_N if broken_N.any() else near_N).nonzero().flatten()[:SHOWN].tolist()
    shown = shown or list(range(min(SHOWN, len(split))))
    figure, axes = new_figure(3, len(shown), size=(1.1 * len(shown) + 0.6, 3.9))
    x = split.inputs(torch.tensor(shown, device=split.x.device)).cpu()
    z = found.points[torch.tensor(shown)]
    low, high = split.range or (float(x.min()), float(x.max()))
    largest = max(float((z - x).abs().max()), 1e-12)
    rows = ((x - low) / (high - low), (z - low) / (high - low), 0.5 + (z - x) / (2 * largest))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            panel = axes[row][column] if len(shown) > 1 else axes[row]
            picture = image.clamp(0, 1).permute(1, 2, 0).numpy()
            panel.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.grid(False)
    for column, index in enumerate(shown):
        top, middle = (axes[row][column] if len(shown) > 1 else axes[row] for row in (0, 1))
        top.set_title(split.classes[int(split.y[index])], fontsize=8)
        predicted = int(found.predicted[index])
        name = split.classes[predicted] if predicted < len(split.classes) else str(predicted)
        middle.set_title(f"{name}, {found.nearest[index]:.3g}", fontsize=7)
    for row, word in enumerate(("clean", "adversarial", f"change, ±{largest:.2g}")):
        panel = axes[row][0] if len(shown) > 1 else axes[row]
        panel.set_ylabel(word, fontsize=8)
    return figure
