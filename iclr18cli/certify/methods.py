"""The core's certificate methods as they are called on an opened run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iclr18cli.certify.config import WassersteinConfig
from iclr18cli.certify.result import Certificate

if TYPE_CHECKING:
    from iclr18cli.run.opened import OpenedRun


def wasserstein(config: WassersteinConfig, run: OpenedRun) -> list[Certificate]:
    """Bound the worst expected loss within every Wasserstein budget: the smallest of S0, S1, S2.

    Raises:
        UserError: an assumption is not met; it says which, and what would meet it.
    """
    from iclr18cli.certify.sound import certify

    split = run.split(config.split, config.limit)
    with run.progress(None, "certify") as bar:
        return certify(
            run.model(),
            split,
            loss=config.loss,
            rhos=config.rho,
            gammas=config.gamma or None,
            box=run.card.range if config.box else None,
            population=config.population,
            delta=config.delta,
            progress=bar.advance,
        )
