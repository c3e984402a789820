"""The commands as Python functions, with the same checks, files and errors.

>>> from iclr18cli import api
>>> run = api.train("wrm", preset="smoke", runs_dir=tmp, quiet=True)                            # doctest: +SKIP
>>> certificates = api.certify("wrm", run.path, rho=(0.001,))                                   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclr18cli.call import Call, Outcome, find_technique
from iclr18cli.console import Console
from iclr18cli.execute import perform

if TYPE_CHECKING:
    from iclr18cli.certify.result import Certificate
    from iclr18cli.run.directory import RunDirectory


def call(
    technique: str, command: str, *runs: str | Path, preset: str = "", config: str | Path = "", **options: Any
) -> Outcome:
    """Run any command of a technique.

    Args:
        technique, command: As on the command line ("wrm", "boundary").
        runs: Paths or names of the runs the command works on.
        preset: Name of a preset.
        config: Path of a TOML file.
        options: Options of the command and shared settings, with underscores (`inner_steps=15`, `seed=1`).

    Raises:
        UserError: as on the command line; its `code` is the exit code.
    """
    record = find_technique(technique)
    if command not in record.commands:
        from iclr18cli.errors import UsageError, did_you_mean

        raise UsageError(f"'{technique}' has no command '{command}'.", fix=did_you_mean(command, record.commands))
    quiet = options.pop("quiet", True)
    made = Call(
        record,
        command,
        preset=preset,
        file=str(config),
        flags=options,
        runs=[str(run) for run in runs],
        argv=["python", technique, command],
    )
    return perform(made, Console(quiet=quiet))


def train(technique: str, **options: Any) -> RunDirectory:
    """Train and return the run's directory: `train("wrm", preset="smoke", gamma=2.0, seed=1)`."""
    directory = call(technique, "train", **options).directory
    assert directory is not None
    return directory


def evaluate(technique: str, run: str | Path, **options: Any) -> dict[str, Any]:
    """Measure a run and return the metrics."""
    return dict(call(technique, "eval", run, **options).document["metrics"])


def certify(technique: str, run: str | Path, **options: Any) -> Sequence[Certificate]:
    """Check a technique's claim on a run and return the certificates."""
    return call(technique, "certify", run, **options).value
