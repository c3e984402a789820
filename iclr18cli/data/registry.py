"""Data sets by name: look one up, say where it is, open a split. No torch until a split is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from iclr18cli.data.builtin import BUILTIN
from iclr18cli.data.places import download_bytes, fetchable, locate, size_text
from iclr18cli.errors import UsageError, UserError, did_you_mean
from iclr18cli.paths import cache_root, data_roots
from iclr18cli.plugin import DatasetSpec, resolve

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split

Availability = Literal["built in", "here", "fetchable", "import", "yours"]


def datasets() -> dict[str, DatasetSpec]:
    """Return all data sets by name: the core's own and those of plugins; no plugin can take a name of the core."""
    from iclr18cli.manager import plugins

    return {spec.name: spec for spec in (*plugins().datasets(), *BUILTIN)}


def find(reference: str) -> tuple[DatasetSpec, str]:
    """Return the record behind "mnist" or "npz:PATH", and what follows the colon.

    Raises:
        UsageError: There is no such name, or it lacks or does not take an argument.
    """
    name, colon, argument = reference.partition(":")
    known = datasets()
    if name not in known:
        raise UsageError(
            f"There is no data set '{name}'.", why=f"received {reference!r}", fix=did_you_mean(name, known)
        )
    spec = known[name]
    optional = spec.argument.startswith("[")
    if colon and not spec.argument:
        raise UsageError(
            f"Data set '{name}' takes nothing after its name.", why=f"received {reference!r}", fix=f"Write '{name}'."
        )
    if (colon and not argument) or (spec.argument and not optional and not colon):
        raise UsageError(
            f"Data set '{name}' needs an argument.",
            why=f"received {reference!r}",
            fix=f"Write '{name}:{spec.argument.strip('[]') if optional else spec.argument}'.",
        )
    return spec, argument


def absolute(reference: str) -> str:
    """Return the reference with the path of the user's own data made absolute; other references as they are.

    Example:
        >>> absolute("mnist"), absolute("npz:/data/x.npz")
        ('mnist', 'npz:/data/x.npz')
    """
    name, colon, argument = reference.partition(":")
    spec = datasets().get(name)
    if not (colon and spec and spec.argument.startswith("PATH")):
        return reference
    path, mark, rest = argument.partition("?")
    return f"{name}:{Path(path).expanduser().resolve()}{mark}{rest}"


def user_root(data_dir: str | Path = "") -> Path:
    """Return the folder that fetched and imported files go to: `data_dir`, else the user's cache."""
    return Path(data_dir).expanduser() if data_dir else cache_root()


def availability(spec: DatasetSpec, roots: Iterable[Path]) -> Availability:
    """Say where a data set comes from.

    Returns:
        "built in": needs no file. "here": its files are in one of `roots`. "fetchable": has public addresses. "import":
        its files must come from the user. "yours": names the user's own files (`npz:PATH`).
    """
    if not spec.files:
        return "yours" if spec.argument and not spec.offline else "built in"
    if locate(spec, roots):
        return "here"
    return "fetchable" if fetchable(spec) else "import"


def open_split(reference: str, split: str, *, data_dir: str | Path = "", download: bool = False) -> Split:
    """Load one split of a data set into memory.

    Args:
        reference: "mnist", "rings:10000", "npz:PATH".
        split: One of the set's splits, "train" or "test".
        data_dir: Folder looked in first; then $ICLR18_DATA and the user's cache.
        download: Fetch missing files instead of failing; nothing is ever downloaded without it.

    Raises:
        UsageError: Unknown name or split.
        UserError: Files are missing or damaged, the split is empty, labels lie outside the classes, or inputs outside
            the declared range.
    """
    spec, argument = find(reference)
    if split not in spec.splits:
        raise UsageError(
            f"Data set '{spec.name}' has no split '{split}'.",
            why=f"its splits are {', '.join(spec.splits)}",
            fix=did_you_mean(split, spec.splits),
        )
    roots = data_roots(data_dir)
    root = roots[0]
    if spec.files:
        found = locate(spec, roots, split)
        if found is None and download:
            from iclr18cli.data.fetch import fetch

            fetch(spec, user_root(data_dir))
            found = locate(spec, roots, split)
        if found is None:
            raise _missing(spec, roots)
        root = found[0]
    loaded: Split = resolve(spec.load)(root, split, argument)
    if spec.task != "classify":  # sets of other tasks bring a type of their own
        return loaded
    loaded = dataclasses.replace(loaded, name=reference, split=split)
    check_split(loaded)
    return loaded


def _missing(spec: DatasetSpec, roots: Iterable[Path]) -> UserError:
    if fetchable(spec):
        fix = f"iclr18 data fetch {spec.name}     ({size_text(download_bytes(spec))}), or pass --download"
    else:
        fix = f"iclr18 data import {spec.name} PATH     (a folder that holds {Path(spec.files[0].path).name})"
    return UserError(
        f"Data set '{spec.name}' is not on this machine.",
        why=f"looked in {', '.join(str(root) for root in roots)}",
        fix=fix,
    )


def check_split(split: Split) -> None:
    """Refuse labels outside the classes and inputs outside the declared range.

    Raises:
        UserError: As said.
    """
    import torch

    low, high = int(split.y.min()), int(split.y.max())
    if low < 0 or high >= len(split.classes):
        raise UserError(
            f"Labels of '{split.name}' ({split.split}) lie outside its classes.",
            why=f"labels span {low} .. {high}, the {len(split.classes)} classes are 0 .. {len(split.classes) - 1}",
            fix="Number the labels from 0 and name every class.",
        )
    if split.x.dtype == torch.uint8:
        return
    smallest, largest = (float(bound) for bound in split.x.aminmax())
    if not (smallest > float("-inf") and largest < float("inf")):
        raise UserError(f"Inputs of '{split.name}' ({split.split}) hold NaN or infinite values.", fix="Remove them.")
    if split.range is not None and (smallest < split.range[0] or largest > split.range[1]):
        raise UserError(
            f"Inputs of '{split.name}' ({split.split}) lie outside the declared range.",
            why=f"values span {smallest:g} .. {largest:g}, the range is {split.range[0]:g} .. {split.range[1]:g}",
            fix="Scale the data, or declare its range (in an npz file: the key 'range' with two numbers).",
        )
