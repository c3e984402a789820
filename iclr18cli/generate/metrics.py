"""Measures of a sample against data: pure functions of feature matrices, labels and images.

What a number means depends on the features. None of these is "FID" or "KID" unless the features are those of the
Inception network that the names stand for.
"""

# N data points · M generated points · D features · K classes · B rows at a time

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 1024
"""Rows of a distance or Gram matrix held at a time."""


def frechet_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """Return |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)): the squared 2-Wasserstein distance of fitted Gaussians.

    Heusel et al. (2017), Eq. (6), with unbiased covariances, in float64. The trace of the root comes from the symmetric
    form S_a^(1/2) S_b S_a^(1/2), which has the same eigenvalues and is never complex. The estimate is biased upwards by
    a term of order 1/n: compare equal n only, and n well above D.

    Args:
        a_ND, b_MD: Features, at least 2 rows each.

    Raises:
        ValueError: Too few rows, or different D, or numbers that are not finite.

    Example:
        >>> frechet_distance(torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [4.0]]))
        9.0
    """
    a_ND, b_MD = _pair(a_ND, b_MD)
    mean = (a_ND.mean(0) - b_MD.mean(0)).square().sum()
    cov_a, cov_b = _covariance(a_ND), _covariance(b_MD)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    inner = root_a @ cov_b @ root_a
    shared = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    return max(0.0, (mean + cov_a.trace() + cov_b.trace() - 2 * shared).item())


