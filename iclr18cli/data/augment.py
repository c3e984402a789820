"""Random crops and flips of whole batches, on the device the batch is on.

B batch · C channels · H height · W width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def random_crop(x_BCHW: Tensor, *, padding: int, generator: Generator, value: float = 0.0) -> Tensor:
    """Shift each image by up to `padding` pixels in both directions, filling with `value`.

    Padding all sides and cropping back to the size at a random corner, as in He et al. (2016), section 4.2. The corners
    are drawn on the generator's device, so that a CPU generator gives the same crops on every device.

    Args:
        x_BCHW: Images, uint8 or float.
        padding: Pixels added on each side, at least 0.
        generator: Source of the 2 B random integers.
        value: What the added pixels hold, in the unit of `x_BCHW`.

    Returns:
        A new tensor of the shape and type of `x_BCHW`.

    Raises:
        ValueError: `padding` is negative or `x_BCHW` is not four-dimensional.
    """
    if padding < 0:
        raise ValueError(f"padding must be >= 0; received {padding}")
    if x_BCHW.dim() != 4:
        raise ValueError(f"images must be (B, C, H, W); received {tuple(x_BCHW.shape)}")
    B, C, H, W = x_BCHW.shape
    corner_2B = torch.randint(2 * padding + 1, (2, B), generator=generator, device=generator.device)
    top_B, left_B = corner_2B.to(x_BCHW.device)
    padded = F.pad(x_BCHW, (padding, padding, padding, padding), value=value)
    row_B1H1 = (top_B[:, None] + torch.arange(H, device=x_BCHW.device))[:, None, :, None]
    column_B11W = (left_B[:, None] + torch.arange(W, device=x_BCHW.device))[:, None, None, :]
    image_B111 = torch.arange(B, device=x_BCHW.device)[:, None, None, None]
    channel_1C11 = torch.arange(C, device=x_BCHW.device)[None, :, None, None]
    return padded[image_B111, channel_1C11, row_B1H1, column_B11W]


def random_flip(x_BCHW: Tensor, *, generator: Generator, probability: float = 0.5) -> Tensor:
    """Mirror each image left to right with the given probability.

    Args:
        x_BCHW: Images, any type.
        generator: Source of the B random numbers.
        probability: In [0, 1].

    Returns:
        A new tensor of the shape and type of `x_BCHW`.

    Raises:
        ValueError: `probability` is outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1]; received {probability}")
    flipped_B = torch.rand(len(x_BCHW), generator=generator, device=generator.device) < probability
    return torch.where(flipped_B.to(x_BCHW.device)[:, None, None, None], x_BCHW.flip(-1), x_BCHW)


@dataclass(frozen=True)
class CropAndFlip:
    """The usual augmentation of CIFAR images as one callable `(x, generator) -> x`.

    Args:
        padding: Pixels of padding before the crop; 0 leaves the crop out.
        flip: Whether to mirror half of the images.
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, x_BCHW: Tensor, generator: Generator) -> Tensor:
        """Return the augmented batch; the input is left as it is."""
        if self.padding:
            x_BCHW = random_crop(x_BCHW, padding=self.padding, generator=generator)
        return random_flip(x_BCHW, generator=generator) if self.flip else x_BCHW


@dataclass(frozen=True)
class GaussianNoise:
    """Add N(0, sigma^2) to every coordinate, as a callable `(x, generator) -> x`; nothing is clipped.

    What the base model of randomized smoothing is trained with (Cohen et al. 2019, section 3.3).

    Args:
        sigma: Standard deviation in the unit of the input, >= 0.
    """

    sigma: float

    def __call__(self, x_BX: Tensor, generator: Generator) -> Tensor:
        """Return the noisy batch; the input is left as it is."""
        noise_BX = torch.randn(x_BX.shape, generator=generator, device=generator.device, dtype=x_BX.dtype)
        return x_BX + self.sigma * noise_BX.to(x_BX.device)
