"""Where runs and data are kept."""

from __future__ import annotations

import os
from pathlib import Path


def runs_root(given: str | Path | None = None) -> Path:
    """Return the folder of runs: `given` (--runs-dir), else $ICLR18_RUNS, else ./runs."""
    return Path(given or os.environ.get("ICLR18_RUNS") or "runs")


def cache_root() -> Path:
    """Return the user's own data folder, where fetched and imported data sets go."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("iclr18", appauthor=False)) / "data"


def data_roots(given: str | Path | None = None) -> tuple[Path, ...]:
    """Return the folders data sets are looked for in: `given` (--data-dir), $ICLR18_DATA, the user's cache."""
    named = [given, os.environ.get("ICLR18_DATA")]
    return (*(Path(root).expanduser() for root in named if root), cache_root())
