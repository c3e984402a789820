"""`adaptive-dropout certify`: the Rademacher bound of the generalisation gap beside the measured gap.

N points · K classes · u_k bounds of units
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from iclr18_adaptive_dropout.algorithm import Form, Layer, layers_of, rademacher_bound
from iclr18_adaptive_dropout.config import CertifyConfig
from iclr18_adaptive_dropout.evaluate import BATCH, with_rates
from iclr18_adaptive_dropout.model import RowShare
from iclr18_adaptive_dropout.train import training_part
from iclr18cli.certify.randomized import lower_confidence
from iclr18cli.certify.result import Certificate
from iclr18cli.data.tensors import Split, batches
from iclr18cli.errors import UserError
from iclr18cli.models.measures import classified

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

WITHDRAWN = (
    "The submission's form, which its authors replaced: it is not shown for random masks and lacks the factor 2^L."
)


def certify(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """State the paper's bound, which says little, and what the test points alone say."""
    net = with_rates(run)
    if run.technique != "adaptive-dropout":
        raise UserError(
            f"{run.path} was not trained by adaptive-dropout train.",
            why="its settings do not say which examples it was trained on, nor p",
            fix=f"iclr18 adaptive-dropout eval {run.path}, or rates",
        )
    test = run.split("test").to(run.device)
    found = []
    if all(layer.weight is not None for layer in layers_of(net)):
        p = float(run.config["p"] if config.p == "run" else config.p)
        form: Form = run.config["bound"] if config.bound == "run" else config.bound
        limit, drawn, share = (run.config[name] for name in ("limit", "drawn", "hold_out"))
        train, _ = training_part(run.split("train"), limit, drawn, share, run.directory.info["seed"])
        train = train.to(run.device)
        found.append(gap_bound(net, train, test, p=p, form=form, delta=config.delta))
    return [*found, accuracy_bound(net, test, delta=config.delta)]


