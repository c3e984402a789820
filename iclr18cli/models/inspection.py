"""A look at a strange model before it is measured: does it take these inputs, and are its outputs class scores?

What makes every number wrong is refused with what would mend it; what makes a number doubtful is said.

B batch · X the axes of one input · K classes
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import iclr18cli
from iclr18cli.attack.randomness import own_randomness
from iclr18cli.errors import Interrupted, UserError
from iclr18cli.models.doubts import doubts, mode_note
from iclr18cli.models.modes import evaluating

NOT_THEIRS = ("<frozen", *(str(Path(str(module.__file__)).parent) for module in (torch, iclr18cli, importlib)))
"""Beginnings of paths of code that is not the user's."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was seen of a model.

    Args:
        classes: Number of columns K of its output.
        accuracy: Share of the inspected points it gets right.
        n: Number of those points.
        warnings: What makes its numbers doubtful, one plain sentence each.
        notes: What is worth knowing and wrong for nobody.
        logits: (n, K) on the inspected points, on the CPU.
    """

    classes: int
    accuracy: float
    n: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    logits: Tensor


@contextlib.contextmanager
def blaming(what: str, fix: str = "") -> Iterator[None]:
    """Turn any error of the user's code inside the block into a UserError that shows the last line of its traceback."""
    try:
        # What their code prints must not get into results.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (UserError, Interrupted):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(what, why=last_line(error), fix=fix) from error


def last_line(error: BaseException) -> str:
    """Return what a traceback ends with and where: "ValueError: no (nets.py, line 3, in forward: raise ...)"."""
    message = str(error).strip().split("\n")[0]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(NOT_THEIRS)]
    if not theirs:
        return text
    last = theirs[-1]
    return f"{text} ({last.filename.rsplit('/', 1)[-1]}, line {last.lineno}, in {last.name}: {last.line})"


def inspect(model: Any, x: Tensor, y: Tensor, classes: int | None = None) -> Findings:
    """Run a model on some points and say what is odd about it.

    The model is held in evaluation mode with frozen parameters and gets every flag back; torch's random state is left
    as it was. About ten passes over the points.

    Args:
        model: What a factory returned; should map (B, *shape) to (B, K) logits.
        x: (n, *shape) float32, on the model's device; 64 to 256 points of all classes say most.
        y: (n,) labels.
        classes: K that is expected; None: any that holds the labels.

    Raises:
        UserError: It is no module, cannot take the inputs, or does not return finite class scores for them.

    Example:
        >>> found = inspect(nn.Flatten(), torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        >>> found.classes, found.accuracy, found.warnings
        (2, 1.0, ())
    """
    if not isinstance(model, nn.Module):
        _refuse_object(model)
    note = mode_note(model)
    with own_randomness(x.device, 0), _held(model):
        logits_BK = _forward(model, x)
        _check_output(logits_BK, x, y, classes)
        with blaming("The model fails on inputs that it has taken before."):
            warnings, notes = doubts(model, x, y, logits_BK)
    right = (logits_BK.argmax(1) == y).float().mean().item()
    return Findings(
        classes=logits_BK.shape[1], accuracy=right, n=len(y), warnings=tuple(warnings),
        notes=tuple(n for n in (note, *notes) if n), logits=logits_BK.float().cpu(),
    )  # fmt: skip


@contextlib.contextmanager
def _held(model: nn.Module) -> Iterator[None]:
    """`evaluating`, for models whose own `eval` may fail; errors inside the block pass unchanged."""
    with contextlib.ExitStack() as stack, torch.inference_mode(False):
        with blaming("The model cannot be put into evaluation mode.", "return a plain nn.Module"):
            stack.enter_context(evaluating(model))
        yield


def _refuse_object(found: Any) -> NoReturn:
    kind = type(found).__name__
    fix = "return the torch.nn.Module itself, which maps inputs to logits"
    if isinstance(found, type):
        kind, fix = f"the class {found.__name__}", f"return an instance: {found.__name__}(…)"
    elif isinstance(found, tuple | list) and any(isinstance(part, nn.Module) for part in found):
        fix = "return its module alone; what prepares inputs belongs into the model or into --normalize"
    elif isinstance(found, Mapping):
        fix = "build the network, and name the file of its state dict by --weights"
    elif callable(found):
        fix = "wrap the function in a torch.nn.Module whose forward calls it"
    raise UserError("This is no torch model.", why=f"expected a torch.nn.Module, received {kind}", fix=fix)


def _attempt(model: nn.Module, x: Tensor) -> Any:
    try:
        with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            return model(x)
    except RuntimeError as error:
        if "does not require grad" not in str(error) and "grad_fn" not in str(error):
            raise
        with torch.enable_grad():  # it calls autograd itself
            return model(x)


