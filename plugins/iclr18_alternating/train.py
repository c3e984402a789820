"""`alternating train`: SGD on a language model, straight through its quantiser (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from iclr18_alternating.config import TrainConfig
from iclr18_alternating.corpus import Corpus, columns, open_corpus
from iclr18_alternating.evaluate import perplexity, save
from iclr18cli.compression.layers import MultiBitConfig, quantise_, train_quantised_, trained_float_
from iclr18cli.compression.straight_through import clip_
from iclr18cli.errors import UserError
from iclr18cli.models.registry import build

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run

MODEL = "alternating/lm"


def train(config: TrainConfig, run: Run) -> None:
    """Minimise the cross-entropy of the next token."""
    corpus = open_corpus(config.dataset, data_dir=run.settings.data_dir, download=run.settings.download)
    net, kwargs = network(config, corpus, run)
    coding = MultiBitConfig(
        weight_bits=config.bits_weights or 1, activation_bits=config.bits_activations, method=config.method,
        iterations=config.iterations, activation_iterations=config.iterations,
    )  # fmt: skip
    if config.bits_weights:
        train_quantised_(net, coding)
    net = run.prepare(net)
    fit(net, corpus, config, run)
    if config.bits_weights:
        net = quantise_(trained_float_(net), coding)
    save(run.path, net, MODEL, kwargs, corpus, config.dataset, coding if config.bits_weights else None)
    run.finish(
        **{f"{name}_perplexity": perplexity(net, corpus.split(name), run.device)[0] for name in ("valid", "test")}
    )


def fit(net: nn.Module, corpus: Corpus, config: TrainConfig, run: Run) -> None:
    """Train a network in place; the best epoch's weights are kept."""
    optimizer = torch.optim.SGD(net.parameters(), lr=config.learning_rate)
    run.track(net=net, optimizer=optimizer)
    text_NB = columns(corpus.split("train", config.limit), config.batch_size).to(run.device)
    starts = range(0, len(text_NB) - 1, config.unroll)
    for step in run.steps(config.epochs * len(starts)):
        place = step % len(starts)
        piece_TB = text_NB[starts[place] : starts[place] + config.unroll + 1]
        own_B = run.share(torch.arange(config.batch_size, device=run.device))
        state = run.values.get("state") if place else None
        logits_TBV, state = net(piece_TB[:-1, own_B], state)
        loss = F.cross_entropy(logits_TBV.flatten(0, 1), piece_TB[1:, own_B].flatten())
        run.values["state"] = tuple(part.detach() for part in state)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        optimizer.step()
        if config.bits_weights:
            clip_(net)  # section 4: master weights stay in [-1, 1]
        run.log(loss=loss)
        if place == len(starts) - 1:
            end_of_epoch(net, optimizer, corpus, config, run)
    run.restore_best()


def end_of_epoch(net: nn.Module, optimizer: Any, corpus: Corpus, config: TrainConfig, run: Run) -> None:
    """Validate; divide the step size where it got worse than the best, and stop once it is too small."""
    found, _ = perplexity(net, corpus.valid, run.device)
    run.record("valid", perplexity=found)
    if not run.best(found):
        for group in optimizer.param_groups:
            group["lr"] /= config.decay
            if group["lr"] < config.least_rate:
                run.stop()


def network(config: TrainConfig, corpus: Corpus, run: Run) -> tuple[nn.Module, dict[str, Any]]:
    """Return (float network, arguments that build it), with the weights of the run to start from.

    Raises:
        UserError: That run has no float model, or one for another text.
    """
    kwargs: dict[str, Any] = {"vocabulary_size": len(corpus.vocabulary), "hidden": config.hidden}
    kwargs |= {"layers": config.layers, "dropout": config.dropout}
    if not config.start:
        return build(MODEL, **kwargs), kwargs
    from iclr18cli.models.card import open_model
    from iclr18cli.paths import runs_root
    from iclr18cli.run.directory import find_run

    net, card = open_model(find_run(config.start, runs_root(run.settings.runs_dir)).path)
    if card.model != MODEL or card.transforms or card.dataset != config.dataset:
        raise UserError(
            f"{config.start} has no float language model for '{config.dataset}'.",
            fix=f"iclr18 alternating train --bits-weights 0 --dataset {config.dataset}",
        )
    return net.requires_grad_(True).train(), dict(card.kwargs)
