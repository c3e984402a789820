"""Signs that a model's numbers will not mean what its owner thinks: wrong outputs, wrong inputs, hidden randomness.

B batch · X the axes of one input · K classes
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from iclr18cli.models.layers import Normalize

PASSES = 5
"""Passes over the same points that must agree."""

DRIFT = 1e-4
"""Difference between two passes beyond which a model is called random; AutoAttack's flag (Croce and Hein 2020)."""

FEW = 10
"""Points below which an accuracy says nothing."""

BETTER = 0.1
"""Accuracy that another way of preparing inputs must gain before it is spoken of."""

CUSTOMS: tuple[tuple[str, str, int], ...] = (
    ("pixels of 0 .. 255", "0,0.00392157", 0),
    ("inputs of -1 .. 1", "0.5,0.5", 0),
    ("the mean and deviation of MNIST", "0.1307,0.3081", 1),
    ("the means and deviations of CIFAR-10", "0.4914 0.4822 0.4465,0.247 0.2435 0.2616", 3),
    ("the means and deviations of ImageNet", "0.485 0.456 0.406,0.229 0.224 0.225", 3),
)
"""What images are usually prepared with: a name, --normalize, and the channels it is for (0: any number)."""

TOPICS = ("probabilities", "random in evaluation mode")
"""What an attack warns of as well."""


def mode_note(model: nn.Module) -> str:
    """Say which layers were in training mode that behave differently there; "" if none was."""
    kinds = (_DropoutNd, _NormBase, nn.RReLU)
    active = sorted({type(part).__name__ for part in model.modules() if part.training and isinstance(part, kinds)})
    if not active:
        return ""
    return (
        f"The model was in training mode, where {' and '.join(active)} behave differently; it is held in evaluation "
        "mode, and every number is about that."
    )


def joined(seen: Sequence[str], later: Sequence[str]) -> list[str]:
    """Return the warnings of a look and those of what came after it, nothing told twice."""
    told = [topic for topic in TOPICS if any(topic in text for text in seen)]
    return [*seen, *(text for text in later if not any(topic in text for topic in told))]


def doubts(model: nn.Module, x: Tensor, y: Tensor, logits_BK: Tensor) -> tuple[list[str], list[str]]:
    """Return (warnings, notes) about a model in evaluation mode whose outputs are finite (B, K) numbers.

    Args:
        model: Any model.
        x, y: (B, *shape) and (B,) the points.
        logits_BK: What it returned for them.
    """
    outputs, notes = _outputs(logits_BK)
    found = [*_numbers(model, logits_BK), *outputs]
    random = _randomness(model, x[:16])
    found += random or _batch_dependence(model, x[:16])
    found += _gradient(model, x[:2])
    found += _accuracy(model, x, y, logits_BK)
    return found, notes


def _numbers(model: nn.Module, logits_BK: Tensor) -> Iterator[str]:
    kinds = {p.dtype for p in model.parameters()}
    narrow = sorted(str(k).removeprefix("torch.") for k in kinds | {logits_BK.dtype} if k.itemsize < 4)
    narrow = [name for name in narrow if "float" in name]
    if narrow:
        yield (
            f"The model computes in {', '.join(narrow)}: its gradients are coarse, and small changes of an input are "
            "rounded away. Attacks look weaker than they are; use model.float() for numbers to rely on."
        )
    whole = sorted(str(k).removeprefix("torch.") for k in kinds if not (k.is_floating_point or k.is_complex))
    if whole:
        yield (
            f"Parameters of the model are {', '.join(whole)}, not floating point: rounding hides gradients, "
            "so gradient attacks say little. Add --attack square, which needs none."
        )


def _outputs(logits_BK: Tensor) -> tuple[list[str], list[str]]:
    total_B = logits_BK.double().sum(1)
    inside = bool(logits_BK.min() >= 0 and logits_BK.max() <= 1)
    if inside and bool((total_B - 1).abs().max() < 1e-3):
        return [
            "The outputs are probabilities; attacks want logits. A softmax rounds to 0 and 1 and hides gradients: "
            "return what goes into it."
        ], []
    if inside and len(logits_BK) >= FEW and bool(logits_BK.max() > 0):
        return ["All outputs lie in [0, 1], as after a sigmoid; attacks want logits. Return what goes into it."], []
    if bool(logits_BK.max() <= 0) and bool(logits_BK.double().logsumexp(1).abs().max() < 1e-3):
        return [], ["The outputs are log-probabilities, which serve as logits."]
    return [], []