def _forward(model: nn.Module, x: Tensor) -> Any:
    """Return the output of one pass, or raise what would make the pass work."""
    try:
        return _attempt(model, x)
    except (UserError, Interrupted):
        raise
    except (Exception, SystemExit) as error:
        shape = f"({len(x)}, {', '.join(map(str, x.shape[1:]))})"
        raise UserError(
            f"The model cannot take inputs of shape {shape}, batch first, {str(x.dtype).removeprefix('torch.')}.",
            why=last_line(error),
            fix=_remedy(model, x[:2]) or "make the data fit the model, or put a first layer into it that does",
        ) from error


def _remedy(model: nn.Module, x: Tensor) -> str:
    """Try other forms of the inputs and say which one the model takes."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    tries: list[tuple[Any, str]] = [(lambda: x.to(dtype), f"its numbers are {dtype}: return model.float()")]
    if x.dim() == 4:
        C, H, W = x.shape[1:]
        tries += [
            (lambda: x.flatten(1), f"it takes vectors: put nn.Flatten() first, which gives (B, {C * H * W})"),
            (lambda: x.movedim(1, -1), "it takes channels last: call x.movedim(1, -1) first"),
            (lambda: x.squeeze(1), "it takes images without a channel axis: call x.squeeze(1) first"),
        ]
        if C == 1:
            tries.append((lambda: x.expand(-1, 3, -1, -1), "it takes three channels: call x.expand(-1, 3, -1, -1)"))
        tries += [
            (lambda s=s: nn.functional.interpolate(x, size=(s, s)), f"it takes {s}x{s} images: resize the data")
            for s in (28, 32, 64, 224)
            if s != H
        ]
    if x.dim() == 2:
        side = round(x.shape[1] ** 0.5)
        if side * side == x.shape[1]:
            tries.append(
                (lambda: x.unflatten(1, (1, side, side)), f"it takes images: put nn.Unflatten(1, (1, {side}, {side}))")
            )
    if x.dtype != dtype:
        tries = [(lambda made=made: made().to(dtype), fix) for made, fix in tries]
    for made, fix in tries:
        try:
            output = _attempt(model, made())
        except Exception:  # one of many guesses
            continue
        if not isinstance(output, Tensor) or output.shape[:1] == x.shape[:1]:
            return fix
    return ""


def _check_output(output: Any, x: Tensor, y: Tensor, classes: int | None) -> None:
    """Refuse everything but finite (B, K) scores with a column for every label."""
    wanted = "The model must return class scores, (B, K) with a row per input and a column per class."
    if not isinstance(output, Tensor):
        raise UserError(wanted, why=f"it returned {_kind(output)}", fix=f"wrap it: {_part(output)}")
    shape = tuple(output.shape)
    why = f"{len(x)} inputs gave an output of shape {shape}"
    if shape in ((len(x),), (len(x), 1)):
        raise UserError(
            "The model returns one number per input; a classifier of two classes here has two logits.",
            why=why,
            fix="if it is the logit z of class 1, return torch.stack([torch.zeros_like(z), z], dim=1) with z of "
            "shape (B,), that is z.flatten() first",
        )
    if output.dim() != 2 or shape[0] != len(x):
        ones = output.dim() > 2 and shape[0] == len(x) and set(shape[2:]) == {1}
        raise UserError(
            wanted, why=why, fix="return output.flatten(1)" if ones else "return one row of scores per input"
        )
    K, top = shape[1], int(y.max())
    if not output.is_floating_point():
        raise UserError(
            wanted,
            why=f"its outputs are {str(output.dtype).removeprefix('torch.')}",
            fix="return the scores themselves, no argmax, as floating-point numbers",
        )
    if classes and classes != K:
        raise UserError(
            f"The model has {K} classes, {classes} are expected.", why=why, fix=f"--classes {K}, or its head"
        )
    if top >= K:
        raise UserError(
            f"The model has {K} classes, the labels reach {top}.",
            why=f"{why}; labels must lie in 0 .. {K - 1}",
            fix="build it with as many classes as the data has, and number the labels from 0",
        )
    odd = int((~output.isfinite()).any(1).sum())
    if odd:
        raise UserError(
            f"The model's outputs are NaN or infinite for {odd} of {len(x)} unattacked inputs.",
            why="looked at finite inputs, in evaluation mode",
            fix="see that the weights are the trained ones and that nothing takes log 0 or divides by 0",
        )


def _kind(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a dict with the keys {', '.join(map(str, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"an object of {type(output).__name__}"


def _part(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"return self.net(x)[{next((k for k in output if 'logit' in str(k)), next(iter(output), 'logits'))!r}]"
    return "return self.net(x).logits" if hasattr(output, "logits") else "return self.net(x)[0]"
