"""A bound of how far a reconstruction can move: the product of operator norms of encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from iclr18_wae.model import AutoEncoder
from iclr18cli.certify.norms import operator_norm
from iclr18cli.certify.slopes import slopes
from iclr18cli.errors import UserError


def chain_constant(chain: nn.Sequential, input_shape: Sequence[int]) -> tuple[float, list[float]]:
    """Return (product, constants of its layers): an upper bound of the chain's 2-norm Lipschitz constant.

    Args:
        chain: In evaluation mode.
        input_shape: Of one input.

    Raises:
        UserError: A layer has no known constant.
    """
    shape, constants = tuple(input_shape), []
    for layer in chain:
        slope = slopes(layer)
        if slope is not None:
            constants.append(float(slope[0]))
            continue
        norm = operator_norm(layer, shape)
        constants.append(norm.value)
        shape = norm.output_shape
    return math.prod(constants), constants


def reconstruction_constant(net: AutoEncoder, input_shape: Sequence[int]) -> tuple[float, float]:
    """Return (L_Q, L_G), upper bounds of the constants of encoder and decoder.

    Raises:
        UserError: The encoder is random, the prior changes codes by an unbounded factor, or a layer has no constant.
    """
    if net.random:
        raise UserError("A random encoder has no Lipschitz constant.", fix="certify a deterministic one")
    if net.prior.kind == "sphere":
        raise UserError("Normalised codes have no Lipschitz constant.", why="the factor 1/|e| grows without bound at 0")
    return chain_constant(net.encoder, input_shape)[0], chain_constant(net.decoder, (net.prior.D,))[0]
