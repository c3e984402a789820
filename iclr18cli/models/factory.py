"""Call what makes a model: a function or class of the user's own code, or a network of the registry."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iclr18cli.attack.randomness import own_randomness
from iclr18cli.errors import UsageError, UserError, did_you_mean
from iclr18cli.models import registry
from iclr18cli.models.inspection import blaming

CPU = torch.device("cpu")


def build(
    reference: str, arguments: Mapping[str, Any], *, shape: Sequence[int] = (), classes: int = 0, seed: int = 0
) -> Any:
    """Return what a factory makes.

    Args:
        reference: "PKG.MODULE:FACTORY", "FILE.py:FACTORY", or the name of a network of the registry.
        arguments: What it is called with.
        shape, classes: For a network of the registry that takes `input_shape` and `classes`, where they are not given.
        seed: Seed of what the factory draws from torch's global generators, which are left as they were.

    Raises:
        UsageError: There is no such network, or it does not take the arguments.
        UserError: The code cannot be imported, or fails.
    """
    place, colon, name = reference.rpartition(":")
    if not colon:
        known = registry.models()
        if reference not in known:
            raise UsageError(
                f"--model {reference!r} is neither PKG.MODULE:FACTORY nor the name of a network.",
                why="a factory stands behind a colon: a function or class that returns the torch model",
                fix=f"--model mynets:build, or --model mynets.py:build. {did_you_mean(reference, known)}",
            )
        takes = inspect.signature(registry.resolve(registry.find(reference).build)).parameters
        known_facts = {"input_shape": list(shape), "classes": classes}
        with own_randomness(CPU, seed):
            return registry.build(
                reference, **{k: v for k, v in known_facts.items() if v and k in takes} | dict(arguments)
            )
    with importable():
        with own_randomness(CPU, seed):
            factory = _attribute(_import(place), place, name)
        if isinstance(factory, nn.Module) and not arguments:
            return factory
        _check_call(factory, reference, arguments)
        # Seeded again: what an import draws, the first one only, must not change what the factory draws.
        with (
            own_randomness(CPU, seed),
            blaming(f"{reference} fails when it is called with {_shown(arguments)}.", "mend it, or --model-args"),
        ):
            return factory(**arguments)


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.40}" for name, value in arguments.items()) or "no arguments"


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Put the current directory first among those that modules are found in; afterwards last, for late imports.

    Not first for good: a file random.py there would then replace Python's for everything that is imported later.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        if not all(part.isidentifier() for part in place.split(".")):
            raise UsageError(f"{place!r} is no module.", fix="--model PKG.MODULE:FACTORY, or --model FILE.py:FACTORY")
        fix = "run iclr18 in the folder that holds it, install its package, or name the file: --model FILE.py:FACTORY"
        with blaming(f"The module {place} cannot be imported.", fix):
            return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"There is no file {place}.", why=f"looked for {path}", fix="check the path")
    # A name of its own: a file called torch.py must not become the module torch.
    name = f"iclr18_own_{sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:  # what lies beside it, and may be imported late
        sys.path.append(str(path.parent))
    with blaming(f"{place} cannot be run.", "mend it: it must import without errors"):
        sys.modules[name] = module  # dataclasses and pickles look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _attribute(module: Any, place: str, name: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            origin = getattr(module, "__file__", "Python itself")
            names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            raise UserError(f"{place} has no {name!r}.", why=f"imported from {origin}", fix=did_you_mean(name, names))
        found = getattr(found, part)
    return found


def _check_call(factory: Any, reference: str, arguments: Mapping[str, Any]) -> None:
    if not callable(factory) or isinstance(factory, nn.Module):
        raise UserError(
            f"{reference} cannot be called with {_shown(arguments)}.",
            why=f"it is an object of type {type(factory).__name__}",
            fix="name a function or class that returns the model",
        )
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # builtins have none; the call will tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UsageError(
            f"{reference} cannot be called with {_shown(arguments)}.",
            why=str(error),
            fix=f"It takes {signature}; give them by --model-args '{{\"name\": value}}'.",
        ) from error
