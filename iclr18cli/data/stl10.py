"""STL-10: the official binary files of Coates, Lee, Ng (2011), labelled and not.

N images · C channels · H height · W width
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.builtin import STL10
from iclr18cli.data.faults import damaged
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError

FOLDER = "stl10_binary"
SIDE = 96
PIXELS = 3 * SIDE * SIDE
THREADS = 8


def load(root: Path, split: str, argument: str) -> Split:
    """Load the labelled images of `root`/stl10_binary: 5,000 to train, 8,000 to test.

    Args:
        root: Data root.
        split: "train" or "test".
        argument: "" or "N": a side of N pixels instead of 96.

    Returns:
        uint8 inputs (3, 96, 96); the files' labels 1 .. 10 become 0 .. 9.

    Raises:
        UserError: A file is damaged, or the argument names no size.
    """
    side = _side("stl10", argument)
    x_path, y_path = (root / FOLDER / f"{split}_{kind}.bin" for kind in "Xy")
    x_NCHW, y_N = read_images(x_path, side), np.fromfile(y_path, dtype=np.uint8)
    if len(x_NCHW) != len(y_N):
        raise damaged(y_path, f"{len(x_NCHW)} images but {len(y_N)} labels", dataset="stl10")
    if y_N.min() < 1 or y_N.max() > len(STL10):
        raise damaged(y_path, f"labels span {y_N.min()} .. {y_N.max()}, not 1 .. {len(STL10)}", dataset="stl10")
    return Split(torch.from_numpy(x_NCHW), torch.from_numpy(y_N.astype(np.int64) - 1), STL10, "stl10", split)


def load_unlabeled(root: Path, split: str, argument: str) -> Split:
    """Load the 100,000 images without labels to train on, and the 8,000 test images without theirs.

    All are of one class, "image". At 96 pixels the training images take 2.8 GB.

    Args:
        root, split, argument: As of `load`.

    Raises:
        UserError: A file is damaged, or the argument names no size.
    """
    side = _side("stl10-unlabeled", argument)
    name = {"train": "unlabeled_X.bin", "test": "test_X.bin"}[split]
    x_NCHW = torch.from_numpy(read_images(root / FOLDER / name, side, dataset="stl10-unlabeled"))
    return Split(x_NCHW, torch.zeros(len(x_NCHW), dtype=torch.int64), ("image",), "stl10-unlabeled", split)


def read_images(path: Path, side: int = SIDE, *, dataset: str = "stl10") -> NDArray[np.uint8]:
    """Read a file of 96x96 images, each its red, green and blue values column by column.

    Args:
        path: The file.
        side: Height and width to return; below 96 the images are scaled down, each output pixel from all the pixels it
            covers (Pillow's bilinear filter), above 96 up.
        dataset: Name of the set, for the error's advice.

    Returns:
        (N, 3, side, side) uint8 in [0, 255].

    Raises:
        UserError: The file holds no whole number of images, or none.
    """
    size = path.stat().st_size
    if not size or size % PIXELS:
        raise damaged(path, f"{size} bytes are no whole count of images of {PIXELS} bytes", dataset=dataset)
    x_NCWH = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, SIDE, SIDE)
    x_NCHW = x_NCWH.transpose(0, 1, 3, 2)
    if side == SIDE:
        return np.ascontiguousarray(x_NCHW)
    scaled_NCHW = np.empty((len(x_NCHW), 3, side, side), dtype=np.uint8)

    def scale(image: int) -> None:
        from PIL import Image

        pixels = Image.fromarray(np.ascontiguousarray(x_NCHW[image].transpose(1, 2, 0)))
        scaled = pixels.resize((side, side), Image.Resampling.BILINEAR)
        scaled_NCHW[image] = np.asarray(scaled).transpose(2, 0, 1)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(scale, range(len(x_NCHW)), chunksize=256):
            pass
    return scaled_NCHW


def _side(name: str, argument: str) -> int:
    if not argument:
        return SIDE
    if argument.isascii() and argument.isdigit() and 1 <= int(argument) <= 4 * SIDE:
        return int(argument)
    raise UserError(f"'{name}:{argument}' names no size.", why=f"it must be 1 to {4 * SIDE} pixels", fix=f"{name}:48")
