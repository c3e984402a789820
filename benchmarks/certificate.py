"""Seconds and memory of the sound Wasserstein certificate on MNIST with the ELU CNN.

    python benchmarks/certificate.py [--limit 10000] [--run RUN] [--loss cross-entropy] [--json FILE]

The network is a trained run's, or a randomly initialised one. `certify` runs once, as `iclr18 certify` calls it, and
its parts are timed on the way: constants (operator norms of the layers), clean pass (losses and gradients in float64),
choice of the penalties on a pilot sample, dual (ascent and float64 value at every point, per penalty), attack inside
the certified set. Peak memory is what the process had at most minus what it had before, the points as float32 included.
The batch size is the one that the program chose from the free memory. Without MNIST, random images of the same shape
stand in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import measuring
import torch
from torch import nn
from wrm_step import CONFIGS

from iclr18cli.certify import sound
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.registry import build

PARTS = {
    "smoothness": "constants K, L",
    "clean": "clean pass, float64",
    "choose_gammas": "penalties on a pilot sample",
    "solve_dual": "dual S2",
    "_attacks": "attack inside the set",
}
"""Function that `certify` calls -> what it does."""


@contextmanager
def timed(module: Any, parts: dict[str, str], clocks: list[tuple[str, float, float, int]]) -> Iterator[None]:
    """Note (part, wall seconds, processor seconds, peak bytes) of every call that a module makes by these names."""
    before = {name: getattr(module, name) for name in parts}

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            measuring.reset_peak()
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                finished()
                times = time.perf_counter() - wall, time.process_time() - cpu
                clocks.append((parts[name], *times, measuring.peak_bytes()))

        return call

    for name, function in before.items():
        setattr(module, name, wrapped(name, function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def finished() -> None:
    """Wait for a GPU, if one was used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def points(limit: int) -> Split:
    """Return the first test images of MNIST, or random ones of that shape."""
    try:
        return open_split("mnist", "test").take(limit)
    except UserError:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (limit, 1, 28, 28), dtype=torch.uint8, generator=generator)
        y = torch.randint(10, (limit,), generator=generator)
        return Split(x, y, tuple("0123456789"), "random images of MNIST's shape", "test")


def network(run: str, device: str) -> tuple[nn.Module, str]:
    """Return a run's network, or a randomly initialised one, and what it is."""
    if run:
        from iclr18cli.models.card import open_model
        from iclr18cli.paths import runs_root
        from iclr18cli.run.find import find_run

        return open_model(find_run(run, runs_root()).path, device)[0], "a trained run"
    torch.manual_seed(0)
    name = CONFIGS["mnist"].model
    return build(name, classes=10, activation="elu", input_shape=[1, 28, 28]).to(device).eval(), f"{name}, untrained"


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--limit", type=int, default=10_000, help="points (default 10000)")
    parser.add_argument("--run", default="", help="a trained run on MNIST")
    parser.add_argument("--loss", choices=("cross-entropy", "error-probability"), default="cross-entropy")
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    measuring.clock_of(options)
    split, (model, what) = points(options.limit), network(options.run, options.device)
    clocks: list[tuple[str, float, float, int]] = []
    base = measuring.resident_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    with timed(sound, PARTS, clocks):
        certificates = sound.certify(model, split, loss=options.loss)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rows: list[list[Any]] = []
    for part in PARTS.values():
        own = [clock for clock in clocks if clock[0] == part]
        if own:
            rows.append([part, sum(c[1] for c in own), sum(c[2] for c in own), (max(c[3] for c in own) - base) / 2**20])
    rows.append(["all", wall, cpu, max(row[3] for row in rows)])
    if options.device.startswith("cuda"):
        rows[-1].append(torch.cuda.max_memory_allocated() / 2**20)
    solver = certificates[0].solver
    about = measuring.machine(options.device)
    measuring.report(
        f"Sound Wasserstein certificate, {len(split)} points of {split.name}, {what}, {options.loss}",
        ["part", "wall s", "CPU s", "peak MiB over before"], rows, about,
        [f"batch size chosen from memory: {solver['batch_size']}; budgets rho 0.0001, 0.001, 0.01; "
         f"{len(solver['gammas_tried'])} penalties tried, ascent steps at most {solver['steps']}",
         *(f"{c.statement}" for c in certificates)],
    )  # fmt: skip
    figures = {"parts": rows, "batch_size": solver["batch_size"], "points": len(split), "data": split.name}
    measuring.write(options.json, {**figures, "model": what, "machine": about})


if __name__ == "__main__":
    main()
