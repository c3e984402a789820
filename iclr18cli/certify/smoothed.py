"""The certificate by randomized smoothing: how much of a set the smoothed classifier provably gets right.

The guarantee of `randomized` is per input. For a set this adds what makes it one statement: the number of wrong radii
among N is at most binomial, and at alpha/N per input none is wrong.

N points · K classes
"""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from iclr18cli import launch
from iclr18cli.attack.memory import batch_size_for
from iclr18cli.certify.kept_points import KeptPoints
from iclr18cli.certify.problem import check_labels
from iclr18cli.certify.randomized import ABSTAIN, Point, certified_radius, certify_point, model_dtype
from iclr18cli.certify.randomized_attack import contradicted
from iclr18cli.certify.result import Certificate
from iclr18cli.certify.shared_points import agreed, alike
from iclr18cli.certify.smoothed_wording import RADII, Facts, Smoothing, certificate
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.modes import device_of, evaluating

SCHEMA = "iclr18.smoothing/1"

ATTACKED = 100
"""Certified points that the attack inside the certified set tries, the first ones."""

TEST_DRAWS = 2000
"""Draws, at most, with which an attacked point is tested."""


def smoothing(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    radii: Sequence[float] = RADII,
    batch_size: int = 0,
    seed: int = 0,
    input_range: tuple[float, float] | None = None,
    attack: bool = True,
    progress: Callable[[int], object] | None = None,
    record: str | Path | None = None,
) -> list[Certificate]:
    """Bound from below the share of points that a smoothed classifier gets right however they move within a radius.

    Cohen, Rosenfeld and Kolter (2019): g(x) is the class that `model` returns most often under N(0, sigma^2 I). Works
    for any deterministic model, which should have been trained with such noise. The same run attacks g inside the
    certified balls; `holds` is false where that shows a radius to be wrong.

    Args:
        model: Maps (N, *shape) to (N, K) logits; held in evaluation mode, flags and gradients left as they were.
        x: (N, *shape) raw inputs: float, taken as float32, or uint8 images, divided by 255.
        y: (N,) classes.
        sigma: Standard deviation of the noise, in the unit of x.
        n0, n: Draws per point that select a class, and fresh ones that count it. n limits the radius: 3.811 sigma for
            100,000, 2.463 sigma for 1,000 at alpha = 0.001.
        alpha: Probability that one radius is wrong, in (0, 1/2).
        radii: Radii of the table, 2-norm, in the unit of x.
        batch_size: Noisy inputs per forward pass; 0: from the free memory.
        seed: Seed of the noise.
        input_range: (low, high) that the inputs are checked to lie in. The noise is not clipped to it.
        attack: Attack inside the certified set.
        progress: Called with 1 after every point.
        record: TSV file that every finished point is written to, and from which a stopped call goes on.

    Returns:
        One certificate per radius, in order.

    Raises:
        UserError: Inputs outside the range, labels outside the classes, or `record` belongs to other settings.
        ValueError: A number is out of range.

    Example:
        >>> net = nn.Linear(1, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0], [-1.0]])
        >>> x, y = torch.tensor([[1.0], [2.0], [-2.0]]), torch.tensor([0, 0, 1])
        >>> found = smoothing(net, x, y, sigma=1.0, n=1000, radii=(0.5, 5.0))
        >>> [certificate.value for certificate in found]
        [1.0, 0.0]
    """
    asked = Smoothing(
        sigma=sigma, n0=n0, n=n, alpha=alpha, radii=tuple(radii), batch_size=batch_size, seed=seed, attack=attack
    )
    points = x if x.dtype == torch.uint8 else x.float()
    classes = tuple(str(label) for label in range(int(y.max()) + 1)) if len(y) else ()
    split = Split(
        points, y.long(), classes, "the points given", "", (0.0, 1.0) if x.dtype == torch.uint8 else input_range
    )
    return certify_smoothed(model, split, asked, progress=progress, record=record)


def certify_smoothed(
    model: nn.Module,
    split: Split,
    asked: Smoothing,
    *,
    progress: Callable[[int], object] | None = None,
    record: str | Path | None = None,
) -> list[Certificate]:
    """Do the work of `smoothing` for a split.

    Raises:
        As `smoothing`.
    """
    began = time.perf_counter()
    x = split.to(device_of(model, split.x.device)).inputs()
    y = split.y.cpu()
    with evaluating(model):
        clean, classes = check_points(model, split, x)
        size = agreed(asked.batch_size or batch_size_for(model, x[:2].to(model_dtype(model, x.dtype))))
        points, resumed = _certified_points(model, x, y.tolist(), settings(model, split, asked), asked, size, record,
                                            progress or (lambda n: None))  # fmt: skip
        joint = [joint_radius(point, asked, len(y)) for point in points]
        wrong, attacked = [], 0
        if asked.attack:
            pairs = [(p, r) for p, r in zip(points, joint, strict=True) if p.correct and r > 0][:ATTACKED]
            attacked = len(pairs)
            wrong = contradicted(
                model,
                x,
                pairs,
                sigma=asked.sigma,
                n=min(asked.n, TEST_DRAWS),
                batch_size=size,
                seed=asked.seed,
            )
    facts = Facts(
        split=split,
        asked=asked,
        points=points,
        joint=joint,
        classes=classes,
        clean=clean,
        attacked=attacked,
        wrong=wrong,
        batch_size=size,
        resumed=resumed,
        record=str(record) if record is not None else "",
        seconds=time.perf_counter() - began,
    )
    return [certificate(facts, radius) for radius in asked.radii]


