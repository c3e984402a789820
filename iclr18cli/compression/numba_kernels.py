"""Kernels on packed codes, compiled by numba for the processor at hand when they are first called.

Nothing is built at installation. `popcount` is LLVM's own bit count: with AVX-512 VPOPCNTDQ the loops below become
vector bit counts, with AVX2 table look-ups inside vectors, on Arm the NEON instruction. Import this module through
`iclr18cli.compression.kernels`, which says what to install where numba is missing.
"""

# M rows · N entries · K bits of the rows · C bits of the vector · W words · H hidden units · B vectors
# mypy: ignore-errors
# ruff: noqa: D103

import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic


@intrinsic
def popcount(typing_context, word):
    """Number of 1 bits of a 64-bit word."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


@intrinsic
def as_float32(typing_context, bits):
    """The float32 with these 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


OPTIONS = {"cache": True, "nogil": True, "boundscheck": False, "error_model": "numpy"}
SUMS = {"reassoc", "contract", "nsz"}
"""What float sums may do to become vector sums; NaN and infinity keep their meaning."""


@njit(fastmath=SUMS, inline="always", **OPTIONS)
def row_22(words_MKW, alpha_MK, row, right_CW, beta_C, length):
    c00 = c01 = c10 = c11 = np.int64(0)
    for w in range(right_CW.shape[1]):
        x0, x1 = words_MKW[row, 0, w], words_MKW[row, 1, w]
        y0, y1 = right_CW[0, w], right_CW[1, w]
        c00 += popcount(x0 ^ y0)
        c01 += popcount(x0 ^ y1)
        c10 += popcount(x1 ^ y0)
        c11 += popcount(x1 ^ y1)
    b0, b1 = beta_C[0], beta_C[1]
    s0 = b0 * np.float32(length - 2 * c00) + b1 * np.float32(length - 2 * c01)
    s1 = b0 * np.float32(length - 2 * c10) + b1 * np.float32(length - 2 * c11)
    return alpha_MK[row, 0] * s0 + alpha_MK[row, 1] * s1


@njit(fastmath=SUMS, inline="always", **OPTIONS)
def row_33(words_MKW, alpha_MK, row, right_CW, beta_C, length):
    c00 = c01 = c02 = c10 = c11 = c12 = c20 = c21 = c22 = np.int64(0)
    for w in range(right_CW.shape[1]):
        x0, x1, x2 = words_MKW[row, 0, w], words_MKW[row, 1, w], words_MKW[row, 2, w]
        y0, y1, y2 = right_CW[0, w], right_CW[1, w], right_CW[2, w]
        c00 += popcount(x0 ^ y0)
        c01 += popcount(x0 ^ y1)
        c02 += popcount(x0 ^ y2)
        c10 += popcount(x1 ^ y0)
        c11 += popcount(x1 ^ y1)
        c12 += popcount(x1 ^ y2)
        c20 += popcount(x2 ^ y0)
        c21 += popcount(x2 ^ y1)
        c22 += popcount(x2 ^ y2)
    b0, b1, b2 = beta_C[0], beta_C[1], beta_C[2]
    s0 = b0 * np.float32(length - 2 * c00) + b1 * np.float32(length - 2 * c01) + b2 * np.float32(length - 2 * c02)
    s1 = b0 * np.float32(length - 2 * c10) + b1 * np.float32(length - 2 * c11) + b2 * np.float32(length - 2 * c12)
    s2 = b0 * np.float32(length - 2 * c20) + b1 * np.float32(length - 2 * c21) + b2 * np.float32(length - 2 * c22)
    return alpha_MK[row, 0] * s0 + alpha_MK[row, 1] * s1 + alpha_MK[row, 2] * s2


@njit(fastmath=SUMS, inline="always", **OPTIONS)
def row_any(words_MKW, alpha_MK, row, right_CW, beta_C, length):
    total = np.float32(0)
    for a in range(words_MKW.shape[1]):
        inner = np.float32(0)
        for c in range(right_CW.shape[0]):
            count = np.int64(0)
            for w in range(right_CW.shape[1]):
                count += popcount(words_MKW[row, a, w] ^ right_CW[c, w])
            inner += beta_C[c] * np.float32(length - 2 * count)
        total += alpha_MK[row, a] * inner
    return total


