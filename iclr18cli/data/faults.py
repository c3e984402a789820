"""One wording for files that cannot be used."""

from __future__ import annotations

from pathlib import Path

from iclr18cli.errors import UserError


def damaged(path: str | Path, why: object, *, dataset: str = "", fix: str = "") -> UserError:
    """Return the error for a file whose content is not what its format asks for.

    Args:
        path: The file.
        why: What was found instead, or the exception of the reader.
        dataset: Name of an official set, when the file belongs to one: it can be checked and fetched again.
        fix: What to do, when the file is the user's own.
    """
    if isinstance(why, BaseException):
        why = f"{type(why).__name__}: {why}"
    if dataset:
        fix = f"iclr18 data verify {dataset}; then delete the file and get it again, see iclr18 data show {dataset}"
    return UserError(f"File '{path}' is damaged or not in the expected format.", why=str(why), fix=fix)
