"""Getting official files onto this machine: download on request, with resume and checks. No torch."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from iclr18cli import __version__
from iclr18cli.data.places import archive_of, fetchable, size_text
from iclr18cli.errors import UsageError, UserError
from iclr18cli.plugin import DatasetSpec, File

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes that are there, and the bytes it will have (0 if the server does not say)."""

ATTEMPTS = 4
TIMEOUT = 30.0
_CHUNK = 1 << 18


def fetch(spec: DatasetSpec, root: Path, *, source: str | Path = "", progress: Progress | None = None) -> list[Path]:
    """Bring the official files of a data set to `root`; those that are there and right are left alone.

    A download goes to "NAME.part", is resumed from there after an interruption, is checked by size and SHA-256, and
    then takes its name in one step. Of an archive only the expected members are unpacked; the archive is not kept.

    Args:
        spec: The data set.
        root: Data folder; made if it does not exist.
        source: A folder or archive to take the files from instead of the network (`--from`).
        progress: Told about bytes received.

    Returns:
        The paths of all files of the set, in the order of `spec.files`.

    Raises:
        UsageError: The set has no files.
        UserError: No public address, no connection, no space, or the wrong bytes.
    """
    if source:
        from iclr18cli.data.importing import import_files

        return import_files(spec, Path(source), root)
    if not spec.files:
        raise UsageError(
            f"Data set '{spec.name}' has no files to fetch.", why="it is built in or made of your own files"
        )
    if not fetchable(spec):
        raise UserError(f"Data set '{spec.name}' has no public address.", fix=f"iclr18 data import {spec.name} PATH")
    archives: dict[str, tuple[File, list[File]]] = {}
    with writing(root):
        for file in spec.files:
            if matches(root / file.path, file):
                continue
            archive = archive_of(file)
            if archive is None:
                download(file, root / file.path, progress)
            else:
                archives.setdefault(archive[0].url, (archive[0], []))[1].append(file)
        for archive_file, members in archives.values():
            packed = root / archive_file.path
            download(archive_file, packed, progress)
            try:
                _unpack_members(packed, members, root, spec.name)
            finally:
                packed.unlink(missing_ok=True)
    return [root / file.path for file in spec.files]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def matches(path: Path, file: File) -> bool:
    """Say whether `path` is there with the size and the checksum of `file`, as far as they are known."""
    if not path.is_file() or (file.bytes and path.stat().st_size != file.bytes):
        return False
    return not file.sha256 or sha256_of(path) == file.sha256


def install(source: Path, target: Path) -> None:
    """Copy a file to its place under a temporary name and rename it, so that it is never there in part."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out, source.open("rb") as handle:
            shutil.copyfileobj(handle, out, _CHUNK)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared folder's files from others
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the operating system refuses inside the block into an error about the data folder."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write to the data folder '{root}'.", why=str(error), fix="Free space, or name another --data-dir."
        ) from error


def download(file: File, target: Path, progress: Progress | None = None) -> None:
    """Download one file to `target`, resuming from `target`.part.

    Raises:
        UserError: The server cannot be reached or refuses, or the bytes are not those of `file`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with _locked(part) as handle:
        for attempt in range(ATTEMPTS):
            try:
                _receive(file, handle, progress)
                break
            except urllib.error.HTTPError as error:
                if error.code not in (408, 429, 500, 502, 503, 504) or attempt == ATTEMPTS - 1:
                    raise _unreachable(file, f"the server answered {error.code} {error.reason}") from error
            except _NETWORK_FAULTS as error:
                if attempt == ATTEMPTS - 1:
                    raise _unreachable(file, str(getattr(error, "reason", error)) or type(error).__name__) from error
            time.sleep(0.5 * attempt)
        handle.flush()
        size = handle.seek(0, os.SEEK_END)
        if file.bytes and size != file.bytes:
            part.unlink()
            raise _wrong(file, f"size {size} instead of {file.bytes}")
        if file.sha256 and (sha256 := sha256_of(part)) != file.sha256:
            part.unlink()
            raise _wrong(file, f"sha256 {sha256} instead of {file.sha256}")
        os.replace(part, target)


class _BrokenError(Exception):
    """The connection ended before the announced bytes were there."""


_NETWORK_FAULTS = (
    _BrokenError,
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


def _receive(file: File, handle: BinaryIO, progress: Progress | None) -> None:
    """Append what is missing to `handle`; start again if the server cannot resume."""
    start = handle.seek(0, os.SEEK_END)
    if file.bytes and start == file.bytes:
        return
    if file.bytes and start > file.bytes:
        start = handle.truncate(0)
    url = file.url
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"an address must begin with https:// or http://; received {url!r}")
    headers = {"User-Agent": f"iclr18/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            # The part is as long as the file or longer: it may be another version's. Begin again.
            handle.truncate(0)
            raise _BrokenError("the server cannot resume") from error
        raise
    with response:
        if start and not (
            response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        ):
            if response.status == 206:
                handle.truncate(0)
                raise _BrokenError("the server resumed at another place")
            start = handle.truncate(0)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else 0
        if file.bytes and total and total != file.bytes:
            handle.truncate(0)
            raise _wrong(file, f"the server announces {size_text(total)} ({total} bytes) instead of {file.bytes} bytes")
        have = handle.seek(0, os.SEEK_END)
        while chunk := response.read(_CHUNK):
            handle.write(chunk)
            have += len(chunk)
            if progress:
                progress(Path(file.path).name, have, file.bytes or total)
            if file.bytes and have > file.bytes:
                break
        if total and have < total:
            raise _BrokenError(f"the connection ended after {have} of {total} bytes")


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Open the part for appending, for this process alone where the system has locks; leave no empty part behind."""
    with part.open("ab") as handle:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"'{part.name}' is being fetched by another process.", why=str(part), fix="Wait for it to end."
                ) from error
        try:
            yield handle
        finally:
            handle.flush()
            if part.exists() and part.stat().st_size == 0:
                part.unlink()


def _unreachable(file: File, why: str) -> UserError:
    return UserError(
        f"Could not download {file.url}",
        why=why,
        fix="Try again (it resumes), or copy the files here and run iclr18 data fetch NAME --from DIR.",
    )


def _wrong(file: File, why: str) -> UserError:
    return UserError(
        f"What came from {file.url} is not the official file; it was deleted.",
        why=why,
        fix="Try again later, or bring the files yourself: iclr18 data import NAME PATH.",
    )


def _unpack_members(packed: Path, members: list[File], root: Path, name: str) -> None:
    from iclr18cli.data.importing import place, unpack

    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as folder:
        wanted = {Path(file.path).name for file in members}
        place(members, unpack(packed, wanted, Path(folder)), root, name, str(packed))
