"""What the checks for masked gradients work on: a bounded sample of the points, and what a check says.

N points of the sample · S points looked at · X the axes of one input · K classes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from iclr18cli import device as devices
from iclr18cli.attack.losses import margin, objective
from iclr18cli.attack.report import clopper_pearson
from iclr18cli.attack.survivors import climbing
from iclr18cli.attack.threat import Budget, Threat

BEATEN = 0.002
"""Share of all points by which another attack may beat the evaluation: Square's lead at which AutoAttack warns."""

NO_GRADIENT = "The model has no gradient with respect to its input; this was not tried."


@dataclass(frozen=True)
class Check:
    """One check and what it measured.

    Args:
        name: A few words.
        passed: Whether the model behaves as one with honest gradients does; None: it could not be judged.
        figures: What was measured: counts, shares in [0, 1], lengths in the units of the inputs.
        sentence: The finding in plain English.
        veto: It fails so far that the robust accuracy is not to be believed.
        broken: (S,) bool, points of the probe that it broke within eps; None: it attacks nothing.
    """

    name: str
    passed: bool | None
    figures: Mapping[str, float]
    sentence: str
    veto: bool = False
    broken: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        from iclr18cli.console import plain

        return {"name": self.name, "passed": self.passed, "figures": plain(self.figures),
                "sentence": self.sentence, "veto": self.veto}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The points looked at, all right unattacked, and how the evaluation attacked them.

    Args:
        model: In evaluation mode.
        x: (S, *shape), on the model's device.
        y: (S,) true classes, on the model's device.
        alive: (S,) bool on the CPU, where the evaluation left the point unbroken.
        index: (S,) their positions in the sample, on the CPU.
        survivors: Unbroken points of the whole sample, of which `alive` are some.
        n: Points of the whole sample.
        threat, budget: Of the evaluation; the budget's loss is what the checks climb.
        batch_size: Points per batch.
        seed: Seed of all randomness.
        state: What one check tells the next: "random" outputs, "gradient" (there is one), "left" by radius.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    alive: Tensor
    index: Tensor
    survivors: int
    n: int
    threat: Threat
    budget: Budget
    batch_size: int
    seed: int
    state: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def has_gradient(self) -> bool:
        """Return whether the outputs are connected to the inputs in the graph."""
        return bool(self.state.get("gradient", True))

    @property
    def width(self) -> float:
        """Return the width of the domain; without one, of what the points cover."""
        if self.threat.domain is not None:
            return self.threat.domain[1] - self.threat.domain[0]
        low, high = torch.aminmax(self.x)
        return float(high - low) or 1.0

    def step(self, share: float) -> float:
        """Return a share of eps as a step length that float32 can tell from none and the domain has room for."""
        return min(max(share * self.threat.eps, 1e-4 * self.width), self.width / 4)

    def generator(self, *names: object) -> torch.Generator:
        """Return the source of randomness for one purpose."""
        return torch.Generator().manual_seed(devices.derived_seed(self.seed, "diagnosis", *names))

    def at(self, which_S: Tensor) -> Probe:
        """Return the probe at some of its points: positions, or a bool for each, on the CPU."""
        own = which_S.to(self.x.device)
        return replace(self, x=self.x[own], y=self.y[own], alive=self.alive[which_S], index=self.index[which_S])

    def left(self, most: int) -> Tensor:
        """Return the positions of at most so many survivors."""
        return self.alive.nonzero().flatten()[:most]

    def attacked(self, attack: Callable[..., Tensor], name: str, threat: Threat | None = None, **budget: Any) -> Tensor:
        """Attack every point and return where the model is wrong afterwards, (S,) bool on the CPU; see `predicted`."""
        return self.predicted(attack, name, threat, **budget) != self.y.cpu()

    def predicted(
        self, attack: Callable[..., Tensor], name: str, threat: Threat | None = None, *, aim: Tensor | None = None,
        **budget: Any,
    ) -> Tensor:  # fmt: skip
        """Attack every point and return the class predicted afterwards, (S,) on the CPU.

        Args:
            attack: See `iclr18cli.attack.registry`.
            name: Tells its random numbers from others.
            threat: None: that of the evaluation.
            aim: (S,) classes to reach, on the CPU; None: any wrong one.
            budget: Fields of `Budget`; the loss is that of the evaluation unless given.
        """
        threat, spent = threat or self.threat, Budget(**{"loss": self.budget.loss, **budget})
        found, generator = [torch.zeros(0, dtype=torch.int64)], self.generator(name)
        for place_B in torch.arange(len(self)).split(self.batch_size) if len(self) else ():
            own = self.at(place_B)
            aims = {} if aim is None else {"targets": aim[place_B].to(self.x.device)}
            z_BX = attack(self.model, own.x, own.y, threat=threat, budget=spent, generator=generator, **aims)
            threat.check(z_BX, own.x)
            found.append(self.outputs(z_BX).argmax(1).cpu())
        return torch.cat(found)

    def outputs(self, z_SX: Tensor) -> Tensor:
        """Return logits, (S, K)."""
        with torch.no_grad():
            return torch.cat([self.model(z_BX) for z_BX in z_SX.split(self.batch_size)])

    def height(self, logits_SK: Tensor) -> Tensor:
        """Return what the attack climbs in a form that does not saturate, (S,) in float64.

        Cross-entropy is softplus of the log-odds of all wrong classes: the same direction of ascent, but a confident
        model's cross-entropy rounds to 0 where its log-odds still tell two points apart.
        """
        wide_SK = logits_SK if logits_SK.device.type == "mps" else logits_SK.double()
        if self.budget.loss != "cross-entropy":
            return objective(wide_SK, self.y, loss=self.budget.loss)
        own_S1 = self.y[:, None]
        return wide_SK.scatter(1, own_S1, -torch.inf).logsumexp(1) - wide_SK.gather(1, own_S1).squeeze(1)

    def gradient(self, of: str, z_SX: Tensor | None = None) -> Tensor | None:
        """Return the input gradient of "loss", "margin" or "height", (S, *shape); None: there is none in the graph."""
        gradients = []
        points = self.x if z_SX is None else z_SX
        with climbing(self.model):
            for place_B in torch.arange(len(self)).split(self.batch_size):
                own, z_BX = self.at(place_B), points[place_B.to(points.device)].detach().clone().requires_grad_()
                logits_BK, y_B = self.model(z_BX), own.y.clone()
                if of == "height":
                    value_B = own.height(logits_BK)
                else:
                    value_B = (
                        margin(logits_BK, y_B) if of == "margin" else objective(logits_BK, y_B, loss=own.budget.loss)
                    )
                if not value_B.requires_grad:
                    return None
                (gradient_BX,) = torch.autograd.grad(value_B.sum(), z_BX, materialize_grads=True)
                gradients.append(gradient_BX)
        return torch.cat(gradients)

    def lead(self, broken: int, tried: int) -> float:
        """Return by how many points of accuracy, as a share of all, an attack beats the evaluation at least.

        It broke `broken` of `tried` survivors; the lower end of the 95 % interval of that share, times the survivors'
        share of all points.
        """
        return clopper_pearson(broken, tried)[0] * self.survivors / self.n if tried else 0.0
