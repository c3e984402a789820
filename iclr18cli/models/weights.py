"""Weights as a safetensors file: a module's state to bytes and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError

from iclr18cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

TIED = "iclr18.tied"


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state by name, detached.

    Raises:
        TypeError: An entry is not a tensor: its class has a `get_extra_state` that a weights file cannot hold.
    """
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"state {name!r} must be a tensor; received {type(value).__name__}")
    return {name: value.detach() for name, value in state.items()}


def dumps(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file.

    Names that share one tensor (tied weights) are stored once; the file's metadata maps each further name to the first.
    Views of anything else are stored as tensors of their own.
    """
    first: dict[tuple[object, ...], str] = {}
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
        if first.setdefault(place, name) != name:
            tied[name] = first[place]
        else:
            kept[name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    metadata = {"format": "pt"} | ({TIED: json.dumps(tied)} if tied else {})
    return _ordered(safetensors.torch.save(kept, metadata))


def _ordered(payload: bytes) -> bytes:
    """Return a safetensors file whose metadata are in order: the library writes two entries in a random one."""
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > length:
        return payload
    return payload[:8] + text.ljust(length) + payload[8 + length :]


def loads(payload: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file on the CPU, tied names filled in.

    Args:
        payload: The file's bytes.
        path: Where they come from, for the message.

    Raises:
        UserError: The bytes are not a whole safetensors file.
    """
    try:
        tensors = safetensors.torch.load(payload)
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        tied = json.loads(header.get("__metadata__", {}).get(TIED, "{}"))
        return tensors | {name: tensors[origin] for name, origin in tied.items()}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The weights {path} are damaged.",
            why=f"not a whole safetensors file: {error}",
            fix="restore the file, or train again",
        ) from error


def differences(tensors: Mapping[str, Tensor], module: nn.Module) -> str:
    """Say in what the names, shapes and types of tensors differ from a module's state; empty: in nothing."""
    wanted = state_of(module)
    found = [f"{name} is missing" for name in wanted if name not in tensors]
    found += [f"{name} is too much" for name in tensors if name not in wanted]
    for name in wanted:
        have, want = tensors.get(name), wanted[name]
        if have is None:
            continue
        if have.shape != want.shape:
            found.append(f"{name} has shape {tuple(have.shape)} instead of {tuple(want.shape)}")
        elif have.dtype != want.dtype:
            found.append(f"{name} is {have.dtype} instead of {want.dtype}".replace("torch.", ""))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def read(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        UserError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read.", why=error.strerror or str(error), fix="restore the file") from error
