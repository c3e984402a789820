"""`wrm certify`: the distributional certificate, proven (sound) or the paper's (an estimate), and Figure 2."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from iclr18_wrm.config import CertifyConfig
from iclr18_wrm.evaluate import measure, trained_gamma
from iclr18_wrm.figures import certificate_figure, example_loss
from iclr18cli.certify.config import WassersteinConfig
from iclr18cli.certify.distributional import distributional_attacks
from iclr18cli.certify.methods import wasserstein
from iclr18cli.certify.result import Certificate
from iclr18cli.errors import UsageError
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split
    from iclr18cli.run.opened import OpenedRun

VACUOUS = math.log(2)
"""A cross-entropy bound at or above log 2 does not even certify an error below 1: a wrong point has loss >= log 2."""


def certify(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """Bound sup { E_P l : W_c(P, P_n) <= rho } for every rho asked for."""
    certificates = sound(config, run) if config.mode == "sound" else paper(config, run)
    if config.figure:
        run.figure("certificate", certificate_figure(run, limit=config.figure_limit, inner_steps=config.inner_steps))
    return certificates


def sound(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """Return the proven certificates of the core's sound ladder, on the test points unless another split is named."""
    shared = {name: getattr(config, name) for name in ("rho", "loss", "gamma", "population", "delta", "box", "limit")}
    return wasserstein(WassersteinConfig(**shared, split="test" if config.split == "auto" else config.split), run)


def paper(config: CertifyConfig, run: OpenedRun) -> list[Certificate]:
    """Return gamma rho + mean phi_gamma with phi from T_adv ascent steps, as the paper does: never a proof."""
    if config.loss != "cross-entropy" or config.population or config.box:
        raise UsageError("--mode paper has none of --loss error-probability, --population, --box.", fix="--mode sound")
    start = time.perf_counter()
    split = run.split("train" if config.split == "auto" else config.split, config.limit).to(run.device)
    net = run.model()
    gammas = config.gamma or (trained_gamma(run),)
    measured = {
        gamma: measure(
            net,
            split,
            gamma=gamma,
            inner_steps=config.inner_steps,
            converged=(1e-4, 600),
            hessian_limit=min(len(split), 1000),
            progress=run.progress,
        )
        for gamma in gammas
    }
    with evaluating(net):
        attacks = distributional_attacks(
            lambda x, y: example_loss(net, y)(x), split.inputs(), split.y, list(config.rho), batch_size=500
        )
    seconds = time.perf_counter() - start
    return [
        paper_certificate(
            rho,
            measured,
            split,
            attack={
                "attack": "penalised ascent",
                "value": attack.value,
                "mean_squared_distance": attack.mean_squared_distance,
            },
            steps=config.inner_steps,
            seconds=seconds,
        )
        for rho, attack in zip(config.rho, attacks, strict=True)
    ]


def paper_certificate(
    rho: float,
    measured: dict[float, dict[str, Any]],
    split: Split,
    *,
    attack: dict[str, Any],
    steps: int,
    seconds: float,
) -> Certificate:
    """Put the paper's number for one budget into words that do not promise more than it holds."""
    gamma = min(measured, key=lambda g: g * rho + measured[g]["phi"])
    found = measured[gamma]
    value = gamma * rho + found["phi"]
    converged = gamma * rho + found["converged_phi"]
    warnings = []
    if found["nonconcave_perturbed"] > 0:
        share = 100 * found["nonconcave_perturbed"]
        warnings.append(
            f"At {share:.1f} % of the perturbed points the inner problem is not concave (largest Hessian eigenvalue "
            f"{found['hessian_max']:.3g}, 2 gamma = {2 * gamma:.3g}); that is a lower estimate."
        )
    if converged > value + 1e-6:
        warnings.append(f"{steps} steps understate the bound: with a converged adversary it is {converged:.4g}.")
    if attack["value"] > value:
        warnings.append(f"An attack within the budget reaches {attack['value']:.4g}: this estimate is violated.")
    return Certificate(
        kind="wasserstein",
        verdict="estimate",
        statement=(
            f"The paper's procedure puts the expected cross-entropy of the model at {value:.4g} or less when these "
            f"{len(split):,} {split.split} points are moved by at most {rho:g} squared 2-norm on average, labels kept "
            f"(estimate, gamma = {gamma:.4g}, {steps} ascent steps)."
        ),
        not_claimed=[
            "That the number is an upper bound: the inner problem is solved approximately and from below.",
            "Unseen data: the term eps_n of Theorem 3 has unknown constants and is left out, as in the paper.",
            "Per-point robustness or other norms.",
        ],
        value=value,
        quantity="expected cross-entropy",
        threat={"norm": "l2", "radius": rho, "average|pointwise": "average", "cost": "squared 2-norm", "domain": "R^d"},
        sample={
            "dataset": split.name,
            "split": split.split,
            "n": len(split),
            "sha256": split.digest(),
            "labels": "true labels, kept",
        },
        assumptions=["The fixed number of ascent steps attains the supremum (it does not; see the residual)."],
        constants={"gamma": gamma, "rho_hat": found["rho_hat"], "converged_rho_hat": found["converged_rho_hat"]},
        solver={
            "steps": steps,
            "mean_residual": found["residual_mean"],
            "max_residual": found["residual_max"],
            "phi": found["phi"],
            "converged_phi": found["converged_phi"],
            "converged_value": converged,
            "converged_max_residual": found["converged_residual_max"],
            "share_nonconcave_clean": found["nonconcave_clean"],
            "share_nonconcave_perturbed": found["nonconcave_perturbed"],
        },
        empirical=attack,
        vacuous=value >= VACUOUS,
        vacuous_above=VACUOUS,
        warnings=warnings,
        arithmetic="float32",
        seconds=seconds,
    )
