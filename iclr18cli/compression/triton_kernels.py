"""The packed product on a GPU, in Triton, on the same words. At batch 1 it is bound by reading the words once."""

# M rows · K bits of the rows · C bits of a vector · W words · B vectors
# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from iclr18cli.compression.packing import PackedCodes


@triton.jit
def _popcount(x):
    """Bits of a 64-bit word, added up in parallel: plain arithmetic, the same on every GPU."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56) & 0xFF


@triton.jit
def _product(
    words, alpha, right, beta, out, M, W, length,
    K: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    vector = tl.program_id(1)
    inside = row < M
    total = tl.zeros((ROWS,), tl.float32)
    for a in tl.static_range(K):
        scale = tl.load(alpha + row * K + a, mask=inside, other=0.0)
        for c in tl.static_range(C):
            count = tl.zeros((ROWS,), tl.int64)
            for start in range(0, W, WORDS):
                word = start + tl.arange(0, WORDS)
                mask = inside[:, None] & (word < W)[None, :]
                x = tl.load(words + (row[:, None].to(tl.int64) * K + a) * W + word[None, :], mask=mask, other=0)
                y = tl.load(right + (vector * C + c) * W + word, mask=word < W, other=0)
                # Words outside are 0 on both sides; rows outside are not stored.
                count += tl.sum(_popcount(x ^ y[None, :]), axis=1)
            total += scale * tl.load(beta + vector * C + c) * (length - 2 * count).to(tl.float32)
    tl.store(out + vector * M + row, total, mask=inside)


def product(left: PackedCodes, right: PackedCodes) -> torch.Tensor:
    """Return W h for packed rows and B packed vectors on one GPU, (M, B) float32; see `kernels.multiply`."""
    M, K, W = left.words_MKW.shape
    B, C, _ = right.words_MKW.shape
    out_BM = torch.empty(B, M, device=left.words_MKW.device)
    rows = 16
    with torch.cuda.device(left.words_MKW.device):
        _product[(triton.cdiv(M, rows), B)](
            left.words_MKW.contiguous(), left.alpha_MK.contiguous(), right.words_MKW.contiguous(),
            right.alpha_MK.contiguous(), out_BM, M, W, left.length, K=K, C=C, ROWS=rows,
            WORDS=min(64, triton.next_power_of_2(W)),
        )  # fmt: skip
    return out_BM.T
