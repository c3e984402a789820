"""Spectral normalisation as a parametrisation: W / sigma(W), by the paper's reshaped kernel or the convolution's norm.

O, I output and input channels · a, b kernel rows and columns · n rows, m columns of the reshaped weight
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import grad as conv_grad
from torch.nn.utils import parametrize

WARM_UP = 15
"""Power iterations when a layer is normalised, as in torch: sigma is near its value from the first step on."""


class LinearMap(Protocol):
    """A linear map A(W) that is linear in its weight too, so that sigma = <u, A(W) v> has the gradient u A' v in W."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Return the shape of u; that of v follows."""
        ...

    def apply(self, W: Tensor, v: Tensor) -> Tensor:
        """Return A(W) v."""
        ...

    def adjoint(self, W: Tensor, u: Tensor) -> Tensor:
        """Return A(W)^T u."""
        ...

    def subtract(self, G: Tensor, factor: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return G - factor d<u, A(W) v>/dW."""
        ...


class Reshaped:
    """The n x m matrix of the paper: a row per output channel, so n = O and m = I a b.

    Args:
        weight: Its shape is what counts.
        dim: Dimension of the output channels: 1 for transposed convolutions, else 0.
    """

    def __init__(self, weight: Tensor, dim: int = 0):
        self.dim = dim
        self.rows: tuple[int, ...] = (weight.shape[dim],)

    def matrix(self, W: Tensor) -> Tensor:
        """Return the weight as a matrix."""
        return (W if self.dim == 0 else W.transpose(0, self.dim)).flatten(1)

    def apply(self, W: Tensor, v: Tensor) -> Tensor:
        """Return W v, (n,)."""
        return torch.mv(self.matrix(W), v)

    def adjoint(self, W: Tensor, u: Tensor) -> Tensor:
        """Return W^T u, (m,)."""
        return torch.mv(self.matrix(W).T, u)

    def subtract(self, G: Tensor, factor: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return G - factor u v^T in the weight's shape."""
        if self.dim == 0:
            return torch.addr(G.flatten(1), u * -factor, v).view(G.shape)
        swapped = G.transpose(0, self.dim)
        return torch.addr(swapped.flatten(1), u * -factor, v).view(swapped.shape).transpose(0, self.dim)


class Convolution:
    """A zero-padded convolution of images of one size; a transposed one is its adjoint and has the same norm.

    Args:
        layer: `nn.Conv2d` or `nn.ConvTranspose2d` with zero padding.
        input_size: (height, width) of the layer's input.

    Raises:
        ValueError: The layer pads otherwise, or no size is given.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, input_size: tuple[int, int] | None):
        if input_size is None:
            raise ValueError("mode='operator' needs input_size, the height and width of the layer's input")
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(
                "mode='operator' takes zero padding given as numbers; received "
                f"padding_mode={layer.padding_mode!r}, padding={layer.padding!r}"
            )
        self.places: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, layer.groups)
        size = tuple(input_size)
        with torch.device("meta"):
            bare: Any = copy.copy(layer)
            bare._parameters = {name: p.to("meta") if p is not None else None for name, p in layer._parameters.items()}
            made = tuple(bare(torch.empty(1, layer.in_channels, *size, dtype=layer.weight.dtype)).shape[1:])
        taken = (layer.in_channels, *size)
        # Of a transposed convolution the adjoint is iterated: it maps what the layer makes to what it takes.
        columns, rows = (made, taken) if isinstance(layer, nn.ConvTranspose2d) else (taken, made)
        self.columns: tuple[int, ...] = (1, *columns)
        self.rows: tuple[int, ...] = (1, *rows)

    def apply(self, W: Tensor, v: Tensor) -> Tensor:
        """Return the convolution of v, (1, O, h', w')."""
        return F.conv2d(v, W, None, *self.places)

    def adjoint(self, W: Tensor, u: Tensor) -> Tensor:
        """Return the adjoint on u, (1, I, h, w)."""
        return conv_grad.conv2d_input(self.columns, W, u, *self.places)

    def subtract(self, G: Tensor, factor: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return G - factor d<u, W * v>/dW."""
        return G - factor * conv_grad.conv2d_weight(v, G.shape, u, *self.places)


class Divide(torch.autograd.Function):
    """W / sigma(W) with sigma differentiated through W alone: the gradient is (G - <G, W_bar> dsigma/dW) / sigma."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, sigma: Tensor, u: Tensor, v: Tensor, map: LinearMap) -> Tensor:
        """Return W_bar."""
        W_bar = W / sigma
        ctx.save_for_backward(W_bar, sigma, u, v)
        ctx.map = map
        return W_bar

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> Any:
        """Return the gradient in W; u and v are constants, as in the paper."""
        W_bar, sigma, u, v = ctx.saved_tensors
        along = torch.dot(G.flatten(), W_bar.flatten())
        return ctx.map.subtract(G, along, u, v) / sigma, None, None, None, None


class SpectralNorm(nn.Module):
    """The parametrisation W -> W / sigma, sigma by power iteration from where it was left; algorithm 1 of the paper.

    Each access in training mode takes `n_power_iterations` steps v <- A^T u / |A^T u|, u <- A v / |A v| and divides by
    sigma = |A v| = <u, A v>; in evaluation mode u and v stay and sigma = <u, A v>. sigma never exceeds the norm it
    approaches, so |W_bar| >= 1: a bound needs the true norm (`iclr18cli.certify.norms`).

    Args:
        weight: The weight to start from.
        map: Whose norm is taken: `Reshaped` or `Convolution`.
        n_power_iterations: Per access in training mode, at least 1.
        eps: Added to the norms that are divided by.

    Raises:
        ValueError: `n_power_iterations` is below 1.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, map: LinearMap, *, n_power_iterations: int = 1, eps: float = 1e-12):
        super().__init__()
        if n_power_iterations < 1:
            raise ValueError(f"n_power_iterations must be >= 1; received {n_power_iterations}")
        self.map, self.n_power_iterations, self.eps = map, n_power_iterations, eps
        with torch.no_grad():
            u = torch.randn(map.rows, dtype=weight.dtype, device=weight.device)
            u, v, _ = self.iterated(weight, u / u.norm(), WARM_UP)
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def iterated(self, W: Tensor, u: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (u, v, sigma) after some power iterations; new tensors, so earlier graphs keep theirs."""
        for _ in range(steps):
            v = self.map.adjoint(W, u)
            v = v / (v.norm() + self.eps)
            image = self.map.apply(W, v)
            sigma = image.norm()
            u = torch.where(sigma > 0, image / (sigma + self.eps), u)  # a weight of zeros keeps the direction
        return u, v, sigma.clamp(min=self.eps)

    def forward(self, W: Tensor) -> Tensor:
        """Return W / sigma."""
        with torch.no_grad(), torch.autocast(W.device.type, enabled=False):
            if self.training:
                u, v, sigma = self.iterated(W, self.u, self.n_power_iterations)
                self.u.copy_(u)
                self.v.copy_(v)
            else:
                u, v = self.u.clone(), self.v.clone()
                sigma = (u * self.map.apply(W, v)).sum()
                sigma = torch.where(sigma.abs() < self.eps, self.eps, sigma)
        return Divide.apply(W, sigma, u, v, self.map)

    def right_inverse(self, W: Tensor) -> Tensor:
        """Return what an assigned weight is stored as, itself, and look for its norm from a new direction."""
        with torch.no_grad():
            u = torch.randn_like(self.u)
            u, v, _ = self.iterated(W, u / u.norm(), WARM_UP)
            self.u.copy_(u)
            self.v.copy_(v)
        return W

    def extra_repr(self) -> str:
        """Show the arguments."""
        return f"{type(self.map).__name__}, n_power_iterations={self.n_power_iterations}"


def spectral_norm(
    layer: nn.Module,
    *,
    mode: Literal["reshape", "operator"] = "reshape",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    input_size: tuple[int, int] | None = None,
    name: str = "weight",
) -> nn.Module:
    """Normalise a layer's weight in place and return the layer: for `torch.nn.utils.parametrizations.spectral_norm`.

    Args:
        layer: Linear, Embedding, Conv1d to Conv3d or a transposed convolution.
        mode: "reshape", the norm of the O x I a b matrix as in the paper, which is **not** the norm of the convolution;
            or "operator", that norm itself on images of `input_size` (Conv2d, ConvTranspose2d; of a matrix the same).
        n_power_iterations, eps: See `SpectralNorm`.
        input_size: (height, width) of the layer's input; mode "operator" needs it.
        name: Of the weight.

    Raises:
        ValueError: Unknown mode, a vector, or a layer or size that "operator" does not take.

    Example:
        >>> layer = spectral_norm(nn.Linear(20, 10), n_power_iterations=20)
        >>> round(torch.linalg.matrix_norm(layer.weight, ord=2).item(), 2)
        1.0
    """
    if mode not in ("reshape", "operator"):
        raise ValueError(f"mode must be 'reshape' or 'operator'; received mode={mode!r}")
    weight = getattr(layer, name)
    if weight.dim() < 2:
        raise ValueError(f"a weight of at least two dimensions has a spectral norm; received {tuple(weight.shape)}")
    map: LinearMap
    if mode == "operator" and isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        map = Convolution(layer, input_size)
    else:
        if mode == "operator" and weight.dim() > 2:
            raise ValueError(
                "mode='operator' takes Conv2d, ConvTranspose2d and layers whose weight is a matrix; received "
                f"{type(layer).__name__}"
            )
        transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        map = Reshaped(weight, int(transposed))
    made = SpectralNorm(weight, map, n_power_iterations=n_power_iterations, eps=eps)
    # unsafe: the checks of a safe registration would take a power iteration.
    parametrize.register_parametrization(layer, name, made, unsafe=True)
    return layer


def folded(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose weights are plain tensors, as its parametrisations make them now."""
    plain = copy.deepcopy(module).eval()
    for part in plain.modules():
        if parametrize.is_parametrized(part):
            made = {name: getattr(part, name).detach().clone() for name in part.parametrizations}  # type: ignore[union-attr]
            # Not remove_parametrizations(): a copy shares its class with the original, which would lose its weight.
            del part.parametrizations
            part.__class__ = type(part).__bases__[0]
            for name, W in made.items():
                part.register_parameter(name, nn.Parameter(W))
    return plain.requires_grad_(False)
