"""The core's certificate methods as they are called on an opened run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from iclr18cli import launch
from iclr18cli.certify.config import (
    CrownConfig,
    IbpConfig,
    LipschitzConfig,
    SmoothingConfig,
    WassersteinConfig,
    WassersteinSmoothingConfig,
)
from iclr18cli.certify.result import Certificate

if TYPE_CHECKING:
    from iclr18cli.run.opened import Subject


def wasserstein(config: WassersteinConfig, run: Subject) -> list[Certificate]:
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


def smoothing(config: SmoothingConfig, run: Subject) -> list[Certificate]:
    """Certify the classifier smoothed with Gaussian noise; goes on from the points that a stopped call finished.

    Raises:
        UserError: inputs or labels do not fit, or the file of finished points cannot be written.
    """
    from iclr18cli.certify.smoothed import certify_smoothed, settings
    from iclr18cli.certify.smoothed_wording import Smoothing
    from iclr18cli.run.atomic import digest

    split, model = run.split(config.split, config.limit), run.model()
    asked = Smoothing(
        sigma=config.sigma,
        n0=config.n0,
        n=config.n,
        alpha=config.alpha,
        radii=config.radius,
        batch_size=config.batch_size,
        seed=run.seed,
    )
    name = f"smoothing-{digest(settings(model, split, asked))[:16]}.tsv"
    with run.progress(-(-len(split) // launch.world().size), "certify") as bar:
        return certify_smoothed(model, split, asked, progress=bar.advance,
                                record=run.keep("certify", name, each_rank=True))  # fmt: skip


def wasserstein_smoothing(config: WassersteinSmoothingConfig, run: Subject) -> list[Certificate]:
    """Bound the error under noise over every distribution within a Wasserstein budget.

    Raises:
        UserError: a population statement from training points, or inputs or labels that do not fit.
    """
    from iclr18cli.certify.smoothed_wasserstein import wasserstein_smoothing

    split = run.split(config.split, config.limit)
    with run.progress(None, "certify") as bar:
        return wasserstein_smoothing(
            run.model(),
            split,
            sigma=config.sigma,
            rhos=config.rho,
            measure=config.measure,
            draws=config.draws,
            delta=config.delta,
            population=config.population,
            batch_size=config.batch_size,
            seed=run.seed,
            progress=bar.advance,
        )


def lipschitz(config: LipschitzConfig, run: Subject) -> list[Certificate]:
    """Certify the model's predictions within radii that its margins and a global Lipschitz constant give.

    Raises:
        UserError: a layer has no known constant, or inputs or labels do not fit.
    """
    from iclr18cli.certify.lipschitz_margin import Asked, certify_lipschitz
    from iclr18cli.run.atomic import digest

    split, model = run.split(config.split, config.limit), run.model()
    asked = Asked(norm=config.norm, radii=config.radius, batch_size=config.batch_size)
    name = f"lipschitz-{config.norm}-{digest({'split': config.split, 'limit': config.limit})[:8]}.tsv"
    with run.progress(-(-len(split) // launch.world().size), "certify") as bar:
        return certify_lipschitz(model, split, asked, progress=bar.advance, record=lambda: run.keep("certify", name))


def ibp(config: IbpConfig, run: Subject) -> list[Certificate]:
    """Certify predictions in balls by interval bounds.

    Raises:
        UserError: a layer has no bounds, or inputs or labels do not fit.
    """
    return _bounds("ibp", config, run)


def crown(config: CrownConfig, run: Subject) -> list[Certificate]:
    """Certify predictions in balls by linear relaxations.

    Raises:
        UserError: a layer has no bounds, or inputs or labels do not fit.
    """
    return _bounds("crown", config, run, intermediate=config.intermediate)


def _bounds(
    method: Literal["ibp", "crown"], config: IbpConfig | CrownConfig, run: Subject, **more: Any
) -> list[Certificate]:
    from iclr18cli.certify.bounds.certificate import Asked, certify_bounds
    from iclr18cli.run.atomic import digest

    split = run.split(config.split, config.limit)
    asked = Asked(method=method, norm=config.norm, eps=config.eps, box=config.box, batch_size=config.batch_size,
                  seed=run.seed, **more)  # fmt: skip
    key = digest({"split": config.split, "limit": config.limit, "box": config.box, **more})[:8]
    work = -(-len(split) // launch.world().size) * len(config.eps)
    with run.progress(work, "certify") as bar:
        return certify_bounds(
            run.model(), split, asked, progress=bar.advance,
            record=lambda eps: run.keep("certify", f"{method}-{config.norm}-{eps:g}-{key}.tsv"),
        )  # fmt: skip
