"""Networks and transforms by name: the only road from a file or a command line to code. Torch is imported on use."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iclr18cli.errors import UsageError, did_you_mean
from iclr18cli.models.builtin import BUILTIN
from iclr18cli.plugin import ModelSpec, resolve

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFERRED: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = (
    ((2,), ("wrm/2-4-2", "mlp")),
    ((1, 8, 8), ("small-cnn",)),
    ((1, 28, 28), ("wrm/elu-cnn", "lenet5")),
    ((3, 32, 32), ("resnet20",)),
)
"""Default model per input shape; the first one that is installed is taken."""


@dataclass(frozen=True, kw_only=True)
class TransformSpec:
    """A re-parametrisation by name, applied to a built network before its weights are read.

    `apply` is the target of `(module, **kwargs) -> nn.Module`; the result's `state_dict` is what the weights file holds
    (codes and codebooks instead of float shadows, say), and `kwargs` are what `model.json` records.
    """

    name: str
    apply: str
    summary: str


TRANSFORMS: tuple[TransformSpec, ...] = (
    TransformSpec(
        name="multi-bit",
        apply="iclr18cli.compression.networks:multi_bit",
        summary="Matrices as packed binary codes with coefficients per row",
    ),
)
"""Transforms of the core (spectral norm, packed codes, …): add the record here."""


def models() -> dict[str, ModelSpec]:
    """Return every network by name: the core's, then those of the active plugins."""
    from iclr18cli.manager import plugins

    return {spec.name: spec for spec in (*BUILTIN, *plugins().models())}


def transforms() -> dict[str, TransformSpec]:
    """Return every transform by name.

    A plugin's transforms will come as a hook `iclr18_transforms` that returns such records; merge them here, as
    `models` does, with the first plugin that has one.
    """
    return {spec.name: spec for spec in TRANSFORMS}


def source(name: str) -> str:
    """Return the distribution and version that a network's code comes from, "iclr18 0.1.0"."""
    from iclr18cli import __version__
    from iclr18cli.manager import plugins

    owner = plugins().owner("models", name)
    return f"{owner.distribution} {owner.version}".strip() if owner else f"iclr18 {__version__}"


def suggest(shape: Sequence[int]) -> str:
    """Return the name of the default network for inputs of a shape (without the batch)."""
    known = models()
    for wanted, names in PREFERRED:
        if tuple(shape) == wanted:
            return next((name for name in names if name in known), "mlp")
    return "mlp"


def find(name: str) -> ModelSpec:
    """Return the record of a network.

    Raises:
        UsageError: No installed plugin offers a network of this name.
    """
    known = models()
    if name not in known:
        raise UsageError(
            f"There is no model {name!r}.",
            why="looked among the core's and the active plugins' models",
            fix=did_you_mean(name, known),
        )
    return known[name]


def build(name: str, **kwargs: Any) -> nn.Module:
    """Build a network by name, freshly initialised from torch's global generator.

    Args:
        name: Name of a record, "wrm/elu-cnn".
        kwargs: What its builder accepts, see `describe(name)["arguments"]`; lists stand for tuples.

    Returns:
        The module in training mode on the CPU.

    Raises:
        UsageError: The name is unknown, an argument is unknown or missing, or a value is out of range.

    Example:
        >>> build("mlp", input_shape=[2], hidden=[4, 2], classes=2)[0]
        Linear(in_features=2, out_features=4, bias=True)
    """
    builder = resolve(find(name).build)
    accepted = inspect.signature(builder).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    missing = [p.name for p in accepted.values() if p.default is p.empty and p.kind not in variadic]
    for word in kwargs:
        if word not in accepted and not takes_any:
            raise _refusal(name, f"it has no argument {word!r}", builder)
    for word in missing:
        if word not in kwargs:
            raise _refusal(name, f"it needs the argument {word!r}", builder)
    try:
        return builder(**kwargs)
    except (TypeError, ValueError, OverflowError, MemoryError, RuntimeError) as error:  # the last: torch out of memory
        raise _refusal(name, str(error).split("\n")[0], builder) from error


def _refusal(name: str, why: str, builder: Any) -> UsageError:
    """Say why a network cannot be built, and what its builder accepts."""
    accepted = ", ".join(str(p.replace(annotation=p.empty)) for p in inspect.signature(builder).parameters.values())
    return UsageError(f"Model '{name}' cannot be built as asked.", why=why, fix=f"It accepts: {accepted}.")


def describe(name: str, **kwargs: Any) -> dict[str, Any]:
    """Return what is known of a network, as `iclr18 models show` prints it.

    Args:
        name: Name of a record.
        kwargs: Arguments that replace the builder's defaults.

    Returns:
        JSON-ready: name, task, summary, plugin, input_shape (None: it does not say), parameters (trainable numbers,
        tied ones counted once), arguments (name -> value used), layers (name, type, output_shape with the batch as
        None, parameters). torch's random state is left as it was.

    Raises:
        UsageError: As `build` does.
    """
    import torch

    spec = find(name)
    with torch.random.fork_rng(devices=[]):
        module = build(name, **kwargs)
    arguments = _defaults(resolve(spec.build)) | kwargs
    shape = arguments.get("input_shape") or spec.input_shape or None
    shapes = _output_shapes(module, shape) if shape and spec.task in ("classify", "embed") else {}
    return {
        "name": name,
        "task": spec.task,
        "summary": spec.summary,
        "plugin": source(name),
        "input_shape": list(shape) if shape else None,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "arguments": {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()},
        "layers": [
            {
                "name": path,
                "type": type(layer).__name__,
                "output_shape": shapes.get(path),
                "parameters": sum(p.numel() for p in layer.parameters()),
            }
            for path, layer in module.named_modules()
            if path and not any(True for _ in layer.children())
        ],
    }


def _defaults(builder: Any) -> dict[str, Any]:
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _output_shapes(module: nn.Module, shape: Sequence[int]) -> Mapping[str, list[int | None]]:
    """Run one zero input and note what shape every layer puts out, the batch as None."""
    import torch

    shapes: dict[str, list[int | None]] = {}

    def note(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            shapes[path] = [None, *output.shape[1:]]

        return hook

    handles = [layer.register_forward_hook(note(path)) for path, layer in module.named_modules() if path]
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
