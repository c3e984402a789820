"""Which kernel multiplies packed codes: numba on a processor, Triton on a GPU, plain torch where neither is there."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from iclr18cli.compression.binary_codes import alternating
from iclr18cli.compression.packing import PackedCodes, pack, packed_product, word_count
from iclr18cli.errors import UserError

THREADS_FROM_WORDS = 1 << 16
"""Words of the rows from which a product is shared among threads; chosen, not measured: below it a product takes
microseconds, which waking threads takes as well."""


def numba_kernels() -> Any:
    """Return the module of compiled kernels.

    Raises:
        UserError: numba is not installed.
    """
    if find_spec("numba") is None:
        raise UserError("The packed kernel needs numba, which is not installed.", fix="pip install 'iclr18[kernels]'")
    from iclr18cli.compression import numba_kernels

    return numba_kernels


def choose(device: torch.device) -> str:
    """Return the kernel that `multiply` takes on a device: "numba", "triton" or "torch"."""
    if device.type == "cpu":
        return "numba" if find_spec("numba") is not None else "torch"
    return "triton" if device.type == "cuda" and find_spec("triton") is not None else "torch"


def packed_pays(rows: int, length: int, bits: int) -> bool:
    """Say whether a product with packed rows is faster than with a float32 matrix kept beside them, at batch 1.

    From the table of benchmarks/kernel_table.py: up to 4 bits at every shape measured, 64 to 10,000 rows of 64 to 2,048
    entries. With more bits, short rows that together make a large matrix (1,024 of 256, 10,000 of 200) lose: their
    words are few and hold mostly the same work as float32.

    Args:
        rows, length: M and N.
        bits: The larger one of those of rows and vectors.
    """
    return bits <= 4 or length > 256 or rows * length < 1 << 18


def multiply(left: PackedCodes, right: PackedCodes, *, kernel: str = "auto") -> Tensor:
    """Return W h for packed rows and B packed vectors, (M, B) float32.

    Args:
        left: Rows, on the device that computes.
        right: Vectors, of the same length and on the same device.
        kernel: "numba", "triton", "torch" (the slow reference), or "auto": `choose`.

    Raises:
        ValueError: The lengths differ, or the kernel is unknown.
        UserError: The kernel named is not installed.
    """
    if left.length != right.length:
        raise ValueError(f"lengths must agree; received {left.length} and {right.length}")
    kernel = choose(left.words_MKW.device) if kernel == "auto" else kernel
    if kernel == "torch":
        return packed_product(left, right)
    if kernel == "triton":
        from iclr18cli.compression.triton_kernels import product

        return product(left, right)
    if kernel != "numba":
        raise ValueError(f"kernel must be auto, numba, triton or torch; received {kernel!r}")
    compiled = numba_kernels()
    words, alpha = left.words_MKW.numpy(), left.alpha_MK.numpy()
    threads = left.words_MKW.numel() >= THREADS_FROM_WORDS and torch.get_num_threads() > 1
    run = compiled.product_threads if threads else compiled.product
    out_BM = torch.empty(len(right.words_MKW), len(words))
    vectors, scales, out = right.words_MKW.numpy(), right.alpha_MK.numpy(), out_BM.numpy()
    for b in range(len(vectors)):
        run(words, alpha, vectors[b], scales[b], left.length, out[b])
    return out_BM.T


def quantise_vectors(x_BN: Tensor, bits: int, *, iterations: int = 2) -> PackedCodes:
    """Code and pack vectors on line, each with coefficients of its own; compiled on a processor with numba.

    The compiled code adds in another order than torch: where an entry lies on a midpoint to float32 rounding its code
    may be the other one, which is as good.
    """
    if choose(x_BN.device) != "numba":
        return pack(alternating(x_BN.float(), bits, iterations=iterations))
    B, N = x_BN.shape
    words = torch.empty(B, bits, word_count(N), dtype=torch.int64)
    alpha, codes = torch.empty(B, bits), torch.empty(bits, N)
    x, scratch, w, a = x_BN.detach().float().contiguous().numpy(), codes.numpy(), words.numpy(), alpha.numpy()
    for b in range(B):
        numba_kernels().quantise(x[b], iterations, scratch, w[b], a[b])
    return PackedCodes(alpha, words, N)
