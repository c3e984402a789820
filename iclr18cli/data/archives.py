"""Arrays in npz files: a guarded reader, and the `npz:PATH` data set."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.faults import damaged
from iclr18cli.data.holdout import stratified
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError

CHANNELS = (1, 3)
OWN_FIX = "Write it again with numpy.savez(PATH, x=..., y=...)."
_INPUTS = ("x", "images")
_LABELS = ("y", "labels")
_SPLIT_KEYS = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("range", "classes", "layout")


def read_arrays(path: Path, keys: Iterable[str] | None = None, *, dataset: str = "") -> dict[str, NDArray]:
    """Read arrays of an npz file without running anything it holds.

    Args:
        path: The file.
        keys: Names of the arrays that must be there; None: all there are.
        dataset: Name of an official set, for the error's advice.

    Raises:
        UserError: No such file, not an npz file, damaged, an array is missing or would need pickle.
    """
    fix = "" if dataset else OWN_FIX
    if not path.is_file():
        raise UserError(f"There is no file '{path}'.", fix="Check the path after 'npz:'.")
    try:
        with np.load(path, allow_pickle=False) as store:
            if not isinstance(store, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array (npy) instead of named ones (npz)")
            wanted = store.files if keys is None else list(keys)
            missing = [key for key in wanted if key not in store.files]
            if missing:
                raise ValueError(f"no array '{missing[0]}'; there are {', '.join(store.files) or 'none'}")
            return {key: store[key] for key in wanted}
    except (ValueError, EOFError, OSError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, error, dataset=dataset, fix=fix) from error


def load(root: Path, split: str, argument: str) -> Split:
    """Load the user's own arrays from the npz file `argument`.

    Keys: `x` and `y` (or `images` and `labels`), which are divided into a fixed 80 % to train and 20 % to test, each
    class alike; or `x_train`, `y_train`, `x_test`, `y_test`. Rules:

    * uint8 is pixels: divided by 255 when used, range [0, 1].
    * Floats of images must lie in [0, 1] unless the key `range` holds two numbers (low, high). Floats shaped (N, d) are
      features without a range unless `range` is given.
    * (N, H, W) is grey. (N, H, W, C) and (N, C, H, W) are told apart by which of the two has 1 or 3 channels; where
      both or neither do, the key `layout` must say "NHWC" or "NCHW".
    * Labels are whole numbers from 0. The key `classes` may name the classes; otherwise they are called "0", "1", ...

    Raises:
        UserError: The file is damaged or breaks a rule.
    """
    path = Path(argument).expanduser()
    arrays = read_arrays(path, _needed(path))
    if "x_train" in arrays:
        x, y = arrays[f"x_{split}"], _labels(arrays[f"y_{split}"], arrays[f"x_{split}"], path)
        highest = max(int(arrays[key].max(initial=-1)) for key in ("y_train", "y_test"))
    else:
        x = arrays[next(key for key in _INPUTS if key in arrays)]
        y = _labels(arrays[next(key for key in _LABELS if key in arrays)], x, path)
        highest = int(y.max(initial=-1))
        index = stratified(y)[split]
        x, y = x[index], y[index]
    inputs, bounds = _inputs(x, arrays, path)
    classes = _classes(arrays, highest, path)
    return Split(torch.from_numpy(inputs), torch.from_numpy(y), classes, f"npz:{argument}", split, range=bounds)


def _needed(path: Path) -> list[str]:
    """Return the keys to read, so that arrays beside them are never touched."""
    if not path.is_file():
        return []
    try:
        with zipfile.ZipFile(path) as store:
            have = {name.removesuffix(".npy") for name in store.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise damaged(path, error, fix=OWN_FIX) from error
    optional = [key for key in _OPTIONAL if key in have]
    if have.issuperset(_SPLIT_KEYS):
        return [*_SPLIT_KEYS, *optional]
    inputs, labels = [[key for key in keys if key in have][:1] for keys in (_INPUTS, _LABELS)]
    if not inputs or not labels:
        raise _refuse(
            path, f"it needs x and y, or {', '.join(_SPLIT_KEYS)}; it has {', '.join(sorted(have)) or 'none'}"
        )
    return [*inputs, *labels, *optional]


def _refuse(path: Path, why: str, fix: str = OWN_FIX) -> UserError:
    return UserError(f"File '{path}' cannot be used as a data set.", why=why, fix=fix)


def _labels(y: NDArray, x: NDArray, path: Path) -> NDArray[np.int64]:
    if y.dtype.kind not in "iu" or y.ndim != 1 or x.ndim < 1 or len(y) != len(x):
        raise _refuse(path, f"labels must be whole numbers shaped (N,); received {y.dtype} {y.shape} for x {x.shape}")
    return y.astype(np.int64)


def _classes(arrays: dict[str, NDArray], highest: int, path: Path) -> tuple[str, ...]:
    if "classes" in arrays:
        names = arrays["classes"]
        if names.dtype.kind != "U" or names.ndim != 1:
            raise _refuse(path, f"classes must be a list of names; received {names.dtype} {names.shape}")
        return tuple(str(name) for name in names)
    examples = sum(len(array) for key, array in arrays.items() if key in (*_LABELS, "y_train", "y_test"))
    if highest >= max(examples, 2):
        raise _refuse(
            path, f"label {highest} in {examples} examples", fix="Number the labels from 0 without large gaps."
        )
    return tuple(str(label) for label in range(highest + 1))


def _inputs(x: NDArray, arrays: dict[str, NDArray], path: Path) -> tuple[NDArray, tuple[float, float] | None]:
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise _refuse(path, f"x is {x.dtype}", fix="Store pixels 0..255 as uint8 and everything else as float32.")
    bounds: tuple[float, float] | None = (0.0, 1.0)
    if x.dtype.kind == "f":
        if "range" in arrays:
            limits = arrays["range"]
            if limits.shape != (2,) or limits.dtype.kind not in "iuf" or not float(limits[0]) < float(limits[1]):
                raise _refuse(path, f"range must be two numbers, low < high; received {limits.tolist()!r}")
            bounds = (float(limits[0]), float(limits[1]))
        elif x.ndim == 2:
            bounds = None
        x = x.astype(np.float32, copy=False)
    elif "range" in arrays and arrays["range"].tolist() != [0, 1]:
        raise _refuse(path, "uint8 pixels have the range 0 .. 1", fix="Leave out 'range', or store floats.")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4:
        x = _channels_first(x, str(arrays["layout"]) if "layout" in arrays else "", path)
    elif x.ndim != 2:
        raise _refuse(path, f"x must be (N, d), (N, H, W), (N, H, W, C) or (N, C, H, W); received {x.shape}")
    return np.ascontiguousarray(x), bounds


def _channels_first(x: NDArray, layout: str, path: Path) -> NDArray:
    if not layout:
        first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
        if first == last:
            raise _refuse(
                path,
                f"x {x.shape}: channels may be first or last",
                fix="Add layout='NHWC' or layout='NCHW' to the file.",
            )
        layout = "NHWC" if last else "NCHW"
    if layout not in ("NHWC", "NCHW"):
        raise _refuse(path, f"layout is {layout!r}", fix="It must be 'NHWC' or 'NCHW'.")
    return x.transpose(0, 3, 1, 2) if layout == "NHWC" else x
