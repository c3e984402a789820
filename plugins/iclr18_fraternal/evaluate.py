"""`fraternal eval`: exact perplexity, static or dynamic; accuracy of an image run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iclr18_fraternal.config import EvalConfig
from iclr18cli.models.measures import classified
from iclr18cli.text.perplexity import dynamic_losses, perplexity, token_losses
from iclr18cli.text.training import text_of

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on a split."""
    if run.card.task == "classify":
        split = run.split(config.split, config.limit).to(run.device)
        return {"dataset": split.name, "split": split.split, **classified(run.model(), split)}
    net, tokens = run.model(), text_of(run, config.split, config.limit)
    losses = token_losses(net, tokens, run.device, batch_size=config.batch_size)
    told = {"dataset": run.data, "split": config.split, "perplexity": perplexity(losses), "tokens": len(losses)}
    if config.dynamic_rate:
        moved = dynamic_losses(
            net, tokens, run.device, rate=config.dynamic_rate, decay=config.dynamic_decay, batch_size=config.batch_size
        )
        told["dynamic_perplexity"] = perplexity(moved)
    return told
