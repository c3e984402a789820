"""All ways to code rows by name, and the ones that are not alternating: uniform, balanced, ternary, exact two bits.

Each result is a `BinaryCodes`: uniform levels are sums of +-2^i s / (2^K - 1), ternary ones of two equal coefficients,
so that every method packs into the same words and runs in the same kernel.
"""

# M rows · N entries of a row · K bits

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from iclr18cli.compression.binary_codes import BinaryCodes, alternating, check, greedy, ordered, refined, signs

Method = Literal["greedy", "refined", "alternating", "exact", "uniform", "uniform-matrix", "balanced", "ternary"]


def code_rows(w_MN: Tensor, bits: int, *, method: Method = "alternating", iterations: int = 2) -> BinaryCodes:
    """Code the rows of a matrix.

    Args:
        w_MN: (M, N) float rows.
        bits: K, 1 to 8.
        method: "exact" is optimal and takes 2 bits; "ternary" takes 2 bits and uses three of the four levels.
        iterations: T of "alternating".

    Raises:
        ValueError: Unknown method, or a number of bits that it does not take.

    Example:
        >>> code_rows(torch.tensor([[3.0, 1.0, -1.0, -3.0]]), 2).dense().tolist()
        [[3.0, 1.0, -1.0, -3.0]]
    """
    check(w_MN, bits)
    if method in ("exact", "ternary") and bits != 2:
        raise ValueError(f"method {method!r} takes 2 bits; received bits={bits!r}")
    match method:
        case "greedy":
            return greedy(w_MN, bits)
        case "refined":
            return refined(w_MN, bits)
        case "alternating":
            return alternating(w_MN, bits, iterations=iterations)
        case "exact":
            return exact_two_bits(w_MN)
        case "uniform":
            return uniform(w_MN, bits)
        case "uniform-matrix":
            return uniform(w_MN, bits, whole=True)
        case "balanced":
            return balanced(w_MN, bits)
        case "ternary":
            return ternary(w_MN)
    raise ValueError(f"method must be one of {', '.join(get_args(Method))}; received {method!r}")


def exact_two_bits(w_MN: Tensor) -> BinaryCodes:
    """Return the best two-bit codes of each row: 2-means on |w|, by trying every split of its sorted entries.

    The levels of |w| are alpha_1 - alpha_2 and alpha_1 + alpha_2, the means of a lower and an upper part; their squared
    error is least where n_1 m_1^2 + n_2 m_2^2 is largest. O(N log N) by prefix sums.
    """
    check(w_MN, 2)
    size_MN, order_MN = w_MN.abs().double().sort(dim=1)
    N = w_MN.shape[1]
    count_N = torch.arange(1, N + 1, device=w_MN.device, dtype=torch.float64)
    below_MN = size_MN.cumsum(1)
    total_M1 = below_MN[:, -1:]
    above_MN, rest_N = total_M1 - below_MN, (N - count_N).clamp(min=1)
    explained_MN = below_MN.square() / count_N + above_MN.square() / rest_N
    split_M1 = explained_MN.argmax(1, keepdim=True)  # the lower part ends here
    low_M1 = below_MN.gather(1, split_M1) / count_N[split_M1]
    high_M1 = torch.where(split_M1 < N - 1, above_MN.gather(1, split_M1) / rest_N[split_M1], low_M1)
    upper_MN = torch.zeros_like(w_MN, dtype=torch.bool)
    upper_MN.scatter_(1, order_MN, torch.arange(N, device=w_MN.device) > split_M1)
    first_MN = signs(w_MN)
    second_MN = torch.where(upper_MN, first_MN, -first_MN)
    alpha_MK = torch.cat([(high_M1 + low_M1) / 2, (high_M1 - low_M1) / 2], 1)
    return BinaryCodes(alpha_MK.to(w_MN.dtype), torch.stack([first_MN, second_MN], 1))


def ternary(w_MN: Tensor) -> BinaryCodes:
    """Return the best levels {-s, 0, +s} of each row: s is the mean of the m largest |w|, with m tried from 1 to N."""
    check(w_MN, 2)
    size_MN, order_MN = w_MN.abs().double().sort(dim=1, descending=True)
    N = w_MN.shape[1]
    count_N = torch.arange(1, N + 1, device=w_MN.device, dtype=torch.float64)
    sum_MN = size_MN.cumsum(1)
    last_M1 = (sum_MN.square() / count_N).argmax(1, keepdim=True)
    scale_M1 = sum_MN.gather(1, last_M1) / count_N[last_M1]
    kept_MN = torch.zeros_like(w_MN, dtype=torch.bool)
    kept_MN.scatter_(1, order_MN, torch.arange(N, device=w_MN.device) <= last_M1)
    first_MN = signs(w_MN)
    half_M1 = (scale_M1 / 2).to(w_MN.dtype)
    return BinaryCodes(half_M1.expand(-1, 2), torch.stack([first_MN, torch.where(kept_MN, first_MN, -first_MN)], 1))


def uniform(w_MN: Tensor, bits: int, *, whole: bool = False) -> BinaryCodes:
    """Round w / max |w| to 2^K even levels of [-1, 1]: 2 (round((2^K - 1)(x + 1) / 2) / (2^K - 1) - 1/2), section 2.

    The paper does not say over what the maximum is taken: over each row, like the other methods' coefficients, or over
    the whole matrix, which is weaker and is what the paper's errors look like.
    """
    check(w_MN, bits)
    scale_M1 = w_MN.abs().amax(1, keepdim=True)
    if whole:
        scale_M1 = scale_M1.amax(0, keepdim=True).expand_as(scale_M1)
    x_MN = w_MN / torch.where(scale_M1 > 0, scale_M1, 1.0)
    return _even_levels(torch.round((2**bits - 1) * (x_MN + 1) / 2).long(), scale_M1, bits)


def balanced(w_MN: Tensor, bits: int) -> BinaryCodes:
    """Map 2^K intervals of equally many entries onto the levels of `uniform` (Zhou et al. 2017; section 2)."""
    check(w_MN, bits)
    rank_MN = w_MN.argsort(dim=1, stable=True).argsort(dim=1)
    number_MN = rank_MN * 2**bits // w_MN.shape[1]
    return _even_levels(number_MN, w_MN.abs().amax(1, keepdim=True), bits)


def _even_levels(number_MN: Tensor, scale_M1: Tensor, bits: int) -> BinaryCodes:
    """Return the codes of level `number` (0 .. 2^K - 1) of 2^K even ones between -scale and scale."""
    power_K = torch.arange(bits - 1, -1, -1, device=number_MN.device)
    codes_MKN = ((number_MN[:, None] >> power_K[:, None]) & 1).to(scale_M1.dtype) * 2 - 1
    alpha_MK = scale_M1 * (2.0**power_K / (2**bits - 1)).to(scale_M1.dtype)
    return ordered(BinaryCodes(alpha_MK, codes_MKN))
