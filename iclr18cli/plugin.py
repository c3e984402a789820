"""What plugin authors import: the hook marker, the records a plugin returns, and the interface number.

A record is frozen data. Code is named by a target, a string "module:attribute", and imported when it is used, so that
help, completion and listings stay fast. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pluggy

API = 1
"""Major version of the hook interface. A plugin may state the one it was made for as `iclr18_api = 1`."""

hookimpl = pluggy.HookimplMarker("iclr18")

Task = Literal["classify", "language", "translate", "generate", "embed"]


@dataclass(frozen=True)
class Option:
    """Describe one field of a config dataclass: `gamma: Annotated[float, Option("Penalty.", min=0)] = 1.3`.

    Args:
        help: One sentence, the unit included.
        min, max: Closed range of a number.
        above: Open lower end: the number must be greater than it.
        metavar: Word shown for the value in help.
    """

    help: str
    min: float | None = None
    max: float | None = None
    above: float | None = None
    metavar: str | None = None


@dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand of a technique.

    Args:
        config: Target of a frozen dataclass: the options, their types, ranges, defaults and help.
        run: Target of the function. What it is called with follows from `takes` and `gives`.
        summary: One line of help; by default the first line of the function's docstring is not read (it would import
            torch), so state it here.
        takes: "nothing"; "run", one finished or unfinished run named on the command line; "runs", one or more.
        gives: "run": a new run directory that the function fills, `f(config, run)`, or `f(config, run, source)` with
            `takes="run"`; a mapping it returns is shown. "metrics": a JSON-ready mapping, kept under `eval/`.
            "certificates": a list of `Certificate`, kept under `certify/`. "report": a JSON-ready mapping, printed and
            not kept.
        ranks: The function shares its work among ranks (`iclr18cli.launch.world()`), so that the command takes
            `--nproc`; every rank calls it and the first one's result counts. A command that gives a run always does.
    """

    config: str
    run: str
    summary: str = ""
    takes: Literal["nothing", "run", "runs"] = "nothing"
    gives: Literal["run", "metrics", "certificates", "report"] = "run"
    ranks: bool = False


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One paper's method and its commands. `presets` names a TOML file beside the plugin's `__init__.py`."""

    name: str
    summary: str
    commands: Mapping[str, Command]
    paper: str = ""
    authors: str = ""
    panel: str = "Techniques"
    presets: str = "presets.toml"


@dataclass(frozen=True, kw_only=True)
class File:
    """One official file of a data set: path under the data root, size in bytes, sha256 in hex, where to get it.

    `splits` names the splits that need it; empty: all do.
    """

    path: str
    bytes: int = 0
    sha256: str = ""
    url: str = ""
    splits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set by name.

    Args:
        load: Target of `load(root, split, argument) -> Split`; `root` is the data root that holds the files, `argument`
            what follows the colon in `npz:PATH`.
        files: Official files; empty for a set that is generated or ships inside a dependency (`offline=True`).
        argument: What follows the colon, as shown in help ("PATH"); empty: the name takes none.
    """

    name: str
    task: Task
    summary: str
    load: str
    files: tuple[File, ...] = ()
    splits: tuple[str, ...] = ("train", "test")
    license: str = ""
    offline: bool = False
    argument: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A network by name; `build` is the target of a function or class `(**kwargs) -> nn.Module`.

    `input_shape` is the shape the defaults are made for, without the batch; empty: any.
    """

    name: str
    build: str
    task: Task
    summary: str
    input_shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """An attack by name, with what it needs and what of the budget it reads.

    Args:
        run: Target of `(model, x, y, *, threat, budget, generator) -> x_adv`, see `iclr18cli.attack.registry`.
        norms: Norms of the perturbation it offers: "linf", "l2", "l1".
        kind: "ball": searches the ball of radius eps. "minimal": looks for the nearest error, however far; a point
            counts as broken if that lies within eps.
        uses: Fields of `Budget` it reads.
        standard: Their usual values for this attack, where they differ from those of `Budget`.
        targeted: It takes `targets=`, a class per example to reach.
        gradients: It needs input gradients of the model.
        classes: Least number of classes of the model.
        images: It takes inputs (B, C, H, W) only, with that many channels: (1, 3), say; empty: any shape.
        bounded: It needs a declared range of the inputs.
        refused: Why it is not offered under this name although it exists, and what to use instead.
    """

    name: str
    run: str
    summary: str
    norms: tuple[str, ...]
    tasks: tuple[Task, ...] = ("classify",)
    kind: Literal["ball", "minimal"] = "ball"
    uses: tuple[str, ...] = ("steps", "restarts", "step_size", "loss")
    standard: Mapping[str, Any] = field(default_factory=dict)
    targeted: bool = False
    gradients: bool = True
    classes: int = 2
    images: tuple[int, ...] = ()
    bounded: bool = False
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class CertifierSpec:
    """A certificate method by name.

    Args:
        config: Target of a frozen dataclass with the method's options.
        run: Target of `(config, run) -> list[Certificate]` with an opened run.
        refuses: Target of `(run) -> str | None`: why the method does not apply to this run. Empty: never refuses.
    """

    name: str
    config: str
    run: str
    summary: str
    tasks: tuple[Task, ...] = ("classify",)
    refuses: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A line of `iclr18 plugins doctor`; `run` is the target of `() -> (ok, message)`."""

    name: str
    run: str


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What observers of a run are told."""

    id: str
    path: str
    technique: str
    config: Mapping[str, Any] = field(default_factory=dict)
    status: str = "running"


def resolve(target: str) -> Any:
    """Import what a target names.

    Raises:
        ValueError: `target` is not of the form "module:attribute".
        ImportError, AttributeError: as the import raises them.

    Example:
        >>> resolve("math:pi")
        3.141592653589793
    """
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"a target must read 'module:attribute'; received {target!r}")
    return getattr(importlib.import_module(module), attribute)
