"""`fraternal certify`: the kappa term against the expectation-linear gap, and an interval of perplexity."""

# S masks · N predictions · m outputs

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iclr18_fraternal.config import CertifyConfig
from iclr18cli.certify.result import Certificate
from iclr18cli.models.modes import evaluating
from iclr18cli.text.certificate import perplexity_certificate
from iclr18cli.text.perplexity import side_by_side
from iclr18cli.text.training import text_of

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun

COLUMNS = 10


def certify(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """Measure what fraternal dropout penalises on data it was not trained on."""
    net = run.model()
    if run.card.task == "classify":
        split = run.split("test", config.limit).to(run.device)
        inputs = split.inputs(slice(None))
        sample = {"dataset": split.name, "split": "test", "n": len(split)}
        return [mask_gap(net, inputs, config, sample)]
    tokens = text_of(run, "test", config.limit)
    x_TB, _ = side_by_side(tokens, min(COLUMNS, len(tokens) - 1))
    sample = {"dataset": run.data, "split": "test", "n": len(tokens) - 1}
    return [
        mask_gap(net, x_TB.to(run.device), config, sample),
        perplexity_certificate(net, text_of(run, "test"), delta=config.delta, device=run.device, dataset=run.data),
    ]


@torch.no_grad()
def gaps(net: nn.Module, inputs: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Return (fraternal, linear), (S,) each, float64: for S pairs of masks the mean over predictions and outputs of
    (p(s_1) - p(s_2))^2 and of the two (p(s) - p(E[s]))^2.

    Batch normalisation keeps its statistics: only what drops is in training mode.
    """

    def logits() -> Tensor:
        out = net(inputs)
        return (out[0] if isinstance(out, tuple) else out).double()

    with evaluating(net):
        plain = logits()
        fraternal, linear = [], []
        with dropping(net):
            for _ in range(pairs):
                one, two = logits(), logits()
                fraternal.append((one - two).square().mean())
                linear.append(0.5 * ((one - plain).square().mean() + (two - plain).square().mean()))
    return torch.stack(fraternal).cpu(), torch.stack(linear).cpu()


@contextmanager
def dropping(net: nn.Module) -> Iterator[None]:
    """Put a network into training mode inside the block, batch normalisation excepted."""
    net.train()
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    try:
        yield
    finally:
        net.eval()


def mask_gap(net: nn.Module, inputs: Tensor, config: CertifyConfig, sample: dict[str, Any]) -> Certificate:
    """State R_FD, R_ELD and what of the latter is bias, with intervals over pairs of masks."""
    began = time.perf_counter()
    fraternal, linear = gaps(net, inputs, config.pairs)
    z = NormalDist().inv_cdf(1 - config.delta / 6)  # three intervals that hold together

    def with_interval(values: Tensor) -> tuple[float, float, float]:
        width = z * float(values.std()) / math.sqrt(len(values))
        return float(values.mean()), float(values.mean()) - width, float(values.mean()) + width

    fd, eld, bias = (with_interval(values) for values in (fraternal, linear, linear - fraternal / 2))
    holds = bool((fraternal <= 4 * linear + 1e-12).all())
    told = "held" if holds else "DID NOT HOLD"
    return Certificate(
        kind="technique", verdict="estimate", value=fd[2],
        quantity="kappa term R_FD per output: mean squared difference of logits under two masks",
        holds=holds, vacuous=fd[0] == 0.0, sample=sample,
        confidence={"delta": config.delta, "kind": "normal, jointly for three means over pairs of masks"},
        statement=(f"On {sample['n']:,} test predictions and {config.pairs} pairs of masks the kappa term R_FD is "
                   f"{fd[0]:.4g} [{fd[1]:.4g}, {fd[2]:.4g}] and the expectation-linear gap R_ELD is "
                   f"{eld[0]:.4g} [{eld[1]:.4g}, {eld[2]:.4g}]: R_FD <= 4 R_ELD {told} on every pair, and the bias "
                   f"between training and inference, R_ELD - R_FD / 2, is {bias[0]:.4g} [{bias[1]:.4g}, "
                   f"{bias[2]:.4g}]."),
        not_claimed=["That a small kappa term makes the gap small: the bias is no part of it.",
                     "Anything about inputs other than these, or about accuracy."],
        assumptions=["Means over pairs of masks are normal."],
        constants={"R_FD": fd[0], "R_ELD": eld[0], "bias": bias[0], "R_FD_low": fd[1], "R_ELD_low": eld[1],
                   "R_ELD_high": eld[2], "bias_low": bias[1], "bias_high": bias[2], "4 R_ELD": 4 * eld[0],
                   "2 R_ELD": 2 * eld[0]},
        seconds=time.perf_counter() - began,
    )  # fmt: skip
