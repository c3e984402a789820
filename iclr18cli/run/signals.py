"""Ctrl-C and SIGTERM while a run iterates: the first one waits for the step to end, the second does not."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from iclr18cli.errors import Interrupted

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Catches signals between `install` and `restore`; `received` is the number of the first one, 0 until then.

    Args:
        hint: The command that goes on from here, for `Interrupted`.
    """

    def __init__(self, hint: str = ""):
        self.hint, self.received = hint, 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the handlers; does nothing outside the main thread, where Python does not allow it."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in WATCHED:
            self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give back the handlers that were there before."""
        # A handler that was not made by Python reads None and cannot be set again.
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            self.restore()
            raise Interrupted(number, self.hint)
        self.received = number
