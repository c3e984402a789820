"""An LSTM step at batch 1: packed 2- and 3-bit codes against float32 and torch's dynamic int8.

    python benchmarks/multibit.py [--hidden 256 512 1024 2048] [--steps 32] [--rounds 15]

Both matrices (4H x H each), gates and the on-line coding of the hidden state are counted; inputs are rows of a packed
embedding, whose codes are known. All cells take turns in one process over the same sequence. The baseline of a size is
the fastest of four float32 ways; nn.LSTM runs over the whole sequence, never token by token. Goal at H = 1024: 2 bits
at least 6 times, 3 bits at least 3 times faster than it. Bytes of int8 are one a weight.
"""

from __future__ import annotations

import statistics
from typing import Any

import measuring
import torch

from iclr18cli.compression.cells import FLOAT, sequences

COLUMNS = [
    "hidden",
    "cell",
    "us/step",
    "least",
    "times faster than float32",
    "quartiles",
    "than int8",
    "bytes",
    "times smaller",
]


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--steps", type=int, default=32, help="steps of a sequence (default 32)")
    parser.add_argument("--rounds", type=int, default=15)
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    clock = measuring.clock_of(options)
    rows: list[list[Any]] = []
    document: dict[str, Any] = {"steps": options.steps, "sizes": {}}
    notes = []
    for hidden in options.hidden:
        runners, sizes = sequences(hidden, options.steps)
        for run in runners.values():
            run()
        tasks = {name: (lambda run=run: clock.of(run)) for name, run in runners.items()}  # type: ignore[misc]
        samples = measuring.interleaved(tasks, rounds=options.rounds)
        base = min(FLOAT, key=lambda name: statistics.median(samples[name]))
        for name in runners:
            low, high = measuring.spread(samples, base, name)
            int8 = (
                f"{measuring.ratio(samples, 'int8 torch dynamic', name):.2f}" if "int8 torch dynamic" in samples else ""
            )
            rows.append([
                hidden, name, f"{1000 * measuring.milliseconds(samples[name], per=options.steps):.1f}",
                f"{1e6 * min(samples[name]) / options.steps:.1f}", f"{measuring.ratio(samples, base, name):.2f}",
                f"{low:.2f} to {high:.2f}", int8, f"{sizes[name]:,}", f"{sizes[FLOAT[0]] / sizes[name]:.2f}",
            ])  # fmt: skip
        document["sizes"][hidden] = {"seconds": samples, "bytes": sizes, "baseline": base}
        notes.append(f"H = {hidden}: baseline {base}")
    about = measuring.machine(options.device)
    measuring.report(
        f"LSTM at batch 1, sequences of {options.steps} steps, {clock.kind} time", COLUMNS, rows, about, notes
    )
    measuring.write(options.json, {**document, "machine": about})


if __name__ == "__main__":
    main()
