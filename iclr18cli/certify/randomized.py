"""Randomized smoothing of a classifier: prediction and certified radius of one input (Cohen, Rosenfeld, Kolter 2019).

The smoothed classifier g(x) is the class that f(x + N(0, sigma^2 I)) returns most often. With probability at least
1 - alpha over the draws, g is constant on the open 2-norm ball of the radius found here. It speaks of g, not of f.

B batch · M noise draws · X the axes of one input · K classes
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iclr18cli.attack.memory import batch_size_for
from iclr18cli.device import derived_seed
from iclr18cli.models.modes import evaluating

ABSTAIN = -1

BLOCK_NUMBERS = 2**22
"""Noise numbers drawn at once. A constant, and not the batch, so that the draws do not depend on the batch size."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What smoothing found for one input.

    Args:
        index: Position in the evaluated set.
        label: True class.
        predicted: Class of the smoothed classifier, or -1: it abstains.
        radius: g is constant at every distance below it, 2-norm, in the unit of the input; 0 where it abstains.
        nA: Estimation draws that gave the selected class.
        n: Estimation draws.
        seconds: Time it took.
    """

    index: int
    label: int
    predicted: int
    radius: float
    nA: int  # noqa: N815 - the paper's name
    n: int
    seconds: float = 0.0

    @property
    def correct(self) -> bool:
        """Return whether the smoothed classifier gives the label; abstaining counts as wrong."""
        return self.predicted == self.label


def check_smoothing(*, sigma: float, n0: int = 1, n: int, alpha: float) -> None:
    """Raise ValueError unless sigma is positive and finite, n0 and n are at least 1, and alpha lies in (0, 1/2)."""
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be > 0 and finite; received sigma={sigma!r}")
    for name, value in (("n0", n0), ("n", n)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1; received {name}={value!r}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be in (0, 0.5); received alpha={alpha!r}")


def lower_confidence(k: int, n: int, alpha: float) -> float:
    """Return the one-sided Clopper-Pearson lower bound of a probability that k of n draws showed, in float64.

    It exceeds the true probability with probability at most alpha: the alpha quantile of Beta(k, n - k + 1).

    Example:
        >>> round(lower_confidence(100, 100, 0.001), 6) == round(0.001 ** (1 / 100), 6)
        True
    """
    from scipy.special import betaincinv

    return 0.0 if k == 0 else float(betaincinv(k, n - k + 1, alpha))


def upper_confidence(k: int, n: int, alpha: float) -> float:
    """Return the one-sided Clopper-Pearson upper bound: below the true probability with probability at most alpha."""
    return 1.0 - lower_confidence(n - k, n, alpha)


def certified_radius(nA: int, n: int, *, sigma: float, alpha: float) -> float:
    """Return sigma Phi^-1(p), p the lower bound of the class's probability, or 0 where p <= 1/2: abstain (CERTIFY).

    Example:
        >>> round(certified_radius(100_000, 100_000, sigma=1.0, alpha=0.001), 3)
        3.811
        >>> certified_radius(520, 1000, sigma=1.0, alpha=0.001)
        0.0
    """
    from scipy.special import ndtri

    p_low = lower_confidence(nA, n, alpha)
    return sigma * float(ndtri(p_low)) if p_low > 0.5 else 0.0


def max_radius(n: int, *, sigma: float, alpha: float) -> float:
    """Return the largest radius that n draws can prove: all of them gave one class."""
    return certified_radius(n, n, sigma=sigma, alpha=alpha)


def model_dtype(model: nn.Module, default: torch.dtype) -> torch.dtype:
    """Return the floating type the model computes in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), default)


def noise_generator(device: torch.device, *names: object) -> torch.Generator:
    """Return a generator for one purpose, on the CUDA device itself: 1e5 draws of an image are not sent over.

    Every device has its own stream; the guarantee needs none in particular.
    """
    where = device if device.type == "cuda" else torch.device("cpu")
    return torch.Generator(where).manual_seed(derived_seed(*names))  # type: ignore[arg-type]


