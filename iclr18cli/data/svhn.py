"""Street View House Numbers, cropped digits: the official .mat files of Netzer et al. (2011)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from iclr18cli.data.builtin import DIGITS
from iclr18cli.data.faults import damaged
from iclr18cli.data.tensors import Split


def load(root: Path, split: str, argument: str) -> Split:
    """Load SVHN from `root`/svhn/train_32x32.mat and test_32x32.mat.

    Returns:
        uint8 inputs (N, 3, 32, 32); the file's label 10 is the digit 0.

    Raises:
        UserError: The file is damaged or holds something else.
    """
    x_NCHW, y_N = read(root / "svhn" / f"{split}_32x32.mat")
    return Split(torch.from_numpy(x_NCHW), torch.from_numpy(y_N), DIGITS, "svhn", split)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a MATLAB 5 file with X (32, 32, 3, N) uint8 and y (N, 1) in 1 .. 10; other variables are not touched.

    scipy's reader makes arrays of numbers from it and runs nothing; cells, objects and functions are refused here.

    Returns:
        (N, 3, 32, 32) uint8, (N,) int64 digits.

    Raises:
        UserError: The file is damaged or holds something else.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(path, variable_names=["X", "y"], mat_dtype=False)
        x_HWCN, y_N = found["X"], np.asarray(found["y"]).reshape(-1)
        if x_HWCN.dtype != np.uint8 or x_HWCN.ndim != 4 or x_HWCN.shape[:3] != (32, 32, 3):
            raise ValueError(f"X is {x_HWCN.dtype} of the shape {x_HWCN.shape}, not uint8 (32, 32, 3, N)")
        if y_N.dtype.kind not in "uif" or len(y_N) != x_HWCN.shape[3] or not np.isin(y_N, np.arange(1, 11)).all():
            raise ValueError(f"y is {y_N.dtype} of the shape {y_N.shape}, not N labels 1 .. 10")
    except (ValueError, KeyError, TypeError, OSError, NotImplementedError, MatReadError) as error:
        raise damaged(path, error, dataset="svhn") from error
    return np.ascontiguousarray(x_HWCN.transpose(3, 2, 0, 1)), y_N.astype(np.int64) % 10
