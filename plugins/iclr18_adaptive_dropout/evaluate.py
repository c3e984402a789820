"""`adaptive-dropout eval`: the deterministic network, and what sampled masks of the same rates do."""

# B batch · K classes

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from iclr18_adaptive_dropout.config import EvalConfig
from iclr18_adaptive_dropout.dropout import AdaptiveDropout, sampling
from iclr18cli.data.sentences import words
from iclr18cli.data.tensors import Split, batches
from iclr18cli.errors import UserError
from iclr18cli.models.measures import classified

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

BATCH = 500

WORDS = "words.txt"
"""File of a run on texts: its vocabulary."""


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on a split."""
    net = with_rates(run)
    split = run.split(config.split, config.limit).to(run.device)
    found: dict[str, Any] = {"dataset": split.name, "split": split.split, **classified(net, split)}
    if config.draws:
        found |= under_masks(net, split, draws=config.draws)
    return found


def with_rates(run: OpenedRun) -> nn.Module:
    """Return the run's network.

    Raises:
        UserError: It has no rates.
    """
    net = run.model()
    if not any(isinstance(part, AdaptiveDropout) for part in net.modules()):
        raise UserError(f"{run.path} has no retain rates.", why=f"'{run.technique}' made it",
                        fix="name a run of adaptive-dropout train")  # fmt: skip
    words_of(run)
    return net


def words_of(run: OpenedRun) -> tuple[str, ...]:
    """Return the vocabulary that a run on texts was trained with; none for other data.

    Raises:
        UserError: The data set is counted by other words now, so that its columns mean something else.
    """
    kept = run.path / WORDS
    if not kept.is_file():
        return ()
    known = tuple(kept.read_text().split("\n")[:-1])
    if run.data == run.card.dataset and words(run.data, data_dir=run.settings.data_dir) != known:
        raise UserError(
            f"The words of '{run.data}' are no longer those that {run.path} was trained with.",
            why="the text has changed since",
            fix="restore the text, or train again",
        )
    return known


@torch.no_grad()
def under_masks(net: nn.Module, split: Split, *, draws: int) -> dict[str, float]:
    """Return the mean accuracy of single masked networks, and that of their mean probabilities."""
    singly = torch.zeros((), dtype=torch.float64, device=split.x.device)
    together = torch.zeros_like(singly)
    with sampling(net):
        for x, y in batches(split, BATCH):
            mean_BK = torch.zeros((), device=x.device)
            for _ in range(draws):
                p_BK = net(x).softmax(1)
                singly += (p_BK.argmax(1) == y).sum()
                mean_BK = mean_BK + p_BK / draws
            together += (mean_BK.argmax(1) == y).sum()
    N = len(split)
    return {"accuracy_of_a_mask": singly.item() / (draws * N), "accuracy_of_masks_together": together.item() / N}
