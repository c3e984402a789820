"""The language-model core: its speed beside a bare loop of torch, and the table of fraternal dropout on PTB.

    python benchmarks/language.py speed [--rounds 9]
    python benchmarks/language.py table --out FOLDER [--epochs 30] [--seeds 0 1 2]

`speed`: one update of the LSTM of the small setting, without dropout, by `iclr18cli.text` and by a bare loop with
nn.Embedding, nn.LSTM and nn.Linear, in turns; then what each regulariser and the second pass cost.

`table`: `fraternal train --preset cpu` (40,000 tokens of PTB, 1,500 words, one layer of 160 units, so perplexities are
not those of the literature) for the baseline at equal and at double epochs and for kappa 0, 0.05, 0.15, 0.3. A run that
is in FOLDER already is not repeated; `--show` only prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import measuring
import torch
import torch.nn.functional as F
from torch import nn

from iclr18cli.text.recurrent import RecurrentLM

T, B, V, H = 35, 20, 1500, 160


class Bare(nn.Module):
    """What a user would write."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.recurrent, self.decoder = nn.Embedding(V, H), nn.LSTM(H, H), nn.Linear(H, V)
        self.decoder.weight = self.embedding.weight

    def forward(self, x: Any, state: Any) -> Any:
        y, state = self.recurrent(self.embedding(x), state)
        return self.decoder(y), state


def updates(net: nn.Module, loss: Any) -> Any:
    """Return a function that makes ten updates with a carried state."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.randint(V, (T + 1, B), generator=generator) for _ in range(10)]

    def run() -> None:
        state = None
        for piece in pieces:
            value, state = loss(net, piece[:-1], piece[1:], state)
            state = tuple(part.detach() for part in state)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.25)
            optimizer.step()

    return run


def plain(net: nn.Module, x: Any, y: Any, state: Any) -> Any:
    logits, state = net(x, state)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten()), state


def speed(options: argparse.Namespace) -> None:
    """Print the times of an update."""
    from iclr18_fraternal.language import TwinLoss

    def twins(**kind: Any) -> Any:
        loss = TwinLoss(**kind)
        return lambda net, x, y, state: loss(net, x, y, state)[:2]

    torch.manual_seed(0)
    dropped = {"dropout_embedding": 0.1, "dropout_input": 0.5, "dropout_output": 0.5, "weight_drop": 0.5}

    def lm(**rates: float) -> RecurrentLM:
        return RecurrentLM(V, hidden=H, tied=True, **rates)  # type: ignore[arg-type]

    rows = {
        "bare loop": updates(Bare(), plain),
        "ours, no dropout": updates(lm(), twins(method="none")),
        "ours, every dropout": updates(lm(**dropped), twins(method="none")),
        "fraternal, two passes": updates(lm(**dropped), twins()),
        "fraternal, doubled batch": updates(lm(**dropped), twins(doubled=True)),
    }
    clock = measuring.clock_of(options)
    for run in rows.values():
        run()
    samples = measuring.interleaved({k: (lambda r=r: clock.of(r)) for k, r in rows.items()}, rounds=options.rounds)
    table = [
        [name, f"{1000 * statistics.median(found) / 10:.2f}",
         f"{10 * T * B / statistics.median(found):,.0f}", f"{measuring.ratio(samples, name, 'bare loop'):.3f}"]
        for name, found in samples.items()
    ]  # fmt: skip
    about = measuring.machine(options.device)
    measuring.report(f"One update, {T} steps of {B} sequences, {V} words, {H} units, {clock.kind} time",
                     ["loop", "ms", "tokens/s", "times the bare loop"], table, about, [])  # fmt: skip


def settings(epochs: int) -> dict[str, list[str]]:
    """Return the rows of the table."""
    rows = {"baseline": ["--method", "none", "--epochs", str(epochs)],
            "baseline, double epochs": ["--method", "none", "--epochs", str(2 * epochs)]}  # fmt: skip
    for kappa in ("0", "0.05", "0.15", "0.3"):
        rows[f"FD, kappa {kappa}"] = ["--kappa", kappa, "--epochs", str(epochs)]
    return rows


def table(options: argparse.Namespace) -> None:
    """Train what is missing and print the table."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        for name, arguments in settings(options.epochs).items():
            folder = Path(options.out) / f"{name.replace(', ', '-').replace(' ', '-')}-{options.epochs}-{seed}"
            info = folder / "run.json"
            if not info.exists() and not options.show:
                subprocess.run(
                    [sys.executable, "-m", "iclr18cli", "fraternal", "train", "--preset", "cpu", *arguments, "--seed",
                     str(seed), "--device", "cpu", "--out", str(folder), "--quiet"],
                    check=True, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            if info.exists() and (metrics := json.loads(info.read_text()).get("metrics")):
                twins = [json.loads(line).get("twins") for line in (folder / "metrics.jsonl").read_text().splitlines()]
                last = [value for value in twins if value is not None][-1:]
                found.setdefault(name, []).append({**metrics, "twins": last[0] if last else float("nan")})
    rows = []
    for name, runs in found.items():
        cells = [name, str(len(runs))]
        for key in ("valid_perplexity", "test_perplexity"):
            values = [run[key] for run in runs]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            cells += [f"{statistics.mean(values):.2f} ± {error:.2f}", " ".join(f"{value:.2f}" for value in values)]
        twins = [run["twins"] for run in runs]
        rows.append([*cells, f"{statistics.mean(twins):.3f}"])
    measuring.report(f"PTB, small setting, {options.epochs} epochs",
                     ["method", "n", "valid", "each", "test", "each", "twins' distance at the end"], rows,
                     measuring.machine("cpu"), [])  # fmt: skip


def main() -> None:
    """Run one of the two."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("what", choices=["speed", "table"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="language-runs")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--show", action="store_true")
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    {"speed": speed, "table": table}[options.what](options)


if __name__ == "__main__":
    main()
