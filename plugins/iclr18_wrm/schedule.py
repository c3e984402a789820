"""What changes from step to step: the size of the optimiser's steps, and the radius of training for interval bounds."""

# B batch · X the axes of one input

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from iclr18_wrm.config import TrainConfig
from iclr18cli.certify.bounds.training import Ramp, interval_loss


@dataclass(frozen=True)
class Schedule:
    """Functions of the step, counted from 1 over the whole run, so that a resumed run goes on where it was.

    Args:
        steps: Steps of the training.
        decay: Share of them over which the step size falls linearly to 0.
        ramp: Radius and weight of the clean loss of `--method ibp`.
    """

    steps: int
    decay: float
    ramp: Ramp

    @classmethod
    def of(cls, config: TrainConfig, examples: int) -> Schedule:
        """Return the schedule of a training on so many examples."""
        steps = config.epochs * -(-examples // config.batch_size)
        ramp = Ramp(config.eps or 0.0, steps, ramp=config.ibp_ramp, kappa=config.ibp_kappa)
        return cls(steps, config.decay, ramp)

    def rate(self, step: int) -> float:
        """Return the part of the learning rate that a step takes.

        Example:
            >>> plan = Schedule(100, 0.5, Ramp(0.0, 100))
            >>> plan.rate(50), plan.rate(75), plan.rate(100)
            (1.0, 0.52, 0.02)
        """
        left = self.steps - min(step, self.steps) + 1
        return min(1.0, left / (self.decay * self.steps)) if self.decay else 1.0

    def interval_loss(
        self, net: nn.Module, x: Tensor, y: Tensor, config: TrainConfig, domain: tuple[float, float] | None, step: int
    ) -> Tensor:
        """Return the loss of `--method ibp` at a step, see `iclr18cli.certify.bounds.training`."""
        eps, kappa = self.ramp.at(step)
        return interval_loss(net, x, y, eps=eps, kappa=kappa, norm=config.norm, domain=domain)
