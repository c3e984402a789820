"""Multi-bit binary codes, w ~ sum_i alpha_i b_i with b_i in {-1, +1}^N: greedy, refined and alternating.

Xu, Yao, Lin, Ou, Cao, Wang, Zha: Alternating Multi-bit Quantization for Recurrent Neural Networks (ICLR 2018). Every
row of a matrix has coefficients of its own. sign(0) is +1; of two levels that are equally near, the upper one is taken.
"""

# M rows · N entries of a row · K bits · L = 2^K levels

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAX_BITS = 8
Start = Literal["greedy", "refined"]


class BinaryCodes(NamedTuple):
    """Coefficients and codes of M rows.

    Attributes:
        alpha_MK: (M, K) coefficients, in the unit of the rows.
        codes_MKN: (M, K, N) codes, -1 or +1, in the type of the coefficients.
    """

    alpha_MK: Tensor  # noqa: N815
    codes_MKN: Tensor  # noqa: N815

    def dense(self) -> Tensor:
        """Return sum_i alpha_i b_i, (M, N)."""
        return torch.einsum("mk,mkn->mn", self.alpha_MK, self.codes_MKN)


def signs(x: Tensor) -> Tensor:
    """Return -1 where x < 0 and +1 elsewhere, zero included, in the type of x."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def relative_error(w_MN: Tensor, codes: BinaryCodes) -> Tensor:
    """Return |w - sum alpha_i b_i|^2 / |w|^2 of each row, (M,); 0 for a row of zeros."""
    error_M = (w_MN - codes.dense()).square().sum(1)
    return error_M / w_MN.square().sum(1).clamp(min=torch.finfo(w_MN.dtype).tiny)


def greedy(w_MN: Tensor, bits: int) -> BinaryCodes:
    """Code the residual one bit at a time: alpha_i = mean |r|, b_i = sign(r), r <- r - alpha_i b_i (section 2).

    Args:
        w_MN: (M, N) rows, N >= 1.
        bits: K, 1 to 8.

    Raises:
        ValueError: `w_MN` has another rank or no entries, or `bits` is out of range.
    """
    check(w_MN, bits)
    residual_MN, alphas, codes = w_MN, [], []
    for _ in range(bits):
        alpha_M, code_MN = residual_MN.abs().mean(1), signs(residual_MN)
        residual_MN = residual_MN - alpha_M[:, None] * code_MN
        alphas.append(alpha_M)
        codes.append(code_MN)
    return BinaryCodes(torch.stack(alphas, 1), torch.stack(codes, 1))


def refined(w_MN: Tensor, bits: int) -> BinaryCodes:
    """Code greedily, but refit all coefficients after each new code; earlier codes stay (network sketching).

    Arguments and errors as in `greedy`.
    """
    check(w_MN, bits)
    found, residual_MN = None, w_MN
    for _ in range(bits):
        code_M1N = signs(residual_MN)[:, None]
        codes_MKN = code_M1N if found is None else torch.cat([found.codes_MKN, code_M1N], 1)
        found = BinaryCodes(least_squares(w_MN, codes_MKN), codes_MKN)
        residual_MN = w_MN - found.dense()
    assert found is not None
    return ordered(found)


def alternating(
    w_MN: Tensor, bits: int, *, iterations: int = 2, start: Start = "greedy", refit: bool = True
) -> BinaryCodes:
    """Alternate between the best coefficients for the codes and the best codes for the coefficients (Algorithm 2).

    No half-step raises the squared error. For K = 1 the greedy code is optimal already; for K >= 3 the end is a local
    optimum only, and from a greedy start it can be worse than `refined` on a single row.

    Args:
        w_MN: (M, N) rows.
        bits: K.
        iterations: T; the paper takes 2 on line. Weights may take more: the error goes on falling.
        start: "greedy", as in the paper, or "refined", which makes the result at least as good as that.
        refit: Fit the coefficients once more to the last codes: no code changes.

    Raises:
        ValueError: As in `greedy`, negative `iterations`, or an unknown start.
    """
    if iterations < 0 or start not in ("greedy", "refined"):
        raise ValueError(f"iterations must be >= 0, start greedy or refined; received {iterations!r}, {start!r}")
    found = greedy(w_MN, bits) if start == "greedy" else refined(w_MN, bits)
    for _ in range(iterations):
        fitted = ordered(BinaryCodes(least_squares(w_MN, found.codes_MKN), found.codes_MKN))
        found = BinaryCodes(fitted.alpha_MK, nearest_codes(w_MN, fitted.alpha_MK))
    # Deviation: Algorithm 2 ends with the codes; one more least-squares step costs K numbers and lowers the error.
    return ordered(BinaryCodes(least_squares(w_MN, found.codes_MKN), found.codes_MKN)) if refit else found


def least_squares(w_MN: Tensor, codes_MKN: Tensor) -> Tensor:
    """Return alpha = (B^T B)^-1 B^T w of each row, (M, K), Eq. (5).

    The K x K systems are solved in float64 by elimination. A code that depends on those before it (constant rows, N <
    K) gets the coefficient 0, so that the fit stays the least-squares fit.
    """
    N, K = w_MN.shape[1], codes_MKN.shape[1]
    gram_MKK = (codes_MKN @ codes_MKN.mT).double() / N  # sums of +-1 are exact
    right_MK = torch.einsum("mkn,mn->mk", codes_MKN, w_MN).double() / N
    rows, pivots, reduced = [], [], []
    gram_MKK, right_MK = gram_MKK.clone(), right_MK.clone()
    for i in range(K):
        pivot_M = gram_MKK[:, i, i]
        usable_M = pivot_M > 1e-9
        inverse_M = torch.where(usable_M, 1 / torch.where(usable_M, pivot_M, 1.0), 0.0)
        rows.append(gram_MKK[:, i].clone())
        reduced.append(right_MK[:, i].clone())
        pivots.append(inverse_M)
        factor_MK = gram_MKK[:, :, i] * inverse_M[:, None]
        right_MK = right_MK - factor_MK * right_MK[:, i : i + 1]
        gram_MKK = gram_MKK - factor_MK[:, :, None] * gram_MKK[:, i : i + 1]
    alpha_MK = torch.zeros_like(right_MK)
    for i in reversed(range(K)):
        known_M = (rows[i][:, i + 1 :] * alpha_MK[:, i + 1 :]).sum(1)
        alpha_MK[:, i] = (reduced[i] - known_M) * pivots[i]
    return alpha_MK.to(w_MN.dtype)


def ordered(codes: BinaryCodes) -> BinaryCodes:
    """Return the same sums with alpha_1 >= ... >= alpha_K >= 0: negative coefficients change sign with their codes."""
    alpha_MK, codes_MKN = codes
    sign_MK = signs(alpha_MK)
    alpha_MK, order_MK = (alpha_MK * sign_MK).sort(dim=1, descending=True, stable=True)
    flipped_MKN = codes_MKN * sign_MK[:, :, None]
    return BinaryCodes(alpha_MK, flipped_MKN.gather(1, order_MK[:, :, None].expand_as(codes_MKN)))


def levels(alpha_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L = 2^K sums +-alpha_1 ... +-alpha_K, ascending (M, L), and the codes that make them (M, L, K)."""
    K = alpha_MK.shape[1]
    number_L = torch.arange(2**K, device=alpha_MK.device)
    table_LK = ((number_L[:, None] >> torch.arange(K, device=alpha_MK.device)) & 1).to(alpha_MK.dtype) * 2 - 1
    sums_ML, order_ML = (alpha_MK @ table_LK.T).sort(dim=1, stable=True)
    return sums_ML, table_LK[order_ML]


