"""A limit on how long somebody else's code may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PluginTimeout(BaseException):
    """A plugin did not answer in time. No Exception: an `except Exception` of the plugin must not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise PluginTimeout in the block after `seconds`; no effect outside the main thread and without SIGALRM."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(*_: object) -> None:
        raise PluginTimeout(f"no answer within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