def gap_bound(net: nn.Module, train: Split, test: Split, *, p: float, form: Form, delta: float) -> Certificate:
    """Return 2 R_S + 3 M sqrt(log(2 / delta) / 2n), a bound of expected minus mean training cross-entropy in nats.

    R_S is the bound of the paper, M the largest loss that an input of the data's range can have. The theorem speaks of
    a class of networks whose norms were fixed before the data were seen; here they are those of the trained network,
    so that the number is an estimate.
    """
    start = time.perf_counter()
    layers, n, K = layers_of(net), len(train), len(train.classes)
    seen, largest, known = largest_input(net, train)
    bound = rademacher_bound(layers, seen, n, p=p, form=form)
    complexity = bound.value
    M = math.log(K) + 2 * largest_logit(layers, largest)
    value = 2 * complexity + 3 * M * math.sqrt(math.log(2 / delta) / (2 * n))
    here, there = classified(net, train), classified(net, test)
    gap, room = there["loss"] - here["loss"], math.log(K) - here["loss"]
    q = "1" if math.isinf(p) else "2" if p == 2 else "infinity"
    return Certificate(
        kind="technique",
        verdict="estimate",
        statement=(
            f"The {'camera-ready' if form == 'camera' else 'submission'} bound for p = {p:g}, q = {q} puts the "
            f"empirical Rademacher complexity at {complexity:.4g} and the generalisation gap of the cross-entropy at "
            f"{value:.4g} nats or less, for {n:,} examples with probability {1 - delta:g}, had the norms and "
            f"the largest loss been fixed beforehand; the gap measured on {len(test):,} test points is {gap:.4g} nats."
        ),
        not_claimed=[
            "A bound for this very network: its norms and rates were found on the same examples.",
            "The order of two networks by their gaps: nothing says that the smaller bound has the smaller gap.",
            "Robustness to perturbations or shifts of the inputs.",
        ],
        value=value,
        quantity="expected minus mean training cross-entropy, nats",
        subject="class of networks with these norms",
        sample=_sample(train),
        confidence={"delta": delta, "kind": "over the draw of the training examples"},
        assumptions=[
            "Norms, rates and largest loss M of the class fixed before the data were seen; M is the trained network's.",
            "The training examples are an independent sample.",
            "The theorem as the paper states it, its factor k for cross-entropy included.",
            "Biases as weights of a constant input that always passes.",
            *([] if known else ["No input is larger than those of the sample."]),
            *([WITHDRAWN] if form == "submission" else []),
        ],
        constants={
            "rademacher": complexity, "largest_loss": M, "n": n, "d": bound.d, "classes": K, "x_max": bound.x_max,
            **{f"factor_{number}": factor for number, factor in enumerate(bound.factors, start=1)},
            "rademacher_all_rates_1": all_passing(layers, seen, n, p=p, form=form),
            "train_loss": here["loss"], "test_loss": there["loss"],
            "measured_gap_of_error": here["accuracy"] - there["accuracy"],
        },
        empirical={"attack": "measured gap: test minus training cross-entropy", "value": gap},
        holds=gap <= value,
        vacuous=value >= room,
        vacuous_above=room,
        warnings=[
            *(["The bound says less than that the classes are guessed."] if value >= room else []),
            *([WITHDRAWN] if form == "submission" else []),
        ],
        arithmetic="float64",
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def largest_input(net: nn.Module, split: Split) -> tuple[float, float, bool]:
    """Return (|X|_max of a split after the first layer without parameters, a bound for any input, is that known)."""
    first = next(net.children())
    shares = isinstance(first, RowShare)
    with torch.no_grad():
        seen = max((first(x) if shares else x).abs().max().item() for x, _ in batches(split, BATCH))
    if shares:
        return seen, 1.0, True
    if split.range is None:
        return seen, seen, False
    return seen, max(map(abs, split.range)), True


@torch.no_grad()
def largest_logit(layers: Sequence[Layer], x_max: float) -> float:
    """Return a bound of every |logit| of the deterministic network: u = |W| (theta * u) + |b|, layer by layer."""
    u_k = torch.full((layers[0].fan_in,), x_max, dtype=torch.float64)
    for layer in layers:
        if layer.weight is None:
            raise ValueError("convolutions have no such bound here")
        if layer.drop is not None:
            u_k = u_k * layer.drop.rates.flatten().double().cpu()
        u_k = layer.weight.double().cpu().abs() @ u_k
        if layer.bias is not None:
            u_k = u_k + layer.bias.double().cpu().abs()
    return u_k.max().item()


def all_passing(layers: Sequence[Layer], x_max: float, n: int, *, p: float, form: Form) -> float:
    """Return the bound of the same weights without dropout."""
    plain = [Layer(None, layer.weight, layer.fan_in, layer.fan_out, layer.bias) for layer in layers]
    return rademacher_bound(plain, x_max, n, p=p, form=form).value


def accuracy_bound(net: nn.Module, split: Split, *, delta: float) -> Certificate:
    """Return the lower Clopper-Pearson bound of the accuracy on new points of the test points' distribution."""
    start = time.perf_counter()
    N = len(split)
    share = classified(net, split)["accuracy"]
    correct = round(share * N)
    value, chance = lower_confidence(correct, N, delta), 1 / len(split.classes)
    return Certificate(
        kind="technique",
        verdict="proven-prob",
        statement=(
            f"The network is right on at least {100 * value:.2f} % of the distribution that the {N:,} test points of "
            f"'{split.name}' were drawn from, with probability {1 - delta:g} over their draw ({correct:,} of them are "
            f"classified rightly)."
        ),
        not_claimed=["Any other distribution.", "Robustness to perturbations of the inputs."],
        value=value,
        quantity="accuracy",
        bound="lower",
        sample=_sample(split),
        confidence={"delta": delta, "kind": "one-sided Clopper-Pearson, over the draw of the test points"},
        assumptions=["The test points are an independent sample that chose nothing about the network."],
        constants={"accuracy": share, "n": N},
        vacuous=value <= chance,
        vacuous_above=chance,
        arithmetic="float32 predictions, counts exact",
        seconds=time.perf_counter() - start,
    )


def _sample(split: Split) -> dict[str, Any]:
    return {"dataset": split.name, "split": split.split, "n": len(split), "sha256": split.digest(),
            "labels": "true labels"}  # fmt: skip