def noise_blocks(
    shape: torch.Size, draws: int, *, sigma: float, generator: torch.Generator, like: Tensor
) -> Iterator[Tensor]:
    """Yield N(0, sigma^2) noise, (M, *shape) at a time, `draws` in all: in float32, or float64 where `like` is.

    The sizes of the blocks follow from `shape` and `draws` alone.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    rows = max(1, BLOCK_NUMBERS // max(1, shape.numel()))
    for start in range(0, draws, rows):
        block_MX = torch.randn(
            min(rows, draws - start), *shape, generator=generator, device=generator.device, dtype=dtype
        )
        yield block_MX.to(like.device).mul_(sigma)


@torch.no_grad()
def class_counts(
    model: nn.Module, x_X: Tensor, draws: int, *, sigma: float, generator: torch.Generator, batch_size: int
) -> Tensor:
    """Count how often f(x + noise) returns each class (SAMPLEUNDERNOISE). Nothing is clipped.

    The model must be in evaluation mode: see `evaluating`.

    Args:
        model: Maps (B, *X) to (B, K) logits.
        x_X: One input, without a batch axis.
        draws: Noise draws, at least 1.
        sigma: Standard deviation of the noise, in the unit of the input.
        generator: Source of the noise.
        batch_size: Draws per forward pass; changes nothing but rounding.

    Returns:
        (K,) int64 on the CPU; they sum to `draws`.
    """
    dtype, counts_K = model_dtype(model, x_X.dtype), None
    for noise_MX in noise_blocks(x_X.shape, draws, sigma=sigma, generator=generator, like=x_X):
        for part_MX in noise_MX.add_(x_X).split(batch_size):
            logits_MK = model(part_MX.to(dtype))
            classes_K = torch.arange(logits_MK.shape[1], device=logits_MK.device)
            seen_K = (logits_MK.argmax(1)[:, None] == classes_K).sum(0)
            counts_K = seen_K if counts_K is None else counts_K + seen_K
    assert counts_K is not None
    return counts_K.cpu()


def certify_point(
    model: nn.Module,
    x_X: Tensor,
    label: int,
    index: int,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    batch_size: int,
    seed: int = 0,
) -> Point:
    """Select a class with n0 draws, count it in n fresh ones, and turn the count into a radius (CERTIFY).

    The two streams are seeded apart and by the input's index, so that no result depends on which inputs came before.

    Args:
        model: In evaluation mode; maps (B, *X) to (B, K) logits.
        x_X: One input.
        label: Its class; only stored.
        index: Its number, part of the seed.
        sigma, n0, n, alpha: Noise, draws, and the probability that the radius is wrong.
        batch_size: Draws per forward pass.
        seed: Seed of the run.
    """
    start = time.perf_counter()
    counts_K = {
        purpose: class_counts(
            model,
            x_X,
            draws,
            sigma=sigma,
            generator=noise_generator(x_X.device, seed, "smoothing", purpose, index),
            batch_size=batch_size,
        )
        for purpose, draws in (("select", n0), ("estimate", n))
    }
    c_A = int(counts_K["select"].argmax())
    nA = int(counts_K["estimate"][c_A])
    radius = certified_radius(nA, n, sigma=sigma, alpha=alpha)
    predicted = c_A if lower_confidence(nA, n, alpha) > 0.5 else ABSTAIN
    return Point(
        index=index,
        label=label,
        predicted=predicted,
        radius=radius,
        nA=nA,
        n=n,
        seconds=time.perf_counter() - start,
    )


def predict(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int = 0,
    seed: int = 0,
) -> Tensor:
    """Return the smoothed classifier's class of each input, or -1 where it abstains (PREDICT).

    It abstains unless the two-sided binomial test of the most frequent class against the second has p <= alpha. With
    probability at least 1 - alpha per input, what it returns is g(x) or -1.

    Args:
        model: Maps (B, *X) to (B, K) logits; held in evaluation mode.
        x: (B, *X) float inputs.
        sigma: Standard deviation of the noise, in the unit of the input.
        n: Draws per input.
        alpha: Error probability per input, in (0, 1/2).
        batch_size: Draws per forward pass; 0: from the free memory.
        seed: Seed of the noise.

    Returns:
        (B,) int64 on the CPU.

    Example:
        >>> net = nn.Linear(1, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0], [-1.0]])
        >>> predict(net, torch.tensor([[1.0], [0.0], [-1.0]]), sigma=0.5, n=200).tolist()
        [0, -1, 1]
    """
    from scipy.stats import binomtest

    check_smoothing(sigma=sigma, n=n, alpha=alpha)
    found = []
    with evaluating(model):
        size = batch_size or batch_size_for(model, x[:2].to(model_dtype(model, x.dtype)))
        for index, x_X in enumerate(x):
            generator = noise_generator(x.device, seed, "smoothing", "predict", index)
            counts_K = class_counts(model, x_X, n, sigma=sigma, generator=generator, batch_size=size)
            (first, second), (c_A, _) = (part.tolist() for part in counts_K.topk(2))
            p_value = binomtest(first, first + second, 0.5).pvalue
            found.append(c_A if p_value <= alpha else ABSTAIN)
    return torch.tensor(found, dtype=torch.int64)