def nearest_codes(w_MN: Tensor, alpha_MK: Tensor, *, search: Literal["sorted", "tree"] = "sorted") -> Tensor:
    """Return for each entry the code whose level is nearest, ties upward, (M, K, N): optimal for these coefficients.

    Args:
        w_MN: (M, N) rows.
        alpha_MK: (M, K) coefficients, in any order and of any sign.
        search: "sorted": place among the 2^K - 1 midpoints; "tree": the paper's Algorithm 1, K comparisons with the
            midpoint of the two middle levels of what is left. Both give the same codes.
    """
    sums_ML, codes_MLK = levels(alpha_MK)
    middle_ML = ((sums_ML[:, 1:] + sums_ML[:, :-1]) / 2).contiguous()
    if search == "sorted":
        place_MN = torch.searchsorted(middle_ML, w_MN.contiguous(), right=True)
    elif search == "tree":
        place_MN = torch.zeros_like(w_MN, dtype=torch.int64)
        for half in (2**i for i in reversed(range(alpha_MK.shape[1]))):
            place_MN = place_MN + half * (w_MN >= middle_ML.gather(1, place_MN + half - 1))
    else:
        raise ValueError(f"search must be 'sorted' or 'tree'; received {search!r}")
    K = alpha_MK.shape[1]
    return codes_MLK.gather(1, place_MN[:, :, None].expand(-1, -1, K)).mT.contiguous()


def check(w_MN: Tensor, bits: int) -> None:
    """Raise ValueError unless the rows and the number of bits can be coded."""
    if w_MN.dim() != 2 or w_MN.shape[1] < 1 or not w_MN.is_floating_point():
        raise ValueError(f"rows must be a float tensor (M, N), N >= 1; received {w_MN.dtype} {tuple(w_MN.shape)}")
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be 1 .. {MAX_BITS}; received bits={bits!r}")
