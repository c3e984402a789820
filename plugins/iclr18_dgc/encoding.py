"""What goes over the wire: k values and k positions as a packet whose length depends on n and k alone.

Ranks therefore gather packets of one length without asking each other. Encodings of the positions:

    int32        4 bytes each, in any order
    runlength16  the number of zeros before each entry in 16 bits, the paper's 48 bits with fp32 values (section 4).
                 65535 is a filler: so many zeros and no entry. No more than (n - k) // 65535 fillers are ever needed;
                 those that are not stand at the end.
    block16      the low 16 bits of each position, and for every 65,536 entries of the tensor the number sent of them in
                 32 bits (none if there is one such block)
"""

# n entries of a tensor or of several laid end to end · K entries sent · W words of 16 bits · P bytes of a packet

from __future__ import annotations

import torch
from torch import Tensor

from iclr18_dgc.compression import WIRE
from iclr18_dgc.rule import VALUE_BYTES

FILLER = 65_535
BLOCK = 65_536
LARGEST = 2**31 - 1


def index_bytes(n: int, k: int, indices: str) -> int:
    """Return the bytes that k of n positions take.

    Example:
        >>> [index_bytes(10**6, 1000, kind) for kind in ("int32", "runlength16", "block16")]
        [4000, 2030, 2064]
    """
    if indices == "int32":
        return 4 * k
    if indices == "runlength16":
        return 2 * (k + (n - k) // FILLER)
    if indices == "block16":
        return 2 * k + (4 * _blocks(n) if n > BLOCK else 0)
    raise ValueError(f"indices must be 'int32', 'runlength16' or 'block16'; received indices={indices!r}")


def packet_bytes(n: int, k: int, *, values: str, indices: str) -> int:
    """Return the bytes of a packet: exact, without the framing of the transport."""
    return VALUE_BYTES[values] * k + index_bytes(n, k, indices)


def encode(index_K: Tensor, value_K: Tensor, n: int, *, values: str = "fp32", indices: str = "int32") -> Tensor:
    """Return a packet of values at positions, (P,) uint8 with P = `packet_bytes`.

    Args:
        index_K: (K,) int64 positions in 0..n-1, none twice, in any order.
        value_K: (K,) float; rounded to the wire's type (fp16: infinite from 65520 on; see `on_the_wire`).

    Raises:
        ValueError: n over 2^31 - 1, or an unknown encoding.
    """
    if n > LARGEST:
        raise ValueError(f"positions have 32 bits: n must be < 2^31; received n={n!r}")
    if indices == "int32":
        parts = [index_K.to(torch.int32)]
    else:
        index_K, order = index_K.sort()
        value_K = value_K[order]
        parts = _run_lengths(index_K, n) if indices == "runlength16" else _in_blocks(index_K, n)
    parts.append(value_K.to(WIRE[values]))
    parts.sort(key=lambda part: -part.element_size())  # wide ones first, so that each part starts at its own alignment
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts])


def decode(packet: Tensor, n: int, k: int, *, values: str = "fp32", indices: str = "int32") -> tuple[Tensor, Tensor]:
    """Return (positions (K,) int64, values (K,) in the wire's dtype) of a packet.

    Raises:
        ValueError: The packet has not the length of k of n entries.
    """
    if len(packet) != packet_bytes(n, k, values=values, indices=indices):
        raise ValueError(
            f"a packet of {k} of {n} entries has {packet_bytes(n, k, values=values, indices=indices)} bytes; "
            f"received {len(packet)}"
        )
    lengths: dict[str, tuple[int, torch.dtype]] = {}
    if indices == "int32":
        lengths["positions"] = (k, torch.int32)
    elif indices == "runlength16":
        lengths["words"] = (k + (n - k) // FILLER, torch.int16)
    else:
        lengths["low"] = (k, torch.int16)
        if n > BLOCK:
            lengths["counts"] = (_blocks(n), torch.int32)
    lengths["values"] = (k, WIRE[values])
    names = sorted(lengths, key=lambda name: -lengths[name][1].itemsize)  # as `encode` lays them
    read, at = {}, 0
    for name in names:
        count, dtype = lengths[name]
        read[name] = packet[at : at + count * dtype.itemsize].view(dtype)
        at += count * dtype.itemsize
    if indices == "int32":
        index_K = read["positions"].long()
    elif indices == "runlength16":
        words_W = read["words"].long() + 32_768
        entry_W = words_W != FILLER
        index_K = (words_W + entry_W).cumsum(0)[torch.nonzero_static(entry_W, size=k).view(-1)] - 1
    else:
        index_K = read["low"].long() + 32_768
        if n > BLOCK:
            block = torch.arange(_blocks(n), device=packet.device) * BLOCK
            index_K += block.repeat_interleave(read["counts"].long(), output_size=k)
    return index_K, read["values"]


def _blocks(n: int) -> int:
    return -(-n // BLOCK)


def _run_lengths(index_K: Tensor, n: int) -> list[Tensor]:
    """Return the 16-bit words of sorted positions: fillers, then the zeros that are left, before each entry."""
    zeros_K = torch.diff(index_K, prepend=index_K.new_tensor([-1])) - 1
    words_W = index_K.new_full((len(index_K) + (n - len(index_K)) // FILLER,), FILLER)
    place_K = torch.arange(len(index_K), device=index_K.device) + (zeros_K // FILLER).cumsum(0)
    words_W[place_K] = zeros_K % FILLER
    return [(words_W - 32_768).to(torch.int16)]


def _in_blocks(index_K: Tensor, n: int) -> list[Tensor]:
    """Return the low halves of sorted positions, and before them how many lie in each block if there are several."""
    low = [(index_K % BLOCK - 32_768).to(torch.int16)]
    if n <= BLOCK:
        return low
    ends = torch.arange(1, _blocks(n) + 1, device=index_K.device) * BLOCK
    counts = torch.diff(torch.searchsorted(index_K, ends), prepend=index_K.new_zeros(1))
    return [counts.to(torch.int32), *low]
