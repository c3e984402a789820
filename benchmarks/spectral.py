"""Spectral normalisation: the table of `iclr18_sngan`, and the time of a critic's step against torch's parametrisation.

    python benchmarks/spectral.py table [--dataset fashion-mnist] [--norms none,bn,clip,gp,sn] [--settings C,E,F]
        [--seeds 0,1,2] [--iterations C=400,E=120,F=120] [--loss softplus] [--out FOLDER]
    python benchmarks/spectral.py speed [--rounds 10] [--steps 5] [--batch 64] [--widths 16,64] [--threads 1]

table trains and measures every cell that has no JSON in FOLDER yet, prints every seed and the medians of those that are
there, and may be stopped and called again. Nothing is tuned: learning rates are those of the letters for all.

speed runs one update of the same critic (hinge, Adam) in turns in one process: with our SpectralNorm in both modes,
with torch's own parametrisation at one power iteration, and without any.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
from iclr18_sngan.algorithm import critic_loss
from iclr18_sngan.config import COLLAPSED
from iclr18_sngan.model import WEIGHTED, Critic, dcgan, hold
from torch import Tensor
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from iclr18cli import api
from iclr18cli.errors import UserError

KEYS = ("feature_frechet_distance", "class_entropy", "feature_precision", "feature_recall", "log10_norms",
        "effective_rank", "gradient_between")  # fmt: skip


def table(options: Any) -> None:
    """Train and measure what is missing, then print what is there."""
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {letter: int(number) for letter, number in (part.split("=") for part in options.iterations.split(","))}
    for seed in options.seeds.split(","):
        for letter in options.settings.split(","):
            for norm in options.norms.split(","):
                asked = {"dataset": options.dataset, "norm": norm, "setting": letter, "iterations": counts[letter],
                         "loss": options.loss, "width": options.width, "limit": options.limit}  # fmt: skip
                place = folder / f"{options.dataset}-{norm}-{letter}-{counts[letter]}-{seed}.json"
                if place.exists():
                    if json.loads(place.read_text())["asked"] != asked:
                        raise SystemExit(f"{place} is of another setting: choose another --out")
                    continue
                began = time.process_time()
                with tempfile.TemporaryDirectory() as scratch:
                    found: dict[str, Any] = {}
                    try:
                        run = api.train("sngan", seed=int(seed), out=f"{scratch}/run", device=options.device, **asked)
                        course = [line for line in run.metrics() if line.get("split") == "critic"]
                        found = api.evaluate("sngan", run.path, limit=options.points, device=options.device)
                        kept = {"metrics": found, "course": course}
                    except UserError as error:
                        if "The loss became" not in str(error):
                            raise
                        kept = {"failed": str(error)}  # a training that diverged is a result
                kept |= {"asked": asked, "seed": int(seed), "processor_seconds": time.process_time() - began}
                place.write_text(json.dumps(kept, indent=1))
    report_table(folder, options)


def report_table(folder: Path, options: Any) -> None:
    """Print all seeds of every cell: Frechet distance, entropy, collapses; then the mechanism's medians."""
    rows, mechanism = [], []
    for letter in options.settings.split(","):
        for norm in options.norms.split(","):
            files = sorted(folder.glob(f"{options.dataset}-{norm}-{letter}-*-[0-9].json"))
            runs = [json.loads(file.read_text()) for file in files]
            if not runs:
                continue
            done = [run["metrics"] for run in runs if "metrics" in run]
            collapsed = sum(m["class_entropy"] < COLLAPSED for m in done) + len(runs) - len(done)
            rows.append([letter, norm, *(each(done, key) for key in KEYS[:4]), f"{collapsed} of {len(runs)}"])
            first = [run["course"][0] for run in runs if "course" in run]
            mechanism.append([letter, norm, each(first, "log10_norms"), *(each(done, key) for key in KEYS[4:]),
                              f"{statistics.mean(run['processor_seconds'] for run in runs):.0f}"])  # fmt: skip
    about = measuring.machine(options.device)
    measuring.report(
        f"{options.dataset}: median (every seed); collapsed: entropy below {COLLAPSED} nats, or diverged",
        ["setting", "norm", "feature Frechet", "entropy", "precision", "recall", "collapsed"], rows, about,
    )  # fmt: skip
    measuring.report(
        "What holds the critic, at the end",
        ["setting", "norm", "log10 norms, start", "log10 norms, end", "effective rank", "|grad D| between", "seconds"],
        mechanism, about,
    )  # fmt: skip


