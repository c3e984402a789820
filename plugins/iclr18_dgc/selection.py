"""Which entries are sent: exactly k of the largest magnitude, found at once or by a sampled threshold (section 5).

A threshold from a sample lets through more than k entries of a large tensor, and the exact top-k among those is the
exact top-k of the tensor, since every entry that did not pass is smaller. Should too few pass, the search starts over
without a sample. So both ways send entries of the same magnitudes; the sample only saves time.
"""

# n entries of a tensor · K entries that are sent · S entries of the sample

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLED_FROM = 65_536
"""Entries from which a sample is faster than top-k at once, on a CPU."""


def top_exact(magnitude: Tensor, k: int) -> Tensor:
    """Return k positions of largest magnitude, (k,) int64 in no order; of equal ones, which is not said.

    Example:
        >>> top_exact(torch.tensor([1.0, 3.0, 2.0]), 2).sort().values.tolist()
        [1, 2]
    """
    if k == len(magnitude):
        return torch.arange(k, device=magnitude.device)
    return magnitude.topk(k, sorted=False).indices


def top_sampled(magnitude: Tensor, k: int, *, ratio: float, generator: torch.Generator) -> Tensor:
    """Return k positions of largest magnitude by hierarchical selection, (k,) int64 in no order; section 5.

    The sample is strided, with a random start. Its own top-k would let through fewer than k entries half of the time,
    so its threshold lies three standard deviations of the count lower.

    Args:
        magnitude: (n,), not negative.
        k: Entries wanted, 1 to n.
        ratio: Share of the entries in the sample, in (0, 1].
        generator: On the CPU; draws where the sample starts.
    """
    n = len(magnitude)
    stride = max(1, round(1 / ratio))
    start = int(torch.randint(stride, (1,), generator=generator))
    sample_S = magnitude[start::stride]
    expected = len(sample_S) * k / n
    rank = math.ceil(expected + 3 * math.sqrt(expected * (1 - k / n)) + 1)
    if rank > len(sample_S):
        return top_exact(magnitude, k)
    threshold = sample_S.topk(rank).values[-1]
    passed = passing(magnitude, threshold, few=rank < len(sample_S) / 20)
    if len(passed) < k:
        return top_exact(magnitude, k)
    return passed[top_exact(magnitude[passed], k)]


def passing(magnitude: Tensor, threshold: Tensor, *, few: bool) -> Tensor:
    """Return the positions, in order, of the entries that are not below a threshold.

    Where few are expected, eight answers are looked at as one number first: that halves the time of the search.
    """
    if not few:
        return (magnitude >= threshold).nonzero().view(-1)
    n = len(magnitude)
    answers = magnitude.new_empty(-(-n // 8) * 8, dtype=torch.bool)
    answers[n:] = False
    torch.ge(magnitude, threshold, out=answers[:n])
    eights = answers.view(torch.int64).nonzero().view(-1)
    row, column = answers.view(-1, 8)[eights].nonzero(as_tuple=True)
    return eights[row].mul_(8).add_(column)


def select(magnitude: Tensor, k: int, *, selection: str, ratio: float, generator: torch.Generator) -> Tensor:
    """Return exactly k positions of largest magnitude, (k,) int64; ties do not change their number.

    On a GPU always at once: how many pass a threshold would have to be waited for.
    """
    if selection == "sampled" and len(magnitude) >= SAMPLED_FROM and magnitude.device.type == "cpu":
        return top_sampled(magnitude, k, ratio=ratio, generator=generator)
    return top_exact(magnitude, k)
