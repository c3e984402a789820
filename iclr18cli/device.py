"""Where tensors live, how random numbers are seeded, and in which precision the forward pass runs."""

from __future__ import annotations

import contextlib
import os
import random
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from iclr18cli import launch
from iclr18cli.errors import UsageError, UserError, did_you_mean

KINDS = ("auto", "cpu", "cuda", "mps")


def choose(name: str) -> torch.device:
    """Return the device that `--device` names: "auto" is CUDA where there is a GPU, else the CPU.

    Among several ranks each gets the GPU of its number on its machine.

    Raises:
        UsageError: The name is none of auto, cpu, cuda, cuda:N, mps.
        UserError: This machine does not have the device.
    """
    kind, colon, number = name.partition(":")
    numbered = kind == "cuda" and number.isascii() and number.isdigit()
    if kind not in KINDS or (colon and not numbered):
        raise UsageError(f"There is no device '{name}'.", fix=did_you_mean(kind, (*KINDS, "cuda:0")))
    ranks = launch.world()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("There is no MPS device on this machine.", why="torch finds none", fix="--device cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            why = "torch sees no GPU or no driver" if torch.version.cuda else f"torch {torch.__version__} has no CUDA"
            raise UserError("There is no CUDA device on this machine.", why=why, fix="--device cpu, or --device auto")
        if numbered and int(number) >= count:
            raise UserError(f"There is no device '{name}'.", why=f"this machine has {count}, numbered from 0")
        if ranks.size > 1:
            if numbered:
                raise UsageError(f"--device {name} is one GPU for {ranks.size} processes.", fix="--device cuda")
            return torch.device("cuda", ranks.local % count)
    return torch.device(name)


def describe(device: torch.device) -> str:
    """Return the name of a device for people: "cpu", or what the GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def derived_seed(seed: int, *names: object) -> int:
    """Return a seed for one purpose: a function of the run's seed and names, 63 bits.

    Hashed, because seed + number would give neighbouring runs the same streams.

    Example:
        >>> derived_seed(0, "noise") == derived_seed(0, "noise") != derived_seed(1, "noise")
        True
    """
    return int.from_bytes(sha256(repr((seed, *names)).encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device, and choose deterministic algorithms where torch has them.

    Operations without a deterministic form run all the same, with torch's warning: the run then repeats only up to
    rounding.
    """
    # cuBLAS reads this when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that comes with the line above and would write every fresh tensor twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    seed_generators(seed)


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(derived_seed(seed, "numpy") % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the global generators of Python, numpy, torch's CPU and `device`, as plain values."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the global generators where `random_state` found them."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy_state = state["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse a precision that `device` does not compute in.

    Raises:
        UserError: fp16 without CUDA, or bf16 on a GPU that lacks it.
        UsageError: The precision is none of fp32, bf16, fp16.
    """
    if precision not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"There is no precision '{precision}'.", fix=did_you_mean(precision, ("fp32", "bf16", "fp16")))
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"fp16 needs a CUDA device; this run is on {device}.",
            why="gradients of half precision need loss scaling, made for CUDA",
            fix="--precision bf16, or --precision fp32",
        )
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"{describe(device)} does not compute in bf16.", fix="--precision fp16, or --precision fp32")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context of the forward pass: nothing for fp32, torch's autocast for bf16 and fp16."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
