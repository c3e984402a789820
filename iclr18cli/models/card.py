"""The model in a run directory: weights in safetensors, and a card that says which network they belong to.

Opening one executes nothing from the directory: the network is built by its registry name, out of installed code, and
the weights are numbers. Everything in the card is checked before it is used.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from iclr18cli.errors import UsageError, UserError, did_you_mean
from iclr18cli.models import registry, weights
from iclr18cli.models.format import CARD, WEIGHTS, ModelCard, read_card
from iclr18cli.plugin import resolve
from iclr18cli.run.atomic import write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ModelCard", "check_inputs", "open_model", "read_card", "save_model"]


def save_model(directory: str | Path, module: nn.Module, card: ModelCard) -> ModelCard:
    """Write model.safetensors, then model.json, each under a temporary name that is renamed when it is on the disk.

    That the card rebuilds this very network is checked first: a model that cannot be opened is not saved.

    Args:
        directory: A run directory; made if it is missing.
        module: The network, with the card's transforms applied. Tied weights are stored once.
        card: `weights`, `sha256` and an empty `plugin` are filled in.

    Returns:
        The card as written.

    Raises:
        ValueError: What the card builds has other weights than `module`, by name, shape or type.
        UsageError: The card's model or an argument is unknown.
        UserError: The directory cannot be written.
    """
    tensors = weights.state_of(module)
    differences = weights.differences(tensors, _rebuild(card))
    if differences:
        raise ValueError(f"model {card.model!r} with {dict(card.kwargs)!r} is not what is to be saved: {differences}")
    payload = weights.dumps(tensors)
    card = replace(
        card,
        weights=WEIGHTS,
        sha256=sha256(payload).hexdigest(),
        plugin=card.plugin or registry.source(card.model),
    )
    text = json.dumps(card.to_json(), indent=2, allow_nan=False) + "\n"
    write_bytes(Path(directory) / WEIGHTS, payload)
    write_bytes(Path(directory) / CARD, text.encode())
    return card


def open_model(directory: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, ModelCard]:
    """Rebuild the network of a run directory and read its weights.

    Args:
        directory: Where model.json and the weights file lie.
        device: Where the network is put.

    Returns:
        (module, card), the module in evaluation mode. torch's random state is left as it was.

    Raises:
        UserError: A file is missing, damaged or not what the card says, or the plugin that has the network is not
            installed.
    """
    path = Path(directory) / CARD
    card = read_card(directory)
    if card.model not in registry.models():
        raise not_installed(card)
    for transform in card.transforms:
        if transform["name"] not in registry.transforms():
            raise UserError(
                f"This run's model uses the transform {transform['name']!r}, which no installed plugin offers.",
                why=f"named in {path}",
                fix=did_you_mean(transform["name"], registry.transforms()),
            )
    payload = weights.read(path.with_name(card.weights))
    digest = sha256(payload).hexdigest()
    if digest != card.sha256:
        raise UserError(
            f"The weights {path.with_name(card.weights)} are not those of the model card.",
            why=f"their sha256 is {digest[:12]}…, {path} says {card.sha256:.12}…",
            fix="restore both files from the same run, or train again",
        )
    tensors = weights.loads(payload, path.with_name(card.weights))
    try:
        sketch = _sketch(card)
        differences = weights.differences(tensors, sketch) if sketch is not None else ""
        if not differences:
            module = _rebuild(card)
            differences = weights.differences(tensors, module)
    except UsageError as error:
        raise UserError(f"{path} asks for a network that cannot be built.", why=error.why, fix=error.fix) from error
    except (TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} asks for a network that cannot be built.", why=str(error).split("\n")[0]) from error
    if differences:
        raise UserError(
            f"The weights {path.with_name(card.weights)} do not fit the model '{card.model}'.",
            why=differences,
            fix=f"install the version it was saved with ({card.plugin}), or train again",
        )
    module.load_state_dict(tensors)
    return module.to(device).eval(), card


def _sketch(card: ModelCard) -> nn.Module | None:
    """Build the card's network without its numbers; None where its builder needs to see them.

    A stranger's card may ask for more memory than there is: whether the weights fit is seen on this one.
    """
    try:
        with torch.device("meta"):
            return _rebuild(card)
    except RuntimeError:
        return None


def _rebuild(card: ModelCard) -> nn.Module:
    """Build the card's network and apply its transforms, leaving torch's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        module = registry.build(card.model, **card.kwargs)
        for transform in card.transforms:
            name = transform["name"]
            known = registry.transforms()
            if name not in known:
                raise UsageError(f"There is no transform {name!r}.", fix=did_you_mean(name, known))
            module = resolve(known[name].apply)(module, **transform["kwargs"])
    dtype: torch.dtype = getattr(torch, card.dtype)
    return module.to(dtype) if dtype.is_floating_point else module


def not_installed(card: ModelCard) -> UserError:
    """Return the error for a card whose network no active plugin offers."""
    # The card may be a stranger's: only a well-formed distribution name goes into a command that users copy.
    named = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)( \S*)?", card.plugin)
    if named and named[1] != "iclr18":
        return UserError(
            f"This run's model {card.model!r} comes from plugin {named[1]}, which is not installed or not active.",
            why="iclr18 plugins list shows what is",
            fix=f"pip install {named[1]}",
        )
    return UserError(
        f"This run's model {card.model!r} is not offered by any installed plugin.",
        why=f"the card names {card.plugin!r:.80} as its origin",
        fix=did_you_mean(card.model, registry.models()),
    )


def check_inputs(x: Tensor, card: ModelCard) -> None:
    """Raise UserError unless a batch has the shape, type and range that the card declares.

    Attacks and certificates are only true statements about inputs inside that range.

    Args:
        x: (B, *card.shape), raw: not normalised.
        card: Card of the model that is to read them.

    Raises:
        UserError: Says what was seen and what is declared.
    """
    seen = tuple(x.shape[1:])
    fits = x.dim() == len(card.shape) + 1 and all(
        want in (None, have) for want, have in zip(card.shape, seen, strict=True)
    )
    if not fits:
        raise UserError(
            f"The inputs have shape {seen}, the model '{card.model}' takes {card.shape}.",
            why=f"received a tensor of shape {tuple(x.shape)}, the first number being the batch",
            fix="choose the data set the model was trained on" + (f" ({card.dataset})" if card.dataset else ""),
        )
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype != card.dtype:
        raise UserError(
            f"The inputs are {dtype}, the model '{card.model}' takes {card.dtype}.",
            fix=f"convert them: x.to(torch.{card.dtype})" + (" / 255" if dtype == "uint8" else ""),
        )
    if not x.numel():
        return
    if x.dtype.is_floating_point and not bool(torch.isfinite(x).all()):
        raise UserError("The inputs hold NaN or infinite values.", fix="clean the data set")
    if card.range is not None:
        low, high = float(x.min()), float(x.max())
        if low < card.range[0] or high > card.range[1]:
            raise UserError(
                f"The inputs reach from {low:.6g} to {high:.6g}, outside the model's range "
                f"[{card.range[0]:g}, {card.range[1]:g}].",
                why="the model takes raw inputs; normalisation is its first layer",
                fix="give raw inputs, for images pixels / 255",
            )
