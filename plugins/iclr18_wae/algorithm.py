"""Wasserstein auto-encoders, Tolstikhin et al. (2018): penalties, costs, the adversary's logit, encoder pre-training.

D_WAE = inf_Q E_x E_{Q(z|x)} c(x, G(z)) + lambda D_Z(Q_Z, P_Z). Everything here is computed in float32 or better.
"""

# N codes · M prior draws · D latent dimensions · B batch · X the axes of one input

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from iclr18_wae.config import SCALES

ROWS = 256
"""Rows of a Gram matrix computed at a time."""

Kernel = Callable[[Tensor], Tensor]
"""Squared distances to kernel values, element by element."""


def squared_distances(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Return |x_i - y_j|^2, (N, M), in O(N M) memory; rounding below 0 is cut off, gradients at 0 are finite."""
    x_ND, y_MD = x_ND.float() if x_ND.dtype.itemsize < 4 else x_ND, y_MD.float() if y_MD.dtype.itemsize < 4 else y_MD
    squares = x_ND.square().sum(1)[:, None] + y_MD.square().sum(1)
    return torch.addmm(squares, x_ND, y_MD.T, alpha=-2).clamp(min=0)


def imq(C: float, scales: Sequence[float] = SCALES) -> Kernel:
    """Return the sum over t of the inverse multiquadrics C t / (C t + |x - y|^2), section 4.

    Args:
        C: E |z - z'|^2 under the prior: 2 d s^2 for N(0, s^2 I).
        scales: Factors t. The authors sum the seven, so the kernel is 7 at distance 0.

    Example:
        >>> imq(2.0, (1.0,))(torch.tensor([0.0, 2.0])).tolist()
        [1.0, 0.5]
    """
    if C <= 0 or not scales or min(scales) <= 0:
        raise ValueError(f"C and scales must be > 0; received C={C!r}, scales={tuple(scales)!r}")

    def kernel(squares: Tensor) -> Tensor:
        total = C * scales[0] / (C * scales[0] + squares)
        for t in scales[1:]:
            total = total + C * t / (C * t + squares)
        return total

    return kernel


def rbf(bandwidth: float | Tensor) -> Kernel:
    """Return exp(-|x - y|^2 / (2 bandwidth)); the bandwidth is a variance."""
    return lambda squares: torch.exp(squares / (-2 * bandwidth))


def median_bandwidth(q_ND: Tensor, p_MD: Tensor) -> Tensor:
    """Return the authors' bandwidth of the RBF kernel: the medians of cross and of code distances, squared, added."""
    with torch.no_grad():
        N = len(q_ND)
        upper = torch.triu_indices(N, N, 1, device=q_ND.device)
        codes = squared_distances(q_ND, q_ND)[upper[0], upper[1]]
        return squared_distances(q_ND, p_MD).median() + codes.median()


def mmd(q_ND: Tensor, p_MD: Tensor, kernel: Kernel) -> Tensor:
    """Return the unbiased estimate of MMD^2 between the laws of two samples (Alg. 2). It can be negative.

    Within a sample the diagonal is left out and the sum divided by n (n - 1); the cross sum keeps it.

    Args:
        q_ND, p_MD: Codes and prior draws, at least 2 each.
        kernel: Of the squared distance.

    Raises:
        ValueError: A sample has fewer than 2 points.
    """
    if min(len(q_ND), len(p_MD)) < 2:
        raise ValueError(f"the unbiased MMD needs 2 points per sample; received {len(q_ND)} and {len(p_MD)}")
    return _within(q_ND, kernel) + _within(p_MD, kernel) - 2 * mean_kernel(q_ND, p_MD, kernel)


def _within(x_ND: Tensor, kernel: Kernel) -> Tensor:
    N = len(x_ND)
    if N <= ROWS:
        values_NN = kernel(squared_distances(x_ND, x_ND))
        return (values_NN.sum() - values_NN.diagonal().sum()) / (N * (N - 1))
    diagonal = kernel(x_ND.new_zeros(1))[0]
    return (mean_kernel(x_ND, x_ND, kernel) * N - diagonal) / (N - 1)


def mean_kernel(x_ND: Tensor, y_MD: Tensor, kernel: Kernel) -> Tensor:
    """Return the mean of k(x_i, y_j) over all pairs, a few rows at a time: large blocks would not fit the cache."""
    return (
        torch.stack([kernel(squared_distances(x, y_MD)).sum() for x in x_ND.split(ROWS)]).sum() / len(x_ND) / len(y_MD)
    )


def imq_against_normal(
    squares_N: Tensor, D: int, C: float, *, variance: float, scales: Sequence[float] = SCALES
) -> Tensor:
    """Return E k(x, z) over z ~ N(0, variance I_D) for points with |x|^2 = squares_N, (N,) float64, without draws.

    From 1/a = integral over u > 0 of exp(-u a): E C/(C + |x - z|^2) is the integral of C exp(-u C) E exp(-u |x - z|^2)
    and that expectation is (1 + 2 u variance)^(-D/2) exp(-u |x|^2 / (1 + 2 u variance)). With v = u C = e^s the
    integrand is analytic and falls off at both ends, so that the trapezoidal rule is exact to rounding.
    """
    squares_N = squares_N.double()
    s_V = torch.linspace(-37.0, 4.0, 500, dtype=torch.float64, device=squares_N.device)
    v_V = s_V.exp()
    weight_V = (s_V - v_V).exp() * (s_V[1] - s_V[0])
    total = torch.zeros_like(squares_N)
    for t in scales:
        u_V = v_V / (C * t)
        spread_V = 1 + 2 * u_V * variance
        factor_V = weight_V * spread_V ** (-D / 2)
        total += torch.cat([(-part[:, None] * (u_V / spread_V)).exp() @ factor_V for part in squares_N.split(1024)])
    return total


def expected_imq(variance: float, D: int, C: float, scales: Sequence[float] = SCALES) -> float:
    """Return E k(r) for r ~ N(0, variance I_D): the population value behind every MMD between centred Gaussians.

    MMD^2(N(0, aI), N(0, bI)) = E(2a) + E(2b) - 2 E(a + b).

    Example:
        >>> round(expected_imq(0.0, 3, 2.0), 9)
        7.0
    """
    return imq_against_normal(torch.zeros(1), D, C, variance=variance, scales=scales).item()


def mmd_to_normal(q_ND: Tensor, C: float, *, variance: float, scales: Sequence[float] = SCALES) -> Tensor:
    """Return the unbiased estimate of MMD^2 between the law of codes and N(0, variance I) itself, no sample of it."""
    D = q_ND.shape[1]
    cross = imq_against_normal(q_ND.square().sum(1), D, C, variance=variance, scales=scales).mean()
    return _within(q_ND, imq(C, scales)) + expected_imq(2 * variance, D, C, scales) - 2 * cross


def normal_log_density(z_ND: Tensor, variance: float) -> Tensor:
    """Return log N(z; 0, variance I), (N,) nats."""
    D = z_ND.shape[1]
    return -z_ND.square().sum(1) / (2 * variance) - 0.5 * D * math.log(2 * math.pi * variance)


def adversary_logit(T_N: Tensor, z_ND: Tensor, *, prior_variance: float | None) -> Tensor:
    """Return the logit of D(z): T(z), or T(z) + log p_Z(z) with the log-density trick, (N,).

    The optimal logit is log p_Z - log q_Z and p_Z is known, so T need only learn -log q_Z.

    Args:
        T_N: (N,) outputs of the network.
        z_ND: Where they were taken.
        prior_variance: Of the normal prior; None: no trick.
    """
    if T_N.dim() != 1:
        raise ValueError(f"T must be one number per code, (N,); received {tuple(T_N.shape)}")
    return T_N if prior_variance is None else T_N + normal_log_density(z_ND, prior_variance)


def adversary_loss(prior_logit_M: Tensor, code_logit_N: Tensor) -> Tensor:
    """Return -mean log D(z) - mean log(1 - D(z~)), what the adversary descends (Alg. 1)."""
    return F.softplus(-prior_logit_M).mean() + F.softplus(code_logit_N).mean()


def fooling_loss(code_logit_N: Tensor) -> Tensor:
    """Return -mean log D(z~): the encoder's penalty, not saturating (Alg. 1)."""
    return F.softplus(-code_logit_N).mean()


def moment_loss(q_ND: Tensor, p_MD: Tensor) -> Tensor:
    """Return the squared difference of means and of covariances: what encoder pre-training descends."""
    return (q_ND.mean(0) - p_MD.mean(0)).square().sum() + (covariance(q_ND) - covariance(p_MD)).square().sum()


def covariance(x_ND: Tensor) -> Tensor:
    """Return the unbiased covariance, (D, D)."""
    centred = x_ND - x_ND.mean(0)
    return centred.T @ centred / (len(x_ND) - 1)


def cost(kind: str, x_BX: Tensor, x_hat_BX: Tensor) -> Tensor:
    """Return c(x, x^) of each example, (B,), summed over pixels.

    Args:
        kind: "l2sq", |x - x^|^2; "l2", its root; "l1"; "bernoulli", cross-entropy in nats of pixels in [0, 1].
        x_BX, x_hat_BX: Inputs and reconstructions.
    """
    difference = (x_BX - x_hat_BX).flatten(1)
    match kind:
        case "l2sq":
            return difference.square().sum(1)
        case "l2":
            return (difference.square().sum(1) + 1e-10).sqrt()  # the root has no gradient at 0
        case "l1":
            return difference.abs().sum(1)
        case "bernoulli":
            return F.binary_cross_entropy(x_hat_BX, x_BX, reduction="none").flatten(1).sum(1)
    raise ValueError(f"cost must be l2sq, l2, l1 or bernoulli; received {kind!r}")


def normal_divergence(mean_BD: Tensor, log_variance_BD: Tensor, *, prior_variance: float = 1.0) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(0, prior_variance I)) of each example, (B,) nats: the VAE's penalty."""
    ratio = (log_variance_BD.exp() + mean_BD.square()) / prior_variance
    return 0.5 * (ratio - 1 - log_variance_BD + math.log(prior_variance)).sum(1)


def negative_log_likelihood(kind: str, x_BX: Tensor, x_hat_BX: Tensor, *, decoder_variance: float) -> Tensor:
    """Return the VAE's data term, (B,) nats: cross-entropy, or |x - x^|^2 / (2 sigma^2) without its constant."""
    if kind == "bernoulli":
        return cost(kind, x_BX, x_hat_BX)
    return cost("l2sq", x_BX, x_hat_BX) / (2 * decoder_variance)
