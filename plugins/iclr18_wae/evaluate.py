"""`wae eval`: reconstructions, codes against the prior, and samples.

N examples · D latent dimensions
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iclr18_wae import algorithm
from iclr18_wae.config import EvalConfig
from iclr18_wae.model import AutoEncoder
from iclr18cli.data.tensors import batches
from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError
from iclr18cli.generate.evaluate import run_quality
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.data.tensors import Split
    from iclr18cli.run.opened import OpenedRun

BATCH = 500
MMD_POINTS, DRAWS = 4000, 2000
"""Codes in the measured MMD; draws, from a prior whose kernel mean is not known."""


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on a split of its data set."""
    net = auto_encoder(run)
    split = run.split(config.split, config.limit)
    metrics: dict[str, Any] = {"dataset": split.name, "split": split.split}
    metrics |= reconstruct_and_code(net, split.to(run.device), seed=run.seed)
    if config.samples or config.inception:
        metrics |= run_quality(
            run, split, net.sample, seed=run.seed, feature_steps=config.feature_steps, features=config.samples,
            inception=config.inception,
        )  # fmt: skip
    return metrics


def auto_encoder(run: OpenedRun) -> AutoEncoder:
    """Return the run's network.

    Raises:
        UserError: It is no auto-encoder of this technique.
    """
    net = run.model()
    if not isinstance(net, AutoEncoder):
        raise UserError(f"{run.path} holds no auto-encoder.", why=f"its model is {run.card.model}")
    return net


def codes(net: AutoEncoder, split: Split, *, seed: int) -> Tensor:
    """Return a draw from Q(z|x) for every input, (N, D), in evaluation mode: a sample of Q_Z on the split."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "wae codes"))
    found = []
    with evaluating(net), torch.no_grad():
        for x, _ in batches(split, BATCH):
            noise = torch.randn((len(x), net.prior.D), generator=generator).to(x.device) if net.random else None
            found.append(net.encode(x, noise))
    return torch.cat(found)


def reconstruct_and_code(net: AutoEncoder, split: Split, *, seed: int) -> dict[str, float]:
    """Return what an auto-encoder does on a split that lies on its device.

    Returns:
        n; reconstruction_mse, per number of the input; code_mmd2, the unbiased estimate of MMD^2 with the seven IMQ
        kernels (it may be negative) from at most `MMD_POINTS` codes to the prior; code_mean_norm, |mean of the codes|;
        code_variance_error, the Frobenius norm of their covariance less the prior's, over the square root of D.
    """
    squared = torch.zeros((), dtype=torch.float64, device=split.x.device)
    with evaluating(net), torch.no_grad():
        for x, _ in batches(split, BATCH):
            squared += (net(x).double() - x.double()).square().sum()
    numbers = len(split) * split.x[0].numel()
    z = codes(net, split, seed=seed)
    generator = torch.Generator().manual_seed(derived_seed(seed, "wae prior"))
    draw = net.prior.draw(DRAWS, generator, z.device).double()
    result = {"n": len(split), "reconstruction_mse": squared.item() / numbers}
    if len(z) < 2:
        return result
    kept = z[:MMD_POINTS].double()
    if net.prior.kind == "normal":
        distance = algorithm.mmd_to_normal(kept, net.prior.C, variance=net.prior.variance)
    else:
        distance = algorithm.mmd(kept, draw, algorithm.imq(net.prior.C))
    difference = algorithm.covariance(z.double()) - net.prior.covariance().to(z.device)
    return result | {
        "code_mmd2": distance.item(),
        "code_mean_norm": z.double().mean(0).norm().item(),
        "code_variance_error": (difference.norm() / net.prior.D**0.5).item(),
    }
