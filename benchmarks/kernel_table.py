"""Where packed codes stop paying: one product at batch 1 by popcount against a float32 matrix, by shape and bits.

    python benchmarks/kernel_table.py

Both ways the vector is coded on line by the compiled code; then either packed rows are multiplied, or the decoded
vector by the decoded float32 matrix, which has to be kept beside the codes.
`iclr18cli.compression.kernels.packed_pays` is what this table says; change it when it is measured anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import measuring
import torch
import torch.nn.functional as F

from iclr18cli.compression.kernels import multiply, quantise_vectors
from iclr18cli.compression.methods import code_rows
from iclr18cli.compression.packing import pack

SHAPES = ((64, 64), (256, 64), (512, 128), (1024, 256), (2048, 512), (4096, 1024), (8192, 2048), (10_000, 200))


def least(run: Callable[[], Any], rounds: int) -> float:
    """Return the least processor time of a call, in microseconds."""
    run()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(4):
            run()
        times.append((time.process_time() - began) / 4)
    return 1e6 * min(times)


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    measuring.clock_of(options)
    rows = []
    for M, N in SHAPES:
        w, x = torch.randn(M, N), torch.randn(1, N)
        for bits in (1, 2, 3, 4, 5, 6, 8):
            codes = pack(code_rows(w, bits))
            dense = codes.unpacked().dense()

            def packed(codes: Any = codes, x: Any = x, bits: int = bits) -> Any:
                return multiply(codes, quantise_vectors(x, bits))

            def floating(dense: Any = dense, x: Any = x, bits: int = bits) -> Any:
                return F.linear(quantise_vectors(x, bits).unpacked().dense(), dense)

            one, two = least(packed, options.rounds), least(floating, options.rounds)
            rows.append([M, N, bits, f"{one:.1f}", f"{two:.1f}", f"{two / one:.2f}"])
    about = measuring.machine(options.device)
    measuring.report("One product at batch 1", ["rows", "length", "bits", "packed us", "float us", "times faster"],
                     rows, about, [])  # fmt: skip


if __name__ == "__main__":
    main()
