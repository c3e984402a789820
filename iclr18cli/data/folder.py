"""A folder of images, one sub-folder per class.

N images · C channels · H height · W width
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.faults import damaged
from iclr18cli.data.holdout import stratified
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ORDER_SEED = 2018
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")


def load(root: Path, split: str, argument: str) -> Split:
    """Load images from the folder `argument`, "PATH" or "PATH?size=N".

    PATH/train/CLASS/* and PATH/test/CLASS/* if PATH has both, else PATH/CLASS/*, divided into a fixed 80 % to train and
    20 % to test, each class alike. Classes are numbered by name. The first training image decides between grey and RGB;
    transparency is dropped. All images must have one size, unless `?size=N` scales them to N x N (bilinear).
    The order is a fixed random one, so that the first n images are a sample of all classes.

    Returns:
        uint8 inputs shaped (1, H, W) or (3, H, W).

    Raises:
        UsageError: N is not a number from 1 to 4096.
        UserError: A folder or class is empty, an image is damaged, deeper than 8 bits, or differs in size.
    """
    folder, size = _parse(argument)
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}'.", fix="Check the path after 'folder:'.")
    separate = (folder / "train").is_dir() and (folder / "test").is_dir()
    places = {name: folder / name for name in ("train", "test")} if separate else {"train": folder}
    found = {name: _classes(place) for name, place in places.items()}
    classes = tuple(found["train"])
    if separate and tuple(found["test"]) != classes:
        odd = sorted(set(found["train"]) ^ set(found["test"]))
        raise UserError(
            f"Training and test folder of '{folder}' differ in classes.",
            why=f"only in one of them: {', '.join(odd)}",
            fix="Give both the same sub-folders.",
        )
    grey = _is_grey(next(iter(found["train"].values()))[0])
    per_class = found[split] if separate else found["train"]
    files = [file for members in per_class.values() for file in members]
    labels = np.repeat(np.arange(len(classes)), [len(members) for members in per_class.values()])
    index = np.arange(len(files)) if separate else stratified(labels)[split]
    index = np.random.RandomState(ORDER_SEED).permutation(index)
    x_NCHW = _read([files[i] for i in index], grey=grey, size=size)
    return Split(torch.from_numpy(x_NCHW), torch.from_numpy(labels[index]), classes, f"folder:{argument}", split)


def _parse(argument: str) -> tuple[Path, int]:
    path, option, size = argument.rpartition("?size=")
    if not option:
        return Path(argument).expanduser(), 0
    if not (size.isascii() and size.isdigit() and 1 <= int(size) <= 4096):
        raise UsageError(
            f"'?size={size}' is no image size.", why="it must be 1 to 4096 pixels", fix="Write '?size=32'."
        )
    return Path(path).expanduser(), int(size)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class, classes and images by name."""
    found = {}
    for place in sorted(folder.iterdir(), key=lambda path: path.name):
        if place.is_dir() and not place.name.startswith("."):
            members = [file for file in place.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()]
            if not members:
                raise UserError(f"Class folder '{place}' holds no image.", why=f"looked for {', '.join(SUFFIXES)}",
                                fix="Add images or remove the folder.")  # fmt: skip
            found[place.name] = sorted(members, key=lambda path: path.name)
    if not found:
        raise UserError(
            f"Folder '{folder}' has no sub-folder per class.", why="expected CLASS/*.png", fix="Sort images by class."
        )
    return found


def _open(path: Path) -> Image:
    from PIL import Image

    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise damaged(path, error, fix="Replace or remove the image.") from error
    if image.mode.startswith(DEEP_MODES):
        raise UserError(
            f"Image '{path}' is deeper than 8 bits.", why=f"its mode is {image.mode}", fix="Save it with 8 bits."
        )
    return image


def _is_grey(path: Path) -> bool:
    return _open(path).mode in GREY_MODES


def _read(paths: list[Path], *, grey: bool, size: int) -> NDArray[np.uint8]:
    from PIL import Image

    mode, channels = ("L", 1) if grey else ("RGB", 3)
    x_NHWC = np.empty((0, 1, 1, channels), dtype=np.uint8)
    for number, path in enumerate(paths):
        image = _open(path).convert(mode)
        if size:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        if number == 0:
            x_NHWC = np.empty((len(paths), image.height, image.width, channels), dtype=np.uint8)
        if (image.height, image.width) != x_NHWC.shape[1:3]:
            height, width = x_NHWC.shape[1:3]
            raise UserError(
                f"Image '{path}' has another size than the others.",
                why=f"{image.width}x{image.height} instead of {width}x{height}, as '{paths[0]}'",
                fix="Add '?size=32' to the data set's name to scale all images to one size.",
            )
        x_NHWC[number] = np.asarray(image).reshape(image.height, image.width, channels)
    return np.ascontiguousarray(x_NHWC.transpose(0, 3, 1, 2))
