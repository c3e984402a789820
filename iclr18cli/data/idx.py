"""The IDX format of MNIST and its successors, packed by gzip or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.builtin import DIGITS, FASHION
from iclr18cli.data.faults import damaged
from iclr18cli.data.tensors import Split

UNSIGNED_BYTE = 0x08
_STEM = {"train": "train", "test": "t10k"}
_CHUNK = 1 << 20
_LARGEST = 1 << 34


def read_idx(path: Path, *, dimensions: int, dataset: str = "") -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    The header is two zero bytes, the type (8: unsigned byte), the number of dimensions, then each size as a big-endian
    32-bit integer; the values follow, the last index changing fastest (LeCun, "The MNIST database").

    Args:
        path: The file; a name that ends in ".gz" is unpacked while it is read.
        dimensions: Number of dimensions the caller expects.
        dataset: Name of the set, for the error's advice.

    Returns:
        uint8 array with the sizes of the header.

    Raises:
        UserError: The file is truncated, corrupted, too long, or no such file.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            return _read(cast(BinaryIO, handle), dimensions)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise damaged(path, error, dataset=dataset) from error


def _read(handle: BinaryIO, dimensions: int) -> NDArray[np.uint8]:
    header = handle.read(4 + 4 * dimensions)
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if header[:4] != magic:
        raise ValueError(f"the file must begin with {magic.hex()}; it begins with {header[:4].hex() or 'nothing'}")
    if len(header) < 4 + 4 * dimensions:
        raise EOFError(f"the header ends after {len(header)} bytes")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    length = math.prod(shape)
    if length > _LARGEST:
        raise ValueError(f"the header announces {length} bytes")
    values = np.empty(length, dtype=np.uint8)
    have = 0
    while have < length:
        chunk = handle.read(min(_CHUNK, length - have))
        if not chunk:
            raise EOFError(f"{have} of {length} values are there")
        values[have : have + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
        have += len(chunk)
    if handle.read(1):
        raise ValueError(f"more than the {length} values of the header are there")
    return values.reshape(shape)


def load_mnist(root: Path, split: str, argument: str) -> Split:
    """Load MNIST from `root`/MNIST/raw, the folder torchvision uses."""
    return _load(root / "MNIST" / "raw", split, DIGITS, "mnist")


def load_fashion_mnist(root: Path, split: str, argument: str) -> Split:
    """Load Fashion-MNIST from `root`/FashionMNIST/raw, the folder torchvision uses."""
    return _load(root / "FashionMNIST" / "raw", split, FASHION, "fashion-mnist")


def _load(folder: Path, split: str, classes: tuple[str, ...], name: str) -> Split:
    def read(kind: str, dimensions: int) -> NDArray[np.uint8]:
        packed = folder / f"{_STEM[split]}-{kind}-idx{dimensions}-ubyte.gz"
        path = packed if packed.is_file() else packed.with_suffix("")
        return read_idx(path, dimensions=dimensions, dataset=name)

    x_NHW, y_N = read("images", 3), read("labels", 1)
    if len(x_NHW) != len(y_N):
        raise damaged(folder, f"{len(x_NHW)} images but {len(y_N)} labels", dataset=name)
    return Split(torch.from_numpy(x_NHW[:, None]), torch.from_numpy(y_N.astype(np.int64)), classes, name, split)
