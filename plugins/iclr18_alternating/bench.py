"""`alternating bench`: an LSTM step at batch 1 in packed codes, float32 and int8."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from iclr18_alternating.config import BenchConfig
from iclr18cli.compression.cells import FLOAT, sequences

if TYPE_CHECKING:
    from iclr18cli.run.opened import Workbench


@torch.no_grad()
def bench(config: BenchConfig, bench: Workbench) -> dict[str, Any]:
    """Time all cells in turns, one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    try:
        for hidden in bench.progress(config.hidden, "sizes"):
            runners, sizes = sequences(hidden, config.steps, seed=bench.seed, bits=config.bits)
            for run in runners.values():
                run()
            times: dict[str, list[float]] = {name: [] for name in runners}
            for _ in range(config.rounds):
                for name, run in runners.items():
                    began = time.perf_counter()
                    run()
                    times[name].append((time.perf_counter() - began) / config.steps)
            median = {name: statistics.median(values) for name, values in times.items()}
            base = min(median[name] for name in FLOAT)
            rows += [
                {"hidden": hidden, "cell": name, "us_per_step": 1e6 * median[name], "times_faster": base / median[name],
                 "bytes": sizes[name], "times_smaller": sizes[FLOAT[0]] / sizes[name]}
                for name in runners
            ]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    return {"one step at batch 1": rows}
