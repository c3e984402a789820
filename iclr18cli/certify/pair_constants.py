"""How fast the difference of two logits can change: one Lipschitz constant for every pair of classes.

The network is cut where its last kink is. What comes after is affine, so z_y - z_j is one linear functional of the part
before, whose norm is exact; for a linear network that makes the distance to the decision boundary exact.
"""

# C classes · D entries of what the affine tail sees

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iclr18cli.certify.norms import KNOWN, Norm
from iclr18cli.certify.slopes import plain
from iclr18cli.certify.smoothness import OUTWARD, InputNorm, chain_constant, layers_of
from iclr18cli.errors import UserError

FOLDING = 1e-9
"""What rounding can do to a folded row, as a share of the tail's norm; thousands of times float64's own rounding."""

INDUCED, SCALED = "norms induced by infinity", "2-norms times the root of the dimension"


@dataclass(frozen=True)
class PairConstants:
    """Bounds over all of R^d.

    Args:
        between: (C, C) float64: |(z_y - z_j)(x) - (z_y - z_j)(x')| <= between[y, j] |x - x'|.
        K: Lipschitz constant of all logits together on the better route: the input in the norm of the claim, the
            logits in the norm of the route.
        norms: (path, bound) of every affine layer on that route, in order.
        folded: Paths of the layers of the affine tail, which count as one map.
        routes: For linf the largest pair constant by each route; empty for l2.
        route: Which of them is the smaller; with "l2" the norms of the layers.
    """

    between: Tensor
    K: float
    norms: list[tuple[str, Norm]]
    folded: list[str]
    routes: dict[str, float]
    route: str


def pair_constants(
    model: nn.Module, input_shape: Sequence[int], *, norm: InputNorm = "l2", memory: int = 2**31
) -> PairConstants:
    """Bound the Lipschitz constant of every difference of two logits; certification card, section 3.

    K_yj is the smaller of |v_y - v_j|_* K_rest, with v the rows of the affine tail in the dual norm and K_rest the
    constant of what comes before, and sqrt 2 K (l2) or 2 K (linf) with K that of all logits. For linf the same is
    computed from norms induced by infinity and from 2-norms times sqrt d, and the smaller counts, pair by pair.

    Args:
        model: A network `smoothness` can walk; parameters untouched.
        input_shape: Shape of one input, without the batch.
        norm: "l2" or "linf", the norm of the input.
        memory: Bytes the matrices of one layer may take.

    Raises:
        UserError: A layer has no known constant (attention, recurrence, other normalisation), or the output of the
            model is no vector of logits.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> [round(float(pair_constants(net, (2,), norm=norm).between[0, 1]), 6) for norm in ("l2", "linf")]
        [5.0, 7.0]
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm must be 'l2' or 'linf'; received norm={norm!r}")
    two = _bounds(model, tuple(input_shape), "l2", memory)
    if norm == "l2":
        return two
    infinity = _bounds(model, tuple(input_shape), "linf", memory)
    scaled_CC = two.between * math.sqrt(math.prod(input_shape)) * OUTWARD
    routes = {INDUCED: float(infinity.between.max()), SCALED: float(scaled_CC.max())}
    route = min(routes, key=lambda name: routes[name])
    return PairConstants(
        between=torch.minimum(infinity.between, scaled_CC),
        K=infinity.K if route == INDUCED else two.K * math.sqrt(math.prod(input_shape)) * OUTWARD,
        norms=infinity.norms if route == INDUCED else two.norms,
        folded=infinity.folded,
        routes=routes,
        route=route,
    )


def _bounds(model: nn.Module, shape: tuple[int, ...], norm: InputNorm, memory: int) -> PairConstants:
    layers = layers_of(model)
    whole = chain_constant(layers, shape, norm=norm, memory=memory)
    if len(whole.shape) != 1:
        raise UserError(
            f"The model's output has the shape {whole.shape}, so it is no vector of logits.",
            fix="end the network with a dense layer, one number per class",
        )
    (classes,) = whole.shape
    largest = (math.sqrt(2) if norm == "l2" else 2.0) * whole.constant * OUTWARD
    between_CC = torch.full((classes, classes), largest, dtype=torch.float64)
    cut = _last_kink(layers)
    if 4 * 8 * classes * math.prod(whole.after[cut][1]) > memory:  # the folded rows would not fit: the last one alone
        cut = max(cut, len(layers) - 1)
    rest_K, seen = whole.after[cut]
    tail = [module for _, module in layers[cut:]]
    if tail:
        rows_CD = _rows(tail, seen, memory)
        error = FOLDING * (whole.constant / rest_K if rest_K else 0.0)
        for y in range(classes):
            gaps_CD = rows_CD[y] - rows_CD
            # The dual norm: |v . d| <= |v|_2 |d|_2 and |v . d| <= |v|_1 |d|_inf.
            size_C = gaps_CD.norm(dim=1) if norm == "l2" else gaps_CD.abs().sum(1)
            between_CC[y] = torch.minimum(between_CC[y], (size_C + error) * rest_K * OUTWARD)
    return PairConstants(
        between_CC, whole.constant, whole.norms, [p for p, _ in layers[cut:]], {}, "2-norms of the layers"
    )


def _last_kink(layers: Sequence[tuple[str, nn.Module]]) -> int:
    """Return the place from which on every layer is affine."""
    for place in range(len(layers), 0, -1):
        if not plain(layers[place - 1][1], KNOWN):
            return place
    return 0


def _rows(tail: Sequence[nn.Module], shape: tuple[int, ...], memory: int) -> Tensor:
    """Return the matrix of an affine chain's linear part, (C, D) float64 on the CPU, one gradient per class."""
    chain = nn.Sequential(*[copy.deepcopy(module).cpu() for module in tail]).double().eval().requires_grad_(False)
    with torch.no_grad():
        classes = chain(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
    step = max(1, min(classes, memory // (64 * max(1, math.prod(shape)))))
    rows = []
    for start in range(0, classes, step):
        place = torch.arange(start, min(start + step, classes))
        x = torch.zeros(len(place), *shape, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            picked = chain(x).gather(1, place[:, None]).sum()
            (row,) = torch.autograd.grad(picked, x)
        rows.append(row.flatten(1))
    return torch.cat(rows)
