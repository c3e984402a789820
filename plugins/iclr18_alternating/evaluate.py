"""Perplexity, `alternating eval`, and how a model is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18_alternating.config import EvalConfig
from iclr18_alternating.corpus import Corpus, columns, open_corpus
from iclr18cli.compression.layers import MultiBitConfig, memory, transform
from iclr18cli.models.card import ModelCard, save_model
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

PIECE = 128
"""Steps of a sequence that are computed at once; the state is carried on, so the result does not depend on it."""


@torch.no_grad()
def perplexity(net: nn.Module, tokens: Tensor, device: torch.device, *, batch_size: int = 10) -> tuple[float, Tensor]:
    """Return (e^mean loss, losses (T, B) in nats per token); the text is cut into B pieces, each read from state 0."""
    text_NB, losses, state = columns(tokens, batch_size).to(device), [], None
    with evaluating(net):
        for start in range(0, len(text_NB) - 1, PIECE):
            piece = text_NB[start : start + PIECE + 1]
            logits_TBV, state = net(piece[:-1], state)
            loss = F.cross_entropy(logits_TBV.flatten(0, 1), piece[1:].flatten(), reduction="none")
            losses.append(loss.view(-1, batch_size))
    losses_TB = torch.cat(losses)
    return math.exp(min(700.0, float(losses_TB.double().mean()))), losses_TB


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on a split."""
    net = run.model()
    tokens = text(run).split(config.split, config.limit)
    found, losses_TB = perplexity(net, tokens, run.device, batch_size=config.batch_size)
    size = memory(net)
    told: dict[str, float] = {"bytes": size["packed"] + size["rest"], "packed_bytes": size["packed"]}
    if size["packed"]:
        told["times_smaller"] = size["float32"] / size["packed"]
    return {
        "dataset": run.card.dataset,
        "split": config.split,
        "perplexity": found,
        "tokens": losses_TB.numel(),
        **told,
    }


def text(run: OpenedRun) -> Corpus:
    """Return the text a run was trained on."""
    return open_corpus(run.card.dataset, data_dir=run.settings.data_dir)


def save(
    path: Path, net: nn.Module, model: str, kwargs: dict[str, Any], corpus: Corpus, dataset: str,
    coding: MultiBitConfig | None,
) -> None:  # fmt: skip
    """Write a model with its card: float, or codes and coefficients alone."""
    transforms = (transform(coding),) if coding else ()
    card = ModelCard(
        model=model, kwargs=kwargs, task="language", shape=(None,), dtype="int64", classes=len(corpus.vocabulary),
        dataset=dataset, transforms=transforms,
    )  # fmt: skip
    save_model(path, net, card)