def kernel_distance(a_ND: Tensor, b_MD: Tensor, *, degree: int = 3) -> float:
    """Return the unbiased estimate of MMD^2 with the kernel (x.y / D + 1)^degree (Binkowski et al. 2018, section 4).

    Within a sample the diagonal is left out, so the estimate may be negative; its mean is 0 for equal laws, at any n.

    Args, raises: as `frechet_distance`.

    Example:
        >>> kernel_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), degree=1)
        -0.5
    """
    a_ND, b_MD = _pair(a_ND, b_MD)
    D = a_ND.shape[1]

    def total(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(rows @ y.T / D + 1).pow(degree).sum() for rows in x.split(ROWS)]).sum()

    def within(x: Tensor) -> Tensor:
        diagonal = (x.square().sum(1) / D + 1).pow(degree).sum()
        return (total(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return (within(a_ND) + within(b_MD) - 2 * total(a_ND, b_MD) / (len(a_ND) * len(b_MD))).item()


def kernel_distance_interval(
    a_ND: Tensor, b_MD: Tensor, *, blocks: int = 20, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Return the mean of `kernel_distance` over disjoint random blocks, minus and plus 1.96 standard errors.

    Args:
        a_ND, b_MD: Features, at least two rows per block.
        blocks: Number of disjoint blocks, at least 2.
        generator: CPU generator of the division into blocks.

    Raises:
        ValueError: Too few rows for the blocks.
    """
    if blocks < 2 or min(len(a_ND), len(b_MD)) < 2 * blocks:
        raise ValueError(f"blocks must be >= 2 with 2 rows each; received {blocks}, {len(a_ND)} and {len(b_MD)} rows")
    parts = [
        x[torch.randperm(len(x), generator=generator)[: len(x) // blocks * blocks].to(x.device)].chunk(blocks)
        for x in (a_ND, b_MD)
    ]
    found = torch.tensor([kernel_distance(a, b) for a, b in zip(*parts, strict=True)], dtype=torch.float64)
    mean, error = found.mean().item(), (found.std() / math.sqrt(blocks)).item()
    return mean - 1.96 * error, mean + 1.96 * error


def precision_recall(real_ND: Tensor, fake_MD: Tensor, *, neighbours: int = 3) -> dict[str, float]:
    """Return the k-NN estimates of how much of the sample is real and how much of the data is covered.

    A manifold is estimated by balls around the points of a set, each reaching to its k-th nearest other point.
    precision: share of generated points in the data's manifold; recall: share of data in the sample's (Kynkaanniemi et
    al. 2019, section 3). density: mean number of data balls a generated point lies in, over k; coverage: share of data
    balls with a generated point inside (Naeem et al. 2020, section 3).

    Args:
        real_ND, fake_MD: Features, more than `neighbours` rows each.
        neighbours: k.

    Raises:
        ValueError: Too few rows, or different D, or numbers that are not finite.
    """
    real_ND, fake_MD = _pair(real_ND, fake_MD)
    if neighbours < 1 or min(len(real_ND), len(fake_MD)) <= neighbours:
        raise ValueError(
            f"neighbours must be >= 1 and below both counts; received {neighbours}, {len(real_ND)}, {len(fake_MD)}"
        )
    radius_N, radius_M = _reach(real_ND, neighbours), _reach(fake_MD, neighbours)
    inside_real, density, recalled, nearest_N = [], [], [], []
    for distance_BN in _distances(fake_MD, real_ND):
        hit_BN = distance_BN <= radius_N
        inside_real.append(hit_BN.any(1))
        density.append(hit_BN.sum(1))
    for distance_BM in _distances(real_ND, fake_MD):
        recalled.append((distance_BM <= radius_M).any(1))
        nearest_N.append(distance_BM.amin(1))
    return {
        "precision": torch.cat(inside_real).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": torch.cat(density).double().mean().item() / neighbours,
        "coverage": (torch.cat(nearest_N) <= radius_N).double().mean().item(),
    }


def nearest_distance(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Return the 2-norm distance from every row of `a_ND` to the nearest row of `b_MD`, (N,) float64."""
    a_ND, b_MD = _pair(a_ND, b_MD)
    return torch.cat([distance_BM.amin(1) for distance_BM in _distances(a_ND, b_MD)])


def class_coverage(labels_M: Tensor, classes: int, *, reference_K: Tensor | None = None) -> dict[str, float]:
    """Return how a sample is spread over classes.

    Args:
        labels_M: (M,) int64 classes as a classifier sees them, 0 .. K - 1.
        classes: K.
        reference_K: Shares of the classes in the data; None: equal ones.

    Returns:
        covered: share of classes that get at least a tenth of their reference share; total_variation: half the sum of
        absolute differences of shares, in [0, 1]; entropy: of the sample's shares, in nats.

    Raises:
        ValueError: No labels, or some outside the classes.

    Example:
        >>> class_coverage(torch.tensor([0, 0, 1, 1]), 4)["covered"]
        0.5
    """
    if not len(labels_M) or int(labels_M.min()) < 0 or int(labels_M.max()) >= classes:
        raise ValueError(f"labels must be at least one, in 0 .. {classes - 1}; received {labels_M.unique().tolist()}")
    share_K = torch.bincount(labels_M.cpu(), minlength=classes).double() / len(labels_M)
    wanted_K = torch.full((classes,), 1 / classes).double() if reference_K is None else reference_K.double().cpu()
    return {
        "covered": (share_K >= 0.1 * wanted_K).double().mean().item(),
        "total_variation": 0.5 * (share_K - wanted_K).abs().sum().item(),
        "entropy": torch.special.entr(share_K).sum().item(),
    }


def classifier_score(logits_MK: Tensor) -> float:
    """Return exp of the mean KL divergence from the marginal to each prediction, in [1, K].

    Salimans et al. (2016), section 4; called Inception score only where the classifier is Inception.
    """
    log_MK = logits_MK.double().log_softmax(1)
    marginal_K = log_MK.exp().mean(0)
    return (log_MK.exp() * (log_MK - marginal_K.clamp(min=1e-300).log())).sum(1).mean().exp().item()


def sharpness(images_NCHW: Tensor) -> Tensor:
    """Return the variance of the Laplacian of every grey image, (N,): WAE's measure of blur, larger is sharper.

    Stencil [[0, 1, 0], [1, -4, 1], [0, 1, 0]], valid positions only. It scales with the square of the pixel range:
    state the range with the number.

    Args:
        images_NCHW: (N, 1 or 3, H, W), at least 3x3.
    """
    grey_N1HW = images_NCHW.double()
    if grey_N1HW.shape[1] == 3:
        weights = grey_N1HW.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]  # ITU-R BT.601 luma
        grey_N1HW = (grey_N1HW * weights).sum(1, keepdim=True)
    stencil = grey_N1HW.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(grey_N1HW, stencil).flatten(1).var(1, correction=0)


def _reach(x_ND: Tensor, neighbours: int) -> Tensor:
    """Return the distance of every point to its k-th nearest other point; the nearest of all is itself."""
    return torch.cat([d.kthvalue(neighbours + 1, dim=1).values for d in _distances(x_ND, x_ND)])


def _distances(x_ND: Tensor, y_MD: Tensor) -> Iterator[Tensor]:
    for rows_BD in x_ND.split(ROWS):
        # By differences, not by a matrix product: a point's distance to itself must be 0, and copies must be found.
        yield torch.cdist(rows_BD, y_MD, compute_mode="donot_use_mm_for_euclid_dist")


def _covariance(x_ND: Tensor) -> Tensor:
    centred = x_ND - x_ND.mean(0)
    return centred.T @ centred / (len(x_ND) - 1)


def _pair(a_ND: Tensor, b_MD: Tensor) -> tuple[Tensor, Tensor]:
    if a_ND.dim() != 2 or b_MD.dim() != 2 or a_ND.shape[1] != b_MD.shape[1] or min(len(a_ND), len(b_MD)) < 2:
        raise ValueError(
            f"features must be (N >= 2, D) and (M >= 2, D); received {tuple(a_ND.shape)} and {tuple(b_MD.shape)}"
        )
    if not (a_ND.isfinite().all() and b_MD.isfinite().all()):
        raise ValueError("features must be finite; received NaN or infinite values")
    return a_ND.detach().double(), b_MD.detach().double()
