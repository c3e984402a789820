"""This process's place among those that share a command: alone, or one rank of a group that a launcher started.

A group comes from `--nproc` (see `spawn`), from torchrun on one machine or many, or from srun. Torch-free until it is
joined.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from iclr18cli.errors import LostRank

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""

GRACE_SECONDS = 5.0
"""How long a rank that lost another one lives on, so that the launcher sees the one that failed first, and says why."""


@dataclass(frozen=True)
class World:
    """This process among those that share the work: number `rank` of `size`, number `local` on its machine.

    The methods that speak with the others must be called by every rank, in the same order.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes and talks."""
        return self.rank == 0

    def gather(self, own: T) -> list[T]:
        """Return what every rank gave, in the order of the ranks."""
        if self.size == 1:
            return [own]
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, own)
        return everyone

    def broadcast(self, own: T) -> T:
        """Return what rank 0 gave."""
        if self.size == 1:
            return own
        import torch.distributed as dist

        box = [own]
        dist.broadcast_object_list(box)
        return box[0]

    def total(self, value: Any) -> Any:
        """Return the sum over the ranks of a number (as float) or of a tensor (a new one, on its device)."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        is_tensor = isinstance(value, torch.Tensor)
        summed: Tensor = value.detach().clone() if is_tensor else torch.tensor(float(value), dtype=torch.float64)
        dist.all_reduce(summed)
        return summed if is_tensor else summed.item()

    def wait(self) -> None:
        """Return once every rank has come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def part(self, count: int) -> slice:
        """Return this rank's part of `count` things: consecutive, sizes that differ by at most one.

        Example:
            >>> [World(rank, 3).part(8) for rank in range(3)]
            [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


ALONE = World()
_world = ALONE


def world() -> World:
    """Return this process's place: alone, unless a command runs inside `joined`."""
    return _world


def started() -> bool:
    """Return whether a launcher (`--nproc`, torchrun, srun) started this process as one of several."""
    _adopt_slurm(os.environ)
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def place() -> int:
    """Return this process's number among those the launcher started; 0 without one."""
    return int(os.environ["RANK"]) if started() else 0


def restarts() -> int:
    """Return how often the launcher has started these processes again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str:
    """Return the launcher's name of this launch, the same after a restart; "" without a launcher."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


@contextmanager
def joined(device: str = "cpu") -> Iterator[World]:
    """Be one rank of the group that the launcher started, inside the block; alone if there is none.

    Args:
        device: As `--device`. NCCL carries tensors on GPUs where each rank of this machine has one of its own, gloo
            everything else.

    Raises:
        LostRank: Another rank went away.
    """
    global _world
    if not started() or _world is not ALONE:
        yield _world
        return
    import torch
    import torch.distributed as dist

    if launch_id():
        _end_with_the_launcher()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if device.split(":")[0] in ("auto", "cuda") and torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        torch.cuda.set_device(local % gpus)
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= gpus and dist.is_nccl_available():
            backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, size = next(iter(dist.rendezvous("env://")))
        # The launcher keeps one store through restarts; without a name of its own a new group would find old addresses.
        store = dist.PrefixStore(f"attempt-{restarts()}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        _world = World(rank, size, local)
        yield _world
        _world.wait()  # nobody leaves while another one still speaks
    except RuntimeError as error:
        lost = lost_rank(error)
        if lost is None:
            raise
        if launch_id():
            time.sleep(GRACE_SECONDS)
        raise lost from error
    finally:
        _world = ALONE
        with suppress(Exception):  # of a group that is broken already
            dist.destroy_process_group()


def _end_with_the_launcher() -> None:
    """Let Linux send SIGTERM, which ends a training after a checkpoint, if the launcher is killed; no-op elsewhere."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave(code: int) -> NoReturn:
    """End this rank's process at once: threads of gloo sometimes abort while the interpreter is taken down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def lost_rank(error: BaseException | None) -> LostRank | None:
    """Return what an error says of another rank that went away; None: it is about something else."""
    if not started() or not isinstance(error, RuntimeError):
        return None
    import torch.distributed as dist

    if not (isinstance(error, dist.DistError) or "gloo/" in str(error) or "NCCL" in str(error)):
        return None
    return LostRank(f"rank {place()} lost another rank.", why=str(error).split("\n")[0])


def _adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Give a task of an srun step with several tasks the names that torch reads; nothing outside of one."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or "SLURM_PROCID" not in environment or tasks == "1":
        return
    environment["RANK"], environment["WORLD_SIZE"] = environment["SLURM_PROCID"], tasks
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0")
    environment.setdefault("LOCAL_WORLD_SIZE", _tasks_here(environment))
    environment.setdefault("MASTER_ADDR", first_host(environment.get("SLURM_STEP_NODELIST", "localhost")))
    job = int(environment.get("SLURM_JOB_ID", "0")), int(environment.get("SLURM_STEP_ID", "0"))
    environment.setdefault("MASTER_PORT", str(20000 + (job[0] * 16 + job[1]) % 20000))


def _tasks_here(environment: Mapping[str, str]) -> str:
    counts = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return counts.group() if counts else "1"


def first_host(hosts: str) -> str:
    """Return the first name of a list as SLURM writes them.

    Example:
        >>> first_host("gpu[003-006,011],login1"), first_host("a1,a2"), first_host("node7")
        ('gpu003', 'a1', 'node7')
    """
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", hosts)
    return "".join(part or "" for part in found.groups()) if found else hosts
