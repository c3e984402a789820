"""Options of the certificate methods. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option


@dataclass(frozen=True, kw_only=True)
class WassersteinConfig:
    """Expected loss over every distribution within a Wasserstein budget of the evaluated points (ladder S0-S2)."""

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
