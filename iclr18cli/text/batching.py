"""Truncated back-propagation through time: a text as columns side by side, read piece by piece with its state.

N tokens · T steps · B sequences · L layers · H hidden units
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run

State = Sequence[Tensor]
"""What a recurrent network carries on: one tensor (1, B, H) for each layer and kind, the order is its own."""


def columns(tokens: Tensor, count: int) -> Tensor:
    """Return (N // count, count): a text cut into `count` pieces side by side; what is left over is dropped.

    Raises:
        UserError: A piece would have fewer than two tokens.
    """
    length = len(tokens) // count
    if length < 2:
        raise UserError(f"{len(tokens)} tokens make no {count} sequences.", fix="a smaller --batch-size, or more text")
    return tokens[: length * count].view(count, length).T.contiguous()


def piece_lengths(steps: int, bptt: int, *, vary: bool, seed: int, epoch: int) -> list[int]:
    """Return the lengths of the pieces of one pass, a function of (seed, epoch) alone.

    Args:
        steps: Steps of a column that have a next token.
        bptt: Usual length.
        vary: As in AWD-LSTM (Merity et al. 2017, section 5): the base is `bptt` with probability 0.95, else half of
            it, and a length is max(5, ⌊N(base, 5)⌋), at most bptt + 10.
        seed, epoch: Of the draw.
    """
    if not vary:
        return [min(bptt, steps - start) for start in range(0, steps, bptt)]
    random = np.random.Generator(np.random.PCG64(derived_seed(seed, "pieces", epoch)))
    lengths: list[int] = []
    left = steps
    while left > 0:
        base = bptt if random.random() < 0.95 else bptt / 2
        length = min(max(5, int(random.normal(base, 5))), bptt + 10, left)
        lengths.append(length)
        left -= length
    return lengths


class Reader:
    """Reads a text in a run: pieces of columns in order, passes one after the other, states carried on.

    Among several ranks each one reads some of the columns. Checkpoints keep the state of every rank.

    Args:
        run: The training.
        tokens: (N,).
        epochs: Passes.
        batch_size: B.
        bptt: Steps of a piece, the usual number if it varies.
        vary: Draw the lengths of pieces.

    Attributes:
        state: Of the network, detached; set it after each piece. None at the start of a pass.
        scale: Length of this piece over `bptt`, by which a varying one scales the step size.

    Example:
        for x_TB, y_TB in reader:
            logits, state = net(x_TB, reader.state)
            …
            reader.carry(state)
    """

    def __init__(self, run: Run, tokens: Tensor, *, epochs: int, batch_size: int, bptt: int, vary: bool = False):
        self.run, self.bptt, self.vary = run, bptt, vary
        self.text_NB = columns(tokens, batch_size).to(run.device)
        steps = len(self.text_NB) - 1
        lengths = [piece_lengths(steps, bptt, vary=vary, seed=run.seed, epoch=epoch) for epoch in range(epochs)]
        self.starts = [np.cumsum([0, *one]).tolist() for one in lengths]
        self.state: tuple[Tensor, ...] | None = None
        self.scale = 1.0
        run.track_own(reader=self)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y), (T, B) each: tokens and the tokens after them, this rank's columns."""
        all_B = torch.arange(self.text_NB.shape[1], device=self.text_NB.device)
        text_NB = self.text_NB[:, self.run.share(all_B)]
        for epoch, place in self.run.passes([len(starts) - 1 for starts in self.starts]):
            first, last = self.starts[epoch][place], self.starts[epoch][place + 1]
            if not place:
                self.state = None
            self.run.share(all_B)  # notes this rank's weight in the step
            self.scale = (last - first) / self.bptt if self.vary else 1.0
            yield text_NB[first:last], text_NB[first + 1 : last + 1]

    def carry(self, state: State) -> None:
        """Keep the state that the next piece starts from."""
        self.state = tuple(part.detach() for part in state)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"state": None if self.state is None else list(self.state)}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; of a merged state this rank takes its columns."""
        state = kept["state"]
        if state is not None and kept.get("merged"):
            part = self.run.world.part(state[0].shape[1])
            state = [one[:, part] for one in state]
        self.state = None if state is None else tuple(one.to(self.text_NB.device) for one in state)

    def merge(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the state of all columns."""
        parts = [one["state"] for one in states]
        if any(part is None for part in parts):
            return {"state": None}
        return {"state": [torch.cat(ones, 1) for ones in zip(*parts, strict=True)], "merged": True}
