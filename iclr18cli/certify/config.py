"""Options of the certificate methods. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from iclr18cli.plugin import Option


@dataclass(frozen=True, kw_only=True)
class WassersteinConfig:
    """Expected loss over every distribution within a Wasserstein budget of the evaluated points (ladder S0-S2)."""

    under_all: ClassVar[Mapping[str, Any]] = MappingProxyType({"limit": 1000})
    """Defaults in `--method all`, where a method that takes hours would keep the others waiting."""

    rho: Annotated[tuple[float, ...], Option("Budgets: average squared 2-norm displacement.", min=0)] = (
        0.0001,
        0.001,
        0.01,
    )
    loss: Annotated[
        Literal["cross-entropy", "error-probability"], Option("Loss that is bounded: cross-entropy or 1 - p_y.")
    ] = "cross-entropy"
    gamma: Annotated[tuple[float, ...], Option("Penalties tried; by default a grid above L/2.", above=0)] = ()
    population: Annotated[
        bool, Option("Bound the population with probability 1 - delta (loss 1 - p_y, test data).")
    ] = False
    delta: Annotated[float, Option("Probability that a population statement fails.", above=0, max=0.5)] = 0.001
    box: Annotated[bool, Option("Adversaries keep to the inputs' declared range.")] = False
    limit: Annotated[int, Option("Certify the first LIMIT examples; 0: all.", min=0)] = 0
    split: Annotated[str, Option("Split of the data set.", metavar="SPLIT")] = "test"


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig:
    """Radii within which the classifier smoothed with Gaussian noise keeps its prediction (Cohen et al. 2019).

    The paper counts 100,000 draws per point; the default here is a tenth, for a CPU, and proves 3.2 sigma at most.
    """

    under_all: ClassVar[Mapping[str, Any]] = MappingProxyType({"limit": 20})

    sigma: Annotated[float, Option("Standard deviation of the noise, in the unit of the input.", above=0)] = 0.25
    n0: Annotated[int, Option("Draws per point that select a class.", min=1)] = 100
    n: Annotated[int, Option("Draws per point that count it; the paper takes 100000.", min=1)] = 10_000
    alpha: Annotated[float, Option("Probability that a radius is wrong.", above=0, max=0.4)] = 0.001
    radius: Annotated[tuple[float, ...], Option("Radii of the table, 2-norm.", min=0)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    batch_size: Annotated[int, Option("Noisy inputs per batch; 0: from memory.", min=0)] = 0
    limit: Annotated[int, Option("Certify the first LIMIT examples; 0: all.", min=0)] = 100
    split: Annotated[str, Option("Split of the data set.", metavar="SPLIT")] = "test"


@dataclass(frozen=True, kw_only=True)
class WassersteinSmoothingConfig:
    """Expected error under Gaussian noise over every distribution within a Wasserstein budget, for any model."""

    under_all: ClassVar[Mapping[str, Any]] = MappingProxyType({"limit": 1000})

    rho: Annotated[tuple[float, ...], Option("Budgets: average squared 2-norm displacement.", min=0)] = (
        0.0001,
        0.001,
        0.01,
    )
    sigma: Annotated[float, Option("Standard deviation of the noise, in the unit of the input.", above=0)] = 0.25
    measure: Annotated[
        Literal["error", "error-probability"], Option("What is bounded: the error rate under noise, or 1 - p_y.")
    ] = "error"
    draws: Annotated[int, Option("Noisy inputs that the mean is estimated from.", min=1)] = 20_000
    population: Annotated[
        bool, Option("Bound the population with probability 1 - delta (test data; one draw per point).")
    ] = False
    delta: Annotated[float, Option("Probability that the statement fails.", above=0, max=0.4)] = 0.001
    batch_size: Annotated[int, Option("Noisy inputs per batch; 0: from memory.", min=0)] = 0
    limit: Annotated[int, Option("Certify the first LIMIT examples; 0: all.", min=0)] = 0
    split: Annotated[str, Option("Split of the data set.", metavar="SPLIT")] = "test"


@dataclass(frozen=True, kw_only=True)
class LipschitzConfig:
    """Radii within which the model keeps its prediction, from the margin and a global Lipschitz constant."""

    norm: Annotated[Literal["l2", "linf"], Option("Norm of the radius.")] = "l2"
    radius: Annotated[
        tuple[float, ...],
        Option("Radii of the table; by default 36, 72, 108 over 255 for l2 and 1, 2, 8 over 255 for linf.", min=0),
    ] = ()
    batch_size: Annotated[int, Option("Points per batch; 0: from memory.", min=0)] = 0
    limit: Annotated[int, Option("Certify the first LIMIT examples; 0: all.", min=0)] = 0
    split: Annotated[str, Option("Split of the data set.", metavar="SPLIT")] = "test"


@dataclass(frozen=True, kw_only=True)
class IbpConfig:
    """Points that keep their right class everywhere in a ball, by interval bounds: fast, for nets trained for them."""

    under_all: ClassVar[Mapping[str, Any]] = MappingProxyType({"limit": 1000})

    norm: Annotated[Literal["l2", "linf", "l1"], Option("Norm of the ball.")] = "linf"
    eps: Annotated[tuple[float, ...], Option("Radii of the balls.", min=0)] = (0.1,)
    box: Annotated[bool, Option("Adversaries keep to the inputs' declared range.")] = True
    batch_size: Annotated[int, Option("Points per batch; 0: from memory.", min=0)] = 0
    limit: Annotated[int, Option("Certify the first LIMIT examples; 0: all.", min=0)] = 0
    split: Annotated[str, Option("Split of the data set.", metavar="SPLIT")] = "test"


@dataclass(frozen=True, kw_only=True)
class CrownConfig(IbpConfig):
    """The same by linear relaxations carried back to the input (CROWN), never looser than interval bounds."""

    under_all: ClassVar[Mapping[str, Any]] = MappingProxyType({"limit": 100})

    intermediate: Annotated[
        Literal["auto", "ibp", "crown"],
        Option("Bounds of hidden layers; auto: by CROWN for networks of at most 2,000 hidden neurons."),
    ] = "auto"
    limit: Annotated[int, Option("Certify the first LIMIT examples; 0: all.", min=0)] = 500
