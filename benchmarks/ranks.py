"""A training step of several ranks: gradients averaged by `run.prepare` against DistributedDataParallel.

    python benchmarks/ranks.py --ranks 2

Both train the same network on the same shares in the same processes, taking turns; a ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from iclr18cli.launch import World
from iclr18cli.models.registry import build
from iclr18cli.run.averaging import Averaging

NETS = {
    "resnet20": (("resnet20", {"classes": 10}), (3, 32, 32), 32),
    "mlp": (("mlp", {"input_shape": [784], "hidden": [2048, 2048], "classes": 10}), (784,), 64),
}


def worker(rank: int, ranks: int, folder: str, rounds: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    rows = []
    for name, ((model, kwargs), shape, batch) in NETS.items():
        torch.manual_seed(0)
        ours, theirs = build(model, **kwargs), build(model, **kwargs)
        Averaging(World(rank, ranks), lambda: 1.0).watch(ours)
        kinds = {"run.prepare": ours, "DDP": DistributedDataParallel(theirs)}
        optimizers = {kind: torch.optim.SGD(net.parameters(), lr=0.01) for kind, net in kinds.items()}
        x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(rounds + 1):
            for kind in sorted(kinds, reverse=bool(number % 2)):
                dist.barrier()
                start = time.perf_counter()
                for _ in range(steps):
                    optimizers[kind].zero_grad()
                    F.cross_entropy(kinds[kind](x), y).backward()
                    optimizers[kind].step()
                if number:
                    times[kind].append((time.perf_counter() - start) / steps)
        ratios = [a / b for a, b in zip(times["run.prepare"], times["DDP"], strict=True)]
        rows.append({"net": name, "ms ours": 1e3 * statistics.median(times["run.prepare"]),
                     "ms DDP": 1e3 * statistics.median(times["DDP"]), "ratio": statistics.median(ratios),
                     "ratios": ratios})  # fmt: skip
    if rank == 0:
        with open(f"{folder}/rows.json", "w") as file:
            json.dump(rows, file)
    dist.barrier()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(worker, args=(asked.ranks, folder, asked.rounds, asked.steps), nprocs=asked.ranks)
        with open(f"{folder}/rows.json") as file:
            rows = json.load(file)
    for row in rows:
        print(f"{row['net']:10} ours {row['ms ours']:8.2f} ms  DDP {row['ms DDP']:8.2f} ms  ratio {row['ratio']:.3f}")
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