def each(found: list[dict[str, Any]], key: str) -> str:
    """Return the median, and every seed's value."""
    values = [m[key] for m in found if key in m]
    if not values:
        return "-"
    return f"{statistics.median(values):.3g} ({', '.join(f'{value:.3g}' for value in values)})"


def critics(width: int) -> dict[str, Critic]:
    """Return the same critic four times: bare, by torch, and ours in both modes."""
    torch.manual_seed(0)
    bare = dcgan(width=width, norm="none").critic
    made = {"none": bare} | {name: copy.deepcopy(bare) for name in ("torch", "ours, reshape", "ours, operator")}
    for layer in [part for part in made["torch"].modules() if isinstance(part, WEIGHTED)]:
        torch_spectral_norm(layer)
    for mode in ("reshape", "operator"):
        hold(made[f"ours, {mode}"], (1, 28, 28), "sn", mode, 1)
    return made


def update(critic: Critic, x: Tensor) -> Callable[[], None]:
    """Return one update of a critic on half real, half fake images."""
    critic.train()
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.5, 0.999))
    half = len(x) // 2

    def step() -> None:
        scores = critic(x)
        loss = critic_loss("hinge", scores[:half], scores[half:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def speed(options: Any) -> None:
    """Time the four in turns and print milliseconds per update and ratios."""
    clock = measuring.clock_of(options)
    document: dict[str, Any] = {"machine": measuring.machine(options.device)}
    rows = []
    for width in (int(word) for word in options.widths.split(",")):
        x = torch.rand(2 * options.batch, 1, 28, 28, device=clock.device)
        steps = {name: update(critic.to(clock.device), x) for name, critic in critics(width).items()}

        def several(step: Callable[[], None]) -> float:
            return clock.of(lambda: [step() for _ in range(options.steps)])

        for step in steps.values():
            several(step)
        samples = measuring.interleaved(
            {name: lambda step=step: several(step) for name, step in steps.items()}, rounds=options.rounds
        )
        document[f"width {width}"] = samples
        for name, times in samples.items():
            low, high = measuring.spread(samples, name, "torch")
            rows.append([width, name, measuring.milliseconds(times, per=options.steps),
                         measuring.ratio(samples, name, "torch"), f"{low:.3f}-{high:.3f}",
                         measuring.ratio(samples, name, "none")])  # fmt: skip
    measuring.report(
        f"One update of the standard critic on 1x28x28, 2 x {options.batch} images, one power "
        f"iteration; {options.rounds} interleaved segments of {options.steps} updates, {clock.kind} time",
        ["width", "normalised by", "ms/update", "/ torch", "quartiles", "/ none"], rows, document["machine"],
    )  # fmt: skip
    measuring.write(options.json, document)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("what", choices=("table", "speed"))
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--norms", default="none,bn,clip,gp,sn")
    parser.add_argument("--settings", default="C,E,F")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--iterations", default="C=400,E=120,F=120", help="updates of the generator, per setting")
    parser.add_argument("--loss", default="softplus")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--limit", type=int, default=0, help="training images; 0: all")
    parser.add_argument("--points", type=int, default=5000, help="samples, and test images they are compared with")
    parser.add_argument("--out", default="spectral-results")
    parser.add_argument("--rounds", type=int, default=10, help="segments of each that count (default 10)")
    parser.add_argument("--steps", type=int, default=5, help="updates per segment (default 5)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--widths", default="16,64")
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    if options.what == "speed":
        speed(options)
    else:
        torch.set_num_threads(options.threads)
        table(options)


if __name__ == "__main__":
    main()
