"""How good samples are, in one call: distances in features, coverage, copies, sharpness, and the floor beside them.

N examples · C channels · H height · W width
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iclr18cli.data.tensors import Split
from iclr18cli.generate import metrics
from iclr18cli.generate.features import Extractor, PixelFeatures, extractor, pixel_features

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

Sampler = Callable[[int, torch.Generator], Tensor]
"""(count, CPU generator) -> (count, *shape) samples in the data's range, on any device."""

DRAW = 500
NEIGHBOURS_LIMIT = 2000
"""Points in k-NN measures and in the search for copies: they cost a distance per pair."""


def sample_quality(
    sampler: Sampler,
    split: Split,
    *,
    train: Split,
    extractor: Extractor | None = None,
    n: int = 10_000,
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a sampler against a split of the data.

    Frechet distances are biased by a term of order 1/n, so the sample has as many points as the split takes (`n` at
    most), and `floor_*` say what that many training points get against the same split: no sampler need be better.

    Args:
        sampler: Draws samples.
        split: What they are compared with, usually the test split.
        train: The training split: principal components, floor, copies.
        extractor: Classifier features; None: pixels only (data without classes).
        n: Points at most.
        generator: CPU generator the sampler draws from; None: seeded from `seed`.
        seed: Seed where there is no generator, and of the division into blocks.

    Returns:
        n; `feature_*` in the extractor's features with `features`, `feature_accuracy`, `feature_sha256`:
        frechet_distance, kernel_distance with its interval, precision, recall, density, coverage; `classifier_score`,
        `class_*`; `pixel_*` in principal components; `floor_*` of the training data; sharpness (mean, pixels as they
        are) of samples and data; `copy_ratio`, the median over samples of the distance to the nearest training point,
        over the same of the split: well below 1 where the sampler repeats the training data.

    Raises:
        ValueError: The sampler's shape is not the data's, or a sample is not finite.
    """
    generator = generator or torch.Generator().manual_seed(seed)
    real = split.take(min(n, len(split))) if len(split) > n else split
    count = len(real)
    fake_x = draw(sampler, count, generator)
    if tuple(fake_x.shape[1:]) != split.shape:
        raise ValueError(f"samples must have the data's shape {split.shape}; received {tuple(fake_x.shape[1:])}")
    device = fake_x.device
    real_x = real.inputs().to(device)
    known_x = train.take(_spread(len(train), count)).inputs().to(device)
    pixels = pixel_features(train)
    result: dict[str, Any] = {"n": count}
    if extractor is not None:
        result |= _in_features(extractor.to(device), fake_x, real_x, known_x, train, seed)
    fake_D, real_D, known_D = (pixels.features(x) for x in (fake_x, real_x, known_x))
    result |= {
        "pixel_features": pixels.name,
        "pixel_frechet_distance": metrics.frechet_distance(fake_D, real_D),
        "floor_pixel_frechet_distance": metrics.frechet_distance(known_D, real_D),
        "copy_ratio": _copy_ratio(pixels, fake_D, real_D, train),
    }
    if len(split.shape) == 3 and split.shape[0] in (1, 3) and min(split.shape[1:]) >= 3:
        result["sharpness"] = metrics.sharpness(fake_x).mean().item()
        result["floor_sharpness"] = metrics.sharpness(real_x).mean().item()
    return result


def run_quality(
    run: OpenedRun,
    split: Split,
    sampler: Sampler,
    *,
    seed: int,
    feature_steps: int = 0,
    features: bool = True,
    inception: bool = False,
) -> dict[str, Any]:
    """Measure the sampler of a run on a split: `sample_quality`, in classifier features where the data have classes.

    Args:
        run: Its training data are opened, and the classifier is trained once on its device and kept.
        split: What samples are compared with.
        sampler: Draws samples.
        seed: Of the draws.
        feature_steps: Training steps of the classifier; 0: enough.
        features: Measure in features and pixels.
        inception: Also FID and KID, where torch-fidelity and its weights are on this machine.

    Raises:
        UserError: They are not.
    """
    found: dict[str, Any] = {}
    if features:
        train, extracted = run.open_split(run.data, "train"), None
        if len(train.shape) == 3 and len(train.classes) > 1:
            test = run.open_split(run.data, "test")
            extracted = extractor(train, test, steps=feature_steps, device=run.device, progress=run.progress)
        found |= sample_quality(sampler, split, train=train, extractor=extracted, seed=seed)
    if inception:
        from iclr18cli.generate.inception import inception_metrics

        samples = draw(sampler, len(split), torch.Generator().manual_seed(seed))
        found |= inception_metrics(_rgb(samples), _rgb(split.inputs()))
    return found


def _rgb(x: Tensor) -> Tensor:
    return (x.cpu().clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def draw(sampler: Sampler, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` samples, drawn in parts of constant size without gradients.

    Raises:
        ValueError: A sample is not finite.
    """
    with torch.no_grad():
        x = torch.cat([sampler(min(DRAW, count - done), generator) for done in range(0, count, DRAW)])
    if not x.isfinite().all():
        raise ValueError("samples must be finite; received NaN or infinite values")
    return x


def _in_features(
    extractor: Extractor, fake_x: Tensor, real_x: Tensor, known_x: Tensor, train: Split, seed: int
) -> dict[str, Any]:
    fake, real, known = (extractor.features(x) for x in (fake_x, real_x, known_x))
    classes = len(train.classes)
    logits = extractor.logits(fake)
    reference_K = torch.bincount(train.y, minlength=classes).double() / len(train)
    spread = metrics.class_coverage(logits.argmax(1).cpu(), classes, reference_K=reference_K.cpu())
    blocks = max(2, min(20, len(fake) // 100))
    low, high = metrics.kernel_distance_interval(
        fake, real, blocks=blocks, generator=torch.Generator().manual_seed(seed)
    )
    near = metrics.precision_recall(real[:NEIGHBOURS_LIMIT], fake[:NEIGHBOURS_LIMIT])
    return {
        **extractor.about(),
        "feature_frechet_distance": metrics.frechet_distance(fake, real),
        "floor_feature_frechet_distance": metrics.frechet_distance(known, real),
        "feature_kernel_distance": metrics.kernel_distance(fake, real),
        "feature_kernel_distance_low": low,
        "feature_kernel_distance_high": high,
        "floor_feature_kernel_distance": metrics.kernel_distance(known, real),
        **{f"feature_{name}": value for name, value in near.items()},
        "classifier_score": metrics.classifier_score(logits),
        **{f"class_{name}": value for name, value in spread.items()},
    }


def _copy_ratio(pixels: PixelFeatures, fake_D: Tensor, real_D: Tensor, train: Split) -> float:
    known_D = pixels.features(train.take(5 * NEIGHBOURS_LIMIT).inputs()).to(fake_D.device)
    one, two = (metrics.nearest_distance(x[:NEIGHBOURS_LIMIT], known_D).median() for x in (fake_D, real_D))
    return (one / two.clamp(min=1e-300)).item()


def _spread(length: int, count: int) -> Tensor:
    """Return at most `count` places spread evenly over 0 .. length - 1, in order."""
    return torch.linspace(0, length - 1, min(length, count)).round().long()
