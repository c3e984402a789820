"""One rank of `dgc bench`: trains a network on random data with each compressor and counts seconds and bytes.

Started as `python -m iclr18_dgc.bench_rank JSON` with torch's variables for its place in the environment. Rank 0 writes
one JSON document to stdout.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from iclr18_dgc import wire
from iclr18_dgc.compressors import POWERSGD_STARTS, compress
from iclr18_dgc.config import TrainConfig
from iclr18_dgc.schedule import Schedule
from iclr18cli.launch import leave
from iclr18cli.models.vision import mlp

UNTIMED = 3


def measure(config: TrainConfig, *, hidden: list[int], batch_size: int, steps: int, interface: str) -> dict[str, Any]:
    """Return the seconds of a step (median) and the bytes that this rank sent in one."""
    torch.manual_seed(0)
    net = mlp(input_shape=(784,), hidden=hidden, classes=10)
    made = compress(net, config, Schedule(config.density), world_size=dist.get_world_size())
    draw = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(batch_size, 784, generator=draw)
    y = torch.randint(10, (batch_size,), generator=draw)
    untimed = UNTIMED + (POWERSGD_STARTS if config.compressor == "powersgd" else 0)
    seconds: list[float] = []
    before, claimed = count(interface), 0
    for step in range(untimed + steps):
        if step == untimed:
            dist.barrier()
            before, claimed = count(interface), made.traffic.sent
        start = time.perf_counter()
        made.optimizer.zero_grad()
        F.cross_entropy(made.model(x), y).backward()
        made.exchange()
        made.optimizer.step()
        seconds.append(time.perf_counter() - start)
    dist.barrier()
    counted = count(interface) - before
    return {
        "compressor": config.compressor,
        "seconds": statistics.median(seconds[untimed:]),
        "sent": counted.sent / steps,
        "claimed": (made.traffic.sent - claimed) / steps,
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def count(interface: str) -> wire.Counted:
    """Return the bytes that went through an interface; of loopback, which all ranks share, those of this process."""
    own = wire.of_this_process() if interface == "lo" else None
    return own if own is not None else wire.of_interface(interface)


def main(argument: str) -> None:
    """Measure every compressor asked for."""
    asked = json.loads(argument)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    names, density, rank = asked.pop("compressors"), asked.pop("density"), asked.pop("rank")
    rows = [measure(TrainConfig(compressor=name, density=density, rank=rank), **asked) for name in names]
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps(rows))
    dist.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
