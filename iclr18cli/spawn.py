"""Starting the ranks of a command: `--nproc N` on this machine, `--nnodes` and `--rdzv-endpoint` on several.

torch's elastic launcher starts the same command line once per rank, stops all when one fails, and starts them again
where `--max-restarts` allows it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iclr18cli import launch
from iclr18cli.errors import ExitCode, UsageError
from iclr18cli.settings import RankSettings


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


def asked_for(settings: RankSettings) -> bool:
    """Return whether this process is to start the ranks; False: it does the work, alone or as one of them.

    Raises:
        UsageError: The options contradict each other.
    """
    if settings.nnodes > 1 and not settings.rdzv_endpoint:
        raise UsageError(
            f"--nnodes {settings.nnodes} needs a meeting point.",
            fix="--rdzv-endpoint HOST:PORT, the same on every node",
        )
    if settings.rdzv_endpoint and settings.nnodes == 1:
        raise UsageError("--rdzv-endpoint is for several machines.", fix="add --nnodes N, or leave it out")
    if launch.started() or launch.launch_id():
        return False
    restarts = getattr(settings, "max_restarts", 0)
    return wanted(settings.nproc) > 1 or settings.nnodes > 1 or restarts > 0


def spawn(settings: RankSettings, argv: Sequence[str], *, tell: Callable[[str], object]) -> int:
    """Run a command line once per rank and return its exit code, that of the rank which failed first.

    The first rank writes results and talks; what the others print goes into logs, which are kept when a rank fails.

    Args:
        settings: How many ranks, on how many machines, with how many restarts.
        argv: The command line without the program's name.
        tell: Called with one line if a rank fails that has not spoken for itself.

    Raises:
        UsageError: There is no command line to repeat: the command was called from Python.
    """
    if not argv or argv[0] == "python":
        raise UsageError(
            "Only a command line can be started in several processes.", fix="run the Python program under torchrun"
        )
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = wanted(settings.nproc)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # advice of torch's reducer, once per rank
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what failed is told in one line, by us
    logs = Path(tempfile.mkdtemp(prefix="iclr18-ranks-"))
    config = LaunchConfig(
        min_nodes=settings.nnodes, max_nodes=settings.nnodes, nproc_per_node=count, rdzv_backend="c10d",
        run_id=uuid.uuid4().hex if settings.nnodes == 1 else f"iclr18-{settings.rdzv_endpoint}",
        rdzv_endpoint=settings.rdzv_endpoint or "localhost:0", max_restarts=getattr(settings, "max_restarts", 0),
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=dict.fromkeys(range(1, count), Std.ALL)),
    )  # fmt: skip
    code = int(ExitCode.DONE)
    try:
        elastic_launch(config, sys.executable)("-m", "iclr18cli", *argv)
    except ChildFailedError as error:
        code, line = _blame(error.failures, settings.nnodes * count, logs)
        if line:
            tell(line)
            return code  # the logs stay: the line names one of them
    except SignalException as stop:
        code = 128 + stop.sigval
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    shutil.rmtree(logs, ignore_errors=True)
    return code


def _blame(failures: dict[int, Any], size: int, logs: Path) -> tuple[int, str]:
    """Return the exit code of the rank that failed first, and the line that says so; "": it spoke for itself."""
    # A rank that lost another one, or that the launcher stopped for it, is not where the trouble began.
    consequences = (int(ExitCode.LOST), int(ExitCode.SIGTERM), -signal.SIGTERM)
    causes = {rank: f for rank, f in failures.items() if f.exitcode not in consequences} or failures
    rank, failure = min(causes.items(), key=lambda item: (item[1].timestamp, item[0]))
    code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    if rank == 0 and failure.exitcode > 0 and code != int(ExitCode.LOST):
        return code, ""
    if failure.exitcode < 0:
        ended = f"was killed by {signal.Signals(-failure.exitcode).name}"
    else:
        ended = f"ended with exit code {code}"
    log = next(iter(sorted(logs.glob(f"*/attempt_*/{failure.local_rank}/stderr.log"), reverse=True)), None)
    words = log.read_text(errors="replace").strip().splitlines() if log else []
    said = f": {words[-1].removeprefix('error: ')}" if words else ""
    return code, f"rank {rank} of {size} {ended}; the others were stopped{said}" + (f"  log: {log}" if log else "")
