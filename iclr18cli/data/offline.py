"""Data sets that need no file: real digits that ship with scikit-learn, and the rings of WRM."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from iclr18cli.data.builtin import DIGITS
from iclr18cli.data.holdout import stratified
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError

RINGS_COUNT = 4000
RINGS_CHUNK = 4096
RINGS_SEED = {"train": 14, "test": 125}
"""Typical draws: what a trained net measures on them is close to its mean over many draws of 4,000 points."""


def load_digits(root: Path, split: str, argument: str) -> Split:
    """Load scikit-learn's 8x8 digits: 1,437 to train, 360 to test, always the same ones.

    The 17 grey levels 0..16 become round(255 v / 16) in uint8.
    """
    from sklearn.datasets import load_digits as bundled

    bunch = bundled()
    x_NHW, y_N = bunch["images"], bunch["target"]
    index = stratified(y_N)[split]
    x_N1HW = np.rint(x_NHW[index] * 255 / 16).astype(np.uint8)[:, None]
    return Split(torch.from_numpy(x_N1HW), torch.from_numpy(y_N[index].astype(np.int64)), DIGITS, "digits", split)


def load_rings(root: Path, split: str, argument: str) -> Split:
    """Draw WRM's two-dimensional task: is a point inside or outside the circle of radius sqrt 2?

    Sinha et al. (2018), section 4.1: X ~ N(0, I_2), label by the sign of |x| - sqrt 2, and no points with
    sqrt 2 / 1.3 < |x| < 1.3 sqrt 2. About 70 % of the kept points are inside.

    Args:
        root: Not used.
        split: "train" and "test" are drawn from different seeds, always the same points.
        argument: Number of training points kept (4,000 if empty); a smaller set is the beginning of a larger one.
            There are always 4,000 test points.

    Returns:
        Float32 inputs shaped (2,) without a range; classes "inside" (0) and "outside" (1).

    Raises:
        UsageError: `argument` is not a positive number.
    """
    count = RINGS_COUNT
    if argument:
        if not argument.isascii() or not argument.isdigit() or not 1 <= int(argument) <= 100_000_000:
            raise UsageError(
                f"'rings:{argument}' does not name a number of training points.",
                why="it must be a whole number from 1 to 100000000",
                fix="--dataset rings:10000",
            )
        count = int(argument) if split == "train" else RINGS_COUNT
    random = np.random.RandomState(RINGS_SEED[split])
    kept: list[np.ndarray] = []
    have = 0
    # Chunks of fixed size, so that the first points do not depend on how many are asked for.
    while have < count:
        x_N2 = random.standard_normal((RINGS_CHUNK, 2))
        radius_N = np.hypot(x_N2[:, 0], x_N2[:, 1])
        x_N2 = x_N2[(radius_N <= math.sqrt(2) / 1.3) | (radius_N >= 1.3 * math.sqrt(2))]
        kept.append(x_N2)
        have += len(x_N2)
    x_N2 = np.concatenate(kept)[:count]
    y_N = (np.hypot(x_N2[:, 0], x_N2[:, 1]) > math.sqrt(2)).astype(np.int64)
    inputs = torch.from_numpy(x_N2.astype(np.float32))
    return Split(inputs, torch.from_numpy(y_N), ("inside", "outside"), "rings", split, range=None)
