"""Adaptive dropout: the tables of `iclr18_adaptive_dropout`, how their settings were chosen, and the time of a step.

    python benchmarks/adaptive_dropout.py choose [--data mnist|subj] [--out FOLDER]
    python benchmarks/adaptive_dropout.py table [--data mnist|subj] [--seeds 0,1,2] [--rows ROWS] [--out FOLDER]
    python benchmarks/adaptive_dropout.py speed [--rounds 12] [--steps 100] [--threads 1] [--device cpu]

choose holds out 20 % of the training examples and trains on the others, seed 0: for mnist every (I, step size of the
rates) from all three starting rates, for subj every step size of each method. table trains on all training examples
with the settings of SETTING and CHOSEN and measures the test split. Both train what has no JSON in FOLDER yet, print
what is there, and may be stopped and called again.

speed runs ours (`iclr18_adaptive_dropout.train.fit` on a run opened as the command opens it) and a bare loop of fixed
dropout in turns, in one process: the bare loop runs while ours asks for its next batch.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import measuring
import torch
import torch.nn.functional as F
from iclr18_adaptive_dropout.config import TrainConfig
from iclr18_adaptive_dropout.rates import border_and_centre, describe, rates_of
from iclr18_adaptive_dropout.train import fit, network

from iclr18cli import api
from iclr18cli.config import to_dict
from iclr18cli.data.tensors import Split
from iclr18cli.models.card import open_model
from iclr18cli.run.start import open_run
from iclr18cli.settings import TrainSettings

Options = dict[str, Any]
STARTS = ((0.4, 0.25), (0.8, 0.5), (1.0, 1.0))
SETTING: Mapping[str, Options] = {
    "mnist": {"dataset": "mnist", "limit": 5000, "drawn": True},  # all else by default: 784-256-10, 60 epochs
    "subj": {"dataset": "subj", "hidden": (128,), "epochs": 8},
}
CHOSEN: Mapping[str, Options] = {
    "mnist": {"every": 10, "theta_lr": 4.0},
    "subj": {
        "none": {"learning_rate": 2.0},
        "fixed": {"learning_rate": 2.0},
        "adaptive": {"learning_rate": 2.0, "lambda_reg": 1e-4, "theta_lr": 4.0},
    },
}
"""By `choose`: the least worst error over the starting rates, of two the lesser mean; for subj the least error."""


def mnist_rows() -> dict[str, Options]:
    rows: dict[str, Options] = {"none": {"mode": "none"}}
    for mode in ("fixed", "adaptive"):
        for start in STARTS:
            rows[f"{mode}-{start[0]}-{start[1]}"] = {"mode": mode, "init": start} | (
                CHOSEN["mnist"] if mode == "adaptive" else {}
            )
    rows["adaptive-p2-0.8-0.5"] = {"mode": "adaptive", "init": (0.8, 0.5), "p": "2"} | CHOSEN["mnist"]
    return rows


def subj_rows() -> dict[str, Options]:
    return {mode: {"mode": mode} | CHOSEN["subj"].get(mode, {}) for mode in ("none", "fixed", "adaptive")}


def candidates(data: str) -> dict[str, Options]:
    """Return the settings that the hold-out chooses among."""
    if data == "mnist":
        return {
            f"every-{every}-lr-{lr:g}-start-{start[0]}-{start[1]}": {"init": start, "every": every, "theta_lr": lr}
            for every in (5, 10)
            for lr in (2.0, 4.0)
            for start in STARTS
        }
    found = {f"{mode}-lr-{lr:g}": {"mode": mode, "learning_rate": lr}
             for mode in ("none", "fixed") for lr in (0.1, 0.5, 2.0)}  # fmt: skip
    best = CHOSEN["subj"].get("fixed", {})
    return found | {
        f"adaptive-lambda-{strength:g}-rates-{lr:g}": best | {"mode": "adaptive", "lambda_reg": strength,
                                                              "theta_lr": lr}
        for strength in (1e-5, 1e-4, 1e-3) for lr in (4.0, 40.0) if best
    }  # fmt: skip


def trained(options: Any, name: str, asked: Options, seed: int) -> dict[str, Any]:
    """Return what a run gave, from its JSON if there is one."""
    place = Path(options.out) / f"{options.data}-{name}-{seed}.json"
    if not place.exists():
        began = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            run = api.train("adaptive-dropout", seed=seed, out=f"{scratch}/run", device=options.device, **asked)
            net, card = open_model(run.path)
            thetas = rates_of(net)
            found = {"layers": [describe(theta) for theta in thetas]}
            if len(card.shape) == 3:
                found |= border_and_centre(thetas[0].view(card.shape))
            kept = {"asked": asked, "seed": seed, "metrics": run.info["metrics"], "rates": found,
                    "processor_seconds": time.process_time() - began}  # fmt: skip
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(kept, indent=1))
    kept = json.loads(place.read_text())
    print(f"{place.name}: error {error_of(kept):.2f} %", flush=True)
    return kept


def error_of(run: Mapping[str, Any]) -> float:
    return 100 * (1 - run["metrics"]["accuracy"])


def choose(options: Any) -> None:
    """Print the hold-out error of every candidate; of mnist the worst over the starting rates."""
    rows: dict[str, list[float]] = {}
    for name, asked in candidates(options.data).items():
        run = trained(options, f"choose-{name}", SETTING[options.data] | {"hold_out": 0.2} | asked, 0)
        rows.setdefault(name.partition("-start")[0], []).append(error_of(run))
    columns = ["setting", *(f"start {a}/{b}" for a, b in STARTS), "worst"]
    if options.data == "subj":
        columns = ["setting", "error", "worst"]
    listed = [[name, *(f"{error:.2f}" for error in errors), f"{max(errors):.2f}"] for name, errors in rows.items()]
    measuring.report(f"Error in percent on 20 % of the training examples of {options.data}, seed 0", columns, listed,
                     measuring.machine(options.device))  # fmt: skip


def table(options: Any) -> None:
    """Train what is missing, then print mean and standard error over the seeds."""
    rows = {"mnist": mnist_rows, "subj": subj_rows}[options.data]()
    asked = options.rows.split(",") if options.rows else list(rows)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in (int(word) for word in options.seeds.split(",")):
        for row in asked:
            found.setdefault(row, []).append(trained(options, row, SETTING[options.data] | rows[row], seed))
    listed = []
    for row, runs in found.items():
        errors = [error_of(run) for run in runs]
        layers = [[run["rates"]["layers"][at]["mean"] for run in runs] for at in range(len(runs[0]["rates"]["layers"]))]
        border = [f"{statistics.mean(run['rates'][key] for run in runs):.2f}" for key in ("border", "centre")
                  if key in runs[0]["rates"]]  # fmt: skip
        listed.append([
            row, mean_and_error(errors), " ".join(f"{error:.2f}" for error in errors),
            " ".join(f"{statistics.mean(layer):.2f}" for layer in layers), *border,
            f"{statistics.mean(run['processor_seconds'] for run in runs):.0f}",
        ])  # fmt: skip
    columns = ["row", "test error", "each seed", "mean rates"]
    columns += ["border", "centre", "processor s"] if options.data == "mnist" else ["processor s"]
    notes = []
    for mode in ("fixed", "adaptive"):
        means = {row: statistics.mean(map(error_of, runs)) for row, runs in found.items()
                 if row in {f"{mode}-{a}-{b}" for a, b in STARTS}}  # fmt: skip
        if means:
            worst = max(means, key=lambda row: means[row])
            notes.append(f"{mode}, worst of the starting rates: {means[worst]:.2f} % ({worst})")
    measuring.report(f"Test error in percent, mean +- standard error; {options.data}", columns, listed,
                     measuring.machine(options.device), notes)  # fmt: skip


def mean_and_error(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} +- {error:.2f}"


def bare_loop(net: Any, data: Split, config: TrainConfig) -> Callable[[int], None]:
    """Return fixed dropout as one would write it by hand: masks, cross-entropy, SGD."""
    first, last = (part for part in net if isinstance(part, torch.nn.Linear))
    weights = [*first.parameters(), *last.parameters()]
    optimizer = torch.optim.SGD(weights, lr=config.learning_rate, momentum=config.momentum, nesterov=True)
    B, at = config.batch_size, 0
    a, b = config.init

    def segment(steps: int) -> None:
        nonlocal at
        for _ in range(steps):
            index = torch.arange(at, at + B, device=data.x.device)
            at = (at + B) % (len(data) - B)
            x, y = data.x[index].float().div_(255).flatten(1), data.y[index]
            h = first(x * (torch.rand(x.shape, device=x.device) < a).float()).relu()
            loss = F.cross_entropy(last(h * (torch.rand(h.shape, device=x.device) < b).float()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return segment


def speed(options: Any) -> None:
    """Time a step of fixed dropout, adaptive with and without steps of the rates, each in turns with the bare loop."""
    clock = measuring.clock_of(options)
    random = torch.Generator().manual_seed(0)
    data = Split(torch.randint(256, (5000, 1, 28, 28), dtype=torch.uint8, generator=random),
                 torch.randint(10, (5000,), generator=random), tuple("0123456789"), "images", "train")  # fmt: skip
    data = data.to(clock.device)
    epochs = -(-(options.rounds + 1) * options.steps // 50) + 1
    never = 10**9
    cases = {
        "fixed": TrainConfig(dataset="images", mode="fixed", epochs=epochs),
        "adaptive, weights only": TrainConfig(dataset="images", every=never, epochs=epochs),
        "adaptive, I = 10": TrainConfig(dataset="images", every=10, epochs=epochs),
        "adaptive, I = 1": TrainConfig(dataset="images", every=1, epochs=epochs),
    }
    rows, all_samples = [], {}
    for name, config in cases.items():
        samples = interleaved(name, config, data, clock, options)
        low, high = measuring.spread(samples, name, "bare")
        rows += [[label, measuring.milliseconds(samples[label], per=options.steps),
                  measuring.ratio(samples, label, "bare"), f"{low:.3f}-{high:.3f}" if label == name else ""]
                 for label in (name, "bare")]  # fmt: skip
        all_samples[name] = samples
    about = measuring.machine(options.device)
    measuring.report(
        f"784-256-10, batch 100; {options.rounds} interleaved segments of {options.steps} steps, {clock.kind} time",
        ["loop", "ms/step", "/ bare", "quartiles"], rows, about,
    )  # fmt: skip
    measuring.write(options.json, {"machine": about, "step": all_samples})


def interleaved(name: str, config: TrainConfig, data: Split, clock: Any, options: Any) -> measuring.Samples:
    """Return seconds per segment of ours and of the bare loop."""
    torch.manual_seed(0)
    net = network(config, data)[0].to(clock.device)
    others = {"bare": bare_loop(copy.deepcopy(net), data, config)}
    turns = measuring.Turns(options.rounds, options.steps, name, others, clock)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(runs_dir=folder, device=clock.device, log_every=options.steps)
        with open_run("adaptive-dropout", to_dict(config), settings, plugin="iclr18") as run:
            turns.around(run, "epochs")
            fit(net, data, config, run)
    return turns.samples


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("what", choices=("choose", "table", "speed"))
    parser.add_argument("--data", choices=tuple(SETTING), default="mnist")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default="", help="names of rows with commas between (default: all)")
    parser.add_argument("--out", default="adaptive-dropout-results")
    parser.add_argument("--rounds", type=int, default=12, help="segments of each that count (default 12)")
    parser.add_argument("--steps", type=int, default=100, help="steps per segment (default 100)")
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    if options.what == "speed":
        speed(options)
    else:
        torch.set_num_threads(options.threads)
        {"choose": choose, "table": table}[options.what](options)


if __name__ == "__main__":
    main()
