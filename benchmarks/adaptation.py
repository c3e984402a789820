"""Domain adaptation: the table of `iclr18_adr`, and the time of one iteration against a bare torch loop.

    python benchmarks/adaptation.py table [--pairs mnist:usps,usps:mnist] [--protocol p1] [--iterations 400]
        [--seeds 0,1,2] [--rows ROWS] [--learning-rate 0.0002] [--out FOLDER]
    python benchmarks/adaptation.py speed [--rounds 10] [--steps 5] [--batch 64] [--threads 1] [--device cpu]

table trains every row that has no JSON in FOLDER yet, prints the table of those that are there, and may be stopped and
called again. Target accuracy of C and of C' (F2 for MCD) at the last iterate, the whole target test set; no target
label chooses anything.

speed runs ours (`iclr18_adr.train.fit` on a run opened as the command opens it) and a bare loop of the same algebra in
turns, in one process: the bare loop runs while ours asks for its next iteration.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import torch
import torch.nn.functional as F
from iclr18_adr.config import TrainConfig
from iclr18_adr.domains import Domains
from iclr18_adr.train import fit, network

from iclr18cli import api
from iclr18cli.config import to_dict
from iclr18cli.data.tensors import Split
from iclr18cli.run.start import open_run
from iclr18cli.settings import TrainSettings

ROWS: dict[str, dict[str, Any]] = {
    "source-only": {"critic": "none", "target_statistics": "none"},
    "source-only-adabn": {"critic": "none", "target_statistics": "after"},
    "source-only-bn": {"critic": "none"},
    "adr": {"critic": "adr"},
    "ent": {"critic": "ent"},
    "mcd": {"critic": "mcd"},
    "adr-authors": {"critic": "adr", "variant": "authors"},
    "ent-authors": {"critic": "ent", "variant": "authors"},
    "dann": {"critic": "dann"},
}
OURS, BARE = "a ours", "b bare loop"


def table(options: Any) -> None:
    """Train what is missing, then print mean and standard error over the seeds."""
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in (int(word) for word in options.seeds.split(",")):
        for pair in options.pairs.split(","):
            source, target = pair.split(":")
            for row in options.rows.split(","):
                asked = ROWS[row] | {
                    "source": source, "target": target, "protocol": options.protocol,
                    "iterations": options.iterations, "learning_rate": options.learning_rate,
                }  # fmt: skip
                place = folder / f"{source}-{target}-{options.protocol}-{options.iterations}-{row}-{seed}.json"
                if not place.exists():
                    began = time.process_time()
                    with tempfile.TemporaryDirectory() as scratch:
                        run = api.train("adr", seed=seed, out=f"{scratch}/run", device=options.device, **asked)
                        kept = {"asked": asked, "seed": seed, "metrics": run.info["metrics"],
                                "processor_seconds": time.process_time() - began}  # fmt: skip
                    place.write_text(json.dumps(kept, indent=1))
                found.setdefault((pair, row), []).append(json.loads(place.read_text()))
    rows = []
    for (pair, row), runs in found.items():
        cells = []
        for key in ("target_c", "target_cprime", "source_c"):
            values = [100 * run["metrics"][key] for run in runs]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.1f} +- {error:.1f}")
        taken = statistics.mean(run["processor_seconds"] for run in runs)
        rows.append([pair, row, *cells, len(runs), f"{taken:.0f}"])
    measuring.report(
        f"Accuracy in percent, mean +- standard error; protocol {options.protocol}, {options.iterations} iterations",
        ["pair", "method", "target C", "target C'", "source C", "seeds", "processor s"], rows,
        measuring.machine(options.device),
    )  # fmt: skip


def data_of(shape: tuple[int, int, int]) -> Domains:
    """Return random images: time does not depend on what is in them."""
    random = torch.Generator().manual_seed(0)
    splits = [
        Split(torch.randint(256, (2000, *shape), dtype=torch.uint8, generator=random),
              torch.randint(10, (2000,), generator=random), tuple("0123456789"), name, "train")
        for name in ("source", "target")
    ]  # fmt: skip
    return Domains(*splits)


def bare_loop(net: Any, data: Domains, config: TrainConfig) -> Callable[[int], None]:
    """Return the three steps as one would write them by hand, with the same passes."""
    G, C, C2 = net.features.train(), net.classifier.train(), net.second.train()
    adam = [torch.optim.Adam(part.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
            for part in (G, C, C2)]  # fmt: skip
    opt_G, opt_C, _ = adam
    B, at = config.batch_size, 0

    def d(z1: Any, z2: Any) -> Any:
        l1, l2 = F.log_softmax(z1, 1), F.log_softmax(z2, 1)
        return 0.5 * ((l1.exp() - l2.exp()) * (l1 - l2)).sum(1).mean()

    def segment(steps: int) -> None:
        nonlocal at
        for _ in range(steps):
            part = slice(at, at + B)
            at = (at + B) % (len(data.source) - B)
            index = torch.arange(part.start, part.stop, device=data.source.x.device)
            xs, ys, xt = data.source.inputs(index), data.source.y[index], data.target.inputs(index)
            x = torch.cat([xs, xt])
            for optimizer in adam:
                optimizer.zero_grad()
            f = G(x)
            (F.cross_entropy(C(f)[:B], ys) + F.cross_entropy(C2(f.detach())[:B], ys)).backward()
            for optimizer in adam:
                optimizer.step()
            with torch.no_grad():
                f = G(x)
            z1, z2 = C(f), C(f)
            opt_C.zero_grad()
            (F.cross_entropy(z1[:B], ys) - d(z1[B:], z2[B:])).backward()
            opt_C.step()
            C.requires_grad_(False)
            for _ in range(config.n):
                f = G(xt)
                opt_G.zero_grad()
                d(C(f), C(f)).backward()
                opt_G.step()
            C.requires_grad_(True)

    return segment


def speed(options: Any) -> None:
    """Time both in turns and print milliseconds per iteration and their ratio."""
    clock = measuring.clock_of(options)
    config = TrainConfig(source="source", target="target", batch_size=options.batch)
    config = replace(config, iterations=(options.rounds + 1) * options.steps + 1)
    data = data_of((1, 28, 28)).to(clock.device)
    torch.manual_seed(0)
    net = network(config, data)[0].to(clock.device)
    others = {BARE: bare_loop(copy.deepcopy(net), data, config)}
    turns = measuring.Turns(options.rounds, options.steps, OURS, others, clock)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(runs_dir=folder, device=clock.device, log_every=options.steps)
        with open_run("adr", to_dict(config), settings, plugin="iclr18") as run:
            turns.around(run, "steps")
            fit(net, data, config, run)
    rows, samples = [], turns.samples
    for name, times in samples.items():
        low, high = measuring.spread(samples, name, BARE)
        rows.append([name, measuring.milliseconds(times, per=options.steps), measuring.ratio(samples, name, BARE),
                     f"{low:.3f}-{high:.3f}"])  # fmt: skip
    about = measuring.machine(options.device)
    measuring.report(
        f"ADR, the authors' USPS network, n = {config.n}, batch {options.batch}; {options.rounds} interleaved segments "
        f"of {options.steps} iterations, {clock.kind} time",
        ["loop", "ms/iteration", "/ bare", "quartiles"], rows, about,
    )  # fmt: skip
    measuring.write(options.json, {"machine": about, "iteration": samples})


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("what", choices=("table", "speed"))
    parser.add_argument("--pairs", default="mnist:usps,usps:mnist")
    parser.add_argument("--protocol", default="p1")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--rows", default="source-only,source-only-adabn,source-only-bn,adr,ent,mcd", help=", ".join(ROWS)
    )
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--out", default="adaptation-results")
    parser.add_argument("--rounds", type=int, default=10, help="segments of each that count (default 10)")
    parser.add_argument("--steps", type=int, default=5, help="iterations per segment (default 5)")
    parser.add_argument("--batch", type=int, default=64)
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    if options.what == "speed":
        speed(options)
    else:
        torch.set_num_threads(options.threads)
        table(options)


if __name__ == "__main__":
    main()
