"""`adr certify`: accuracy on unseen target points, agreement of sampled critics, radii of the smoothed classifier."""

# B batch · N points · M sampled critics

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iclr18_adr.algorithm import sampling
from iclr18_adr.config import CertifyConfig
from iclr18_adr.evaluate import BATCH, adapted, predictions
from iclr18_adr.model import Adapted
from iclr18cli.certify.config import SmoothingConfig
from iclr18cli.certify.methods import smoothing
from iclr18cli.certify.randomized import lower_confidence
from iclr18cli.certify.result import Certificate
from iclr18cli.data.tensors import Split, batches
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun


def certify(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """State what holds on the target; the labels read here chose nothing."""
    net = adapted(run)
    split = run.split(config.split, config.limit).to(run.device)
    certificates = [accuracy_bound(net, split, delta=config.delta), agreement(net, split, critics=config.critics)]
    if config.smoothing_limit:
        asked = SmoothingConfig(sigma=config.sigma, n=config.draws, radius=config.radius, split=config.split,
                                limit=config.smoothing_limit)  # fmt: skip
        certificates += smoothing(asked, run)
    return certificates


def accuracy_bound(net: Adapted, split: Split, *, delta: float) -> Certificate:
    """Return the lower Clopper-Pearson bound of the accuracy on new points of the target's distribution.

    On points that were trained on, without labels or not, it is an estimate: they are no independent sample for a
    classifier that has seen them.
    """
    start = time.perf_counter()
    N = len(split)
    correct = int((predictions(net, split)[net.predict] == split.y).sum())
    value, chance = lower_confidence(correct, N, delta), 1 / len(split.classes)
    fresh = split.split != "train"
    return Certificate(
        kind="technique",
        verdict="proven-prob" if fresh else "estimate",
        statement=(
            f"The classifier {_name(net)} is right on at least {100 * value:.2f} % of the distribution that the {N:,} "
            f"{split.split} points of '{split.name}' were drawn from, with probability {1 - delta:g} over their draw "
            f"({correct:,} of them are classified rightly)."
        ),
        not_claimed=[
            "Any other distribution than that of these points: nothing bounds the error under a further shift.",
            "Robustness to perturbations of the inputs.",
            "That adaptation caused the accuracy: compare with a run of --critic none.",
            *([] if fresh else ["A bound: these points, without their labels, took part in training."]),
        ],
        value=value,
        quantity="accuracy on the target's distribution",
        bound="lower",
        threat={},
        sample=_sample(split),
        confidence={"delta": delta, "per": "statement"},
        assumptions=[
            "The points are independent draws from the target's distribution.",
            "Neither they nor their labels chose the model: the run keeps its last iterate.",
        ],
        constants={"correct": correct, "accuracy": correct / N},
        solver={"interval": "one-sided Clopper-Pearson"},
        vacuous=value <= chance,
        vacuous_above=chance,
        arithmetic="counts exact, bound in float64",
        seconds=time.perf_counter() - start,
    )


def agreement(net: Adapted, split: Split, *, critics: int) -> Certificate:
    """Return the share of points on which all sampled critics predict what C without dropout predicts."""
    start = time.perf_counter()
    agreed, correct = agreeing(net, split, critics=critics)
    value, right = agreed.double().mean().item(), (agreed & correct).sum().item()
    count = int(agreed.sum())
    return Certificate(
        kind="technique",
        verdict="measured",
        statement=(
            f"On {100 * value:.2f} % of the {len(split):,} {split.split} points of '{split.name}' all {critics} "
            f"sampled dropout masks of C give the class that C gives without dropout; C is right on {right:,} of these "
            f"{count:,}."
        ),
        not_claimed=[
            "Other masks than those drawn.",
            "That a class the critics agree on is right: a whole cluster can lie on the wrong side.",
            "Robustness to perturbations of the inputs.",
        ],
        value=value,
        quantity="share of points where the critics agree",
        bound="equal",
        subject="critics",
        sample=_sample(split),
        constants={"critics": critics, "accuracy_where_agreed": right / max(count, 1)},
        vacuous=value == 0,
        arithmetic="float32 predictions, counts exact",
        seconds=time.perf_counter() - start,
    )


def agreeing(net: Adapted, split: Split, *, critics: int) -> tuple[Tensor, Tensor]:
    """Return (agreed, correct), both (N,) bool: all M draws agree with C without dropout, which is right."""
    agreed, correct = [], []
    with torch.no_grad(), evaluating(net):
        for x, y in batches(split, BATCH):
            f = net.features(net.fit(x))
            plain = net.classifier(f).argmax(1)
            same = torch.ones_like(plain, dtype=torch.bool)
            with sampling(net.classifier) as C:
                for _ in range(critics):
                    same &= C(f).argmax(1) == plain
            agreed.append(same)
            correct.append(plain == y)
    return torch.cat(agreed), torch.cat(correct)


def _sample(split: Split) -> dict[str, Any]:
    return {"dataset": split.name, "split": split.split, "n": len(split), "sha256": split.digest(),
            "labels": "true labels"}  # fmt: skip


def _name(net: Adapted) -> str:
    return "C'" if net.predict == "cprime" else "C"
