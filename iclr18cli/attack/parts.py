"""What a long evaluation has found so far, batch by batch on the disk, so that an interruption costs one batch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from iclr18cli.errors import UserError


class Parts:
    """A folder with one safetensors file per finished batch; the folder's name says which evaluation they belong to.

    Every batch is a function of the evaluation's settings and its place, so replaying the files that are there and
    computing the rest gives the result of an evaluation that was never stopped.

    Args:
        folder: Made on the first `write`; None: nothing is kept.
    """

    def __init__(self, folder: Path | None):
        self.folder, self.replayed = folder, 0

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return what a batch found, or None if it is not finished; a damaged file counts as not there."""
        from iclr18cli.models import weights

        path = None if self.folder is None else self.folder / f"{key}.safetensors"
        if path is None or not path.exists():
            return None
        try:
            found = weights.loads(weights.read(path), path)
        except UserError:
            return None
        self.replayed += 1
        return dict(found)

    def write(self, key: str, found: Mapping[str, Tensor]) -> None:
        """Keep what a batch found, as a whole."""
        if self.folder is not None:
            from iclr18cli.models import weights
            from iclr18cli.run.atomic import write_bytes

            write_bytes(
                self.folder / f"{key}.safetensors", weights.dumps({k: v.contiguous() for k, v in found.items()})
            )

    def remove(self) -> None:
        """Forget all batches: the evaluation is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # other ranks may not be done
                self.folder.parent.rmdir()
