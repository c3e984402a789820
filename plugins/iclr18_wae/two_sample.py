"""Are two samples of one law? A permutation test on the MMD, exact at any size; and a bound of the MMD of the laws.

N, M points of the samples · L = N + M · R permutations
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from iclr18_wae.algorithm import Kernel, expected_imq, imq, imq_against_normal, mean_kernel, squared_distances
from iclr18_wae.config import SCALES

ROWS = 1024


@dataclass(frozen=True)
class PermutationTest:
    """What a test found.

    Args:
        statistic: The unbiased MMD^2 of the samples.
        p_value: Probability, if the laws are equal, of a p-value this small or smaller is at most this.
        as_large: Permutations with a statistic as large.
        permutations: How many were looked at.
        exhaustive: All ways to divide the pooled points were.
    """

    statistic: float
    p_value: float
    as_large: int
    permutations: int
    exhaustive: bool


def permutation_test(
    x_ND: Tensor, y_MD: Tensor, kernel: Kernel, *, permutations: int, generator: torch.Generator
) -> PermutationTest:
    """Test whether two samples come from one law.

    Under that hypothesis the pooled points are exchangeable, so the given division is one of all divisions drawn at
    random. With at most `permutations` divisions in all, all are looked at and p is their share with an MMD as large;
    else p = (1 + as large) / (1 + permutations), the given one counted among the random ones. Both are exact levels:
    P(p <= a) <= a for every a and n.

    Args:
        x_ND, y_MD: The samples, at least 2 points each.
        kernel: Of the squared distance.
        permutations: Divisions at most.
        generator: CPU generator.

    Raises:
        ValueError: Too few points or permutations.
    """
    N, M = len(x_ND), len(y_MD)
    if min(N, M) < 2 or permutations < 1:
        raise ValueError(f"needs 2 points per sample and 1 permutation; received {N}, {M} and {permutations}")
    pooled = torch.cat([x_ND, y_MD]).double()
    gram_LL = kernel(squared_distances(pooled, pooled)).fill_diagonal_(0)
    L, rows_L, total = N + M, gram_LL.sum(1), gram_LL.sum()

    def statistics(first_RL: Tensor) -> Tensor:
        inside = ((first_RL @ gram_LL) * first_RL).sum(1)
        touching = first_RL @ rows_L
        cross = touching - inside
        outside = total - touching - cross
        return inside / (N * (N - 1)) + outside / (M * (M - 1)) - 2 * cross / (N * M)

    given = torch.zeros(1, L, dtype=torch.float64, device=pooled.device)
    given[0, :N] = 1
    statistic = statistics(given)[0]
    exhaustive = math.comb(L, N) <= permutations
    if exhaustive:
        choices = torch.tensor(list(combinations(range(L), N)))
    else:
        choices = torch.stack([torch.randperm(L, generator=generator)[:N] for _ in range(permutations)])
    slack = 1e-12 * max(1.0, abs(statistic.item()))  # rounding must not break a tie in our favour
    as_large = 0
    for part in choices.to(pooled.device).split(ROWS):
        first = torch.zeros(len(part), L, dtype=torch.float64, device=pooled.device).scatter_(1, part, 1.0)
        as_large += int((statistics(first) >= statistic - slack).sum())
    count = len(choices)
    p = as_large / count if exhaustive else (1 + as_large) / (1 + count)
    return PermutationTest(statistic.item(), p, as_large, count, exhaustive)


def normal_interval(x_ND: Tensor, *, C: float, variance: float, delta: float) -> tuple[float, float, float]:
    """Return (distance, low, high): the MMD of the law of the points to N(0, variance I) lies in [low, high].

    As `mmd_interval`, but the kernel mean of the normal law is known, so only one sample is uncertain.

    Args:
        x_ND: N independent points.
        C: Constant of the seven IMQ kernels.
        variance: s^2.
        delta: Probability that the interval misses.
    """
    x_ND = x_ND.double()
    N, D = x_ND.shape
    cross = imq_against_normal(x_ND.square().sum(1), D, C, variance=variance).mean().item()
    squared = mean_kernel(x_ND, x_ND, imq(C)).item() + expected_imq(2 * variance, D, C) - 2 * cross
    return _around(squared, [N], bound=float(len(SCALES)), delta=delta)


def mmd_interval(
    x_ND: Tensor, y_MD: Tensor, kernel: Kernel, *, bound: float, delta: float
) -> tuple[float, float, float]:
    """Return (distance of the samples, low, high): MMD of the two laws lies in [low, high] with probability 1 - delta.

    For a kernel with k(x, x) <= K the mean embedding of N independent points lies within sqrt(K / N) of its law's in
    expectation, and changing a point moves it by at most 2 sqrt(K) / N; by McDiarmid it is further away than
    sqrt(K / N) (1 + sqrt(2 log(1 / d))) with probability at most d, delta over the number of samples. The triangle
    inequality does the rest.

    Args:
        x_ND, y_MD: Independent points of each law.
        kernel: Positive definite, of the squared distance.
        bound: K.
        delta: Probability that the interval misses.
    """
    x_ND, y_MD = x_ND.double(), y_MD.double()
    squared = mean_kernel(x_ND, x_ND, kernel) + mean_kernel(y_MD, y_MD, kernel) - 2 * mean_kernel(x_ND, y_MD, kernel)
    return _around(squared.item(), [len(x_ND), len(y_MD)], bound=bound, delta=delta)


def _around(squared: float, counts: list[int], *, bound: float, delta: float) -> tuple[float, float, float]:
    if not 0 < delta < 1 or bound <= 0:
        raise ValueError(f"delta must lie in (0, 1) and bound be > 0; received {delta} and {bound}")
    distance = math.sqrt(max(0.0, squared))
    factor = 1 + math.sqrt(2 * math.log(len(counts) / delta))
    radius = factor * sum(math.sqrt(bound / count) for count in counts)
    return distance, max(0.0, distance - radius), distance + radius
