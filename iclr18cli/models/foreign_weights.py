"""State dicts from anywhere, read as numbers: no code in a file is ever run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from iclr18cli.errors import UserError
from iclr18cli.models import weights

NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which a checkpoint may hold its state dict."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put before every name."""


def load(module: nn.Module, file: str | Path) -> None:
    """Read a state dict from a file into a model; no code in the file is run.

    Args:
        module: Gets the numbers, in its own types.
        file: safetensors, or what `torch.save` wrote: a state dict, or a mapping that holds one under `NESTED`.

    Raises:
        UserError: The file cannot be read, holds more than numbers, or does not fit the model.
    """
    path = Path(file).expanduser()
    tensors = read_state(path)
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    try:
        wanted = weights.state_of(module)
    except TypeError as error:
        raise UserError(f"{path} cannot be read into this model.", why=str(error),
                        fix="load the weights in the factory itself") from error  # fmt: skip
    own = {n: v.to(wanted[n].dtype) if n in wanted and v.is_floating_point() else v for n, v in tensors.items()}
    missing, more = [n for n in wanted if n not in own], [n for n in own if n not in wanted]
    differ = weights.differences({n: own.get(n, wanted[n]) for n in wanted}, module)
    told = [_listed("the file lacks", missing), _listed("the model has no", more), differ]
    if any(told):
        raise UserError(
            f"The weights {path} do not fit the model.",
            why="; ".join(part for part in told if part),
            fix="build the model that was saved (--model-args), or save model.state_dict() of this one",
        )
    module.load_state_dict(own)


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3])}{more}" if names else ""


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, on the CPU.

    Raises:
        UserError: It is missing, damaged, holds more than numbers, or no state dict.
    """
    if path.suffix == ".safetensors":
        return weights.loads(weights.read(path), path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.", fix="check the path of --weights")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(
            r"unsupported (global|class|operand)[^\n]*?(?= was not| whose|\. |\n|$)", str(error), re.IGNORECASE
        )
        if reason is None:
            raise _unreadable(path, error) from error
        raise UserError(
            f"{path} holds more than numbers; reading it would run code from the file, so it is not read.",
            why=reason[0],
            fix=f"save the numbers alone: torch.save(model.state_dict(), {path.name!r})",
        ) from error
    except Exception as error:  # a stranger's file may break the reader in any way
        raise _unreadable(path, error) from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        seen = (
            f"the keys {', '.join(map(str, list(found)[:5]))}" if isinstance(found, Mapping) else type(found).__name__
        )
        raise UserError(
            f"{path} holds no state dict.",
            why=f"it holds {seen}; looked for names with tensors, at the top or under {', '.join(NESTED)}",
            fix=f"torch.save(model.state_dict(), {path.name!r})",
        )
    return {str(name): value for name, value in found.items()}


def _unreadable(path: Path, error: Exception) -> UserError:
    # torch adds advice to its message that has no place here: how to read the file unsafely.
    first = next(iter(str(error).strip().splitlines()), "").partition(". In PyTorch 2.6")[0]
    return UserError(
        f"The weights {path} cannot be read.",
        why=f"{type(error).__name__}: {first:.120}",
        fix="--weights takes a .safetensors file, or what torch.save(model.state_dict(), FILE) wrote",
    )
