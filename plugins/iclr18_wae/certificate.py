"""`wae certify`: MMD of codes to the prior, a permutation test, and a Lipschitz bound of reconstructions."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from iclr18_wae import algorithm
from iclr18_wae.attack import ascend
from iclr18_wae.config import SCALES, CertifyConfig
from iclr18_wae.evaluate import auto_encoder, codes
from iclr18_wae.lipschitz import reconstruction_constant
from iclr18_wae.model import AutoEncoder
from iclr18_wae.two_sample import mmd_interval, normal_interval, permutation_test
from iclr18cli.attack.report import clopper_pearson
from iclr18cli.attack.threat import Threat
from iclr18cli.certify.result import Certificate
from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split
    from iclr18cli.run.opened import OpenedRun

K = float(len(SCALES))
"""The summed kernel at distance 0."""

ATTACKED = 100


def certify(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """Return what can be said about Q_Z = P_Z on this run, and about moved inputs where the network allows it."""
    net = auto_encoder(run)
    split = run.split(config.split, config.limit).to(run.device)
    z = codes(net, split, seed=run.seed)
    found = [bounded_mmd(config, net, z, split, run.seed), tested(config, net, z, split, run.seed)]
    try:
        found.append(lipschitz(config, net, split, run))
    except UserError as reason:
        said = f"No Lipschitz certificate: {reason}"
        found[0] = _with_warning(found[0], said)
    return found


def bounded_mmd(config: CertifyConfig, net: AutoEncoder, z: torch.Tensor, split: Split, seed: int) -> Certificate:
    """Bound the MMD between the law of codes of unseen inputs and the prior."""
    start = time.perf_counter()
    prior, draws = net.prior, 0
    if prior.kind == "normal":
        distance, low, high = normal_interval(z, C=prior.C, variance=prior.variance, delta=config.delta)
        said = f"the MMD of these {len(z):,} codes to the prior is {distance:.4g}"
    else:
        draws = config.draws
        generator = torch.Generator().manual_seed(derived_seed(seed, "wae certify prior"))
        draw = prior.draw(draws, generator, z.device)
        distance, low, high = mmd_interval(z, draw, algorithm.imq(prior.C), bound=K, delta=config.delta)
        said = f"between these {len(z):,} codes and {draws:,} draws it is {distance:.4g}"
    trivial = _collapsed(net, seed)
    return Certificate(
        kind="technique",
        verdict="proven-prob",
        subject="law of the codes",
        statement=(
            f"With probability {1 - config.delta:g} the MMD (seven IMQ kernels, at most {math.sqrt(2 * K):.2f}) "
            f"between the law of its codes and the prior is at most {high:.4g} and at least {low:.4g}; {said}."
        ),
        not_claimed=[
            "Inputs that are not drawn as the test points were.",
            "Other distances: a small MMD does not bound a Wasserstein distance or a likelihood.",
            "Anything about the quality of reconstructions or samples.",
        ],
        value=high,
        quantity="MMD of codes to the prior",
        sample=_sample(split),
        confidence={"delta": config.delta, "kind": "joint, both sides"},
        assumptions=[
            "The points are independent draws of the data's law that the training did not use.",
            *(["The generator's numbers are independent draws of the prior."] if draws else []),
        ],
        constants={"low": low, "distance_of_samples": distance, "C": prior.C, "K": K, "draws": draws},
        vacuous=high >= trivial,
        vacuous_above=trivial,
        warnings=[f"vacuous: an encoder that maps all to one point has an MMD of {trivial:.4g}"] * (high >= trivial),
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def tested(config: CertifyConfig, net: AutoEncoder, z: torch.Tensor, split: Split, seed: int) -> Certificate:
    """Test at a level whether codes and prior draws are of one law."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(derived_seed(seed, "wae certify test"))
    some = z[: config.test_points]
    draw = net.prior.draw(len(some), generator, z.device)
    found = permutation_test(
        some, draw, algorithm.imq(net.prior.C), permutations=config.permutations, generator=generator
    )
    interval = (found.p_value,) * 2 if found.exhaustive else clopper_pearson(
        found.as_large, found.permutations, config.delta
    )  # fmt: skip
    rejected = found.p_value <= config.level
    said = "is rejected" if rejected else "is not rejected"
    return Certificate(
        kind="technique",
        verdict="measured",
        subject="law of the codes",
        statement=(
            f"A permutation test of {len(some):,} codes against as many draws from the prior gives p = "
            f"{found.p_value:.4g}: that both are of one law {said} at level {config.level:g}."
        ),
        not_claimed=[
            "That the laws are equal where the test does not reject: it may lack power at this n.",
            "That a rejected run is bad: the penalty asks for nearness, not equality, and with enough points any "
            "difference shows.",
        ],
        value=found.p_value,
        quantity="p-value of Q_Z = P_Z",
        bound="equal",
        sample=_sample(split) | {"n": len(some)},
        confidence={"level": config.level, "kind": "exact: P(p <= level) <= level if the laws are equal"},
        assumptions=["Codes and draws are independent; under the hypothesis they are exchangeable."],
        constants={
            "mmd2_unbiased": found.statistic, "permutations": found.permutations, "as_large": found.as_large,
            "p_interval_low": interval[0], "p_interval_high": interval[1], "delta": config.delta,
        },
        solver={"exhaustive": found.exhaustive},
        warnings=["the codes do not follow the prior at this n"] if rejected else [],
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def lipschitz(config: CertifyConfig, net: AutoEncoder, split: Split, run: OpenedRun) -> Certificate:
    """Bound how far the reconstruction of any input moves with the input, and attack the bound."""
    start = time.perf_counter()
    encoder, decoder = reconstruction_constant(net, split.shape)
    value = encoder * decoder * config.eps
    trivial = math.sqrt(math.prod(split.shape)) if split.range is not None else math.inf
    attacked = _largest_move(config, net, split, run)
    return Certificate(
        kind="lipschitz",
        verdict="proven",
        statement=(
            f"When any input is moved by at most {config.eps:g} in the 2-norm, its reconstruction moves by at most "
            f"{value:.4g} in the 2-norm (L_Q = {encoder:.4g}, L_G = {decoder:.4g})."
        ),
        not_claimed=[
            "That reconstructions are good, or near the input.",
            "Rounding of a float32 forward pass: the bound is of the network in exact arithmetic.",
        ],
        value=value,
        quantity="2-norm move of the reconstruction",
        threat={"norm": "l2", "radius": config.eps, "average|pointwise": "pointwise", "domain": "R^d"},
        sample={"dataset": split.name, "split": "any input", "n": 0},
        constants={"L_Q": encoder, "L_G": decoder},
        empirical={"attack": f"gradient ascent, 20 steps, {min(ATTACKED, len(split))} points", "value": attacked},
        holds=attacked <= value * (1 + 1e-5),
        vacuous=value >= trivial,
        vacuous_above=trivial if math.isfinite(trivial) else None,
        warnings=[f"vacuous: outputs are never further apart than {trivial:.4g}"] * (value >= trivial),
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def _largest_move(config: CertifyConfig, net: AutoEncoder, split: Split, run: OpenedRun) -> float:
    x = split.take(ATTACKED).inputs()
    generator = torch.Generator(x.device).manual_seed(derived_seed(run.seed, "wae lipschitz"))
    with evaluating(net):
        still = net(x).detach()
        move = lambda z: ((net(z) - still).flatten(1).square().sum(1) + 1e-12).sqrt()
        threat = Threat("l2", config.eps, split.range)
        # From x itself the gradient of a distance vanishes.
        start = threat.random(x, generator)
        found = ascend(move, x, threat, start=start, steps=20, restarts=1, generator=generator)
        with torch.no_grad():
            return (net(found) - still).flatten(1).norm(dim=1).max().item()


def _collapsed(net: AutoEncoder, seed: int) -> float:
    """Return the MMD to the prior of an encoder that maps all to the prior's mean, or to a point of its support."""
    prior = net.prior
    if prior.kind == "normal":
        one, two = (algorithm.expected_imq(k * prior.variance, prior.D, prior.C) for k in (1, 2))
        return math.sqrt(K + two - 2 * one)
    point = torch.zeros(1, prior.D, dtype=torch.float64)
    point[0, 0] = float(prior.kind == "sphere")
    draw = prior.draw(2000, torch.Generator().manual_seed(derived_seed(seed, "wae collapsed")), "cpu").double()
    kernel = algorithm.imq(prior.C)
    within = (kernel(algorithm.squared_distances(draw, draw)).sum() - K * 2000) / (2000 * 1999)
    cross = kernel(algorithm.squared_distances(point, draw)).mean()
    return math.sqrt(max(0.0, (K + within - 2 * cross).item()))


def _sample(split: Split) -> dict[str, Any]:
    return {"dataset": split.name, "split": split.split, "n": len(split), "sha256": split.digest(), "labels": "unused"}


def _with_warning(certificate: Certificate, said: str) -> Certificate:
    from dataclasses import replace

    return replace(certificate, warnings=[*certificate.warnings, said])