@njit(fastmath=SUMS, **OPTIONS)
def product(words_MKW, alpha_MK, right_CW, beta_C, length, out_M):
    """Write W h into out_M (M,): sum_a alpha_a sum_c beta_c (N - 2 popcount(b_a xor d_c))."""
    M, K, C = words_MKW.shape[0], words_MKW.shape[1], right_CW.shape[0]
    if K == 2 and C == 2:
        for row in range(M):
            out_M[row] = row_22(words_MKW, alpha_MK, row, right_CW, beta_C, length)
    elif K == 3 and C == 3:
        for row in range(M):
            out_M[row] = row_33(words_MKW, alpha_MK, row, right_CW, beta_C, length)
    else:
        for row in range(M):
            out_M[row] = row_any(words_MKW, alpha_MK, row, right_CW, beta_C, length)


@njit(fastmath=SUMS, parallel=True, **OPTIONS)
def product_threads(words_MKW, alpha_MK, right_CW, beta_C, length, out_M):
    """`product` with the rows shared among numba's threads."""
    M, K, C = words_MKW.shape[0], words_MKW.shape[1], right_CW.shape[0]
    if K == 2 and C == 2:
        for row in prange(M):
            out_M[row] = row_22(words_MKW, alpha_MK, row, right_CW, beta_C, length)
    elif K == 3 and C == 3:
        for row in prange(M):
            out_M[row] = row_33(words_MKW, alpha_MK, row, right_CW, beta_C, length)
    else:
        for row in prange(M):
            out_M[row] = row_any(words_MKW, alpha_MK, row, right_CW, beta_C, length)


@njit(**OPTIONS)
def solve(gram, right, alpha, K):
    """Solve gram alpha = right in place; a dependent code gets 0, as in `binary_codes.least_squares`."""
    for i in range(K):
        if gram[i, i] > 1e-9:
            for j in range(i + 1, K):
                factor = gram[j, i] / gram[i, i]
                right[j] -= factor * right[i]
                for k in range(i, K):
                    gram[j, k] -= factor * gram[i, k]
    for i in range(K - 1, -1, -1):
        value = right[i]
        for j in range(i + 1, K):
            value -= gram[i, j] * alpha[j]
        alpha[i] = value / gram[i, i] if gram[i, i] > 1e-9 else 0.0


@njit(fastmath=SUMS, **OPTIONS)
def dot(x_N, y_N):
    total = np.float32(0)
    for n in range(x_N.shape[0]):
        total += x_N[n] * y_N[n]
    return total


@njit(fastmath=SUMS, **OPTIONS)
def fit(x_N, codes_CN, beta, gram, right):
    """Least-squares coefficients of the codes, made descending and not negative; codes follow."""
    C, N = codes_CN.shape
    for i in range(C):
        gram[i, i] = 1.0
        right[i] = np.float64(dot(codes_CN[i], x_N)) / N
        for j in range(i):
            gram[i, j] = np.float64(dot(codes_CN[i], codes_CN[j])) / N
            gram[j, i] = gram[i, j]
    solve(gram, right, beta, C)
    for i in range(C):
        if beta[i] < 0:
            beta[i] = -beta[i]
            for n in range(N):
                codes_CN[i, n] = -codes_CN[i, n]
    for i in range(1, C):  # insertion sort, stable
        j = i
        while j > 0 and beta[j - 1] < beta[j]:
            beta[j - 1], beta[j] = beta[j], beta[j - 1]
            for n in range(N):
                codes_CN[j - 1, n], codes_CN[j, n] = codes_CN[j, n], codes_CN[j - 1, n]
            j -= 1


@njit(fastmath=SUMS, **OPTIONS)
def assign(x_N, codes_CN, beta, level, mark):
    """Nearest codes, ties upward. Two bits in closed form; more by counting the midpoints that are passed."""
    C, N = codes_CN.shape
    if C == 1:
        for n in range(N):
            codes_CN[0, n] = np.float32(-1) if x_N[n] < 0 else np.float32(1)
        return
    if C == 2:
        first = np.float32(beta[0])
        for n in range(N):
            b = np.float32(-1) if x_N[n] < 0 else np.float32(1)
            codes_CN[0, n] = b
            codes_CN[1, n] = np.float32(-1) if x_N[n] - first * b < 0 else np.float32(1)
        return
    L = 2**C
    for i in range(L):
        total = 0.0
        for c in range(C):
            total += beta[c] if (i >> c) & 1 else -beta[c]
        j = i
        while j > 0 and level[j - 1] > total:
            level[j] = level[j - 1]
            mark[j] = mark[j - 1]
            j -= 1
        level[j], mark[j] = total, i
    for c in range(C):
        start = np.float32(1) if (mark[0] >> c) & 1 else np.float32(-1)
        codes_CN[c, :] = start
    for i in range(1, L):
        middle = np.float32((level[i] + level[i - 1]) / 2)
        changed = mark[i] ^ mark[i - 1]
        for c in range(C):
            if (changed >> c) & 1:
                after = np.float32(1) if (mark[i] >> c) & 1 else np.float32(-1)
                row = codes_CN[c]
                for n in range(N):
                    row[n] = after if x_N[n] >= middle else row[n]


