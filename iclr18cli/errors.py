"""What can go wrong, in the user's words, and the exit code it ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes users may rely on."""

    DONE = 0
    BUG = 1
    USAGE = 2
    USER = 3
    CLAIM = 4
    LOST = 75
    SIGINT = 130
    SIGTERM = 143


class UserError(Exception):
    """Something the user can mend: data, device, file, or an assumption a certificate needs (exit 3).

    Args:
        what: What happened, one sentence.
        why: What was looked at or received.
        fix: What to do about it, best as a command.
    """

    code = ExitCode.USER

    def __init__(self, what: str, *, why: str = "", fix: str = ""):
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        return "  ".join(
            part for part in (self.what, self.why and f"why: {self.why}", self.fix and f"fix: {self.fix}") if part
        )


class UsageError(UserError):
    """The command line or a TOML file asks for something that does not exist or is out of range (exit 2)."""

    code = ExitCode.USAGE


class ClaimError(UserError):
    """A claim does not hold: an attack beat a proven bound, or `plugins doctor` found a fault (exit 4)."""

    code = ExitCode.CLAIM


class LostRank(UserError):  # noqa: N818 - it is the other rank's error
    """Another rank of the group went away, so this one cannot go on (exit 75, seen by launchers only)."""

    code = ExitCode.LOST


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was stopped by a signal after its state was saved.

    Args:
        signal: The signal's number; the exit code is 128 + signal.
        hint: The command that goes on from here.
    """

    def __init__(self, signal: int, hint: str = ""):
        super().__init__(f"interrupted by signal {signal}")
        self.signal, self.hint = signal, hint


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Say which choice a mistyped word may have meant, or list the choices when none is near.

    Example:
        >>> did_you_mean("gama", ["gamma", "epochs"])
        "Did you mean 'gamma'?"
        >>> did_you_mean("zzz", ["gamma", "epochs"])
        'One of: epochs, gamma.'
    """
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"One of: {', '.join(choices)}." if choices else "There is none."
