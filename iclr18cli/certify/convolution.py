"""Norms of convolutions that do not need the whole matrix: exact on a circle, bounds for images padded by zeros."""

# G groups · O output channels and I input channels of a group · a, b kernel rows and columns

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from iclr18cli.certify.gram import double, matrix_norm, top_root

OPERATIONS = 1e12
"""Above about so many operations no Fourier blocks are computed."""

Pair = int | Sequence[int]


def multiplicity(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], output: Sequence[int]
) -> tuple[int, int]:
    """Return in how many windows one pixel lies at most, along height and width.

    Window p covers the pixels s p + d a - padding, 0 <= a < k. Of the a that fit one pixel, any two differ by a
    multiple of s / gcd(s, d), so there are at most ceil(k gcd(s, d) / s) of them; and not more windows than outputs.

    Example:
        >>> multiplicity((8, 5), (2, 1), (1, 1), (14, 1))
        (4, 1)
    """
    counts = [min(-(-k * math.gcd(s, d) // s), n) for k, s, d, n in zip(kernel, stride, dilation, output, strict=True)]
    return counts[0], counts[1]


def reshaped_bounds(weight: Tensor, windows: tuple[int, int], groups: int = 1) -> list[float]:
    """Return bounds from the kernel, reshaped in four ways to a matrix.

    1. O x Iab. Every output pixel is K times its window, and the windows repeat a pixel at most m_h m_w times:
       |conv| <= sqrt(m_h m_w) |K|.
    2. Oab x I. Every input pixel sends K times itself to ab places, and one output is a sum of at most ab of them,
       whose square is at most ab times the sum of squares: sqrt(ab) |K|.
    3. Oa x Ib and 4. Ob x Ia. The first argument along one axis, the second along the other: sqrt(a m_w), sqrt(m_h b).

    With stride and padding the terms that are left out only make the sums smaller. Groups act on channels of their own,
    so the largest norm of a group counts. (Singla and Feizi 2021 give the four reshapes for stride 1.)

    Args:
        weight: (G O, I, a, b) float64.
        windows: (m_h, m_w) from `multiplicity`.
        groups: G.
    """
    k = weight.unflatten(0, (groups, -1))
    rows, columns = weight.shape[2:]
    m_h, m_w = windows
    shapes = [
        (m_h * m_w, k.flatten(2)),
        (rows * columns, k.permute(0, 1, 3, 4, 2).flatten(1, 3)),
        (rows * m_w, k.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)),
        (m_h * columns, k.permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2)),
    ]
    return [math.sqrt(factor) * matrix_norm(matrix) * (1 + 1e-15) for factor, matrix in shapes]


def circular_norm(
    weight: Tensor, grid: Pair, *, stride: Pair = 1, dilation: Pair = 1, groups: int = 1, memory: int = 2**31
) -> float:
    """Return the norm of a circular convolution on a grid: exact, with the rounding of float64 added outwards.

    The Fourier transform makes the map block-diagonal, one O x I block per frequency, and its norm is the largest of
    theirs (Sedghi, Gupta, Long 2019; sngan card section 5). Strides fold the frequencies that alias: s_h s_w blocks
    side by side, divided by sqrt(s_h s_w). Groups act on channels of their own; the largest norm counts. A kernel
    longer than the grid overlaps itself, which the transform does too.

    Args:
        weight: (G O, I, a, b), of any floating type.
        grid: Height and width of the circle, in pixels.
        stride, dilation, groups: Of the convolution. One number stands for both axes.
        memory: Bytes that the transformed kernels may take at a time.

    Raises:
        ValueError: A stride does not divide its side of the grid, so the outputs are no circle.

    Example:
        >>> second_difference = torch.tensor([[[[1.0, -2.0, 1.0]]]])
        >>> [round(circular_norm(second_difference, (1, n)), 6) for n in (3, 4)]    # frequency pi is not on 3 pixels
        [3.0, 4.0]
    """
    grid, stride, dilation = both(grid), both(stride), both(dilation)
    if any(n < 1 or n % s for n, s in zip(grid, stride, strict=True)):
        raise ValueError(f"the stride must divide the grid; received grid={grid!r}, stride={stride!r}")
    k = double(weight).unflatten(0, (groups, -1))
    G, outputs, inputs, *kernel = k.shape
    folds = math.prod(stride)
    other = max(outputs, inputs * folds)
    phase_h, phase_w = (
        _phases(grid[axis] // stride[axis], stride[axis], dilation[axis], kernel[axis], k) for axis in (0, 1)
    )  # (u, s, a)
    # A real kernel has conjugate frequencies: half of the columns are enough.
    phase_w = phase_w[: len(phase_w) // 2 + 1]
    step = max(1, memory // (4 * 16 * G * outputs * inputs * folds * len(phase_w)))
    best = 0.0
    for start in range(0, len(phase_h), step):
        part = torch.einsum("usa,vtb,goiab->uvgoist", phase_h[start : start + step], phase_w, k.to(phase_h.dtype))
        folded = part.flatten(4) / math.sqrt(folds)
        wide = folded if outputs <= inputs * folds else folded.mH
        best = max(best, top_root(wide @ wide.mH, terms=4 * (math.prod(kernel) + other)))
    return best


def circular_bound(
    weight: Tensor,
    image: Sequence[int],
    output: Sequence[int],
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    memory: int = 2**31,
) -> float | None:
    """Return a bound for a convolution whose padding repeats the image from the other side.

    Along an axis of n pixels, output q is what the circle of stride g = gcd(s, n) has at s q mod n, up to a shift: the
    layer selects from that circle's n/g outputs, and none of them more than ceil(output g / n) times. A selection's
    norm is the root of that. Exact where each is selected equally often: with 2 padding = d (k - 1) and a stride that
    divides n it is once.

    Args:
        weight: (G O, I, a, b) float64.
        image, output: Height and width before the padding and after the convolution.
        stride, dilation, groups, memory: As of `circular_norm`.

    Returns:
        The bound, or None where it would take more than about 1e12 operations.
    """
    steps = [math.gcd(s, n) for s, n in zip(stride, image, strict=True)]
    repeats = math.prod(-(-count * g // n) for count, g, n in zip(output, steps, image, strict=True))
    if _operations(weight, image, steps, groups) > OPERATIONS:
        return None
    norm = circular_norm(weight, image, stride=steps, dilation=dilation, groups=groups, memory=memory)
    return math.sqrt(repeats) * norm * (1 + 1e-15)


def fourier_bound(
    weight: Tensor,
    image: Sequence[int],
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    memory: int = 2**31,
) -> float | None:
    """Return the norm of the circular convolution on a grid large enough that nothing wraps round.

    The zero-padded map is that one on inputs that vanish outside the image, with some outputs left out, so its norm is
    not larger. A grid of N >= n + d (k - 1) points is needed; N = n would not bound.

    Args:
        weight: (G O, I, a, b) float64.
        image: Height and width of the input.
        stride, dilation, groups: Of the convolution; its padding does not matter.
        memory: As of `circular_norm`.

    Returns:
        The bound, or None where it would take more than about 1e12 operations.
    """
    grid = [
        s * -(-(n + d * (size - 1)) // s)
        for n, d, size, s in zip(image, dilation, weight.shape[2:], stride, strict=True)
    ]
    if _operations(weight, grid, stride, groups) > OPERATIONS:
        return None
    return circular_norm(weight, grid, stride=stride, dilation=dilation, groups=groups, memory=memory)


def both(value: Pair) -> tuple[int, int]:
    """Return one number per axis, height first."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


def _operations(weight: Tensor, grid: Sequence[int], stride: Sequence[int], groups: int) -> float:
    """Return about how many operations `circular_norm` takes."""
    rows, columns = (n // s for n, s in zip(grid, stride, strict=True))
    sides = weight.shape[0] // groups, weight.shape[1] * math.prod(stride)
    side, other = min(sides), max(sides)
    return 8.0 * rows * (columns // 2 + 1) * groups * (side * side * other + 10 * side**3)


def _phases(grid: int, stride: int, dilation: int, size: int, like: Tensor) -> Tensor:
    """Return exp(-2 pi i (u + j grid) d a / (s grid)) shaped (u, j, a): frequency u and those that alias with it."""
    frequency = torch.arange(grid * stride, dtype=torch.float64, device=like.device).view(stride, grid).T
    place = dilation * torch.arange(size, dtype=torch.float64, device=like.device)
    turns = torch.remainder(frequency[..., None] * place, stride * grid) / (stride * grid)
    return torch.polar(torch.ones_like(turns), -2 * math.pi * turns)


def convolution_gram(
    weight: Tensor,
    image: Sequence[int],
    output: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the smaller of A A^T and A^T A for the whole map A of a zero-padded convolution.

    Its blocks are sums of products of two kernel positions, K_ab K_a'b'^T between two outputs or K_ab^T K_a'b' between
    two pixels, so A itself (for the paper's second layer 3,200 x 12,544) is never formed.

    Args:
        weight: (O, I, a, b) float64; one group.
        image, output: Height and width before and after.
        stride, padding, dilation: Along height and width; padding before the first pixel.

    Returns:
        (n, n) float64 with n = min(O * output pixels, I * input pixels), in an order of its own.
    """
    outputs, inputs, rows, columns = weight.shape
    by_output = outputs * math.prod(output) <= inputs * math.prod(image)
    k = weight.permute(2, 3, 0, 1) if by_output else weight.permute(2, 3, 1, 0)  # (a, b, channels of the side, others)
    C, sides = k.shape[2], tuple(output) if by_output else tuple(image)
    gram = weight.new_zeros(*sides, *sides, C, C)
    places = [
        _meetings(
            image[axis], output[axis], weight.shape[2 + axis], stride[axis], padding[axis], dilation[axis], by_output
        )
        for axis in (0, 1)
    ]
    for a in range(rows):
        for b in range(columns):
            products = torch.einsum("ci,xydi->xycd", k[a, b], k)
            for other_a, (h, other_h) in places[0][a].items():
                for other_b, (w, other_w) in places[1][b].items():
                    at = (h[:, None], w[None, :], other_h[:, None], other_w[None, :])
                    gram[at] += products[other_a, other_b]
    return gram.permute(0, 1, 4, 2, 3, 5).reshape(C * math.prod(sides), -1)


def _meetings(
    image: int, output: int, size: int, stride: int, padding: int, dilation: int, by_output: bool
) -> list[dict[int, tuple[Tensor, Tensor]]]:
    """List along one axis, for kernel places a and a', which two outputs share a pixel (or two pixels an output)."""
    window = torch.arange(output)
    pixel = [stride * window + dilation * a - padding for a in range(size)]
    found: list[dict[int, tuple[Tensor, Tensor]]] = []
    for a in range(size):
        found.append({})
        for other in range(size):
            if by_output:  # s p + d a = s p' + d a'
                shift = dilation * (a - other)
                partner = window + shift // stride
                meets = (
                    (pixel[a] >= 0) & (pixel[a] < image) & (partner >= 0) & (partner < output) & (shift % stride == 0)
                )
                pair = (window[meets], partner[meets])
            else:
                meets = (pixel[a] >= 0) & (pixel[a] < image) & (pixel[other] >= 0) & (pixel[other] < image)
                pair = (pixel[a][meets], pixel[other][meets])
            if len(pair[0]):
                found[a][other] = pair
    return found
