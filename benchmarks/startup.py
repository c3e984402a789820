"""CPU seconds of starting the program, against a bare Typer application with two commands.

    python benchmarks/startup.py [--runs 15] [--json FILE]

Each line is one fresh process; CPU seconds (user and system, from the operating system's account of the child) do not
count waiting, so a busy machine disturbs them less than wall time. Goals: `iclr18 --help` at most 1.3 times the bare
application's CPU seconds and without torch; `import iclr18cli` under 30 ms.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring

BARE = '''
import typer
app = typer.Typer()

@app.command()
def train(epochs: int = typer.Option(30, help="Passes over the data."), rate: float = typer.Option(1e-3, help="Step.")):
    """Train a network."""

@app.command()
def check(path: str = typer.Argument(..., help="A run.")):
    """Check a run."""

app()
'''

SEEN = """
import atexit, sys
atexit.register(lambda: print("torch" if "torch" in sys.modules else "none", file=sys.__stderr__))
"""

PROGRAM = "import sys; sys.argv[0] = 'iclr18'; from iclr18cli.cli import main; sys.exit(main())"
HELP, COMMAND, DRY = "iclr18 --help", "iclr18 wrm train --help", "iclr18 wrm train --dry-run"
EMPTY, IMPORT, BARE_HELP = "python -c pass", "import iclr18cli", "bare Typer --help"


def cpu_seconds(command: list[str], folder: str) -> float:
    """Return user and system seconds of a process that must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, cwd=folder, env=environment(), check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr.decode()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def environment() -> dict[str, str]:
    """Return an environment with a fixed width and without plugins' folders of the user."""
    return os.environ | {"COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": ""}


def torch_seen(arguments: list[str], folder: str) -> bool:
    """Say whether a command has torch in `sys.modules` when it ends."""
    command = [sys.executable, "-c", SEEN + PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, cwd=folder, env=environment(), text=True, check=False)
    return done.stderr.strip().endswith("torch")


def import_milliseconds(folder: str) -> float:
    """Return the wall milliseconds of `import iclr18cli` inside a fresh process."""
    code = "import time; t = time.perf_counter(); import iclr18cli; print(1000 * (time.perf_counter() - t))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=folder, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--runs", type=int, default=15, help="processes per line (default 15)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE)
        program = [sys.executable, "-c", PROGRAM]
        commands = {
            EMPTY: [sys.executable, "-c", "pass"],
            IMPORT: [sys.executable, "-c", "import iclr18cli"],
            BARE_HELP: [sys.executable, str(bare), "--help"],
            HELP: [*program, "--help"],
            COMMAND: [*program, "wrm", "train", "--help"],
            DRY: [*program, "wrm", "train", "--dry-run"],
        }
        tasks = {name: (lambda command=command: cpu_seconds(command, folder)) for name, command in commands.items()}
        measuring.interleaved(tasks, rounds=1)  # byte code and file cache
        samples = measuring.interleaved(tasks, rounds=options.runs)
        imports = [import_milliseconds(folder) for _ in range(options.runs)]
        torch = {name: torch_seen(commands[name][3:], folder) for name in (HELP, COMMAND, DRY)}
    rows = [
        [name, 1000 * min(times), 1000 * statistics.median(times), measuring.ratio(samples, name, BARE_HELP),
         min(times) / min(samples[BARE_HELP]), {True: "yes", False: "no"}.get(torch.get(name), "")]
        for name, times in samples.items()
    ]  # fmt: skip
    about = measuring.machine()
    measuring.report(
        f"Start-up, CPU milliseconds of {options.runs} interleaved processes each",
        ["process", "min ms", "median ms", "ratio", "ratio of min", "torch"], rows, about,
        [f"import iclr18cli: least {min(imports):.1f} ms, median {statistics.median(imports):.1f} ms (wall)",
         f"iclr18 --help / bare Typer --help = {measuring.ratio(samples, HELP, BARE_HELP):.3f} (goal: at most 1.3)"],
    )  # fmt: skip
    measuring.write(options.json, {"cpu_seconds": samples, "import_ms": imports, "torch": torch, "machine": about})


if __name__ == "__main__":
    main()
