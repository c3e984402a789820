"""Who works on a run: whether a process is still there, and a lock that ends with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from iclr18cli.run.atomic import cannot_write


def start_time(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None where the system does not say.

    With it a process is told from a later one that got the same number.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_alive(pid: int, started: int | None = None) -> bool:
    """Say whether a process of this machine runs, the same one if its start time is known."""
    if os.name == "nt":
        return True  # os.kill(pid, 0) would end it there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    fields = _stat(pid)
    if fields is None:
        return True
    return fields[0] not in "ZX" and (started is None or int(fields[19]) == started)


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the command name: state first, start time at 19."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 1 :].split()


def lock(path: Path) -> IO[bytes] | None:
    """Lock a file until the returned handle is closed or the process ends; None when another one holds it.

    Where the file system has no locks every caller gets a handle.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except (ImportError, OSError):
        pass
    return file
