"""Checks that attack the sample again, in ways that gain nothing where the evaluation was sound.

S points looked at · D coordinates of one input
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from iclr18cli.attack.diagnosis_probe import BEATEN, NO_GRADIENT, Check, Probe
from iclr18cli.attack.pgd import fgsm, noise, pgd, random_search
from iclr18cli.attack.square import square
from iclr18cli.attack.threat import Loss

WEAK = 0.02
"""Points of accuracy, as a share, by which more of the same attack may beat the evaluation before it counts as too
weak to say anything. Our choice: honest models, too, lose a little to every stronger attack."""

REACHES = 0.05
"""Share of the points that an unbounded attack may leave. Carlini et al. (2019): it should leave none; the slack is
ours."""

RADII = (0.5, 1.0, 2.0, 4.0)
"""Multiples of eps at which the error must not fall."""

STEPS = (10, 20, 40, 80)
"""Steps of one start each, of which the last must gain little."""

STARTS, QUERIES, DRAWS = 4, 150, 20
"""Random starts of 20 steps, queries of the black box and random points, per survivor."""

FEW, SOME = 32, 64
"""Survivors on which long and short attacks are tried; the gradient's checks take all points."""


def larger_radius(probe: Probe) -> Check:
    """Attack at eps / 2, eps, 2 eps and 4 eps: a larger ball must not be safer (Carlini et al. 2019)."""
    name = "larger radius"
    if not probe.has_gradient:
        return Check(name, None, {}, NO_GRADIENT)
    wrong = []
    for multiple in RADII:
        threat = replace(probe.threat, eps=multiple * probe.threat.eps)
        wrong.append(probe.attacked(pgd, f"{name} {multiple}", threat, steps=STEPS[0], restarts=1))
    probe.state["wrong"] = dict(zip(RADII, wrong, strict=True))
    falls = []
    for small_S, large_S in pairwise(wrong):
        lost, won = int((small_S & ~large_S).sum()), int((large_S & ~small_S).sum())
        # The same points at both radii: lost against won, each as likely if the radius meant nothing.
        falls.append(lost - won > max(2.0, 2 * (lost + won) ** 0.5))
    shares = [1 - wrong_S.double().mean().item() for wrong_S in wrong]
    figures = {f"{multiple * probe.threat.eps:g}": share for multiple, share in zip(RADII, shares, strict=True)}
    told = ", ".join(f"{share:.0%}" for share in shares)
    return Check(name, not any(falls), figures,
                 f"At half, once, twice and four times eps {told} of {len(probe)} points stay right"
                 f"{': a larger ball is safer, the search is stuck' if any(falls) else ''}.")  # fmt: skip


def unbounded(probe: Probe) -> Check:
    """Attack with a radius that is known to hold an error: nothing may stay right (Carlini et al. 2019).

    linf in a domain: half its width, at which every point reaches its middle; what is left then, the whole domain.
    Otherwise the distance at which every point has a point of another class.
    """
    name = "unbounded"
    if not probe.has_gradient:
        return Check(name, None, {}, NO_GRADIENT)
    radii = _far(probe)
    left_S = torch.ones(len(probe), dtype=torch.bool)
    for multiple, wrong_S in probe.state.get("wrong", {}).items():
        if multiple * probe.threat.eps <= radii[0]:
            left_S &= ~wrong_S
    figures: dict[str, float] = {}
    for radius in radii:
        place_S = left_S.nonzero().flatten()
        if len(place_S) == 0 and figures:
            break
        threat = replace(probe.threat, eps=radius)
        left_S[place_S] = ~probe.at(place_S).attacked(pgd, f"{name} {radius}", threat, steps=40, restarts=1)
        figures[f"{radius:.3g}"] = left_S.double().mean().item()
    left = int(left_S.sum())
    return Check(name, left <= REACHES * len(probe), figures,
                 f"An attack that may go as far as {radii[-1]:.3g} leaves {left} of {len(probe)} points right"
                 f"{', where errors must exist: it is blind' if left > REACHES * len(probe) else ''}.",
                 veto=left > REACHES * len(probe) and left > 2)  # fmt: skip


def _far(probe: Probe) -> list[float]:
    """Return radii for an attack without bound, ascending."""
    threat = probe.threat
    if threat.norm == "linf" and threat.domain is not None:
        return [probe.width / 2, probe.width]
    flat_SD = probe.x.flatten(1).double().cpu()
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[threat.norm]
    y_S = probe.y.cpu()
    apart_SS = torch.cdist(flat_SD, flat_SD, p=order).masked_fill(y_S[:, None] == y_S, torch.inf)
    nearest_S = apart_SS.amin(1)
    if nearest_S.isfinite().all():
        return [max(nearest_S.max().item(), 4 * threat.eps)]
    places = flat_SD.shape[1] ** (0 if threat.norm == "linf" else 1 / order)
    return [max(probe.width * places, 4 * threat.eps)]


def single_step(probe: Probe) -> Check:
    """Try one step, at a quarter, half and all of eps, on what iterations left (Athalye et al. 2018, section 3.1)."""
    name, place_S = "single step", probe.left(SOME)
    if not probe.has_gradient or len(place_S) == 0:
        return _nothing(name, probe)
    own = probe.at(place_S)
    found_S = own.y.cpu()
    for share in (0.25, 0.5, 1.0):
        threat = replace(probe.threat, eps=share * probe.threat.eps)
        reached_S = own.predicted(fgsm, f"{name} {share}", threat)
        found_S = torch.where(found_S == own.y.cpu(), reached_S, found_S)
    return _beaten(probe, name, "A single step", place_S, found_S, {})


