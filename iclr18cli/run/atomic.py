"""Files that are there whole or not at all: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from iclr18cli.console import plain
from iclr18cli.errors import UserError


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error for a file or folder that the system refuses to write."""
    return UserError(
        f"Cannot write {path}.",
        why=error.strerror or str(error),
        fix="free some space or choose another place with --out or --runs-dir",
    )


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to that becomes `path` at the end; after any error `path` is as it was and nothing is left.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
    sync_folder(path.parent)


def _umask() -> int:
    # mkstemp makes files for the owner only; the mask can be read by nothing but setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system offers that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file as a whole and return its path."""
    with replacing(path) as file:
        file.write(data)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON document; numbers that are not finite become null."""
    return write_bytes(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def write_toml(path: Path, values: Mapping[str, Any]) -> Path:
    """Write a TOML document of values that `storable` has prepared."""
    import tomli_w

    return write_bytes(path, tomli_w.dumps(values).encode())


def storable(value: Any) -> Any:
    """Return a copy as TOML can hold it: tuples as lists, paths as text, keys without a value left out.

    Example:
        >>> storable({"rho": (0.1, 1), "limit": None})
        {'rho': [0.1, 1]}
    """
    if isinstance(value, Mapping):
        return {str(key): storable(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):
        return storable(value.tolist())
    return str(value)


def digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a mapping, whatever the order of its keys; tuples count as lists."""
    return hashlib.sha256(json.dumps(storable(values), sort_keys=True).encode()).hexdigest()
