"""`iclr18 data list | show | fetch | verify | import`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from iclr18cli.console import Console, Progress, table
from iclr18cli.errors import ExitCode
from iclr18cli.paths import data_roots

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
DataDir = Annotated[
    str, typer.Option(metavar="DIR", help="Folder of data sets.", show_default="$ICLR18_DATA, else the user's cache")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Name = Annotated[str, typer.Argument(metavar="DATASET")]

app = typer.Typer(no_args_is_help=True, help="List, fetch, verify and import data sets.")


@app.command("list")
def list_sets(data_dir: DataDir = "", json: Json = False) -> None:
    """List data sets: built in, here, fetchable, or to be imported."""
    from iclr18cli.data.places import download_bytes, size_text
    from iclr18cli.data.registry import availability, datasets

    roots = data_roots(data_dir)
    found: list[dict[str, Any]] = [
        {
            "name": f"{spec.name}:{spec.argument}" if spec.argument and not spec.offline else spec.name,
            "task": spec.task,
            "availability": availability(spec, roots),
            "download_bytes": download_bytes(spec),
            "license": spec.license,
            "summary": spec.summary,
        }
        for spec in datasets().values()
    ]
    rows = [
        [
            d["name"],
            d["task"],
            d["availability"],
            size_text(d["download_bytes"]) if d["download_bytes"] else "",
            d["summary"],
        ]
        for d in found
    ]
    text = (
        table(["data set", "task", "where", "download", "summary"], rows)
        + f"\n\nlooked in  {', '.join(map(str, roots))}"
    )
    Console(as_json=json).result({"datasets": found, "roots": [str(root) for root in roots]}, text)


@app.command()
def show(name: Name, data_dir: DataDir = "", json: Json = False) -> None:
    """Show a data set: files, licence, and, where it is here, sizes and classes."""
    from iclr18cli.data.registry import availability, find, open_split

    spec, argument = find(name)
    roots = data_roots(data_dir)
    where = availability(spec, roots)
    document: dict[str, Any] = {
        "name": name,
        "task": spec.task,
        "summary": spec.summary,
        "license": spec.license,
        "availability": where,
        "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256, "url": f.url} for f in spec.files],
        "splits": {},
    }
    lines = [f"{name}  {spec.task}  {where}", spec.summary, f"licence: {spec.license or 'not stated'}"]
    if where in ("built in", "here") or argument:
        for split in spec.splits:
            data = open_split(name, split, data_dir=data_dir)
            if spec.task == "language":
                types = len(set(data.words))  # type: ignore[attr-defined]
                document["splits"][split] = {"tokens": len(data), "types": types, "sha256": data.digest()}
                lines.append(f"{split:<6} {len(data):>9,} tokens with <eos>   {types:,} types")
                continue
            counts = data.y.bincount(minlength=len(data.classes)).tolist()
            document["splits"][split] = {
                "n": len(data),
                "shape": list(data.shape),
                "range": data.range,
                "classes": list(data.classes),
                "per_class": counts,
                "sha256": data.digest(),
            }
            lines.append(
                f"{split:<6} {len(data):>7,} x {' x '.join(map(str, data.shape))}   range {data.range or 'all of R^d'}"
            )
            lines.append(
                "       " + "  ".join(f"{c} {n}" for c, n in list(zip(data.classes, counts, strict=True))[:20])
            )
    lines += [f"  {f.path}  {f.bytes or '?'} bytes  {f.url}" for f in spec.files]
    Console(as_json=json).result(document, "\n".join(lines))


@app.command()
def fetch(
    name: Name,
    source: Annotated[
        str, typer.Option("--from", metavar="DIR", help="Take the files from a folder or archive, not the network.")
    ] = "",
    data_dir: DataDir = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a data set, resumed where it stopped, checked by size and sha256."""
    from iclr18cli.data.fetch import fetch as fetch_files
    from iclr18cli.data.registry import find, user_root

    spec, _ = find(name)
    console = Console(quiet=quiet, as_json=json)
    with _Bytes(console) as progress:
        files = fetch_files(spec, user_root(data_dir), source=source, progress=progress)
    console.result({"dataset": name, "files": [str(f) for f in files]}, "\n".join(f"here  {f}" for f in files))


class _Bytes:
    """A progress bar per file, fed with the bytes that are there."""

    def __init__(self, console: Console):
        self.console, self.stack, self.file, self.done = console, ExitStack(), "", 0
        self.bar: Progress | None = None

    def __enter__(self) -> _Bytes:
        return self

    def __call__(self, file: str, done: int, total: int) -> None:
        if file != self.file:
            self.stack.close()
            self.file, self.done = file, 0
            self.bar = self.stack.enter_context(self.console.progress(total or None, file))
        assert self.bar is not None
        self.bar.advance(done - self.done)
        self.done = done

    def __exit__(self, *_: object) -> None:
        self.stack.close()


@app.command()
def verify(name: Name, data_dir: DataDir = "", json: Json = False) -> None:
    """Compare a data set's files with the published checksums and read every split; exit 3 if something is wrong."""
    from iclr18cli.data.checking import verify as verify_files
    from iclr18cli.data.registry import find

    spec, argument = find(name)
    checks = verify_files(spec, data_roots(data_dir), argument)
    rows = [[check.path, check.state, check.detail] for check in checks]
    document = {
        "dataset": name,
        "ok": all(check.ok for check in checks),
        "checks": [{"path": c.path, "state": c.state, "detail": c.detail} for c in checks],
    }
    Console(as_json=json).result(document, table(["file", "state", "detail"], rows))
    if not document["ok"]:
        raise typer.Exit(int(ExitCode.USER))


@app.command("import")
def import_set(
    name: Name,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder, file or archive that holds the official files.")
    ],
    data_dir: DataDir = "",
    json: Json = False,
) -> None:
    """Copy the official files of a data set from anywhere under PATH to where they are looked for, checked."""
    from iclr18cli.data.importing import import_files
    from iclr18cli.data.registry import find, user_root

    spec, _ = find(name)
    files = import_files(spec, path, user_root(data_dir))
    Console(as_json=json).result(
        {"dataset": name, "files": [str(f) for f in files]}, "\n".join(f"here  {f}" for f in files)
    )
