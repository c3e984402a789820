"""Decisions that all ranks must take at the same step: to save a checkpoint, to stop on a signal."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from iclr18cli.launch import World


class Agreement:
    """What the ranks want, agreed by the greatest wish; alone, one's own wish at once.

    Among several ranks an answer is of the step before: it travels while the step computes, and nobody waits for it.
    """

    def __init__(self, world: World):
        self.world = world
        # A group of its own: what travels here meets a step's own messages in no fixed order.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._sent: tuple[torch.Tensor, Any] | None = None

    def ask(self, *, save: bool, signal: int) -> tuple[bool, int]:
        """Return (save, signal) as all ranks see it; the first rank's clock decides about saving.

        Args:
            save: A checkpoint is due.
            signal: Number of the signal this process received; 0: none.
        """
        if self.world.size == 1:
            return save, signal
        answer = self._answer()
        wish = torch.tensor([int(save and self.world.first), signal])
        self._sent = wish, dist.all_reduce(wish, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    def settle(self, signal: int) -> int:
        """Return the signal that any rank received up to now; waits for all of them."""
        if self.world.size == 1:
            return signal
        before = self._answer()[1]
        self.ask(save=False, signal=max(signal, before))
        return self._answer()[1]

    def _answer(self) -> tuple[bool, int]:
        if self._sent is None:
            return False, 0
        wish, work = self._sent
        work.wait()
        self._sent = None
        save, signal = wish.tolist()
        return bool(save), signal
