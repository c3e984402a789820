"""CIFAR-10: the official binary and pickle batches, and the npz subsets.

N images · C channels · H height · W width
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.archives import read_arrays
from iclr18cli.data.builtin import CIFAR10
from iclr18cli.data.faults import damaged
from iclr18cli.data.tensors import Split

PIXELS = 3 * 32 * 32
_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}


def load(root: Path, split: str, argument: str) -> Split:
    """Load the official batches from `root`: `cifar-10-batches-bin` if it is complete, else `cifar-10-batches-py`."""
    binary = [root / "cifar-10-batches-bin" / f"{batch}.bin" for batch in _BATCHES[split]]
    if all(path.is_file() for path in binary):
        parts = [read_binary(path) for path in binary]
    else:
        parts = [read_pickle(root / "cifar-10-batches-py" / batch) for batch in _BATCHES[split]]
    x_NCHW = np.concatenate([x for x, _ in parts])
    return _split(x_NCHW, np.concatenate([y for _, y in parts]), "cifar10", split)


def load_lossless(root: Path, split: str, argument: str) -> Split:
    """Load the exact images of `root`/cifar10-subset: the first 4,000 of the training and 1,000 of the test set."""
    path = root / "cifar10-subset" / {"train": "lossless_train_4000.npz", "test": "lossless_test_1000.npz"}[split]
    arrays = read_arrays(path, ("images", "labels"), dataset="cifar10-lossless")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or labels.shape != (len(images),):
        raise damaged(path, f"images {images.dtype} {images.shape}, labels {labels.shape}", dataset="cifar10-lossless")
    return _split(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels, "cifar10-lossless", split)


def load_jpeg(root: Path, split: str, argument: str) -> Split:
    """Load the JPEG-compressed images of `root`/cifar10-subset, decoded once.

    All 50,000 training images in the official order and 5,000 test images. Accuracies on them are not comparable with
    published ones to the last percent.
    """
    from PIL import Image

    path = root / "cifar10-subset" / {"train": "jpeg_train_50000.npz", "test": "jpeg_test_5000.npz"}[split]
    arrays = read_arrays(path, ("jpeg", "offsets", "labels"), dataset="cifar10-jpeg")
    stream, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
    if (
        stream.dtype != np.uint8
        or offsets.shape != (len(labels) + 1,)
        or offsets[0] != 0
        or offsets[-1] != len(stream)
        or np.any(np.diff(offsets) <= 0)
    ):
        raise damaged(path, "offsets do not divide the compressed bytes", dataset="cifar10-jpeg")
    encoded = stream.tobytes()
    x_NHWC = np.empty((len(labels), 32, 32, 3), dtype=np.uint8)
    for image, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        try:
            pixels = np.asarray(Image.open(io.BytesIO(encoded[start:end]), formats=("JPEG",)))
            if pixels.shape != (32, 32, 3):
                raise ValueError(f"its shape is {pixels.shape}")
            x_NHWC[image] = pixels
        except (OSError, ValueError) as error:
            raise damaged(path, f"image {image}: {error}", dataset="cifar10-jpeg") from error
    return _split(np.ascontiguousarray(x_NHWC.transpose(0, 3, 1, 2)), labels, "cifar10-jpeg", split)


def read_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one batch of the binary version: per image a label byte, then 1,024 red, green and blue bytes.

    Returns:
        (N, 3, 32, 32) uint8 in [0, 255]; (N,) labels.
    """
    raw = np.fromfile(path, dtype=np.uint8)
    if not len(raw) or len(raw) % (PIXELS + 1):
        raise damaged(path, f"{len(raw)} bytes are no whole count of images of {PIXELS + 1} bytes", dataset="cifar10")
    table = raw.reshape(-1, PIXELS + 1)
    return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0].astype(np.int64)


def read_pickle(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one batch of the Python version without running anything it names.

    Returns:
        (N, 3, 32, 32) uint8 in [0, 255]; (N,) labels.

    Raises:
        UserError: The file is damaged, or names anything but the uint8 arrays of the official batches.
    """
    try:
        with path.open("rb") as handle:
            batch = _Unpickler(handle, encoding="bytes").load()
        entries = {_text(key): value for key, value in batch.items()}
        x_Nd, y_N = entries["data"].array(), np.asarray(entries["labels"])
        if x_Nd.ndim != 2 or x_Nd.shape[1] != PIXELS or y_N.shape != (len(x_Nd),) or y_N.dtype.kind not in "iu":
            raise ValueError(f"data has the shape {x_Nd.shape}, labels are {y_N.dtype} {y_N.shape}")
    except Exception as error:  # a broken pickle may raise anything; all of it means that the file is damaged
        raise damaged(path, error, dataset="cifar10") from error
    return x_Nd.reshape(-1, 3, 32, 32), y_N.astype(np.int64)


class _Dtype:
    """Stands for numpy.dtype in a pickle: keeps the arguments, builds nothing."""

    def __init__(self, code: str | bytes, *_: object):
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for numpy.ndarray in a pickle: keeps the state, builds a uint8 array when asked."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[np.uint8]:
        _, shape, dtype, fortran, raw = self.state
        if dtype.code != "u1":
            raise ValueError(f"an array of {dtype.code!r} instead of bytes")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str | bytes = "latin1") -> bytes:
    """Stand for _codecs.encode, by which Python 3 writes bytes into old pickles."""
    if _text(encoding) not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin-1")


class _Unpickler(pickle.Unpickler):
    """Know the four names of an official batch and refuse every other: a pickle can call nothing but our stand-ins."""

    NAMES: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"the file names {module}.{name}, which no official batch does; refused")
        return self.NAMES[module, name]


def _split(x_NCHW: NDArray[np.uint8], labels: NDArray, name: str, split: str) -> Split:
    return Split(torch.from_numpy(x_NCHW), torch.from_numpy(labels.astype(np.int64)), CIFAR10, name, split)
