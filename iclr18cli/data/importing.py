"""Official files that are already somewhere on this machine, found and copied into the data folder. No torch."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from iclr18cli.data.builtin import ARCHIVES
from iclr18cli.data.faults import damaged
from iclr18cli.data.fetch import install, matches, writing
from iclr18cli.data.places import groups
from iclr18cli.errors import UsageError, UserError
from iclr18cli.plugin import DatasetSpec, File

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz", ".zip")
LARGEST_MEMBER = 4 << 30
_CHUNK = 1 << 20

Candidate = tuple[str, Path]
"""Where a file was found, with "/" between folders, and where it can be read."""


def import_files(spec: DatasetSpec, path: Path, root: Path) -> list[Path]:
    """Copy the official files of a data set from anywhere under `path` into `root`, checked.

    Files are recognised by name and, where it is known, by SHA-256. Any of the set's layouts will do, packed or not.

    Args:
        spec: The data set.
        path: A folder searched with all its sub-folders, one official file, or an archive (.tar.gz, .tgz, .zip).
        root: Data folder; made if it does not exist.

    Returns:
        The paths of the files in `root`.

    Raises:
        UsageError: The set has no files.
        UserError: `path` does not exist, lacks files, or holds other versions of them; nothing is copied then.
    """
    if not spec.files:
        raise UsageError(
            f"Data set '{spec.name}' has no files to import.", why="it is built in or named by its own path"
        )
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"There is no file or folder '{path}'.", fix="Check the path.")
    layouts = groups(spec)
    wanted = {Path(file.path).name for group in layouts for file in group}
    with writing(root), tempfile.TemporaryDirectory(dir=root, prefix=".import-") as temporary:
        candidates = list(_search(path, wanted, Path(temporary)))
        names = {PurePosixPath(name).name for name, _ in candidates}
        complete = [group for group in layouts if all(Path(file.path).name in names for file in group)]
        failure: UserError | None = None
        for group in complete:
            try:
                return place(list(group), candidates, root, spec.name, str(path))
            except UserError as error:
                failure = failure or error
        raise failure or _incomplete(spec, path, layouts, names)


def place(files: list[File], candidates: list[Candidate], root: Path, name: str, origin: str) -> list[Path]:
    """Copy the right candidate for each file to its place under `root`; check all before copying any.

    Raises:
        UserError: No candidate for a file, or none with the official bytes.
    """
    chosen = []
    for file in files:
        named = [candidate for candidate in candidates if PurePosixPath(candidate[0]).name == Path(file.path).name]
        # MNIST and Fashion-MNIST use the same names: the folder that agrees best goes first.
        named.sort(key=lambda candidate: -_common_tail(candidate[0], file.path))
        right = next((path for _, path in named if matches(path, file)), None)
        if right is None:
            found = ", ".join(where for where, _ in named) or "nothing of this name"
            raise UserError(
                f"'{origin}' does not hold the official {Path(file.path).name} of '{name}'.",
                why=f"found {found}; size or sha256 differ" if named else f"found {found}",
                fix="Get the official files, see iclr18 data show " + name,
            )
        chosen.append((right, root / file.path))
    for source, target in chosen:
        if not (target.exists() and target.samefile(source)):
            install(source, target)
    return [target for _, target in chosen]


def unpack(archive: Path, wanted: set[str], folder: Path) -> list[Candidate]:
    """Unpack the regular files with a wanted base name into `folder`, under names of our own.

    A member's own path is never used for writing, so that no archive can write elsewhere.

    Raises:
        UserError: The archive is damaged, or a member is larger than 4 GiB.
    """
    found: list[Candidate] = []
    try:
        for number, (name, stream) in enumerate(_members(archive, wanted)):
            target = folder / f"{archive.name}.{number}"
            with target.open("wb") as out, stream:
                for size in range(0, LARGEST_MEMBER, _CHUNK):
                    chunk = stream.read(_CHUNK)
                    if not chunk:
                        break
                    if size + _CHUNK >= LARGEST_MEMBER:
                        raise ValueError(f"member {name} is too large")
                    out.write(chunk)
            found.append((name, target))
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise damaged(archive, error, fix="Get the archive again.") from error
    except OSError as error:
        if error.errno is not None:  # of the disk; decompressors raise theirs without a number
            raise
        raise damaged(archive, error, fix="Get the archive again.") from error
    return found


def _members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir() and PurePosixPath(info.filename).name in wanted:
                    yield info.filename, packed.open(info)
        return
    with tarfile.open(archive, "r|*") as stream:
        for member in stream:
            if member.isfile() and PurePosixPath(member.name).name in wanted:
                content = stream.extractfile(member)
                if content is not None:
                    yield member.name, content


def _search(path: Path, wanted: set[str], temporary: Path) -> Iterator[Candidate]:
    """Yield every file under `path` with a wanted name; archives are looked into if official or named by the user."""
    if path.is_file():
        if path.name in wanted:
            yield path.name, path
        elif path.name.endswith(ARCHIVE_SUFFIXES):
            yield from unpack(path, wanted, temporary)
        return
    official = {archive.path for archive in ARCHIVES.values()} | {"cifar-10-python.tar.gz"}
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            found = Path(folder, name)
            if name in wanted and found.is_file():
                yield found.relative_to(path).as_posix(), found
            elif name in official:
                inside = Path(tempfile.mkdtemp(dir=temporary))
                unpacked = unpack(found, wanted, inside)
                if unpacked:
                    yield from unpacked
                else:
                    shutil.rmtree(inside)


def _common_tail(one: str, other: str) -> int:
    """Count the path parts on which two paths agree from the end."""
    count = 0
    for left, right in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if left != right:
            break
        count += 1
    return count


def _incomplete(spec: DatasetSpec, path: Path, layouts: list[tuple[File, ...]], names: set[str]) -> UserError:
    nearest = max(layouts, key=lambda group: sum(Path(file.path).name in names for file in group) / len(group))
    missing = [Path(file.path).name for file in nearest if Path(file.path).name not in names]
    return UserError(
        f"'{path}' does not hold all files of '{spec.name}'.",
        why=f"missing: {', '.join(missing)}",
        fix="Name the folder or archive that holds them all; see iclr18 data show " + spec.name,
    )
