"""Perplexity with exact counts: every token but the first is predicted exactly once, `<eos>` counted like a word.

N tokens · T steps · B sequences · V words
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18cli.models.modes import evaluating

PIECE = 128
"""Steps that are computed at once; the state is carried on, so the result does not depend on it."""


def side_by_side(tokens: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (T, B): column b goes on where column b - 1 ends, the last one is filled up with -100.

    Every token but the first is a target exactly once, whatever B.
    """
    N = len(tokens) - 1
    if N < 1:
        raise ValueError(f"a text must have at least two tokens; received {len(tokens)}")
    B = min(batch_size, N)
    T = -(-N // B)
    x, y = tokens.new_zeros(T * B), tokens.new_full((T * B,), -100)
    x[:N], y[:N] = tokens[:-1], tokens[1:]
    return x.view(B, T).T.contiguous(), y.view(B, T).T.contiguous()


@torch.no_grad()
def token_losses(net: nn.Module, tokens: Tensor, device: torch.device, *, batch_size: int = 10) -> Tensor:
    """Return the loss of each token but the first, (N - 1,) in nats, in the order of the text.

    Args:
        net: A language model, tokens (T, B) and state to logits (T, B, V) and state.
        tokens: (N,).
        device: Where to compute.
        batch_size: B pieces side by side, each read from a state of zeros: 1 reads the text as one.
    """
    x_TB, y_TB = (part.to(device) for part in side_by_side(tokens, batch_size))
    losses: list[Tensor] = []
    state: Sequence[Tensor] | None = None
    with evaluating(net):
        for x, y in zip(x_TB.split(PIECE), y_TB.split(PIECE), strict=True):
            logits_TBV, state = net(x, state)
            losses.append(
                F.cross_entropy(logits_TBV.flatten(0, 1).float(), y.flatten(), reduction="none").view(y.shape)
            )
    return torch.cat(losses).T.flatten()[: len(tokens) - 1]


def dynamic_losses(
    net: nn.Module, tokens: Tensor, device: torch.device, *, rate: float, decay: float = 0.0, piece: int = 5,
    batch_size: int = 1,
) -> Tensor:  # fmt: skip
    """Return the losses of a copy of the network that learns from the text it has read: dynamic evaluation.

    After each piece theta <- theta - rate grad + decay (theta_0 - theta), SGD with decay towards the trained weights
    (Krause et al. 2018, section 4, without their RMS scaling). A loss is taken before the token is learnt from.

    Args:
        net, tokens, device, batch_size: As in `token_losses`.
        rate: Step size, >= 0; 0 gives `token_losses`.
        decay: In [0, 1].
        piece: Steps between updates.
    """
    learner = copy.deepcopy(net).requires_grad_(True)
    parameters = list(learner.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    x_TB, y_TB = (part.to(device) for part in side_by_side(tokens, batch_size))
    losses: list[Tensor] = []
    state: Sequence[Tensor] | None = None
    learner.eval()
    for layer in learner.modules():  # nothing in them drops, and cuDNN has no backward pass in evaluation mode
        if isinstance(layer, nn.RNNBase):
            layer.train(not layer.dropout)
    for x, y in zip(x_TB.split(piece), y_TB.split(piece), strict=True):
        logits_TBV, state = learner(x, state)
        loss = F.cross_entropy(logits_TBV.flatten(0, 1).float(), y.flatten(), reduction="none")
        losses.append(loss.detach().view(y.shape))
        learner.zero_grad()
        (loss.sum() / (y >= 0).sum().clamp(min=1)).backward()
        state = [part.detach() for part in state]
        with torch.no_grad():
            for parameter, first in zip(parameters, start, strict=True):
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=rate)
                parameter.lerp_(first, decay)
    return torch.cat(losses).T.flatten()[: len(tokens) - 1]


def perplexity(losses: Tensor) -> float:
    """Return e^(mean loss), inf where it is too large for a float."""
    mean = float(losses.double().mean())
    return math.exp(mean) if mean < 700 else math.inf


def interval(losses: Tensor, *, delta: float) -> tuple[float, float, int, int]:
    """Return (low, high, blocks, length): an interval of perplexity over texts like this one.

    From the means of consecutive blocks, taken as independent and normal: an estimate.

    Args:
        losses: (N,), in the order of the text.
        delta: Probability of an error, if that held.
    """
    length = max(1, min(200, len(losses) // 40))
    blocks = losses[: len(losses) // length * length].double().view(-1, length).mean(1)
    error = float(blocks.std()) / math.sqrt(len(blocks)) if len(blocks) > 1 else math.inf
    width, found = NormalDist().inv_cdf(1 - delta / 2) * error, perplexity(losses)
    return found * math.exp(-min(width, 700)), found * math.exp(min(width, 700)), len(blocks), length
