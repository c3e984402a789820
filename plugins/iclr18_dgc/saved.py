"""Saved states of workers: which one fits where, and one made of all of them for another number of workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from iclr18cli.errors import UserError

FORMAT = 1
MERGED = -1
"""Rank and size of a state that fits any worker of any group."""


def merge(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one state for any number of workers, made of those of all N: u and v are the means over them.

    The mean over the workers of what is pending, (1/N) sum_k v_k, is kept, and so are those of u and of the bytes.

    Args:
        states: Of every rank of one training, at one step, in any order; a merged one alone is returned as it is.

    Raises:
        UserError: One is missing or there twice, or they are of different steps.
    """
    states = sorted(states, key=lambda state: state["rank"])
    if len(states) == 1 and states[0]["rank"] == MERGED:
        return dict(states[0])
    size = states[0]["size"] if states else 0
    if not states or [s["rank"] for s in states] != list(range(size)) or any(s["size"] != size for s in states):
        have = [f"{s['rank']} of {s['size']}" for s in states]
        raise UserError(
            "Merging needs the state of every rank of one training, each once.",
            why=f"received ranks {', '.join(have) or 'none'}",
            fix="save state.state_dict() on every rank, and merge all of them",
        )
    if len({(s["step"], s["skipped"]) for s in states}) > 1:
        raise UserError(
            "Merging needs states of one step.",
            why=f"received steps {', '.join(str(s['step']) for s in states)}",
            fix="save on all ranks at the same step",
        )
    first = states[0]
    merged = {key: first[key] for key in ("format", "step", "skipped", "decay")}
    merged |= {"rank": MERGED, "size": MERGED}
    merged |= {kind: _mean([s[kind] for s in states]) for kind in ("u", "v")}
    merged["traffic"] = {name: round(sum(s["traffic"][name] for s in states) / size) for name in first["traffic"]}
    if all("ledger" in s for s in states):
        # The books of a worker that saw the mean of everything: they balance because the means do.
        merged["ledger"] = {side: _mean([s["ledger"][side] for s in states]) for side in ("entered", "left")}
    return merged


def check_fits(state: Mapping[str, Any], *, rank: int, size: int, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a state that this worker cannot go on from.

    Raises:
        UserError: It is another worker's, another model's, or another version's.
    """
    if state.get("format") != FORMAT:
        raise UserError(
            "This state of DGC was written by another version.",
            why=f"its format is {state.get('format')!r}, this version reads {FORMAT}",
            fix="load it with the version that wrote it",
        )
    if state["rank"] != MERGED and (state["rank"], state["size"]) != (rank, size):
        raise UserError(
            "This state of DGC belongs to another worker.",
            why=f"it is of rank {state['rank']} of {state['size']}, and this is rank {rank} of {size}; "
            "what the other ranks had still to send would be lost",
            fix="load on each rank what it saved; for another number of ranks load DGCState.merge(all the states)",
        )
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    for kind in ("u", "v"):
        theirs = {name: tuple(tensor.shape) for name, tensor in state[kind].items()}
        if shapes != theirs:
            odd = sorted(set(shapes.items()) ^ set(theirs.items()))[0][0]
            raise UserError(
                "This state of DGC belongs to another model.",
                why=f"'{odd}' is {theirs.get(odd, 'not there')}, and here {shapes.get(odd, 'not there')}",
                fix="make the DGCState from the model that was trained",
            )


def _mean(tensors: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean under each name, on the device of the first."""
    means = {}
    for name, own in tensors[0].items():
        total = own.clone()
        for others in tensors[1:]:
            total += others[name].to(own.device)
        means[name] = total / len(tensors)
    return means
