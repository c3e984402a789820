"""Printed digits drawn with the fonts that matplotlib and Pillow bring along: a source domain that needs no file.

N images · H height · W width
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from iclr18cli.data.builtin import DIGITS
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

FACES = {
    "train": (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique",
        "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
        "cmr10", "cmb10", "cmtt10", "cmti10",
    ),
    "test": ("DejaVuSans-BoldOblique", "DejaVuSansMono-Bold", "STIXGeneralItalic", "cmss10", ""),
}  # fmt: skip
"""Fonts by split, none in both; the empty name is Pillow's own."""

VARIANTS = {"train": 12, "test": 8}
SEED = {"train": 31, "test": 32}
SIZE = 8
FINER = 4
"""Digits are drawn 4 times as large and averaged over 4x4 blocks, as the handwritten `digits` were."""


def load(root: Path, split: str, argument: str) -> Split:
    """Draw the ten digits in every font of the split, each several times, turned, slanted and thickened a little.

    Every glyph is scaled to the height of the image. The drawing is fixed; another version of FreeType may place grey
    levels differently. 1,800 images to train, 400 to test, in a fixed random order.

    Args:
        root: Not used.
        split: "train" and "test" have different fonts.
        argument: Height and width in pixels, 8 to 64; 8 if empty.

    Raises:
        UsageError: `argument` is no such number.
    """
    size = SIZE
    if argument:
        if not (argument.isascii() and argument.isdigit() and 8 <= int(argument) <= 64):
            raise UsageError(f"'fonts:{argument}' does not name an image size.", why="it must be 8 to 64 pixels",
                             fix="--source fonts:28")  # fmt: skip
        size = int(argument)
    x_N1HW, y_N = _draw(split, size)
    return Split(torch.from_numpy(x_N1HW.copy()), torch.from_numpy(y_N.copy()), DIGITS, "fonts", split)


@cache
def _draw(split: str, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw a split once per process."""
    random = np.random.RandomState(SEED[split])
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for face in FACES[split]:
        font = _font(face, 2 * FINER * size)
        for _ in range(VARIANTS[split]):
            for digit in range(10):
                images.append(_drawn(font, digit, size, random))
                labels.append(digit)
    index = random.permutation(len(labels))
    return np.stack(images)[index][:, None], np.asarray(labels, dtype=np.int64)[index]


def _font(face: str, height: int) -> FreeTypeFont:
    from PIL import ImageFont

    if not face:
        return ImageFont.load_default(height)  # type: ignore[return-value]
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", f"{face}.ttf")), height)


def _drawn(font: FreeTypeFont, digit: int, size: int, random: np.random.RandomState) -> NDArray[np.uint8]:
    """Return one digit, (H, W) uint8, background 0."""
    from PIL import Image, ImageDraw

    angle, slant = math.radians(random.uniform(-12, 12)), random.uniform(-0.25, 0.25)
    stroke, width = int(random.randint(0, 1 + size * FINER // 16)), random.uniform(0.8, 1.2)
    large, canvas = size * FINER, 4 * size * FINER
    image = Image.new("L", (canvas, canvas))
    ImageDraw.Draw(image).text((canvas / 2, canvas / 2), str(digit), fill=255, font=font, anchor="mm",
                               stroke_width=stroke)  # fmt: skip
    # Where in the drawing a place of the result comes from: turned and slanted around the middle.
    cosine, sine, middle = math.cos(angle), math.sin(angle), canvas / 2
    a, b, d, e = cosine, sine + slant, -sine, cosine
    matrix = (a, b, middle - (a + b) * middle, d, e, middle - (d + e) * middle)
    image = image.transform((canvas, canvas), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return _reduced(image, large, width)


def _reduced(image: Image, large: int, stretch: float) -> NDArray[np.uint8]:
    """Cut the glyph out, scale it to the full height, centre it, and average blocks."""
    from PIL import Image as Images

    glyph = image.crop(image.getbbox())
    width = min(large, max(1, round(glyph.width * large / glyph.height * stretch)))
    glyph = glyph.resize((width, large), Images.Resampling.BILINEAR)
    whole = np.zeros((large, large))
    left = (large - width) // 2
    whole[:, left : left + width] = np.asarray(glyph)
    size = large // FINER
    return np.rint(whole.reshape(size, FINER, size, FINER).mean((1, 3))).astype(np.uint8)
