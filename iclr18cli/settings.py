"""The options every command shares, once: what they are called, what they mean, what they default to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of any command that computes."""

    seed: Annotated[int, Option("Seed of everything random.", min=0, max=2**63 - 1)] = 0
    device: Annotated[str, Option("auto, cpu, cuda, cuda:1 or mps.", metavar="DEVICE")] = "auto"
    data_dir: Annotated[
        str, Option("Folder of data sets; by default $ICLR18_DATA, else the user's cache.", metavar="DIR")
    ] = ""
    runs_dir: Annotated[str, Option("Folder of runs; by default $ICLR18_RUNS, else ./runs.", metavar="DIR")] = ""
    json: Annotated[bool, Option("Print one JSON document instead of tables.")] = False
    quiet: Annotated[bool, Option("No progress and no hints.")] = False


@dataclass(frozen=True, kw_only=True)
class RankSettings(Settings):
    """Options of a command whose work can be shared among processes."""

    nproc: Annotated[
        str, Option("Processes on this machine that share the work; auto: one per GPU.", metavar="N|auto")
    ] = "1"
    nnodes: Annotated[int, Option("Machines that share the work; give the same command on each.", min=1)] = 1
    rdzv_endpoint: Annotated[
        str, Option("Where machines meet: a host of theirs and a free port.", metavar="HOST:PORT")
    ] = ""


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RankSettings):
    """Options of any command that makes a run."""

    out: Annotated[str, Option("Directory of the run; must not exist yet or be empty.", metavar="DIR")] = ""
    name: Annotated[str, Option("Name of the run inside the folder of runs.", metavar="NAME")] = ""
    resume: Annotated[
        str,
        Option(
            "Go on with an unfinished run: its name, or 'auto' for the newest one with these settings.",
            metavar="RUN|auto",
        ),
    ] = ""
    precision: Annotated[Precision, Option("Arithmetic of the forward pass.")] = "fp32"
    download: Annotated[bool, Option("Fetch the data set if it is not on this machine.")] = False
    log_every: Annotated[int, Option("Steps between two lines of metrics.jsonl.", min=1)] = 20
    checkpoint_every: Annotated[float, Option("Seconds between two checkpoints; 0: after every step.", min=0)] = 60.0
    max_restarts: Annotated[
        int, Option("How often a run goes on from its last checkpoint after a process was lost.", min=0)
    ] = 0