def _again(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def _randomness(model: nn.Module, x: Tensor) -> list[str]:
    first = _again(model, x)
    drift = max(float((_again(model, x) - first).abs().max()) for _ in range(PASSES - 1))
    if not drift > DRIFT:
        return []
    return [
        f"{PASSES} passes over the same points differ by {drift:.2g}: the model is random in evaluation mode, and "
        "every number depends on the draw. Attack its mean by --eot 20; certificates for a fixed function do not apply."
    ]


def _batch_dependence(model: nn.Module, x: Tensor) -> list[str]:
    """Compare the first point alone with the first point among others."""
    if len(x) < 2:
        return []
    together, alone = _again(model, x)[0], _again(model, x[:1])[0]
    gap = float((together - alone).abs().max())
    if gap <= 1e-3 * max(1.0, float(together.abs().max())):
        return []
    return [
        f"The first point's outputs differ by {gap:.2g} between a batch of 1 and one of {len(x)}: the examples of a "
        "batch are mixed, so no number here is about single inputs. BatchNorm without running statistics does that."
    ]


def _gradient(model: nn.Module, x: Tensor) -> list[str]:
    """See whether the output can be differentiated by the input at all."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = model(x)
        if not output.requires_grad:
            return [
                "No gradient leads from the outputs to the inputs (detach, no_grad, argmax or numpy inside): gradient "
                "attacks cannot work. Use --attack square or noise, which need none."
            ]
        try:
            torch.autograd.grad(output.sum(), x, allow_unused=True)
        except RuntimeError as error:
            return [
                f"The input gradient cannot be computed ({str(error).splitlines()[0]}): only --attack square works."
            ]
    return []


def _right(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


def _accuracy(model: nn.Module, x: Tensor, y: Tensor, logits_BK: Tensor) -> Iterator[str]:
    """Look for wrong preparation of inputs and wrong order of labels, where accuracy can tell."""
    yield from _twice(model)
    n, K = logits_BK.shape
    if n < FEW:
        return
    predicted_B = logits_BK.argmax(1)
    accuracy, chance = (predicted_B == y).double().mean().item(), 1 / K
    better = _better_preparation(model, x, y, accuracy)
    if better:
        yield better
    if accuracy > chance + math.sqrt(chance * (1 - chance) / n):
        return
    seen = f"The model is right on {accuracy:.1%} of {n} points; guessing among {K} classes is right on {chance:.1%}."
    moved = _renamed(predicted_B, y, K)
    yield seen + (
        moved or ("" if better else " Wrong weights, wrong normalisation (--normalize) or another order of the labels?")
    )


def _behind_normalisation(model: nn.Module) -> nn.Module | None:
    """Return what follows a first layer Normalize; None: there is no such layer."""
    if type(model).forward is not nn.Sequential.forward:
        return None
    first, *rest = model.children()
    return nn.Sequential(*rest) if isinstance(first, Normalize) and rest else None


def _twice(model: nn.Module) -> Iterator[str]:
    """Look for a second normalisation behind the first one."""
    inner = _behind_normalisation(model)
    rest = [] if inner is None else list(inner.modules())
    same = [
        type(p).__name__ for p in rest if re.match(r"(input_?|image_?)?normali[sz]", type(p).__name__, re.IGNORECASE)
    ]
    if same:
        yield (
            f"The model has a layer {same[0]} behind the normalisation that comes first: inputs may be normalised "
            "twice. Leave --normalize out, or the layer."
        )


def _better_preparation(model: nn.Module, x: Tensor, y: Tensor, accuracy: float) -> str:
    """Try other customs of preparing images; "" where none is clearly better."""
    if accuracy > 1 - BETTER:
        return ""
    tries: list[tuple[float, str]] = []
    inner = _behind_normalisation(model)
    if inner is not None:
        tries.append((_right(inner, x, y), "without the normalisation that comes first: are inputs normalised twice?"))
    elif x.dim() == 4 and bool(x.min() >= 0) and bool(x.max() <= 1):
        for name, text, channels in CUSTOMS:
            if channels in (0, x.shape[1]):
                mean, std = ([float(word) for word in side.split()] for side in text.split(","))
                layer = Normalize(mean, std).to(x)
                tries.append((_right(model, layer(x), y), f"with {name}: was it trained so? --normalize '{text}'"))
    gained, how = max(tries, default=(0.0, ""))
    if gained < accuracy + BETTER:
        return ""
    return f"The model is right on {accuracy:.1%} of {len(y)} points as it is given, and on {gained:.1%} {how}"


def _renamed(predicted_B: Tensor, y: Tensor, K: int) -> str:
    """Say so if nearly all points of a class get one and the same wrong class, another one for every class."""
    counts_KK = torch.zeros(K, K, dtype=torch.int64, device=y.device)
    counts_KK.index_put_((y, predicted_B), torch.ones_like(y), accumulate=True)
    seen = counts_KK.sum(1) > 0
    best_K: Sequence[int] = counts_KK.argmax(1)[seen].tolist()
    share = counts_KK.max(1).values.sum().item() / len(y)
    labels = seen.nonzero().flatten().tolist()
    moved = [(label, to) for label, to in zip(labels, best_K, strict=True) if label != to]
    if share < 0.7 or len(set(best_K)) < len(best_K) or len(best_K) < 2 or not moved:
        return ""
    shown = ", ".join(f"{label} as {to}" for label, to in moved[:4])
    return f" But {share:.0%} follow one renaming of the classes ({shown}, …): the labels are in another order."
