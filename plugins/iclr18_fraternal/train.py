"""`fraternal train` and `fraternal finetune`: language models under two masks."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from iclr18_fraternal.config import FinetuneConfig, TrainConfig
from iclr18_fraternal.language import TwinLoss
from iclr18cli.errors import UsageError, UserError
from iclr18cli.models.registry import build
from iclr18cli.text.corpus import Corpus, open_corpus
from iclr18cli.text.perplexity import perplexity, token_losses
from iclr18cli.text.training import Plan, fit, save

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun

MODEL = "recurrent-lm"


def train(config: TrainConfig, run: Run) -> None:
    """Minimise l_FD, or the loss of a relative, by SGD over pieces of text."""
    if config.twin_mode == "batch" and config.method == "eld":
        raise UsageError(
            "--twin-mode batch needs masks in both passes.", fix="--method fd or pm, or --twin-mode two-pass"
        )
    corpus = corpus_of(config, run)
    kwargs = arguments(config, corpus)
    net = run.prepare(build(MODEL, **kwargs))
    fit(net, corpus, plan(config), run, loss(config))
    finish(net, kwargs, corpus, config.dataset, run, config.epochs)


def finetune(config: FinetuneConfig, run: Run, source: OpenedRun) -> None:
    """Go on from the weights of a run with averaged SGD, until validation is worse than it was `nonmono` epochs ago.

    Raises:
        UserError: The run has no language model of `fraternal train`.
    """
    if source.technique != "fraternal" or source.card.task != "language":
        raise UserError(f"{source.path} is no language model of 'fraternal train'.", fix="iclr18 fraternal train")
    named = {field.name for field in fields(TrainConfig)}
    kept = {name: value for name, value in source.config.items() if name in named}
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()}
    was = TrainConfig(**options)
    corpus, kwargs = corpus_of(was, run), dict(source.card.kwargs)
    net = source.model().train().requires_grad_(True)
    plain = replace(was, method=config.method, kappa=config.kappa, alpha=config.alpha, beta=config.beta)
    stage = replace(
        plan(was), schedule="nt-asgd", nonmono=0, finetune_nonmono=config.nonmono, epochs=config.epochs,
        weight_decay=was.weight_decay,
    )  # fmt: skip
    net = run.prepare(net)
    fit(net, corpus, stage, run, loss(plain))
    finish(net, kwargs, corpus, was.dataset, run, config.epochs)


def corpus_of(config: TrainConfig, run: Run) -> Corpus:
    """Return the text of a training."""
    return open_corpus(
        config.dataset, data_dir=run.settings.data_dir, download=run.settings.download, limit=config.limit,
        limit_eval=config.limit_eval, max_words=config.max_words,
    )  # fmt: skip


def arguments(config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """Return what builds the network."""
    names = ["hidden", "layers", "cell", "tied", "weight_drop"]
    names += ["dropout_embedding", "dropout_input", "dropout_hidden", "dropout_output"]
    kwargs = {name: getattr(config, name) for name in names}
    return kwargs | {"vocabulary_size": len(corpus.vocabulary), "embedding": config.embedding or config.hidden}


def plan(config: TrainConfig) -> Plan:
    """Return how a network is trained."""
    names = ["epochs", "batch_size", "bptt", "learning_rate", "clip", "weight_decay", "schedule", "decay", "patience"]
    names += ["least_rate", "reload_best", "nonmono"]
    return Plan(vary=True, **{name: getattr(config, name) for name in names})


def loss(config: TrainConfig) -> TwinLoss:
    """Return the loss of one piece."""
    return TwinLoss(
        method=config.method, kappa=config.kappa, distance=config.distance, doubled=config.twin_mode == "batch",
        same=config.same_mask, alpha=config.alpha, beta=config.beta,
    )  # fmt: skip


def finish(net: nn.Module, kwargs: dict[str, Any], corpus: Corpus, dataset: str, run: Run, epochs: int) -> None:
    """Keep the network, measure it on the validation and the test text, and tell how fast it was."""
    if run.world.first:
        save(run.path, net, MODEL, kwargs, corpus.vocabulary, dataset)
    found = {
        f"{name}_perplexity": perplexity(token_losses(net, corpus.split(name), run.device))
        for name in ("valid", "test")
    }
    seen = run.epoch * (len(corpus.train) - 1)
    run.finish(**found, tokens_per_second=round(seen / max(run.seconds, 1e-9)))
