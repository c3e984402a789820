"""What a run was made with: software, machine, commit. Best effort: nothing here can stop a run."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def environment(device: str = "") -> dict[str, Any]:
    """Return python, packages, host, processors, commit and time; `device` is the name of the device in use."""
    return {
        "time": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "host": socket.gethostname(),
        "cpu": _processor(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "git": commit(Path.cwd()),
    }


def packages(distribution: str = "iclr18") -> dict[str, str]:
    """Return the versions of a distribution and of what it requires directly; what is not installed is left out."""
    versions = {}
    try:
        required = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        required = []
    for requirement in (distribution, *required):
        named = re.match(r"[A-Za-z0-9._-]+", requirement)
        if named is None or "extra ==" in requirement:
            continue
        try:
            versions[named[0]] = metadata.version(named[0])
        except metadata.PackageNotFoundError:
            continue
    return versions


def commit(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the git checkout that a folder is in, and whether files differ from it; None: not in one."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=3, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor()
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.machine()
