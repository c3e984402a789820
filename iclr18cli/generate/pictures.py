"""Grids of images as figures: samples, reconstructions, interpolations."""

# N images · C channels · H height · W width · R rows · S steps · D latent dimensions

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 150


def grid(
    images_NCHW: Tensor,
    range: tuple[float, float] = (0.0, 1.0),
    *,
    columns: int = 0,
    title: str = "",
) -> Figure:
    """Draw images side by side, row by row, with one blank pixel between them.

    Args:
        images_NCHW: (N, 1 or 3, H, W); grey or RGB, on any device.
        range: Values drawn black and white; what lies outside is clipped.
        columns: Images per row; 0: about as many as rows.
        title: A line above.

    Raises:
        ValueError: There are no images, they are not grey or RGB, or the range is empty.

    Example:
        >>> figure = grid(torch.zeros(6, 1, 4, 4), columns=3)
        >>> figure.axes[0].images[0].get_array().shape
        (11, 16, 3)
    """
    mosaic = tiled(images_NCHW, range, columns=columns)
    from matplotlib.figure import Figure

    height, width = mosaic.shape[:2]
    inches = max(2.0, min(9.0, 0.55 * (columns or math.isqrt(len(images_NCHW) - 1) + 1)))
    figure = Figure(figsize=(inches, inches * height / width + (0.3 if title else 0.0)), dpi=PIXELS_PER_INCH)
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.93 if title else 1.0))
    axes.imshow(mosaic.numpy(), interpolation="nearest", aspect="equal")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=8)
    return figure


def tiled(images_NCHW: Tensor, range: tuple[float, float] = (0.0, 1.0), *, columns: int = 0) -> Tensor:
    """Return one picture, (R (H + 1) + 1, columns (W + 1) + 1, 3) float32 in [0, 1] on the CPU; empty places are white.

    Args, raises: as `grid`.
    """
    low, high = range
    if images_NCHW.dim() != 4 or images_NCHW.shape[1] not in (1, 3) or not len(images_NCHW):
        raise ValueError(f"images must be (N >= 1, 1 or 3, H, W); received {tuple(images_NCHW.shape)}")
    if not low < high:
        raise ValueError(f"range must be (low, high) with low < high; received {range}")
    x_NCHW = ((images_NCHW.detach().float().cpu() - low) / (high - low)).nan_to_num(0.0).clamp(0, 1)
    N, _, H, W = x_NCHW.shape
    columns = columns or math.isqrt(N - 1) + 1
    rows = -(-N // columns)
    mosaic = torch.ones(3, rows * (H + 1) + 1, columns * (W + 1) + 1)
    for number, image in enumerate(x_NCHW):
        top, left = 1 + number // columns * (H + 1), 1 + number % columns * (W + 1)
        mosaic[:, top : top + H, left : left + W] = image
    return mosaic.permute(1, 2, 0).contiguous()


def reconstructions(
    inputs_NCHW: Tensor, outputs_NCHW: Tensor, range: tuple[float, float] = (0.0, 1.0), *, columns: int = 10
) -> Figure:
    """Draw every input with its reconstruction below it.

    Raises:
        ValueError: The shapes differ, or as `grid`.
    """
    if inputs_NCHW.shape != outputs_NCHW.shape:
        raise ValueError(f"shapes must agree; received {tuple(inputs_NCHW.shape)} and {tuple(outputs_NCHW.shape)}")
    rows = []
    for pair in zip(inputs_NCHW.split(columns), outputs_NCHW.split(columns), strict=True):
        for part in pair:
            blank = part.new_full((columns - len(part), *part.shape[1:]), range[1])
            rows.append(torch.cat([part, blank]))
    return grid(torch.cat(rows), range, columns=columns, title="above: data; below: reconstructions")


def interpolate(
    start_RD: Tensor, end_RD: Tensor, steps: int, *, path: Literal["linear", "spherical"] = "linear"
) -> Tensor:
    """Return codes on the way from one point to another, both ends included, (R, S, D).

    Args:
        start_RD, end_RD: Codes.
        steps: S, at least 2.
        path: A straight line, or the great circle at a norm that goes linearly from one end's to the other's: under a
            Gaussian prior in many dimensions the middle of a straight line has an untypically small norm.

    Raises:
        ValueError: Shapes differ, `steps` is below 2, or there is no such path.

    Example:
        >>> interpolate(torch.zeros(1, 1), torch.ones(1, 1), 3)[0, :, 0].tolist()
        [0.0, 0.5, 1.0]
    """
    if start_RD.shape != end_RD.shape or start_RD.dim() != 2:
        raise ValueError(f"both ends must be (R, D); received {tuple(start_RD.shape)} and {tuple(end_RD.shape)}")
    if steps < 2:
        raise ValueError(f"steps must be >= 2; received {steps}")
    t_S1 = torch.linspace(0, 1, steps, device=start_RD.device, dtype=start_RD.dtype)[:, None]
    a_R1D, b_R1D = start_RD[:, None], end_RD[:, None]
    line_RSD = (1 - t_S1) * a_R1D + t_S1 * b_R1D
    if path == "linear":
        return line_RSD
    if path != "spherical":
        raise ValueError(f"path must be 'linear' or 'spherical'; received path={path!r}")
    norm_a, norm_b = a_R1D.norm(dim=-1, keepdim=True), b_R1D.norm(dim=-1, keepdim=True)
    tiny = torch.finfo(start_RD.dtype).tiny
    unit_a, unit_b = a_R1D / norm_a.clamp(min=tiny), b_R1D / norm_b.clamp(min=tiny)
    angle = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1).acos()
    # Towards angle 0 the two weights tend to those of the line; at angle pi no great circle is singled out.
    safe = angle.sin().clamp(min=1e-6)
    direction = ((1 - t_S1) * angle).sin() / safe * unit_a + (t_S1 * angle).sin() / safe * unit_b
    arc_RSD = ((1 - t_S1) * norm_a + t_S1 * norm_b) * direction
    return torch.where(angle.sin() < 1e-6, line_RSD, arc_RSD)
