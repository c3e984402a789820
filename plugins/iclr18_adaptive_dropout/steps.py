"""The two blocks of the descent: a step of the weights on sampled masks, a step of the rates without them."""

# B batch

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from iclr18_adaptive_dropout.algorithm import Layer, layers_of, rademacher_reg
from iclr18_adaptive_dropout.config import TrainConfig
from iclr18_adaptive_dropout.dropout import AdaptiveDropout, deterministic, project_
from iclr18_adaptive_dropout.model import RowShare
from iclr18cli.models.modes import frozen

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run


@dataclass(frozen=True)
class Schedule:
    """Functions of the step, counted from 1 over the whole run.

    Args:
        steps: Steps of the training.
        milestones, decay: The step size is multiplied by `decay` after each of these shares of training.
        warmup: Share of training over which lambda grows linearly from 0.

    Example:
        >>> plan = Schedule(100, (0.5, 0.75), 0.1, 0.2)
        >>> plan.rate(50), plan.rate(51), plan.growth(10), plan.growth(30)
        (1.0, 0.1, 0.5, 1.0)
    """

    steps: int
    milestones: tuple[float, ...]
    decay: float
    warmup: float

    def rate(self, step: int) -> float:
        """Return the part of the learning rate that a step takes."""
        return self.decay ** sum(step > share * self.steps for share in self.milestones)

    def growth(self, step: int) -> float:
        """Return the part of lambda that counts at a step."""
        return min(1.0, step / (self.warmup * self.steps)) if self.warmup else 1.0


@dataclass(eq=False)
class Blocks:
    """Weights and rates of one network, and their optimisers.

    Attributes:
        net: A chain as `layers_of` reads it.
        layers: Its factors.
        drops, others: Its parts that hold rates, and those that hold weights.
        optimizer, rate_optimizer: SGD of either; the second steps only when rates are learnt.
    """

    net: nn.Module
    layers: list[Layer]
    drops: list[AdaptiveDropout]
    others: list[nn.Module]
    optimizer: SGD
    rate_optimizer: SGD
    config: TrainConfig
    run: Run
    n: int

    @classmethod
    def of(cls, net: nn.Module, config: TrainConfig, run: Run, n: int) -> Blocks:
        """Divide a prepared network and put it under the care of the run's checkpoints.

        Args:
            net: The network.
            config: Options.
            run: The training.
            n: Examples of the training set.
        """
        drops = [part for part in net.modules() if isinstance(part, AdaptiveDropout)]
        others = [part for part in net.modules() if part not in drops and any(True for _ in part.parameters(False))]
        rates = [drop.theta for drop in drops]
        weights = [parameter for part in others for parameter in part.parameters(False)]
        optimizer = SGD(weights, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)
        swing = config.theta_momentum
        rate_optimizer = SGD(rates, lr=config.theta_lr, momentum=swing, nesterov=swing > 0)  # never weight decay
        run.track(net=net, optimizer=optimizer, rate_optimizer=rate_optimizer)
        return cls(net, layers_of(net), drops, others, optimizer, rate_optimizer, config, run, n)

    def weight_step(self, x: Tensor, y: Tensor, *, lr: float, strength: float) -> dict[str, Tensor]:
        """Step the weights on cross-entropy under masks of the present rates plus `strength` times the regulariser."""
        self.optimizer.param_groups[0]["lr"] = lr  # by name every time: resuming replaces the groups
        with frozen(*self.drops):
            return self._descend(self.optimizer, x, y, strength)

    def rate_step(self, x: Tensor, y: Tensor, *, strength: float) -> dict[str, Tensor]:
        """Step the rates on the same objective with the rates in place of masks, then project them to [0, 1]."""
        with frozen(*self.others), deterministic(self.net):
            logged = self._descend(self.rate_optimizer, x, y, strength)
        for drop in self.drops:
            project_(drop.theta, self.rate_optimizer.state[drop.theta].get("momentum_buffer"))
        return {"rate_loss": logged["loss"]}

    def _descend(self, optimizer: SGD, x: Tensor, y: Tensor, strength: float) -> dict[str, Tensor]:
        with self.run.autocast():
            loss = F.cross_entropy(self.net(x), y)
        logged = {"loss": loss.detach()}
        objective = loss
        if strength:
            reg = self.regulariser(x)
            objective = loss + strength * reg
            logged["reg"] = reg.detach()
        self.run.descend(objective, optimizer)
        return logged

    def regulariser(self, x: Tensor) -> Tensor:
        """Return Reg with |X|_max of this batch, after the first layer if that makes shares of counts."""
        first = next(self.net.children())
        seen = first(x) if isinstance(first, RowShare) else x
        config, run = self.config, self.run
        # The whole batch's n; among several ranks |X|_max is that of the share.
        n = self.n if config.reg_n == "dataset" else max(1, round(len(x) * run.world.size / (run.weight or 1.0)))
        return rademacher_reg(self.layers, seen.abs().amax(), n, p=float(config.p), form=config.bound,
                              scale=config.scale)  # fmt: skip