def _certified_points(
    model: nn.Module, x: Tensor, labels: list[int], settings: dict[str, object], asked: Smoothing, batch_size: int,
    record: str | Path | None, progress: Callable[[int], object],
) -> tuple[list[Point], int]:  # fmt: skip
    """Return every point certified, and how many had been before. Ranks share what is left, each with its own file.

    The noise of a point depends on its number alone, so that the number of ranks changes nothing.
    """
    ranks = launch.world()
    whole = None if record is None else Path(record)
    kept = alike(lambda: KeptPoints(whole if ranks.first else None, settings, labels))
    kept.points = ranks.broadcast(kept.points)
    known, own, first = len(kept.points), kept, len(kept.points)
    left = len(labels) - known
    if ranks.size > 1:
        part = ranks.part(left)
        first, left = known + part.start, part.stop - part.start
        ending = f".from-{known}.rank-{ranks.rank}-of-{ranks.size}.tsv"
        name = None if whole is None else whole.with_name(whole.stem + ending)
        own = alike(lambda: KeptPoints(name, settings, labels[first : first + left], first))
    done = len(own.points) if own is not kept else 0
    if known + done:
        progress(known + done)

    def certify() -> None:
        for index in range(first + done, first + left):
            own.add(
                certify_point(
                    model, x[index], labels[index], index, sigma=asked.sigma, n0=asked.n0, n=asked.n, alpha=asked.alpha,
                    batch_size=batch_size, seed=asked.seed,
                )
            )  # fmt: skip
            progress(1)

    def put_together() -> None:
        for point in found:
            kept.add(point)

    alike(certify)
    if own is not kept:
        found = [point for of_rank in ranks.gather(own.points) for point in of_rank]
        alike(put_together)
        known += sum(ranks.gather(done))
    for path in () if whole is None else whole.parent.glob(f"{glob.escape(whole.stem)}.from-*.rank-*.tsv"):
        path.unlink(missing_ok=True)  # its points are in the whole file now, or were for another number of ranks
    return kept.points, known


def joint_radius(point: Point, asked: Smoothing, points: int) -> float:
    """Return a point's radius at the level alpha/(2N), at which all radii hold together."""
    if point.predicted == ABSTAIN:
        return 0.0
    return certified_radius(point.nA, point.n, sigma=asked.sigma, alpha=asked.joint_alpha(points))


def settings(model: nn.Module, split: Split, asked: Smoothing) -> dict[str, object]:
    """Return everything the counts of a certification depend on, JSON-ready: model, data, noise and numbers."""
    anchor = next(iter([*model.parameters(), *model.buffers()]), None)
    return {
        "schema": SCHEMA,
        "sigma": asked.sigma,
        "n0": asked.n0,
        "n": asked.n,
        "alpha": asked.alpha,
        "seed": asked.seed,
        "model": fingerprint(model),
        "data": split.digest(),
        # CUDA draws other noise than the CPU.
        "noise": "cuda" if anchor is not None and anchor.device.type == "cuda" else "cpu",
    }


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's layers, weights and buffers."""
    found = sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_points(model: nn.Module, split: Split, x: Tensor) -> tuple[float, int]:
    """Return the base model's accuracy without noise and its number of classes; refuse what does not fit."""
    low, high = float(x.min()), float(x.max())
    if split.range is not None and not (split.range[0] <= low and high <= split.range[1]):
        raise UserError(
            f"Inputs lie outside the declared range [{split.range[0]:g}, {split.range[1]:g}].",
            why=f"they range over [{low:.6g}, {high:.6g}]; sigma would mean something else there",
            fix="give raw inputs and make the normalisation the model's first layer",
        )
    if not (torch.isfinite(x).all()):
        raise UserError("The inputs hold NaN or infinity.", fix="clean the data set")
    right, classes = 0, 0
    size = batch_size_for(model, x[:2].to(model_dtype(model, x.dtype)))
    with torch.no_grad():
        for x_BX, y_B in zip(x.split(size), split.y.to(x.device).split(size), strict=True):
            logits = model(x_BX.to(model_dtype(model, x.dtype)))
            classes = logits.shape[1]
            right += int((logits.argmax(1) == y_B).sum())
    check_labels(split, classes, least=2)
    return right / len(split), classes
