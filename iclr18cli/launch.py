"""Several processes for one command: `--nproc N` starts them on this machine, torchrun and its like are joined.

Torch-free until a group of processes is started or joined.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from iclr18cli.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those that share the work: number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def gather(self, own: T) -> list[T]:
        """Return what every rank gave, in the order of the ranks; all ranks must call it."""
        if self.size == 1:
            return [own]
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, own)
        return everyone


ALONE = World()
_world = ALONE


def world() -> World:
    """Return this process's place: alone, unless a command runs inside `joined`."""
    return _world


def started() -> bool:
    """Return whether a launcher (`--nproc`, torchrun) started this process as one of several."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def place() -> int:
    """Return this process's number among those the launcher started; 0 without one."""
    return int(os.environ["RANK"]) if started() else 0


def wanted(nproc: str) -> int:
    """Return how many processes `--nproc` asks for; "auto": one per GPU, or per two cores where there is none.

    Raises:
        UsageError: It is neither "auto" nor a whole number of at least 1.
    """
    if nproc == "auto":
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return torch.cuda.device_count() if torch.cuda.is_available() else max(1, cores // 2)
    if not nproc.isascii() or not nproc.isdigit() or int(nproc) < 1:
        raise UsageError(f"--nproc must be 'auto' or a whole number of at least 1; received {nproc!r}.")
    return int(nproc)


def spawn(nproc: int, argv: Sequence[str], *, tell: Callable[[str], object]) -> int:
    """Run the same command line in `nproc` processes on this machine and return its exit code.

    torch's elastic launcher gives each its place in the environment; the first writes results and talks.

    Args:
        nproc: Processes, at least 2.
        argv: The command line without the program's name.
        tell: Called with one line if a process fails.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=nproc, rdzv_backend="c10d",
                          rdzv_endpoint="localhost:0", run_id="iclr18", max_restarts=0)  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "iclr18cli", *argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        tell(f"rank {rank} of {nproc} ended with exit code {failure.exitcode}; the others were stopped")
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


@contextmanager
def joined() -> Iterator[World]:
    """Be one rank of the group that the launcher started, inside the block; alone if there is none."""
    global _world
    if not started() or _world is not ALONE:
        yield _world
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")  # what is gathered are flags and numbers on the CPU
    _world = World(dist.get_rank(), dist.get_world_size())
    try:
        yield _world
    finally:
        _world = ALONE
        dist.destroy_process_group()
