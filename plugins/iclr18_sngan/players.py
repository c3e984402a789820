"""Generator and critic with an Adam each, and the updates they take.

B batch · X the axes of one input
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iclr18_sngan import algorithm
from iclr18_sngan.config import TrainConfig
from iclr18_sngan.model import GAN, WEIGHTED
from iclr18cli.models.modes import frozen

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from iclr18cli.run.loop import Run


@dataclass(eq=False)
class Players:
    """The two players of a run; every random number is drawn for the whole batch and shared out among the ranks."""

    net: GAN
    config: TrainConfig
    run: Run
    G: Optimizer
    D: Optimizer
    draws: torch.Generator
    noise: torch.Generator
    bytes: bool = False

    @classmethod
    def of(cls, net: GAN, config: TrainConfig, run: Run, *, bytes: bool = False) -> Players:
        """Make the optimisers and put everything under the care of the run's checkpoints.

        Args:
            net, config, run: As trained.
            bytes: The real images are stored as bytes, so that they can be dequantised.
        """
        alpha, beta1, beta2 = config.adam
        adam = partial(torch.optim.Adam, lr=alpha, betas=(beta1, beta2))
        G, D = adam(net.generator.parameters()), adam(net.critic.parameters())
        run.track(net=net, G=G, D=D)
        draws, noise = (run.generator(name, run.device) for name in ("latent", "pixels"))
        return cls(net, config, run, G, D, draws, noise, bytes)

    def slow_down(self, share: float) -> None:
        """Set both step sizes to a share of alpha."""
        for optimizer in (self.G, self.D):
            optimizer.param_groups[0]["lr"] = self.config.adam[0] * share

    def generator_step(self) -> dict[str, Tensor]:
        """Update the generator against the critic as it is; the critic's parameters take no gradient."""
        config = self.config
        z, y = self.latent(config.generator_batch or config.batch_size)
        with self.run.autocast(), frozen(self.net.critic):
            fake = self.net.critic(self.net.generator(z, y), y)
            loss = algorithm.generator_loss(config.loss, fake)
            self.run.descend(loss, self.G)
        return {"generator_loss": loss.detach()}

    def critic_step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Update the critic on real images and as many fakes.

        Both go through it in one pass, so that every weight is normalised once per update; batch normalisation takes
        them one after the other, each with its own statistics.

        Args:
            x: (B, *X) real images in the data's range: the whole batch.
            y: (B,) their classes.
        """
        config, net, run = self.config, self.net, self.run
        z, fake_y = self.latent(len(x))
        if config.dequantize and self.bytes:
            noise = torch.rand(x.shape, generator=self.noise, device=x.device)
            x = dequantized(x, noise)
        real, real_y = run.share(x), run.share(y) if net.classes else None
        with run.autocast():
            with torch.no_grad():
                fake = net.generator(z, fake_y)
            if config.norm == "bn":
                real_B, fake_B = net.critic(real, real_y), net.critic(fake, fake_y)
            else:
                both_y = torch.cat([real_y, fake_y]) if real_y is not None and fake_y is not None else None
                real_B, fake_B = net.critic(torch.cat([real, fake]), both_y).split([len(real), len(fake)])
            loss = algorithm.critic_loss(config.loss, real_B, fake_B)
            held = loss
            if config.norm == "gp":
                t_B = run.share(torch.rand(config.batch_size, generator=self.noise, device=x.device))
                told = partial(net.critic, y_B=real_y)
                with torch.autocast(x.device.type, enabled=False):
                    penalty = algorithm.gradient_penalty(told, real, fake, t_B)
                held = loss + config.gp_weight * penalty
            elif config.norm == "orthonormal":
                weights: Any = [part.weight for part in net.critic.modules() if isinstance(part, WEIGHTED)]
                held = loss + config.orthonormal_weight * algorithm.orthonormal_penalty(weights)
        run.descend(held, self.D)
        if config.norm == "clip":
            algorithm.clip_(net.critic, config.clip)
        logged = {"loss": held.detach(), "real": real_B.detach().mean(), "fake": fake_B.detach().mean()}
        return logged if held is loss else logged | {"penalty": (held - loss).detach()}

    def latent(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Return this rank's share of (z, y) for a batch of `count`."""
        z, y = self.net.draw(count, self.draws)
        return self.run.share(z), None if y is None else self.run.share(y)


def dequantized(x: Tensor, noise: Tensor) -> Tensor:
    """Return bytes / 255 spread evenly over their grey level: (255 x + noise) / 256 for noise in [0, 1)."""
    return (255 * x + noise) / 256
