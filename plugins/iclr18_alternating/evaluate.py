"""`alternating eval`: perplexity and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iclr18_alternating.config import EvalConfig
from iclr18cli.compression.networks import memory
from iclr18cli.text.perplexity import perplexity, token_losses
from iclr18cli.text.training import text_of

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on a split."""
    net = run.model()
    losses = token_losses(net, text_of(run, config.split, config.limit), run.device, batch_size=config.batch_size)
    size = memory(net)
    told: dict[str, float] = {"bytes": size["packed"] + size["rest"], "packed_bytes": size["packed"]}
    if size["packed"]:
        told["times_smaller"] = size["float32"] / size["packed"]
    return {
        "dataset": run.data, "split": config.split, "perplexity": perplexity(losses), "tokens": len(losses), **told,
    }  # fmt: skip
