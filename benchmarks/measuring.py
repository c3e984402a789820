"""What the benchmarks share: interleaved rounds, medians, ratios, memory, and the machine they ran on.

Timings on a shared machine drift, so two things are compared only within one process run, in short segments that take
turns; a ratio is the median over the rounds of the ratios within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iclr18cli.console import table

Samples = dict[str, list[float]]
"""Name of what was timed -> seconds, one number per round."""


def arguments(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that every benchmark has."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", default="", help="also write the figures and the machine to FILE")
    return parser


def interleaved(tasks: Mapping[str, Callable[[], float]], *, rounds: int) -> Samples:
    """Run every task once per round and keep the seconds it returns.

    The order is turned by one place each round, so that none is always the first after another.
    """
    names = list(tasks)
    samples: Samples = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(tasks[name]())
    return samples


class Clock:
    """Seconds that something takes: of the wall, or of this process's processor time.

    Processor time does not count waiting for other programs, so it is what to compare by on a shared machine; with
    more than one thread it also counts threads that spin while they wait, so it goes with one thread.

    Args:
        device: Of the work; a GPU is waited for, and its clock is the wall.
        kind: "cpu" or "wall".
    """

    def __init__(self, device: str = "cpu", kind: str = "wall"):
        self.device, self.kind = device, "wall" if device.startswith("cuda") else kind
        self._now = time.perf_counter if self.kind == "wall" else time.process_time

    def now(self) -> float:
        """Return the time once all work on the device is done."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        return self._now()

    def of(self, task: Callable[[], object]) -> float:
        """Return the seconds a call takes."""
        began = self.now()
        task()
        return self.now() - began


@dataclass
class Turns:
    """Lets others take their turn while our loop asks for a batch; the clock of our segments stands still meanwhile.

    Args:
        rounds, steps: Segments that count, after one that warms up, and steps in each.
        ours: Name of our loop.
        others: Name -> what to run beside ours, for a number of steps; the order is turned by one place each round.
        clock: Of all of them.
        samples: Filled by the run: seconds of every segment.
    """

    rounds: int
    steps: int
    ours: str
    others: Mapping[str, Callable[[int], None]]
    clock: Clock
    samples: Samples = field(default_factory=dict)

    def around(self, run: Any, loop: str) -> None:
        """Let the run's iterator of a name, `epochs` or `steps`, make pauses and end after the last round."""
        import torch

        iterate = getattr(run, loop)

        def with_pauses(*arguments: Any, **options: Any) -> Iterator[Any]:
            found, names = iterate(*arguments, **options), list(self.others)
            self.samples = {name: [] for name in (self.ours, *names)}
            for number in range(self.rounds + 1):
                began = self.clock.now()
                for _ in range(self.steps):
                    yield next(found)
                times = {self.ours: self.clock.now() - began}
                turn = number % len(names)
                # Ours asked for deterministic algorithms; a bare loop would not.
                torch.use_deterministic_algorithms(False)
                for name in names[turn:] + names[:turn]:
                    times[name] = self.clock.of(lambda name=name: self.others[name](self.steps))
                torch.use_deterministic_algorithms(True, warn_only=True)
                if number:
                    for name, taken in times.items():
                        self.samples[name].append(taken)
            for one in found:  # one step more, in which the run ends its phase
                run.stop()
                yield one

        setattr(run, loop, with_pauses)


def add_torch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a benchmark that computes: device, threads, clock."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; 0: torch's own choice (default 1)")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="on a CPU (default: processor time)")


def clock_of(options: argparse.Namespace) -> Clock:
    """Set the threads and return the clock that the options ask for."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    return Clock(options.device, options.clock)


def ratio(samples: Samples, above: str, below: str) -> float:
    """Return the median over the rounds of one thing's time in units of another's."""
    return statistics.median(a / b for a, b in zip(samples[above], samples[below], strict=True))


def spread(samples: Samples, above: str, below: str) -> tuple[float, float]:
    """Return the quartiles of that ratio over the rounds; with less than four rounds its least and largest."""
    ratios = sorted(a / b for a, b in zip(samples[above], samples[below], strict=True))
    if len(ratios) < 4:
        return ratios[0], ratios[-1]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, high


def reset_peak() -> None:
    """Let `peak_bytes` count from now on; does nothing where the system has no such switch."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the largest resident memory of this process since `reset_peak`, or since its start."""
    try:
        return _status("VmHWM")
    except (OSError, KeyError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return the resident memory of this process now (Linux)."""
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = (line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(dict(lines)[key].split()[0]) * 1024


def machine(device: str = "") -> dict[str, Any]:
    """Describe the machine without naming it: processor, cores, memory, versions, threads, load at the end of the run.

    Args:
        device: Of the tensors; "": the benchmark uses no torch, and it is not imported.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about: dict[str, Any] = {"processor": _processor(), "cores": cores, "system": platform.system()}
    try:
        about["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
        about["load"] = [round(load, 2) for load in os.getloadavg()]
    except (ValueError, OSError, AttributeError):
        pass
    about["python"] = platform.python_version()
    if device:
        import torch

        about |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        about["device"] = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return about


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def report(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    about: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Print a table, what is to be said about it, and the machine."""
    print(f"{title}\n\n{table(columns, rows)}\n")
    for note in notes:
        print(note)
    words = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in about.items()}
    print("machine: " + ", ".join(f"{name} {value}" for name, value in words.items()) + "\n")


def peer(name: str) -> Any:
    """Return a package, or None where it is not installed; what it prints while it is imported is not shown."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def trained(runs: Sequence[str], points: int, device: str) -> tuple[dict[str, Any], Any]:
    """Return (name -> network) of run directories, and the first test points of the data of the first."""
    from iclr18cli.data.registry import open_split
    from iclr18cli.models.card import open_model

    opened = {run.rstrip("/").rpartition("/")[2]: open_model(run, device) for run in runs}
    split = open_split(next(iter(opened.values()))[1].dataset, "test").take(points).to(device)
    return {name: net.requires_grad_(False) for name, (net, _) in opened.items()}, split


def write(file: str, document: Mapping[str, Any]) -> None:
    """Write the figures to a file, if one was asked for."""
    if file:
        Path(file).write_text(json.dumps(document, indent=2) + "\n")


def milliseconds(values: Sequence[float], *, per: int = 1) -> float:
    """Return the median of some seconds in milliseconds, each divided by `per`."""
    return 1000 * statistics.median(values) / per
