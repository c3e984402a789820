"""What a run must remember to go on with the same bits: tracked objects, generators, plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from iclr18cli.device import derived_seed, random_state, seed_generators, set_random_state
from iclr18cli.errors import UserError


class Memory:
    """Everything random and everything learnt, captured to and restored from one mapping of tensors and numbers.

    Among several ranks the tracked objects are the same on each of them; generators, values and what is tracked as
    `own` belong to the rank.
    """

    def __init__(self, seed: int, device: torch.device, rank: int = 0):
        self.seed, self.device, self.rank = seed, device, rank
        self.objects: dict[str, Any] = {}
        self.own: dict[str, Any] = {}
        self.generators: dict[str, torch.Generator] = {}
        self._per_rank: set[str] = set()
        self.values: dict[str, Any] = {}
        # Of a restored state, what was not there to receive it yet.
        self._later: dict[str, dict[str, Any]] = {"objects": {}, "generators": {}}
        self._own_later: Mapping[str, Any] | list[Mapping[str, Any]] = {}

    def part_ways(self) -> None:
        """Give the global generators of this rank a stream of its own; up to here all ranks drew the same numbers."""
        if self.rank:
            seed_generators(derived_seed(self.seed, "rank", self.rank))

    def track(self, name: str, thing: Any) -> None:
        """Remember a module, an optimiser, a scheduler: anything with state_dict and load_state_dict.

        Raises:
            TypeError: It has no such methods.
            ValueError: Another object has this name.
        """
        if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise TypeError(f"{name} must have state_dict() and load_state_dict(); received {type(thing).__name__}")
        if self.objects.get(name, thing) is not thing:
            raise ValueError(f"a run tracks one object under each name; received a second {name!r}")
        self.objects[name] = thing
        if name in self._later["objects"]:
            self.load(name, self._later["objects"].pop(name))

    def track_own(self, name: str, thing: Any) -> None:
        """Remember an object that each rank has a different one of, with `merge(states) -> state` beside the usual two.

        `merge` makes one state of those of all ranks, for a run that goes on with another number of them.

        Raises:
            TypeError: It lacks one of the three.
        """
        if not all(hasattr(thing, word) for word in ("state_dict", "load_state_dict", "merge")):
            raise TypeError(
                f"{name} must have state_dict(), load_state_dict() and merge(); received {type(thing).__name__}"
            )
        self.own[name] = thing
        if self._own_later:
            self._load_own(name)

    def generator(self, name: str, device: torch.device, *, per_rank: bool = False) -> torch.Generator:
        """Return the generator of a name, the same one each time; seeded from the run's seed and the name.

        Args:
            per_rank: Ranks draw different numbers; otherwise all draw the same ones.
        """
        if per_rank:
            self._per_rank.add(name)
        if name not in self.generators:
            generator = torch.Generator(device).manual_seed(self._seed(name))
            if name in self._later["generators"]:
                generator.set_state(self._later["generators"].pop(name))
            self.generators[name] = generator
        elif self.generators[name].device.type != device.type:
            raise ValueError(f"generator {name!r} is on {self.generators[name].device}; received device={device}")
        return self.generators[name]

    def capture(self) -> dict[str, Any]:
        """Return the state of everything, on ranks after the first of what is theirs alone; tensors are not copied."""
        return {
            "objects": {} if self.rank else {name: thing.state_dict() for name, thing in self.objects.items()},
            "own": {name: thing.state_dict() for name, thing in self.own.items()},
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "values": dict(self.values),
            "random": random_state(self.device),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put everything where `capture` found it; names that are not known yet get theirs when they appear.

        Args:
            state: As `capture` returned it. "own" may be the list of what all ranks had, to be merged; "fresh" says
                that this rank was not there when it was captured.

        Raises:
            UserError: The state is of other objects.
        """
        unknown = sorted(set(self.objects) - set(state["objects"]))
        if unknown:
            raise UserError(
                f"The checkpoint does not hold '{unknown[0]}'.",
                why=f"it holds {', '.join(sorted(state['objects'])) or 'nothing'}; other code wrote it",
                fix="resume with the version that began the run (see env.json), or start a new run",
            )
        for name, thing_state in state["objects"].items():
            if name in self.objects:
                self.load(name, thing_state)
        for name, generator in self.generators.items():
            if name in state["generators"]:
                generator.set_state(state["generators"][name])
            else:
                generator.manual_seed(self._seed(name))
        self._later = {
            "objects": {name: s for name, s in state["objects"].items() if name not in self.objects},
            "generators": {name: s for name, s in state["generators"].items() if name not in self.generators},
        }
        self._own_later = state.get("own", {})
        for name in self.own:
            self._load_own(name)
        self.values.clear()
        self.values.update(state["values"])
        set_random_state(state["random"], self.device)
        if state.get("fresh"):
            self._begin_in_the_middle(state["random"])

    def _seed(self, name: str) -> int:
        rank = (self.rank,) if self.rank and name in self._per_rank else ()
        return derived_seed(self.seed, "generator", name, *rank)

    def _begin_in_the_middle(self, first: Mapping[str, Any]) -> None:
        """Draw other numbers than the first rank, whose state this one was given, and others than in the beginning."""
        point = first["torch"].sum().item()
        seed_generators(derived_seed(self.seed, "rank", self.rank, point))
        for name in self._per_rank & set(self.generators):
            self.generators[name].manual_seed(derived_seed(self._seed(name), point))

    def _load_own(self, name: str) -> None:
        of_ranks = self._own_later if isinstance(self._own_later, list) else [self._own_later]
        states = [own[name] for own in of_ranks if name in own]
        if len(states) < len(of_ranks):
            raise UserError(f"The checkpoint does not hold '{name}' of every rank.", fix="start a new run")
        merge = isinstance(self._own_later, list)  # another number of ranks saved it
        self._load(self.own[name], name, self.own[name].merge(states) if merge else states[0])

    def load(self, name: str, state: Any) -> None:
        """Load the state of one tracked object.

        Raises:
            UserError: It does not fit.
        """
        self._load(self.objects[name], name, state)

    def _load(self, thing: Any, name: str, state: Any) -> None:
        try:
            thing.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The checkpoint does not fit '{name}'.",
                why=str(error).split("\n")[0],
                fix="resume with the version and the data that began the run, or start a new run",
            ) from error


def snapshot(value: Any) -> Any:
    """Return a copy of a state that later training steps do not change: every tensor cloned, without its graph.

    Example:
        >>> state = {"weights": [torch.zeros(2)]}
        >>> kept = snapshot(state)
        >>> state["weights"][0] += 1
        >>> kept["weights"][0].tolist()
        [0.0, 0.0]
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(snapshot(item) for item in value)
    return value
