"""`alternating train`: SGD on a language model, straight through its quantiser (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from iclr18_alternating.config import TrainConfig
from iclr18cli.compression.layers import MultiBitConfig
from iclr18cli.compression.networks import quantise_, train_quantised_, trained_float_, transform
from iclr18cli.compression.straight_through import clip_
from iclr18cli.errors import UserError
from iclr18cli.models.registry import build
from iclr18cli.text.corpus import Corpus, open_corpus
from iclr18cli.text.perplexity import perplexity, token_losses
from iclr18cli.text.training import Plan, fit, save
from iclr18cli.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run

MODEL = "recurrent-lm"


def train(config: TrainConfig, run: Run) -> None:
    """Minimise the cross-entropy of the next token."""
    corpus = open_corpus(
        config.dataset, data_dir=run.settings.data_dir, download=run.settings.download, limit=config.limit,
        limit_eval=config.limit_eval, max_words=config.max_words, vocabulary=vocabulary_of(config, run),
    )  # fmt: skip
    net, kwargs = network(config, corpus, run)
    coding = MultiBitConfig(
        weight_bits=config.bits_weights or 1, activation_bits=config.bits_activations, method=config.method,
        iterations=config.iterations, activation_iterations=config.iterations,
    )  # fmt: skip
    quantised = bool(config.bits_weights)
    if quantised:
        train_quantised_(net, coding)
    net = run.prepare(net)
    # Section 4: master weights stay in [-1, 1].
    fit(net, corpus, plan(config), run, loss, after_step=clip_ if quantised else None)
    if quantised:
        net = quantise_(trained_float_(net), coding)
    if run.world.first:
        save(run.path, net, MODEL, kwargs, corpus.vocabulary, config.dataset, (transform(coding),) if quantised else ())
    run.finish(**{
        f"{name}_perplexity": perplexity(token_losses(net, corpus.split(name), run.device))
        for name in ("valid", "test")
    })  # fmt: skip


def loss(
    net: nn.Module, x_TB: Tensor, y_TB: Tensor, state: Sequence[Tensor] | None
) -> tuple[Tensor, Sequence[Tensor], dict[str, Any]]:
    """Return (mean cross-entropy, state, nothing else to log) of a piece of text."""
    logits_TBV, after = net(x_TB, state)
    return F.cross_entropy(logits_TBV.flatten(0, 1), y_TB.flatten()), after, {}


def plan(config: TrainConfig) -> Plan:
    """Return how a network is trained: the step size is divided after every epoch without a new best."""
    return Plan(
        epochs=config.epochs, batch_size=config.batch_size, bptt=config.unroll, learning_rate=config.learning_rate,
        clip=config.clip, decay=config.decay, least_rate=config.least_rate,
    )  # fmt: skip


def network(config: TrainConfig, corpus: Corpus, run: Run) -> tuple[nn.Module, dict[str, Any]]:
    """Return (float network, arguments that build it), with the weights of the run to start from.

    Raises:
        UserError: That run has no float model, or one for another text.
    """
    kwargs: dict[str, Any] = {"vocabulary_size": len(corpus.vocabulary), "hidden": config.hidden, "cell": config.cell}
    kwargs |= {"layers": config.layers, "dropout_input": config.dropout, "dropout_output": config.dropout}
    kwargs |= {"dropout_hidden": config.dropout, "locked": False}
    if not config.start:
        return build(MODEL, **kwargs), kwargs
    from iclr18cli.models.card import open_model

    net, card = open_model(started(config, run))
    if card.model != MODEL or card.transforms or card.dataset != config.dataset:
        raise UserError(
            f"{config.start} has no float language model for '{config.dataset}'.",
            fix=f"iclr18 alternating train --bits-weights 0 --dataset {config.dataset}",
        )
    return net.requires_grad_(True).train(), dict(card.kwargs)


def started(config: TrainConfig, run: Run) -> Path:
    """Return the folder of the run to start from."""
    from iclr18cli.paths import runs_root
    from iclr18cli.run.directory import find_run

    return find_run(config.start, runs_root(run.settings.runs_dir)).path


def vocabulary_of(config: TrainConfig, run: Run) -> Vocabulary | None:
    """Return the vocabulary of the run to start from; None: there is none."""
    return Vocabulary.load(started(config, run)) if config.start else None
