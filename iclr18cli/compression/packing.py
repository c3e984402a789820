"""Binary codes as bits of 64-bit words, and the product of packed operands by exclusive or and bit count.

Bit i of word j is 1 where code 64 j + i is +1. What fills up the last word is 0 on both sides of a product, where the
exclusive or then is 0 as well: <b, d> = N - 2 popcount(b xor d) with the true N.
"""

# M rows · N entries of a row · K bits of the rows · C bits of a vector · W = ceil(N / 64) words · B vectors

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from iclr18cli.compression.binary_codes import BinaryCodes

WORD = 64


class PackedCodes(NamedTuple):
    """Codes of M rows in words, the words of a row together.

    Attributes:
        alpha_MK: (M, K) float32 coefficients.
        words_MKW: (M, K, W) int64.
        length: N.
    """

    alpha_MK: Tensor  # noqa: N815
    words_MKW: Tensor  # noqa: N815
    length: int

    def unpacked(self) -> BinaryCodes:
        """Return the codes as -1 and +1."""
        return BinaryCodes(self.alpha_MK, unpack_bits(self.words_MKW, self.length).to(self.alpha_MK.dtype) * 2 - 1)

    @property
    def bytes(self) -> int:
        """Bytes of words and coefficients."""
        return self.words_MKW.numel() * 8 + self.alpha_MK.numel() * self.alpha_MK.element_size()


def pack(codes: BinaryCodes) -> PackedCodes:
    """Pack codes; coefficients become float32."""
    return PackedCodes(
        codes.alpha_MK.float().contiguous(), pack_bits(codes.codes_MKN > 0), int(codes.codes_MKN.shape[-1])
    )


def word_count(length: int) -> int:
    """Return W, the words that `length` bits take."""
    return -(-length // WORD)


def packed_bytes(rows: int, length: int, bits: int) -> int:
    """Return the bytes of M packed rows: words, whole ones, and float32 coefficients."""
    return rows * bits * (8 * word_count(length) + 4)


def pack_bits(bits: Tensor) -> Tensor:
    """Return (..., W) int64 words of (..., N) booleans.

    Example:
        >>> pack_bits(torch.tensor([True, False, True]))
        tensor([5])
    """
    N = bits.shape[-1]
    padded = torch.nn.functional.pad(bits, (0, word_count(N) * WORD - N)).unflatten(-1, (-1, WORD))
    # The 64 summands have no bit in common, so their sum, wrapped around as int64, is their union.
    return (padded.long() << torch.arange(WORD, device=bits.device)).sum(-1)


def unpack_bits(words: Tensor, length: int) -> Tensor:
    """Return the first `length` bits of (..., W) words, (..., length), as 0 and 1 in int8."""
    bits = (words[..., None] >> torch.arange(WORD, device=words.device)) & 1
    return bits.to(torch.int8).flatten(-2)[..., :length]


def popcount(words: Tensor) -> Tensor:
    """Return the number of 1 bits of each int64; torch has no such operation, so 64 bits are added up in parallel."""
    x = words - ((words >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56) & 0xFF


def code_products(left_MKW: Tensor, right_BCW: Tensor, length: int) -> Tensor:
    """Return <b, d> of every code on the left with every one on the right, (M, K, B, C) int64."""
    return length - 2 * popcount(left_MKW[:, :, None, None] ^ right_BCW).sum(-1)


def packed_product(left: PackedCodes, right: PackedCodes) -> Tensor:
    """Return W h = sum_a alpha_a sum_c beta_c <b_a, d_c>, (M, B): the reference of all kernels, slow.

    Raises:
        ValueError: The operands are of different lengths.
    """
    if left.length != right.length:
        raise ValueError(f"lengths must agree; received {left.length} and {right.length}")
    inner_MKBC = code_products(left.words_MKW, right.words_MKW, left.length).float()
    return torch.einsum("mk,mkbc,bc->mb", left.alpha_MK, inner_MKBC, right.alpha_MK)
