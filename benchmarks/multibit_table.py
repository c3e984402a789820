"""Coding a language model without training, and after a little: methods x bits, relative error and test perplexity.

    python benchmarks/multibit_table.py FLOAT_RUN --out FOLDER [--limit 20000] [--bits 2 3 4] [--show]

FLOAT_RUN is a run of `iclr18 alternating train --bits-weights 0 --bits-activations 0`. A run that is in FOLDER already
is not repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import measuring

METHODS = (("uniform-matrix", 2), ("uniform", 2), ("balanced", 2), ("greedy", 2), ("refined", 2), ("alternating", 2),
           ("alternating", 20))  # fmt: skip


def main() -> None:
    """Code what is missing and print the table."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("run")
    parser.add_argument("--out", required=True)
    parser.add_argument("--limit", type=int, default=20_000)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    rows, base = [], 0.0
    for method, T in METHODS:
        cells = [f"{method}, T = {T}" if method == "alternating" else method]
        for bits in options.bits:
            folder = Path(options.out) / f"{method}-{T}-{bits}"
            if not (folder / "run.json").exists() and not options.show:
                subprocess.run(
                    [sys.executable, "-m", "iclr18cli", "alternating", "quantize", options.run, "--method", method,
                     "--iterations", str(T), "--bits-weights", str(bits), "--limit", str(options.limit), "--device",
                     "cpu", "--out", str(folder), "--quiet"],
                    check=True, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            found = json.loads((folder / "run.json").read_text())["metrics"]
            base = found["float_perplexity"]
            cells.append(f"{found['relative_mse']:.3f}, {found['perplexity']:.1f}")
        rows.append(cells)
    measuring.report(
        f"Weights in codes, no training; float perplexity {base:.2f}", ["method", *(f"{b} bits" for b in options.bits)],
        rows, measuring.machine("cpu"), [],
    )  # fmt: skip


if __name__ == "__main__":
    main()