def random_noise(probe: Probe) -> Check:
    """Try random points of the ball on what the attack left (Carlini et al. 2019)."""
    name, place_S = "random noise", probe.left(SOME)
    if len(place_S) == 0:
        return _nothing(name, probe)
    found_S = probe.at(place_S).predicted(noise, name, steps=DRAWS, restarts=1)
    return _beaten(probe, name, f"Random noise ({DRAWS} draws)", place_S, found_S, {"draws": DRAWS})


def black_box(probe: Probe) -> Check:
    """Try a search without gradients on what the attack left; AutoAttack warns where Square wins by 0.2 %."""
    name, place_S = "black box", probe.left(SOME)
    if len(place_S) == 0:
        return _nothing(name, probe)
    image = probe.x.dim() == 4
    found_S = probe.at(place_S).predicted(square if image else random_search, name, queries=QUERIES)
    what = f"{'Square' if image else 'A random search'} ({QUERIES} queries)"
    return _beaten(probe, name, what, place_S, found_S, {"queries": QUERIES})


def _beaten(probe: Probe, name: str, what: str, place_S: Tensor, found_S: Tensor, figures: dict[str, float]) -> Check:
    """Return the check of an attack that knows less than the evaluation's and should not win where that did not.

    Where gradients reach the class it found as well, once they are told to, the evaluation climbed towards another
    class or was short, and nothing is masked: `more_effort` judges that.

    Args:
        probe: Whose survivors were attacked.
        name, what: Of the check, and of the attack at the start of a sentence.
        place_S: Positions of the points it was tried on.
        found_S: The classes predicted after it.
        figures: What else to tell.
    """
    wrong_S = found_S != probe.at(place_S).y.cpu()
    won_S, aim_S = place_S[wrong_S], found_S[wrong_S]
    broken_S = torch.zeros(len(probe), dtype=torch.bool)
    broken_S[won_S] = True
    hidden_S = torch.ones(len(won_S), dtype=torch.bool)
    if probe.has_gradient:
        hidden_S = ~probe.at(won_S).attacked(pgd, f"{name} again", aim=aim_S, steps=40, restarts=2, loss="margin")
    tried, won, hidden = len(place_S), len(won_S), int(hidden_S.sum())
    said = f"{what} breaks {won} of {tried} points that the attack left"
    if won:
        said += f", {hidden if hidden < won else 'all'} of them where gradients do not lead"
    return Check(name, hidden == 0, {"tried": tried, "broken": won, "hidden": hidden, **figures}, f"{said}.",
                 veto=probe.lead(hidden, tried) > BEATEN, broken=broken_S)  # fmt: skip


def more_effort(probe: Probe) -> Check:
    """Attack what was left with more steps, other starts and another loss: little may be gained (Carlini et al. 2019).

    Unlike a black box, more of the same attack that gains a little shows no masked gradients; gaining much shows that
    the evaluation was too weak.
    """
    name, place_S = "more effort", probe.left(SOME)
    if not probe.has_gradient or len(place_S) == 0:
        return _nothing(name, probe)
    some, few = probe.at(place_S), probe.at(place_S[:FEW])
    other: Loss = "margin" if probe.budget.loss == "cross-entropy" else "cross-entropy"
    curve = {steps: few.attacked(pgd, f"{name} {steps}", steps=steps, restarts=1) for steps in STEPS}
    started_S = few.attacked(pgd, f"{name} starts", steps=20, restarts=STARTS)
    switched_S = some.attacked(pgd, f"{name} {other}", steps=20, restarts=1, loss=other)
    figures = {"tried": len(few), **{f"{steps}_steps": int(wrong_S.sum()) for steps, wrong_S in curve.items()},
               f"{STARTS}_starts": int(started_S.sum()), other.replace("-", "_"): int(switched_S.sum())}  # fmt: skip
    leads = {
        f"{STEPS[-1]} steps break {int(curve[80].sum())} of {len(few)}": probe.lead(int(curve[80].sum()), len(few)),
        f"{STARTS} starts break {int(started_S.sum())} of {len(few)}": probe.lead(int(started_S.sum()), len(few)),
        f"the {other} loss breaks {int(switched_S.sum())} of {len(some)}": probe.lead(int(switched_S.sum()), len(some)),
    }
    most = max(leads, key=lambda said: leads[said])
    broken_S = torch.zeros(len(probe), dtype=torch.bool)
    broken_S[place_S[:FEW]] = torch.stack([*curve.values(), started_S]).any(0)
    broken_S[place_S[switched_S]] = True
    cure = ": it was too weak; more steps, starts and losses, or autoattack" if leads[most] > WEAK else ""
    said = f"{most[0].upper()}{most[1:]} points that the attack left{cure}."
    return Check(name, leads[most] <= BEATEN, figures, said, veto=leads[most] > WEAK, broken=broken_S)


def _nothing(name: str, probe: Probe) -> Check:
    return Check(name, None, {}, "Nothing is left to judge." if not probe.alive.any() else NO_GRADIENT)
