"""The statement that every language model can make about its perplexity."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from iclr18cli.certify.result import Certificate
from iclr18cli.text.perplexity import interval, perplexity, token_losses


def perplexity_certificate(
    net: nn.Module, tokens: Tensor, *, delta: float, device: torch.device, dataset: str, words: int = 0
) -> Certificate:
    """State the perplexity of a text and an interval over texts like it, from the means of its blocks: an estimate.

    Args:
        net: A language model with `decoder`.
        tokens: (N,), the test text.
        delta: Probability that the interval is wrong, if blocks were independent and normal.
        device: Where to compute.
        dataset: Name of the text.
        words: Size of the vocabulary, the perplexity of guessing; 0: that of the decoder.
    """
    began = time.perf_counter()
    losses = token_losses(net, tokens, device)
    found, (low, high, blocks, length) = perplexity(losses), interval(losses, delta=delta)
    chance = float(words or net.decoder.out_features)  # type: ignore[union-attr, arg-type]
    return Certificate(
        kind="technique", verdict="estimate", value=min(high, 1e300), quantity="perplexity per token",
        vacuous=high >= chance, vacuous_above=chance, confidence={"delta": delta, "kind": "normal, block means"},
        sample={"dataset": dataset, "split": "test", "n": len(losses), "blocks": blocks},
        statement=(f"Perplexity on {len(losses):,} test tokens is {found:.2f}; over texts like it, {low:.2f} to "
                   f"{high:.2f} at level {1 - delta:g}, from {blocks} blocks of {length} tokens."),
        not_claimed=["That other texts are like this one.",
                     "An exact level: block means are taken as independent and normal."],
        assumptions=["Blocks of the text are independent, their mean is normal."],
        constants={"perplexity": min(found, 1e300), "low": low, "high": min(high, 1e300)},
        seconds=time.perf_counter() - began,
    )  # fmt: skip
