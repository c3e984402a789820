"""CelebA's aligned photographs: the centre of each, scaled, in the official partition.

N images · C channels · H height · W width
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.faults import damaged
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError

FOLDER = "celeba/img_align_celeba"
PARTITION = "celeba/list_eval_partition.txt"
CROP, SIZE = 140, 64
"""The WAE paper's: a centred square of 140 pixels of the 178x218, scaled to 64."""

PARTS = {"train": ("0",), "valid": ("1",), "test": ("2",)}
WITHOUT_PARTITION = {"train": (0, 162_770), "valid": (162_770, 182_637), "test": (182_637, 202_599)}
"""The official partition by number of the image, from 0, where its file is not there."""

THREADS = 8


def load(root: Path, split: str, argument: str) -> Split:
    """Load `celeba/img_align_celeba/*.jpg` under a data root.

    The partition is that of `celeba/list_eval_partition.txt` (0 train, 1 valid, 2 test), by the numbers in the names
    where the file is missing.

    Args:
        root: Data root.
        split: "train", "valid" or "test".
        argument: "" or "N": a side of N pixels instead of 64.

    Returns:
        uint8 inputs (3, 64, 64) and one class, "face".

    Raises:
        UserError: The folder is missing or holds no image of the split, or an image is damaged.
    """
    side = int(argument) if argument.isascii() and argument.isdigit() and 0 < int(argument) <= CROP else SIZE
    if argument and side != int(argument if argument.isascii() and argument.isdigit() else -1):
        raise UserError(f"'celeba:{argument}' names no size.", why=f"it must be 1 to {CROP} pixels", fix="celeba:64")
    files = list_of(root, split)
    if not files:
        raise UserError(
            f"There are no CelebA images of the {split} split under {root / FOLDER}.",
            why="looked for 000001.jpg and so on",
            fix="put the official img_align_celeba folder there",
        )
    with ThreadPoolExecutor(THREADS) as pool:
        x_N = list(pool.map(lambda path: read(path, side), files))
    x_NCHW = torch.from_numpy(np.stack(x_N))
    return Split(x_NCHW, torch.zeros(len(x_NCHW), dtype=torch.int64), ("face",), "celeba", split)


def list_of(root: Path, split: str) -> list[Path]:
    """Return the images of a split by number."""
    folder, partition = root / FOLDER, root / PARTITION
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if re.fullmatch(r"\d{6}\.(jpg|png)", path.name))
    if partition.is_file():
        lines = (line.split() for line in partition.read_text().splitlines())
        part = {line[0]: line[1] for line in lines if len(line) == 2}
        return [path for path in found if part.get(f"{path.stem}.jpg") in PARTS[split]]
    low, high = WITHOUT_PARTITION[split]
    return [path for path in found if low <= int(path.stem) - 1 < high]


def read(path: Path, side: int = SIZE) -> NDArray[np.uint8]:
    """Return the centred square of an image, scaled, (3, side, side).

    Raises:
        UserError: It is damaged.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise damaged(path, error, fix="Replace the image.") from error
    square = min(CROP, image.width, image.height)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    image = image.crop((left, top, left + square, top + square)).resize((side, side), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
