"""`iclr18 runs list | show | compare | diff | plot | rm | path`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iclr18cli.console import Console, duration, show_metrics, table
from iclr18cli.errors import UsageError, UserError
from iclr18cli.paths import runs_root
from iclr18cli.run.directory import RunDirectory, find_run, list_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
RunsDir = Annotated[str, typer.Option(metavar="DIR", help="Folder of runs.", show_default="$ICLR18_RUNS, else ./runs")]
OneRun = Annotated[str, typer.Argument(metavar="RUN", help="A path, a name, the beginning of one, or @last.")]
SomeRuns = Annotated[list[str], typer.Argument(metavar="RUN...", help="Paths, names, beginnings of names, or @last.")]

app = typer.Typer(no_args_is_help=True, help="List, compare, plot and remove runs.")


def summary(run: RunDirectory) -> dict[str, Any]:
    """Return what a listing shows of a run; a broken one says why."""
    status = run.status
    if status == "broken":
        return {"run": run.path.name, "path": str(run.path), "status": status}
    info = run.info
    kept = {name: info.get(name) for name in ("technique", "started", "seconds", "seed", "reason", "metrics")}
    return {"run": run.path.name, "path": str(run.path), "status": status, **kept}


@app.command("list")
def list_all(runs_dir: RunsDir = "", json: Json = False) -> None:
    """List runs, newest last."""
    root = runs_root(runs_dir)
    found = [summary(run) for run in list_runs(root)]
    rows = [
        [
            r["run"],
            r.get("technique"),
            r["status"],
            duration(r["seconds"]) if r.get("seconds") else None,
            show_metrics(dict(list((r.get("metrics") or {}).items())[:4])),
        ]
        for r in found
    ]
    text = table(["run", "technique", "status", "time", "metrics"], rows) if rows else f"no runs in {root}"
    Console(as_json=json).result({"root": str(root), "runs": found}, text)


@app.command()
def show(run: OneRun, runs_dir: RunsDir = "", json: Json = False) -> None:
    """Show a run: settings, metrics, and everything measured on it."""
    directory = find_run(run, runs_root(runs_dir))
    config = directory.config
    results = [
        str(p.relative_to(directory.path))
        for kind in ("eval", "attack", "certify", "plots", "artifacts")
        for p in sorted((directory.path / kind).glob("*"))
    ]
    document = {**summary(directory), "info": directory.info, "config": config, "files": results}
    lines = [f"{directory.path}   {directory.status}   {directory.info.get('reason') or ''}".rstrip()]
    lines += [
        f"  {show_metrics(directory.info.get('metrics') or {})}",
        "",
        *(f"  {k:<20} {v}" for k, v in config.items()),
    ]
    lines += ["", *(f"  {name}" for name in results)] if results else []
    Console(as_json=json).result(document, "\n".join(lines))


@app.command()
def compare(runs: SomeRuns, runs_dir: RunsDir = "", json: Json = False) -> None:
    """Set runs side by side: the settings in which they differ, and their metrics."""
    found = _find_all(runs, runs_dir)
    configs = [run.config for run in found]
    differing = [
        key for key in dict.fromkeys(k for c in configs for k in c) if len({str(c.get(key)) for c in configs}) > 1
    ]
    metrics = list(dict.fromkeys(k for run in found for k in (run.info.get("metrics") or {})))
    rows = [
        {
            "run": run.path.name,
            **{k: c.get(k) for k in differing},
            **{k: (run.info.get("metrics") or {}).get(k) for k in metrics},
        }
        for run, c in zip(found, configs, strict=True)
    ]
    text = table(["run", *differing, *metrics], [list(row.values()) for row in rows])
    Console(as_json=json).result({"differing": differing, "metrics": metrics, "runs": rows}, text)


@app.command()
def diff(a: OneRun, b: OneRun, runs_dir: RunsDir = "", json: Json = False) -> None:
    """Show the settings, versions and metrics in which two runs differ."""
    first, second = _find_all([a, b], runs_dir)
    rows = []
    for what, left, right in (
        ("config", first.config, second.config),
        ("environment", _environment(first), _environment(second)),
        ("metrics", first.info.get("metrics") or {}, second.info.get("metrics") or {}),
    ):
        for key in dict.fromkeys([*left, *right]):
            if left.get(key) != right.get(key):
                rows.append({"of": what, "name": key, "a": left.get(key), "b": right.get(key)})
    text = (
        table(["of", "name", first.path.name, second.path.name], [list(r.values()) for r in rows])
        if rows
        else "no difference"
    )
    Console(as_json=json).result({"a": str(first.path), "b": str(second.path), "differences": rows}, text)


@app.command()
def plot(
    runs: SomeRuns,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="PNG file.", show_default="plots/curves.png of the first run")
    ] = "",
    runs_dir: RunsDir = "",
    json: Json = False,
) -> None:
    """Draw the metrics of one or more runs over the step."""
    from iclr18cli.report.plot import metric_curves, save

    found = _find_all(runs, runs_dir)
    lines = {run.path.name: run.metrics() for run in found}
    if not any(lines.values()):
        raise UserError("There is nothing to plot.", why="metrics.jsonl holds no line yet")
    path = Path(out) if out else found[0].path / "plots" / "curves.png"
    save(metric_curves(lines), path)
    Console(as_json=json).result({"figure": str(path)}, f"saved  {path}")


@app.command()
def rm(
    runs: SomeRuns,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    runs_dir: RunsDir = "",
    json: Json = False,
) -> None:
    """Remove runs with everything measured on them; a run that is being trained is left alone."""
    found = _find_all(runs, runs_dir)
    for run in found:
        if run.status == "running":
            raise UserError(f"{run.path} is being trained.", fix="stop it first (Ctrl-C or kill)")
    if not yes and not sys.stdin.isatty():
        raise UsageError("There is nobody to ask whether the runs may go.", why="stdin is no terminal", fix="--yes")
    if not yes:
        typer.confirm(f"Remove {', '.join(run.path.name for run in found)}?", abort=True, err=True)
    for run in found:
        try:
            shutil.rmtree(run.path)
        except OSError as error:
            raise UserError(f"Cannot remove {run.path}.", why=error.strerror or str(error)) from None
    removed = [str(run.path) for run in found]
    Console(as_json=json).result({"removed": removed}, "\n".join(f"removed  {path}" for path in removed))


@app.command()
def path(run: OneRun, runs_dir: RunsDir = "") -> None:
    """Print a run's directory: `cd "$(iclr18 runs path @last)"`."""
    print(find_run(run, runs_root(runs_dir)).path)


def _find_all(references: Sequence[str], runs_dir: str) -> list[RunDirectory]:
    found = {run.path.resolve(): run for run in (find_run(reference, runs_root(runs_dir)) for reference in references)}
    if len(found) < len(references):
        raise UsageError("The same run is named twice.", why=", ".join(references))
    return list(found.values())


def _environment(run: RunDirectory) -> dict[str, Any]:
    import json

    file = run.path / "env.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        packages = dict(content.pop("packages", {}))
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{file} is not a JSON object of versions.", fix="remove it to compare the rest") from None
    return {**{k: v for k, v in content.items() if k not in ("time",)}, **packages}
