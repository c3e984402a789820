"""Checking that the files of a data set are the official ones and can be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iclr18cli.data.fetch import sha256_of
from iclr18cli.data.places import groups, locate
from iclr18cli.data.registry import check_split
from iclr18cli.errors import UserError
from iclr18cli.plugin import DatasetSpec, File, resolve

State = Literal["ok", "missing", "wrong size", "wrong sha256", "unreadable"]


@dataclass(frozen=True)
class FileCheck:
    """What was found out about one file, or about one split when the files were read.

    Args:
        path: The file; "train split" for a split.
        state: "ok", or what is wrong.
        detail: Sizes, checksums, counts, or the reader's complaint.
    """

    path: str
    state: State
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Say whether nothing is wrong."""
        return self.state == "ok"


def verify(spec: DatasetSpec, roots: Iterable[Path], argument: str = "") -> list[FileCheck]:
    """Compare the files of a set with the published sizes and checksums, then read every split.

    Args:
        spec: The data set.
        roots: Data folders, in the order they are looked in.
        argument: What followed the colon; sets of the user's own files need it.

    Returns:
        One entry per file, then one per split if all files are right.
    """
    roots = tuple(roots)
    if spec.files:
        found = locate(spec, roots)
        if found is None:
            return [FileCheck(_nearest(file, roots), *_state(file, roots)) for file in groups(spec)[0]]
        root, files = found
        checks = [FileCheck(str(root / file.path), *_compare(root / file.path, file)) for file in files]
    else:
        root, checks = roots[0], []
    if all(check.ok for check in checks):
        checks += [_read(spec, root, split, argument) for split in spec.splits]
    return checks


def _nearest(file: File, roots: tuple[Path, ...]) -> str:
    return str(next((root / file.path for root in roots if (root / file.path).is_file()), roots[0] / file.path))


def _state(file: File, roots: tuple[Path, ...]) -> tuple[State, str]:
    path = Path(_nearest(file, roots))
    return _compare(path, file) if path.is_file() else ("missing", f"looked in {', '.join(map(str, roots))}")


def _compare(path: Path, file: File) -> tuple[State, str]:
    size = path.stat().st_size
    if file.bytes and size != file.bytes:
        return "wrong size", f"{size} bytes instead of {file.bytes}"
    if not file.sha256:
        return "ok", f"{size} bytes; no official checksum is known"
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        return "unreadable", str(error)
    if sha256 != file.sha256:
        return "wrong sha256", f"{sha256} instead of {file.sha256}"
    return "ok", f"{size} bytes, sha256 {sha256}"


def _read(spec: DatasetSpec, root: Path, split: str, argument: str) -> FileCheck:
    try:
        data = resolve(spec.load)(root, split, argument)
        if spec.task == "classify":
            check_split(data)
    except UserError as error:
        return FileCheck(f"{split} split", "unreadable", str(error))
    return FileCheck(f"{split} split", "ok", f"{len(data)} examples")
