"""Checks of the outputs and the gradient themselves: is there one, is it a derivative, does it lead uphill?

S points looked at · X the axes of one input · D directions · K classes
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from iclr18cli.attack.diagnosis_probe import NO_GRADIENT, Check, Probe
from iclr18cli.attack.pgd import steepest
from iclr18cli.attack.randomness import Expected
from iclr18cli.attack.report import clopper_pearson
from iclr18cli.attack.survivors import climbing
from iclr18cli.attack.threat import Threat, per_example

DRIFT = 1e-4
"""Difference between passes over the same points that AutoAttack calls random, here of logits of size 1 or less."""

PASSES = 5
"""Passes that are compared (AutoAttack)."""

BLIND = 0.05
"""Share of the survivors without gradient beyond which surviving says nothing; AutoAttack warns of any."""

UPHILL = 0.75
"""Share of the points at which a step along the gradient must gain more than random steps do on average. Chance gives
half, an honest gradient nearly all; the threshold is ours."""

AGREES = 0.5
"""Cosine of the changes that the gradient foretells with those measured, at the best of three step lengths. Our choice;
honest nets gave 0.97 or more, gradients of noise 0 +- 0.1 on 128 points."""

DISAGREES = 0.3
"""A cosine below this takes the belief away."""

FEWEST = 8
"""Points without which nothing is concluded from shares and cosines."""


def zero_gradient(probe: Probe) -> Check:
    """Look for survivors at which the loss, or even the margin, has no input gradient (Carlini et al. 2019)."""
    loss, margin = probe.gradient("loss"), probe.gradient("margin")
    probe.state["gradient"] = loss is not None
    if loss is None or margin is None:
        return Check("zero gradient", False, {"loss": 1.0, "margin": 1.0},
                     "The model's output has no gradient with respect to its input: a step of it rounds, detaches or "
                     "leaves torch, and gradient attacks cannot see past it.", veto=True)  # fmt: skip
    blind = {name: ~g_SX.flatten(1).any(1).cpu()[probe.alive] for name, g_SX in (("loss", loss), ("margin", margin))}
    alive = int(probe.alive.sum())
    shares = {name: blind_S.double().mean().item() if alive else 0.0 for name, blind_S in blind.items()}
    zero = {name: int(blind_S.sum()) for name, blind_S in blind.items()}
    said = f"The loss has no gradient at {zero['loss']} of {alive} surviving points, the margin at {zero['margin']}"
    cure = " (saturated: --loss margin sees more)" if zero["loss"] > zero["margin"] else ""
    return Check("zero gradient", zero["loss"] == 0, {**shares, "points": alive}, f"{said}{cure}.",
                 veto=shares["loss"] > BLIND)  # fmt: skip


def logits(probe: Probe) -> Check:
    """Look for probabilities where logits are wanted (a flag of AutoAttack)."""
    logits_SK = probe.outputs(probe.x)
    low, high = (bound.item() for bound in torch.aminmax(logits_SK))
    off = (logits_SK.sum(1) - 1).abs().max().item()
    found = low >= 0 and high <= 1 and off < DRIFT
    said = "The outputs are no probabilities."
    if found:
        said = "The outputs look like probabilities: a softmax inside hides gradients; give the model without it."
    return Check("logits", not found, {"min": low, "max": high}, said, veto=found)


def same_outputs(probe: Probe) -> Check:
    """Compare five passes over the same points (a flag of AutoAttack)."""
    passes = [probe.outputs(probe.x) for _ in range(PASSES)]
    size = max(1.0, passes[0].abs().max().item())
    drift = max((other - passes[0]).abs().max().item() for other in passes[1:])
    right = [int((logits_SK.argmax(1) == probe.y).sum()) for logits_SK in passes]
    random = drift > DRIFT * size or len(set(right)) > 1
    probe.state["random"] = random
    figures = {"drift": drift, "right_least": min(right), "right_most": max(right)}
    if not random:
        return Check("same outputs", True, figures, f"{PASSES} passes over the same points agree.")
    expected = isinstance(probe.model, Expected)
    cure = "more draws" if expected else "attack its expectation, --eot 20"
    return Check("same outputs", False, figures,
                 f"{PASSES} passes over the same points differ by {drift:.2g}: the model is random; {cure}.",
                 veto=not expected)  # fmt: skip


def no_autograd_inside(probe: Probe) -> Check:
    """Look for calls of autograd inside the forward pass: a defence that adapts (a flag of AutoAttack)."""
    seen: list[str] = []
    few = probe.at(torch.arange(min(2, len(probe))))
    with climbing(probe.model), _watching(seen):
        probe.model(few.x.detach().clone().requires_grad_())
    return Check("no autograd inside", not seen, {"calls": len(seen)},
                 f"The forward pass calls autograd {len(seen)} times: a defence that adapts to its input wants an "
                 "attack made for it." if seen else "The forward pass does not call autograd.",
                 veto=bool(seen))  # fmt: skip


@contextmanager
def _watching(seen: list[str]) -> Iterator[None]:
    """Note the calls of autograd in this thread. A profiler sees them under whatever name they were imported."""
    wanted = {torch.autograd.grad.__code__: "grad", torch.autograd.backward.__code__: "backward"}
    before = sys.getprofile()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in wanted:
            seen.append(wanted[frame.f_code])

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


def uphill(probe: Probe) -> Check:
    """Compare what a small step along the gradient gains with what random steps of that length gain."""
    name = "uphill"
    gradient_SX = probe.gradient("loss") if probe.has_gradient else None
    if gradient_SX is None or probe.state.get("random"):
        return Check(name, None, {}, NO_GRADIENT if gradient_SX is None else "Random outputs: not judged.")
    step = probe.step(1 / 16)
    start_S = probe.height(probe.outputs(probe.x))
    gain_S = probe.height(probe.outputs(probe.x + step * steepest(gradient_SX, probe.threat))) - start_S
    others = [probe.height(probe.outputs(probe.x + step * direction)) - start_S for direction in _random(probe, 4)]
    better_S = gain_S > torch.stack(others).mean(0)
    n, won = len(probe), int(better_S.sum())
    flat = int((gain_S == 0).sum())
    return Check(
        name, won >= UPHILL * n, {"share": won / n, "flat": flat / n, "step": step},
        f"A step along the gradient gains more than random steps at {won} of {n} points"
        f"{f'; at {flat} it changes nothing' if flat else ''}.",
        veto=n >= FEWEST and clopper_pearson(won, n)[1] < UPHILL,
    )  # fmt: skip


def finite_differences(probe: Probe) -> Check:
    """Hold the gradient against the changes that steps really make, at the lengths an attack takes and at tiny ones.

    Along the steepest direction and two random ones. Agreement at any of the lengths will do: a straight-through
    gradient foretells long steps only.
    """
    name = "finite differences"
    if not probe.has_gradient or probe.state.get("random"):
        return Check(name, None, {}, "Random outputs: not judged." if probe.has_gradient else NO_GRADIENT)
    steps = [probe.step(share) for share in (1 / 16, 1 / 4, 1)]
    found = [(agreement, step) for step in steps if (agreement := _agreement(probe, step)) is not None]
    if not found:
        return Check(name, None, {}, "Neither the gradient nor the loss changes near any point: nothing to compare.")
    agreement, step = max(found)
    error = _tiny_error(probe)
    figures = {"agreement": agreement, "step": step} | ({} if error is None else {"tiny_step_error": error})
    if agreement >= AGREES:
        said = f"Steps of {step:.2g} change the loss as the gradient foretells (cosine {agreement:.2f})."
    else:
        why = "the loss is rugged or curved at the steps an attack takes"
        if _zero_share(probe) > 0.5:
            why = "the gradient is zero where the loss changes, as rounding or quantising makes it"
        elif error is not None and error > 0.1:
            why = "the gradient is not the derivative of the loss"
        said = f"Steps do not change the loss as the gradient foretells (cosine {agreement:.2f}): {why}."
    return Check(name, agreement >= AGREES, figures, said, veto=agreement < DISAGREES and len(probe) >= FEWEST)


def _agreement(probe: Probe, step: float) -> float | None:
    """Return the cosine between foretold and measured changes; None: there are none of either kind."""
    x_SX = probe.x
    if probe.threat.domain is not None:  # both ends of a difference inside the domain: clamps in the model stay idle
        low, high = probe.threat.domain
        x_SX = x_SX.clamp(low + step, high - step)
    gradient_SX = probe.gradient("height", x_SX)
    if gradient_SX is None:
        return None
    directions = [steepest(gradient_SX, probe.threat), *_random(probe, 2)]
    measured_DS = torch.stack([
        probe.height(probe.outputs(x_SX + step * u_SX)) - probe.height(probe.outputs(x_SX - step * u_SX))
        for u_SX in directions
    ])  # fmt: skip
    foretold_DS = torch.stack([2 * step * (gradient_SX * u_SX).flatten(1).sum(1) for u_SX in directions])
    foretold_DS = foretold_DS.to(measured_DS)
    # Every point counts alike: the steepest few would decide alone otherwise.
    size_S = torch.maximum(measured_DS.norm(dim=0), foretold_DS.norm(dim=0))
    seen_S = (size_S > 0) & size_S.isfinite()
    if not seen_S.any():
        return None
    measured, foretold = measured_DS[:, seen_S] / size_S[seen_S], foretold_DS[:, seen_S] / size_S[seen_S]
    length = (measured.norm() * foretold.norm()).item()
    return (measured * foretold).sum().item() / length if length else 0.0


def _tiny_error(probe: Probe) -> float | None:
    """Return the median relative error of directional derivatives in float64; None: the model does not run in it."""
    few = probe.at(torch.arange(min(16, len(probe))))
    step = 1e-6 * probe.width
    try:
        wide = replace(few, model=copy.deepcopy(probe.model).double(), x=few.x.double())
        x_SX = wide.x + torch.where(wide.x > wide.x.mean(), -2 * step, 2 * step)
        gradient_SX = wide.gradient("height", x_SX)
        if gradient_SX is None:
            return None
        (u_SX,) = _random(wide, 1)
        ends = [wide.height(wide.outputs(x_SX + side * step * u_SX)) for side in (1, -1)]
    except Exception:  # a stranger's model, copied and widened: it may fail in any way, and is judged without
        return None
    foretold_S, measured_S = (gradient_SX * u_SX).flatten(1).sum(1), (ends[0] - ends[1]) / (2 * step)
    size_S = torch.maximum(foretold_S.abs(), measured_S.abs())
    error_S = torch.where(size_S > 0, (foretold_S - measured_S).abs() / size_S, torch.zeros_like(size_S))
    return error_S.median().item()


def _zero_share(probe: Probe) -> float:
    gradient_SX = probe.gradient("height")
    return 1.0 if gradient_SX is None else (~gradient_SX.flatten(1).any(1)).double().mean().item()


def _random(probe: Probe, count: int) -> list[Tensor]:
    """Draw directions of length 1 in the norm, of the kind that attacks step in: corners for linf."""
    ball, generator = Threat(probe.threat.norm, 1.0, None), probe.generator("directions")
    zeros_SX = torch.zeros_like(probe.x)
    if probe.threat.norm == "linf":
        return [steepest(ball.random(zeros_SX, generator), ball) for _ in range(count)]
    drawn = [ball.random(zeros_SX, generator) for _ in range(count)]
    return [u_SX / per_example(ball.distance(u_SX, zeros_SX).to(u_SX).clamp(min=1e-12), u_SX) for u_SX in drawn]
