"""The training loop of language models: SGD over pieces of text, clipping, validation, step size, averaging.

T steps · B sequences
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from iclr18cli.models.card import ModelCard, save_model
from iclr18cli.text.averaging import NonMonotoneAveraging
from iclr18cli.text.batching import Reader
from iclr18cli.text.corpus import Corpus, open_text
from iclr18cli.text.perplexity import perplexity, token_losses
from iclr18cli.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun

Schedule = Literal["nt-asgd", "plateau"]
Loss = Callable[[nn.Module, Tensor, Tensor, "Sequence[Tensor] | None"], tuple[Tensor, Sequence[Tensor], dict[str, Any]]]
"""(net, x (T, B), y (T, B), state) to (loss, new state, what is logged)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a language model is trained.

    Attributes:
        epochs, batch_size, bptt, vary: Of the reader; with `vary` the step size follows the length of a piece.
        learning_rate: Of SGD.
        clip: Largest global norm of the gradient.
        weight_decay: Added after clipping.
        schedule: "plateau": the step size is divided by `decay` after `patience` epochs without a new best. "nt-asgd":
            it stays, and weights are averaged once validation is worse than the best of all but `nonmono` epochs.
        decay, patience, least_rate: Of the plateau; training ends below `least_rate`.
        reload_best: Go back to the best weights when the step size is divided.
        nonmono: Of NT-ASGD; 0: average from the first step, and end by the same test (fine-tuning).
    """

    epochs: int
    batch_size: int
    bptt: int
    learning_rate: float
    vary: bool = False
    clip: float = 0.25
    weight_decay: float = 0.0
    schedule: Schedule = "plateau"
    decay: float = 1.2
    patience: int = 1
    least_rate: float = 0.0
    reload_best: bool = False
    nonmono: int = 5
    finetune_nonmono: int = 0


def fit(
    net: nn.Module, corpus: Corpus, plan: Plan, run: Run, loss: Loss, *,
    after_step: Callable[[nn.Module], None] | None = None,
) -> None:  # fmt: skip
    """Train a network in place; it ends with the weights, averaged ones included, of the best validation.

    Args:
        net: Prepared by the run.
        corpus: Its training text is read, its validation text decides.
        plan: How.
        run: The training.
        loss: Of one piece.
        after_step: Called after each update.
    """
    optimizer = torch.optim.SGD(net.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    averaging = NonMonotoneAveraging(net, plan.nonmono) if plan.schedule == "nt-asgd" else None
    run.track(net=net, optimizer=optimizer, **({"averaging": averaging} if averaging else {}))
    reader = Reader(
        run, corpus.train, epochs=plan.epochs, batch_size=plan.batch_size, bptt=plan.bptt, vary=plan.vary
    )  # fmt: skip
    for x_TB, y_TB in reader:
        optimizer.param_groups[0]["lr"] = run.values.get("rate", plan.learning_rate) * reader.scale
        value, state, logged = loss(net, x_TB, y_TB, reader.state)
        reader.carry(state)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
        optimizer.step()
        if after_step is not None:
            after_step(net)
        if averaging is not None:
            averaging.step()
        run.log(loss=value, **logged)
        if run.epoch_ends:
            _validate(net, corpus, plan, run, averaging)
    run.restore_best()
    if averaging is not None:
        averaging.settle()


def _validate(
    net: nn.Module, corpus: Corpus, plan: Plan, run: Run, averaging: NonMonotoneAveraging | None
) -> None:  # fmt: skip
    """Measure the validation text at the end of an epoch; choose the step size, begin to average, or stop."""
    rate = run.values.get("rate", plan.learning_rate)
    if averaging is None:
        found = perplexity(token_losses(net, corpus.valid, run.device))
        run.record("valid", perplexity=found, rate=rate)
        waited = 0 if run.best(found) else run.values.get("waited", 0) + 1
        if waited >= plan.patience:
            rate, waited = rate / plan.decay, 0
            if plan.reload_best:
                run.restore_best()
            if rate < plan.least_rate:
                run.stop()
        run.values["rate"], run.values["waited"] = rate, waited
        return
    with averaging.averaged():
        found = perplexity(token_losses(net, corpus.valid, run.device))
    run.record("valid", perplexity=found, rate=rate, averaged=float(averaging.active))
    run.best(found)
    history, n = averaging.history, plan.finetune_nonmono
    if plan.nonmono <= 0 and n and len(history) > n and found > min(history[:-n]):
        run.stop()
    averaging.validated(found)


def save(
    path: Path, net: nn.Module, model: str, kwargs: dict[str, Any], vocabulary: Vocabulary, dataset: str,
    transforms: tuple[dict[str, Any], ...] = (),
) -> None:  # fmt: skip
    """Write a language model with its card and its vocabulary."""
    card = ModelCard(
        model=model, kwargs=kwargs, task="language", shape=(None,), dtype="int64", classes=len(vocabulary),
        dataset=dataset, transforms=transforms,
    )  # fmt: skip
    vocabulary.save(path)
    save_model(path, net, card)


def text_of(run: OpenedRun, split: str, limit: int = 0) -> Tensor:
    """Return the first `limit` tokens (0: all) of a split of a run's text, in the run's own vocabulary."""
    words = open_text(run.data, split, data_dir=run.settings.data_dir).words
    return Vocabulary.load(run.path).encode(words[:limit] if limit else words)
