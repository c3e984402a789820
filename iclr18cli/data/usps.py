"""The USPS digits in the three forms they are passed around in: LIBSVM text, ElemStatLearn text, HDF5."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.builtin import DIGITS
from iclr18cli.data.faults import damaged
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError

PIXELS = 16 * 16
ROUNDING = 1e-3
"""How far a value may lie outside [0, 1] and count as rounding of the text's decimals; it is then clipped."""

_LIBSVM = {"train": "usps.bz2", "test": "usps.t.bz2"}
_TABLE = {"train": "zip.train.gz", "test": "zip.test.gz"}


def load(root: Path, split: str, argument: str) -> Split:
    """Load USPS from `root`/usps: `usps.bz2`, else `zip.train.gz`, else `usps.h5`.

    Pixels keep their precision: float32 in [0, 1] (they are no multiples of 1/255), 0 is the background.

    Raises:
        UserError: A file is damaged, or only `usps.h5` is there and h5py is not installed.
    """
    folder = root / "usps"
    if (folder / _LIBSVM[split]).is_file():
        x_Nd, y_N = read_libsvm(folder / _LIBSVM[split])
    elif (folder / _TABLE[split]).is_file():
        x_Nd, y_N = read_table(folder / _TABLE[split])
    else:
        x_Nd, y_N = read_hdf5(folder / "usps.h5", split)
    x_N1HW = torch.from_numpy(x_Nd).view(-1, 1, 16, 16)
    return Split(x_N1HW, torch.from_numpy(y_N), DIGITS, "usps", split)


def read_libsvm(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the LIBSVM text form: a label 1..10 for the digits 0..9, then "index:value" with values in [-1, 1].

    Features that a line leaves out are zero before scaling, as the format says.

    Returns:
        (N, 256) float32 in [0, 1]; (N,) digits.
    """
    try:
        text = bz2.decompress(path.read_bytes())
        symbols = np.frombuffer(text, dtype=np.uint8)
        colons = np.flatnonzero(symbols == ord(":"))
        ends = np.flatnonzero(symbols == ord("\n"))
        pairs_N = np.diff(np.searchsorted(colons, ends), prepend=0)
        numbers = _numbers(text.replace(b":", b" "))
        if not len(ends) or len(numbers) != len(ends) + 2 * len(colons) or pairs_N.sum() != len(colons):
            raise ValueError("some line is not a label followed by index:value pairs")
        first_N = np.cumsum(2 * pairs_N + 1) - (2 * pairs_N + 1)
        is_label = np.zeros(len(numbers), dtype=bool)
        is_label[first_N] = True
        feature, value = numbers[~is_label].reshape(-1, 2).T
        column = feature.astype(np.int64) - 1
        if np.any((column < 0) | (column >= PIXELS) | (column + 1 != feature)):
            raise ValueError(f"a feature index lies outside 1 .. {PIXELS}")
        x_Nd = np.zeros((len(ends), PIXELS))
        x_Nd[np.repeat(np.arange(len(ends)), pairs_N), column] = value
        return _unit(x_Nd), _digits(numbers[is_label] - 1)
    except (ValueError, EOFError, OSError) as error:
        raise damaged(path, error, dataset="usps") from error


def read_table(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the ElemStatLearn text form: a digit 0..9 and 256 values in [-1, 1] per line.

    Returns:
        (N, 256) float32 in [0, 1]; (N,) digits.
    """
    try:
        with gzip.open(path, "rb") as handle:
            numbers = _numbers(handle.read())
        if not len(numbers) or len(numbers) % (PIXELS + 1):
            raise ValueError(f"{len(numbers)} numbers are no whole count of lines of {PIXELS + 1}")
        table = numbers.reshape(-1, PIXELS + 1)
        return _unit(table[:, 1:]), _digits(table[:, 0])
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise damaged(path, error, dataset="usps") from error


def read_hdf5(path: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the HDF5 form: groups "train" and "test" with "data" (N, 256) in [0, 1] and "target" (N,).

    Returns:
        (N, 256) float32 in [0, 1]; (N,) digits.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"Reading '{path}' needs h5py.", why="it is not installed", fix="pip install 'iclr18[hdf5]'"
        ) from error
    try:
        with h5py.File(path, "r") as store:
            x_Nd = np.asarray(store[split]["data"], dtype=np.float64)
            y_N = np.asarray(store[split]["target"])
        if x_Nd.ndim != 2 or x_Nd.shape[1] != PIXELS or y_N.shape != (len(x_Nd),):
            raise ValueError(f"data has the shape {x_Nd.shape} and target {y_N.shape}")
        return _unit(2 * x_Nd - 1), _digits(y_N)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise damaged(path, error, dataset="usps") from error


def _numbers(text: bytes) -> NDArray[np.float64]:
    """Parse white-space separated numbers in one pass; refuse anything else."""
    import warnings

    with warnings.catch_warnings():
        # numpy announces text that it could not parse by a DeprecationWarning, later by a ValueError.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text.decode("ascii"), dtype=np.float64, sep=" ")
        except DeprecationWarning as error:
            raise ValueError("the text holds something that is not a number") from error


def _unit(x_Nd: NDArray[np.float64]) -> NDArray[np.float32]:
    """Map [-1, 1] to [0, 1] and clip what rounding left outside."""
    x_Nd = (x_Nd + 1) / 2
    if not (x_Nd.min() >= -ROUNDING and x_Nd.max() <= 1 + ROUNDING):
        raise ValueError(f"pixels span {x_Nd.min():g} .. {x_Nd.max():g} instead of 0 .. 1")
    return x_Nd.clip(0, 1).astype(np.float32)


def _digits(labels: NDArray) -> NDArray[np.int64]:
    y_N = labels.astype(np.int64)
    if np.any(y_N != labels) or y_N.min() < 0 or y_N.max() > 9:
        raise ValueError("a label is no digit")
    return y_N
