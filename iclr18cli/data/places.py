"""Which files a data set needs, and in which folder they lie. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from iclr18cli.data.builtin import ALTERNATIVES, ARCHIVES
from iclr18cli.plugin import DatasetSpec, File


def groups(spec: DatasetSpec, split: str = "") -> list[tuple[File, ...]]:
    """Return the sets of files any one of which serves `split` (all splits if it is empty); the fetchable one first."""
    every = [spec.files, *ALTERNATIVES.get(spec.name, ())] if spec.files else []
    return [tuple(file for file in group if not split or not file.splits or split in file.splits) for group in every]


def locate(spec: DatasetSpec, roots: Iterable[Path], split: str = "") -> tuple[Path, tuple[File, ...]] | None:
    """Return the first folder that holds all files of one group, and the group; None if there is none."""
    for root in roots:
        for group in groups(spec, split):
            if all((root / file.path).is_file() for file in group):
                return root, group
    return None


def archive_of(file: File) -> tuple[File, str] | None:
    """Return the archive a file is a member of, with the member's name; None for a file of its own."""
    url, _, member = file.url.partition("#")
    if not member:
        return None
    return ARCHIVES.get(url, File(path=Path(url).name, url=url)), member


def download_bytes(spec: DatasetSpec) -> int:
    """Return how many bytes `data fetch` receives, archives counted once; 0 if some size is not known."""
    sizes = {}
    for file in spec.files:
        archive = archive_of(file)
        source = archive[0] if archive else file
        sizes[source.url or source.path] = source.bytes
    return sum(sizes.values()) if all(sizes.values()) else 0


def fetchable(spec: DatasetSpec) -> bool:
    """Say whether every file of the set has a public address."""
    return bool(spec.files) and all(file.url for file in spec.files)


def size_text(count: int) -> str:
    """Write a number of bytes for people, in decimal units.

    Example:
        >>> size_text(11_594_722)
        '11.6 MB'
    """
    if count <= 0:
        return "size unknown"
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"
        size /= 1000
    return f"{size:.3g} GB"