@njit(fastmath=SUMS, **OPTIONS)
def quantise(x_N, iterations, codes_CN, words_CW, beta_C):
    """Code one vector as `binary_codes.alternating` does, into words_CW (C, W) and beta_C (C,); codes_CN is scratch."""
    C, N = codes_CN.shape
    beta, gram, right = np.empty(C, np.float64), np.empty((C, C), np.float64), np.empty(C, np.float64)
    level, mark = np.empty(2**C, np.float64), np.empty(2**C, np.int64)
    residual = x_N.copy()
    for i in range(C):
        total = np.float32(0)
        for n in range(N):
            total += abs(residual[n])
        size = total / np.float32(N)
        beta[i] = size
        row = codes_CN[i]
        for n in range(N):
            b = np.float32(-1) if residual[n] < 0 else np.float32(1)
            row[n] = b
            residual[n] -= size * b
    for _ in range(iterations):
        fit(x_N, codes_CN, beta, gram, right)
        assign(x_N, codes_CN, beta, level, mark)
    fit(x_N, codes_CN, beta, gram, right)
    for i in range(C):
        beta_C[i] = beta[i]
        row = codes_CN[i]
        for w in range(words_CW.shape[1]):
            word = np.uint64(0)
            stop = min(64, N - 64 * w)
            for n in range(stop):
                word |= np.uint64(row[64 * w + n] > 0) << np.uint64(n)
            words_CW[i, w] = np.int64(word)


@njit(fastmath=SUMS, inline="always", **OPTIONS)
def exponential(x):
    """e^x within 2e-7 of itself for |x| <= 87, made of operations that vectorise."""
    x = min(max(x, np.float32(-87)), np.float32(87))
    scaled = x * np.float32(1.4426950408889634)
    whole = np.floor(scaled + np.float32(0.5))
    f = (scaled - whole) * np.float32(0.6931471805599453)
    p = np.float32(1 / 5040)  # Taylor's series of e^f, |f| <= log(2) / 2, to the seventh power
    p = p * f + np.float32(1 / 720)
    p = p * f + np.float32(1 / 120)
    p = p * f + np.float32(1 / 24)
    p = p * f + np.float32(1 / 6)
    p = p * f + np.float32(0.5)
    p = p * f + np.float32(1)
    p = p * f + np.float32(1)
    return p * as_float32((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(fastmath=SUMS, inline="always", **OPTIONS)
def sigmoid(x):
    return np.float32(1) / (np.float32(1) + exponential(-x))


@njit(fastmath=SUMS, **OPTIONS)
def gates(input_M, state_M, bias_M, c_H, h_H):
    """Write the next c and h of an LSTM; M = 4 H rows in torch's order i, f, g, o."""
    H = c_H.shape[0]
    for j in range(H):
        i = sigmoid(input_M[j] + state_M[j] + bias_M[j])
        f = sigmoid(input_M[H + j] + state_M[H + j] + bias_M[H + j])
        g = np.float32(2) * sigmoid(
            np.float32(2) * (input_M[2 * H + j] + state_M[2 * H + j] + bias_M[2 * H + j])
        ) - np.float32(1)
        o = sigmoid(input_M[3 * H + j] + state_M[3 * H + j] + bias_M[3 * H + j])
        c = f * c_H[j] + i * g
        c_H[j] = c
        h_H[j] = o * (np.float32(2) * sigmoid(np.float32(2) * c) - np.float32(1))


@njit(fastmath=SUMS, **OPTIONS)
def lstm_step(
    input_words, input_alpha, state_words, state_alpha, bias_M, x_CW, x_beta, inputs, h_CW, h_beta, codes_CH,
    iterations, input_M, state_M, c_H, h_H,
):  # fmt: skip
    """One step of a packed LSTM: both products, the gates, and the codes of the new h for the next step."""
    product(input_words, input_alpha, x_CW, x_beta, inputs, input_M)
    product(state_words, state_alpha, h_CW, h_beta, h_H.shape[0], state_M)
    gates(input_M, state_M, bias_M, c_H, h_H)
    quantise(h_H, iterations, codes_CH, h_CW, h_beta)
