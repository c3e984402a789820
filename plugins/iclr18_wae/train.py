"""`wae train`: Algorithms 1 and 2, and the baselines on the same networks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from iclr18_wae import algorithm
from iclr18_wae.config import TrainConfig
from iclr18_wae.evaluate import reconstruct_and_code
from iclr18_wae.figures import draw_grids
from iclr18_wae.model import AutoEncoder, adversary
from iclr18_wae.preparation import Draws, check, layers_to_cap, network, pretrain, schedule
from iclr18cli.certify.capping import cap_layers_
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split
from iclr18cli.models.modes import evaluating

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run


def train(config: TrainConfig, run: Run) -> None:
    """Minimise E c(x, G(Q(x))) + lambda D_Z(Q_Z, P_Z)."""
    check(config, run.world.size)
    read = partial(open_split, config.dataset, data_dir=run.settings.data_dir, download=run.settings.download)
    data, test = read("train"), read("test")
    if config.limit:
        data = data.take(config.limit)
    net, name, kwargs = network(config, data)
    run.prepare(net)
    fit(net, data, config, run)
    run.save_model(net, model=name, kwargs=kwargs, split=data, task="generate")
    final = reconstruct_and_code(net, test.to(run.device), seed=run.seed)
    run.record("test", **final)
    draw_grids(net, test, run)
    if config.method in ("wae-mmd", "wae-gan"):
        final["penalty_against_squared_error"] = config.penalty / config.rec_scale
    run.finish(**final)


def fit(net: AutoEncoder, data: Split, config: TrainConfig, run: Run) -> None:
    """Train in place: each step on encoder and decoder, then, with an adversary, one on it, with the same draws."""
    adam = partial(torch.optim.Adam, betas=(config.beta1, 0.999))
    optimizer = adam(net.parameters(), lr=config.learning_rate)
    run.track(net=net, optimizer=optimizer)
    D = None
    if config.method in ("wae-gan", "aae"):
        D = adversary(config.latent, config.adversary_width)
        run.prepare(D)
        D_optimizer = adam(D.parameters(), lr=config.adversary_rate)
        run.track(adversary=D, adversary_optimizer=D_optimizer)
    capped = layers_to_cap(net, data) if config.spectral_cap is not None else []
    draws, scaler = Draws(net, config, run), run.scaler
    if config.pretrain_steps:
        pretrain(net, data, config, run, draws)
    for x, _ in run.epochs(data, config.epochs, batch_size=config.batch_size, drop_last=True):
        rate = schedule(config, run.epoch)
        z, noise, x_noisy = draws.prior(), draws.noise(), draws.blurred(x)
        with run.autocast():
            mean, log_variance = net.posterior(x_noisy)
            code = net.perturbed(mean, log_variance, noise) if net.random else net.prior.place(mean)
            x_hat = net.decode(code)
        x_hat = x_hat.float()
        rec = reconstruction(config, x, x_hat).mean()
        if D is None:
            penalty = penalise(config, net, mean, log_variance, code, z)
        else:
            with evaluating(D):
                penalty = algorithm.fooling_loss(logit(config, D, code))
        loss = rec + weight(config) * penalty
        step(optimizer, loss, scaler, config.learning_rate * rate)
        if D is not None:
            told = algorithm.adversary_loss(logit(config, D, z), logit(config, D, code.detach()))
            step(D_optimizer, told, scaler, config.adversary_rate * rate)
            run.log(adversary=told.detach())
        scaler.update()
        if config.spectral_cap is not None:
            cap_layers_(capped, config.spectral_cap)
        run.log(loss=loss.detach(), reconstruction=rec.detach(), penalty=penalty.detach())


def step(optimizer: torch.optim.Optimizer, loss: Tensor, scaler: torch.amp.GradScaler, rate: float) -> None:
    """Take one step of an optimiser at a step size."""
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)


def penalise(
    config: TrainConfig, net: AutoEncoder, mean: Tensor, log_variance: Tensor | None, code: Tensor, z: Tensor
) -> Tensor:
    """Return the penalty that needs no adversary: MMD^2 of codes to the prior, the VAE's KL, or none."""
    if config.method == "wae-mmd":
        if config.kernel == "rbf":
            return algorithm.mmd(code, z, algorithm.rbf(algorithm.median_bandwidth(code, z)))
        return algorithm.mmd(code, z, algorithm.imq(net.prior.C, config.scales))
    if config.method == "vae":
        assert log_variance is not None
        return algorithm.normal_divergence(mean, log_variance, prior_variance=config.prior_variance).mean()
    return mean.new_zeros(())


def reconstruction(config: TrainConfig, x: Tensor, x_hat: Tensor) -> Tensor:
    """Return the data term of each example: the scaled cost, or -log p(x|z) for the likelihood models."""
    if config.method in ("vae", "aae"):
        return algorithm.negative_log_likelihood(config.cost, x, x_hat, decoder_variance=config.decoder_variance)
    return config.rec_scale * algorithm.cost(config.cost, x, x_hat)


def weight(config: TrainConfig) -> float:
    """Return lambda; 1 for the likelihood models, whose two terms are in nats."""
    return {"wae-mmd": config.penalty, "wae-gan": config.penalty, "ae": 0.0}.get(config.method, 1.0)


def logit(config: TrainConfig, D: nn.Module, z: Tensor) -> Tensor:
    """Return the adversary's logit of each code."""
    variance = config.prior_variance if config.p_trick and config.method == "wae-gan" else None
    return algorithm.adversary_logit(D(z), z, prior_variance=variance)
