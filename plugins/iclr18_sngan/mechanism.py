"""What holds a critic, measured: norms of its layers, their product, singular values, and gradients in the input.

B batch · X the axes of one input · O outputs of a layer
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iclr18_sngan.model import Critic
from iclr18_sngan.normalization import Reshaped, folded
from iclr18cli.certify.norms import double, reshaped_norm
from iclr18cli.certify.smoothness import Chain, chain_constant, layers_of
from iclr18cli.models.modes import evaluating


def weights(critic: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (name, matrix) of every weight as it is used now, reshaped as the paper does, in float64.

    Power iterations are left where they are.
    """
    plain = folded(critic)
    found = []
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
            found.append((name, Reshaped(layer.weight).matrix(double(layer.weight))))
    return found


def spectra(critic: nn.Module) -> dict[str, Tensor]:
    """Return the singular values of every reshaped weight, largest first."""
    return {name: torch.linalg.svdvals(matrix) for name, matrix in weights(critic)}


def effective_rank(values: Tensor) -> float:
    """Return exp of the entropy of the singular values' shares: how many directions a weight uses, at least 1.

    Example:
        >>> round(effective_rank(torch.ones(5)), 6)
        5.0
    """
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp().item()


def gradient_norms(critic: Critic, x: Tensor, y_B: Tensor | None = None) -> Tensor:
    """Return |grad_x D(x, y)|_2 of every input, (B,), in evaluation mode."""
    with evaluating(critic), torch.enable_grad():
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(critic(x, y_B).sum(), x)
    return grad.flatten(1).norm(dim=1)


def observe(critic: Critic, real: Tensor, fake: Tensor, y_B: Tensor | None, t_B: Tensor) -> dict[str, float]:
    """Return what the paper's argument is about, at one moment of a training.

    Args:
        critic: Left as it was.
        real, fake: (B, *X).
        y_B: Classes of both, where there are any.
        t_B: Places on the lines between them, in [0, 1].

    Returns:
        log10_norms: of the product of the reshaped layer norms (largest singular values); gradient_real,
        gradient_fake, gradient_between: mean |grad D|; effective_rank: mean over the layers with more than one
        singular value, as a share of their number.
    """
    values = spectra(critic)
    t = t_B.view(-1, *(1,) * (real.dim() - 1))
    places = {"real": real, "fake": fake, "between": t * real + (1 - t) * fake}
    ranks = [effective_rank(s) / len(s) for s in values.values() if len(s) > 1]
    return {
        "log10_norms": sum(math.log10(max(float(s[0]), 1e-300)) for s in values.values()),
        "effective_rank": sum(ranks) / max(1, len(ranks)),
        **{f"gradient_{name}": gradient_norms(critic, x, y_B).mean().item() for name, x in places.items()},
    }


@dataclass(frozen=True)
class Bound:
    """A Lipschitz bound of a critic on all inputs, and the norms behind it.

    Args:
        value: Upper bound of |D(x) - D(x')| / |x - x'|, the largest over the classes.
        layers: (name, upper bound of the operator norm, norm of the reshaped weight, output shape) in order.
        chain: The walk through phi.
        head: |w|, or the largest |w + e_y|.
        claimed: What the same walk gives with reshaped norms in the place of operator norms: no bound.
    """

    value: float
    layers: list[tuple[str, float, float, tuple[int, ...]]]
    chain: Chain
    head: float
    claimed: float

    @property
    def operator(self) -> float:
        """Return the product of the operator norms' bounds of convolutions and dense layers and of the head."""
        return math.prod(operator for _, operator, _, _ in self.layers)

    @property
    def reshaped(self) -> float:
        """Return the product of the reshaped norms of the same layers and of the head."""
        return math.prod(reshaped for _, _, reshaped, _ in self.layers)


def lipschitz_bound(critic: Critic, input_shape: Sequence[int]) -> Bound:
    """Bound the critic by operator norms of its layers, in evaluation mode.

    Raises:
        UserError: A layer has no known constant (layer normalisation: it divides by what may vanish).
    """
    plain = folded(critic)
    assert isinstance(plain, Critic)
    chain = chain_constant(layers_of(plain.features, "features"), input_shape)
    rows = double(plain.head.weight)
    if plain.embedding is not None:
        rows = rows + double(plain.embedding.weight)
    head = rows.norm(dim=1).max().item()
    named = dict(plain.named_modules(remove_duplicate=False))
    layers = []
    for name, norm in chain.norms:
        layer = named[name]
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layers.append((name, norm.value, reshaped_norm(layer.weight), norm.output_shape))
    # Every bound is homogeneous in its weight: scaled so, it becomes the reshaped norm.
    for name, operator, reshaped, _ in layers:
        if operator:
            named[name].weight.mul_(reshaped / operator)
    claimed = chain_constant(layers_of(plain.features, "features"), input_shape).constant * head
    layers.append(("head", head, head, (1,)))
    return Bound(chain.constant * head * (1 + 1e-12), layers, chain, head, claimed)
