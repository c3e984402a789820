"""Certificates from Python, on any torch model and tensors: `iclr18cli.certify.smoothing`, `.lipschitz`, and so on.

Every function takes (model, x, y), checks them and looks at the model first; what is odd about it is in the warnings of
the certificates. They name their sample "tensors"; `bool(certificate.holds)` is false where an attack inside the
certified set contradicts the bound, which is a fault of this program or of an assumption.

N points · B batch · K classes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iclr18cli import config as configs
from iclr18cli.certify.registry import find
from iclr18cli.certify.result import Certificate
from iclr18cli.data.given import given
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.format import ModelCard
from iclr18cli.models.modes import evaluating
from iclr18cli.plugin import resolve
from iclr18cli.run.opened import Subject
from iclr18cli.run.phases import no_progress
from iclr18cli.settings import Settings

Range = tuple[float, float] | None
Told = Callable[[int], object]

UNIT = (0.0, 1.0)
RHOS = (0.0001, 0.001, 0.01)


def smoothing(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float,
    radii: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    input_range: Range = UNIT,
    look: bool = True,
    batch_size: int = 0,
    seed: int = 0,
    attack: bool = True,
    progress: Told | None = None,
) -> list[Certificate]:
    """Certify the classifier that Gaussian noise makes of a model (Cohen et al. 2019): 2-norm radii, any architecture.

    Args:
        model: Maps (B, *shape) to (B, K) logits, best trained with such noise; left as it was.
        x, y: (N, *shape) inputs in `input_range` (uint8 images are divided by 255), (N,) labels.
        sigma: Standard deviation of the noise, in the unit of x.
        radii, n0, n, alpha, batch_size, seed, attack, progress: See `iclr18cli.certify.smoothed.smoothing`.
        input_range: (low, high) that the inputs are checked to lie in; None: all of R^d. The noise is not clipped.
        look: First look for what makes numbers wrong.

    Returns:
        One certificate per radius: `.value` is the certified accuracy, `.statement` says of what.

    Raises:
        UserError, ValueError: As the function named above, or the model cannot be used.
    """
    from iclr18cli.certify.smoothed import certify_smoothed
    from iclr18cli.certify.smoothed_wording import Smoothing

    asked = Smoothing(
        sigma=sigma, n0=n0, n=n, alpha=alpha, radii=tuple(radii), batch_size=batch_size, seed=seed, attack=attack
    )
    return _stated(
        model, x, y, input_range, look, lambda split: certify_smoothed(model, split, asked, progress=progress)
    )


def wasserstein_smoothing(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float,
    rhos: Sequence[float] = RHOS,
    input_range: Range = UNIT,
    look: bool = True,
    **options: Any,
) -> list[Certificate]:
    """Bound the error under noise over every distribution within a Wasserstein budget of the points, for any model.

    Args:
        model, x, y, sigma, input_range, look: As in `smoothing`.
        rhos: Budgets: average squared 2-norm displacement.
        options: measure, draws, delta, population, batch_size, seed, attack, progress; see
            `iclr18cli.certify.smoothed_wasserstein.wasserstein_smoothing`.

    Returns:
        One certificate per budget, in order.

    Raises:
        UserError, ValueError: As the function named above, or the model cannot be used.
    """
    from iclr18cli.certify.smoothed_wasserstein import wasserstein_smoothing as of_split

    return _stated(
        model, x, y, input_range, look, lambda split: of_split(model, split, sigma=sigma, rhos=tuple(rhos), **options)
    )


def lipschitz(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Literal["l2", "linf"] = "l2",
    radii: Sequence[float] = (),
    input_range: Range = UNIT,
    look: bool = True,
    batch_size: int = 0,
    attack: bool = True,
    progress: Told | None = None,
) -> list[Certificate]:
    """Certify predictions within radii that the margins and a global Lipschitz constant give: deterministic, fast.

    Args:
        model: A network made of layers with known constants; left as it was.
        x, y, input_range, look: As in `smoothing`.
        norm, radii, batch_size, attack, progress: See `iclr18cli.certify.lipschitz_margin.lipschitz`.

    Returns:
        One certificate per radius, in order.

    Raises:
        UserError, ValueError: As the function named above, or the model cannot be used.
    """
    from iclr18cli.certify.lipschitz_margin import Asked, certify_lipschitz

    asked = Asked(norm=norm, radii=tuple(radii), batch_size=batch_size, attack=attack)
    return _stated(
        model, x, y, input_range, look, lambda split: certify_lipschitz(model, split, asked, progress=progress)
    )


def wasserstein(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rhos: Sequence[float] = RHOS,
    loss: Literal["cross-entropy", "error-probability"] = "cross-entropy",
    input_range: Range = UNIT,
    box: bool = False,
    look: bool = True,
    **options: Any,
) -> list[Certificate]:
    """Bound the worst expected loss over every distribution within a Wasserstein budget of the points.

    Args:
        model: A network made of layers with known constants; smooth activations for more than the weakest rung.
        x, y, input_range, look: As in `smoothing`.
        rhos: Budgets: average squared 2-norm displacement.
        loss: cross-entropy in nats, or 1 - p_y.
        box: Adversaries keep to `input_range`.
        options: gammas, population, delta, and the other fields of `iclr18cli.certify.sound.Sound`; progress.

    Returns:
        One certificate per budget, in order.

    Raises:
        UserError, ValueError: See `iclr18cli.certify.sound.certify`, or the model cannot be used.
    """
    from iclr18cli.certify.sound import certify

    domain = input_range if box else None
    return _stated(
        model, x, y, input_range, look,
        lambda split: certify(model, split, loss=loss, rhos=tuple(rhos), box=domain, **options),
    )  # fmt: skip


def ibp(
    model: nn.Module, x: Tensor, y: Tensor, *, input_range: Range = UNIT, look: bool = True, **options: Any
) -> list[Certificate]:
    """Certify predictions by interval bounds of the network's outputs over a ball; see `certificates`.

    Args:
        model, x, y, input_range, look: As in `smoothing`.
        options: Those of `iclr18 certify --method ibp`.
    """
    return certificates(model, x, y, method="ibp", input_range=input_range, look=look, **options)


def crown(
    model: nn.Module, x: Tensor, y: Tensor, *, input_range: Range = UNIT, look: bool = True, **options: Any
) -> list[Certificate]:
    """Certify predictions by linear relaxations of the network over a ball (CROWN); see `certificates`.

    Args:
        model, x, y, input_range, look: As in `smoothing`.
        options: Those of `iclr18 certify --method crown`.
    """
    return certificates(model, x, y, method="crown", input_range=input_range, look=look, **options)


def certificates(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    method: str,
    input_range: Range = UNIT,
    look: bool = True,
    seed: int = 0,
    **options: Any,
) -> list[Certificate]:
    """Certify by any method, those of plugins included.

    Args:
        model, x, y, input_range, look: As in `smoothing`.
        method: Name of `iclr18 certify --help`.
        seed: Seed of what the method draws.
        options: The method's own, by the names of its command line (`rho`, `radius`, …); all points are certified.

    Returns:
        What the method states.

    Raises:
        UsageError: There is no such method or option, or a value is out of range.
        UserError: The method does not apply to this model, or the model cannot be used.
    """
    spec = find(method)
    config_class = resolve(spec.config)
    whole = {"limit": 0} if any(field.name == "limit" for field in configs.options(config_class)) else {}
    config = configs.build(config_class, whole | options)

    def state(split: Split) -> list[Certificate]:
        subject = _Given(model, split, input_range, seed)
        reason = resolve(spec.refuses)(subject) if spec.refuses else None
        if reason:
            raise UserError(f"{method} does not apply to this model.", why=reason)
        return resolve(spec.run)(config, subject)

    return _stated(model, x, y, input_range, look, state)


class _Given(Subject):
    """A model and points from Python in the place of a run. Nothing is seeded globally and nothing is kept."""

    def __init__(self, model: nn.Module, split: Split, input_range: Range, seed: int):
        self._model, self._split, self.seed, self.label = model, split, seed, "model"
        self.settings = Settings(seed=seed)
        self.device = split.x.device
        self._progress = no_progress
        with torch.no_grad(), evaluating(model):
            classes = model(split.inputs(slice(0, 1))).shape[1]
        self._card = ModelCard(
            model="model", shape=split.shape, range=input_range, classes=classes, dataset=split.name, weights="none"
        )

    @property
    def card(self) -> ModelCard:
        return self._card

    def model(self) -> nn.Module:
        return self._model

    def split(self, split: str = "test", limit: int = 0, *, dataset: str = "") -> Split:
        return self._split.take(limit) if limit else self._split


def _stated(
    model: nn.Module, x: Tensor, y: Tensor, input_range: Range, look: bool, state: Callable[[Split], list[Certificate]]
) -> list[Certificate]:
    """Check and look, certify, and put what was seen first among the warnings."""
    split, said = given(model, x, y, input_range, look=look)
    return [replace(found, warnings=[*said, *found.warnings]) for found in state(split)]
