"""An audit of DGC in real processes: a training goes on for a few steps, and everything that is sent is booked.

N workers · T steps
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18_dgc import wire
from iclr18_dgc.compressors import compress
from iclr18_dgc.config import TrainConfig
from iclr18_dgc.schedule import Schedule
from iclr18_dgc.state import DGCState
from iclr18cli.launch import leave
from iclr18cli.run.atomic import write_json


@dataclass(frozen=True)
class Audited:
    """What one worker found.

    Args:
        imbalance: max over the tensors of max |v - (sum u - sum sent)| / max |sum u|.
        digest: SHA-256 of its parameters after the last step.
        claimed_sent, claimed_received: Bytes by the program's own count.
        counted_sent, counted_received: Bytes of its connections by the kernel's; None where it does not say.
        collectives: Operations of the whole group.
        payload, dense: Bytes of all packets, and of the gradients they stand for.
        pending: Share of the entries that wait to be sent.
    """

    imbalance: float
    digest: str
    claimed_sent: int
    claimed_received: int
    counted_sent: int | None
    counted_received: int | None
    collectives: int
    payload: int
    dense: int
    pending: float


def audit(
    net: nn.Module, x: Tensor, y: Tensor, config: TrainConfig, *, workers: int, steps: int, batch_size: int, seed: int,
    folder: Path,
) -> list[Audited]:  # fmt: skip
    """Train a copy of a network with DGC in `workers` processes on this machine's CPU, and return what each one found.

    Args:
        net: On the CPU; left as it is.
        x, y: Training inputs and labels; each worker draws its own from them.
        config: Settings of the compressor.
        workers, steps, batch_size: N, T, and examples per step of all workers together.
        seed: Of the draws.
        folder: For the files that the processes meet by.
    """
    task = (workers, str(folder), net, x, y, config, steps, max(1, batch_size // workers), seed)
    multiprocessing.spawn(_worker, args=task, nprocs=workers)
    return [Audited(**json.loads((folder / f"worker-{rank}.json").read_bytes())) for rank in range(workers)]


def _worker(
    rank: int, workers: int, folder: str, net: nn.Module, x: Tensor, y: Tensor, config: TrainConfig, steps: int,
    share: int, seed: int,
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    # Without DDP, which would add messages of its own to those that are counted.
    made = compress(net.train(), config, Schedule(config.density), world_size=1, seed=seed, audit=True)
    state = made.state
    assert isinstance(state, DGCState)
    draw = torch.Generator().manual_seed(seed * 1_000_003 + rank)
    dist.barrier()
    before = wire.of_this_process()
    for _ in range(steps):
        index = torch.randint(len(x), (share,), generator=draw)
        made.optimizer.zero_grad()
        F.cross_entropy(made.model(x[index]), y[index]).backward()
        made.exchange()
        made.optimizer.step()
    dist.barrier()
    after = wire.of_this_process()
    counted = after - before if before is not None and after is not None else None
    assert state.ledger is not None
    waiting = torch.cat([v.reshape(-1) != 0 for v in state.residual.values()])
    found = Audited(
        imbalance=max(state.ledger.imbalance(state.residual).values(), default=0.0), digest=digest(net.state_dict()),
        claimed_sent=state.traffic.sent, claimed_received=state.traffic.received,
        counted_sent=counted.sent if counted else None, counted_received=counted.received if counted else None,
        collectives=1 + steps * (1 + 2 * len(state.homes)), payload=state.traffic.payload, dense=state.traffic.dense,
        pending=waiting.double().mean().item(),
    )  # fmt: skip
    write_json(Path(folder) / f"worker-{rank}.json", asdict(found))
    dist.barrier()
    dist.destroy_process_group()
    leave(0)


def digest(tensors: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the bytes of some tensors, in the order of their names."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(name.encode())
        sha256.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()
