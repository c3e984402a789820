"""The three steps of an iteration, and the players that take them.

B batch · s source · t target · f features, z logits: source first, then target
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18_adr.algorithm import adversarial_loss, class_balance, draws, reverse_gradient
from iclr18_adr.config import TrainConfig
from iclr18_adr.model import Adapted
from iclr18cli.models.modes import frozen

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from iclr18cli.run.loop import Run


@dataclass(eq=False)
class Players:
    """G, C and C' (or F2) with an Adam each, and the steps they take; every step clears the gradients it uses."""

    net: Adapted
    config: TrainConfig
    run: Run
    G: Optimizer
    C: Optimizer
    second: Optimizer
    domain: nn.Module | None = None
    D: Optimizer | None = None

    @classmethod
    def of(cls, net: Adapted, config: TrainConfig, run: Run) -> Players:
        """Make the optimisers and put everything under the care of the run's checkpoints."""
        adam = partial(torch.optim.Adam, lr=config.learning_rate, weight_decay=config.weight_decay)
        G, C, second = (adam(part.parameters()) for part in (net.features, net.classifier, net.second))
        run.track(net=net, G=G, C=C, second=second)
        players = cls(net, config, run, G, C, second)
        if config.critic == "dann":
            players.domain = run.prepare(discriminator(net)).train()
            players.D = adam(players.domain.parameters())
            run.track(domain=players.domain, D=players.D)
        return players

    def source_step(self, x: Tensor, ys: Tensor, *, share: float = 0.0) -> dict[str, Tensor]:
        """Step 1: min over (G, C) of L_cls; C' learns from the same features, whose gradient stops before G.

        Args:
            x: Source images, then target images if batch normalisation shall see them.
            ys: (B,) labels of the source.
            share: Share of the training that is over: DANN's weight grows with it.
        """
        B, config = len(ys), self.config
        with self.run.autocast():
            f = self.net.features(x)
            z = self.net.classifier(f)
            loss = cls = F.cross_entropy(z[:B], ys)
            if config.class_balance and len(x) > B:
                loss = loss + config.class_balance * class_balance(z[B:])
            if self.domain is not None:
                scale = config.trade_off * (2 / (1 + math.exp(-10 * share)) - 1)
                side = torch.cat([f.new_ones(B), f.new_zeros(len(x) - B)])
                loss = loss + F.binary_cross_entropy_with_logits(self.domain(reverse_gradient(f, scale))[:, 0], side)
            own = F.cross_entropy(self.net.second(f if config.critic == "mcd" else f.detach())[:B], ys)
        # One backward pass: where C' is apart, its graph and that of G and C share nothing but a constant.
        both = [self.G, self.C, self.second, *([self.D] if self.D is not None else [])]
        self.run.descend(loss + own, *both)
        return {"loss": cls.detach(), "second_loss": own.detach()}

    def critic_step(self, x: Tensor, ys: Tensor) -> dict[str, Tensor]:
        """Step 2: min over C (MCD: both heads) of L_cls(s) - L_adv(t); G only supplies features."""
        B, config, mcd = len(ys), self.config, self.config.critic == "mcd"
        with self.run.autocast():
            with torch.no_grad():
                f = self.net.features(x)
            z1, z2 = draws(config.critic, self.net.classifier, self.net.second, f)
            d = adversarial_loss(config.critic, z1[B:], z2[B:], variant=config.variant)
            loss = F.cross_entropy(z1[:B], ys) - config.trade_off * d
            if mcd:
                loss = loss + F.cross_entropy(z2[:B], ys)
            if config.class_balance:
                loss = loss + config.class_balance * class_balance(z1[B:])
        self.run.descend(loss, *([self.C, self.second] if mcd else [self.C]))
        with torch.no_grad():
            d_source = adversarial_loss(config.critic, z1[:B], z2[:B], variant=config.variant)
        return {"d_target": d.detach(), "d_source": d_source}

    def generator_step(self, xt: Tensor) -> dict[str, Tensor]:
        """Step 3, once: min over G of L_adv(t); the gradient passes through C, whose parameters stay."""
        config = self.config
        with self.run.autocast(), frozen(self.net.classifier, self.net.second):
            z1, z2 = draws(config.critic, self.net.classifier, self.net.second, self.net.features(xt))
            d = adversarial_loss(config.critic, z1, z2, variant=config.variant)
            self.run.descend(config.trade_off * d, self.G)
        return {"d_generator": d.detach()}


def discriminator(net: Adapted) -> nn.Module:
    """Return DANN's domain classifier: dense 100-100-1 on the features."""
    width = next(layer.in_features for layer in net.classifier.modules() if isinstance(layer, nn.Linear))
    return nn.Sequential(nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 1))
