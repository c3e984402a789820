"""Links of a chosen rate between processes of this machine: network namespaces joined by virtual cables.

Needs Linux, root, and the programs ip and tc. Every rank has a namespace; all are plugged into a bridge in one more,
and both ends of each cable are limited by a token bucket.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from iclr18cli.errors import UsageError

UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
BURST = 256 * 1024
LOOPBACK = "loopback"
INTERFACE = "iclr18"


def bits_per_second(rate: str) -> float | None:
    """Return the rate of a link; None for loopback, which is not limited.

    Raises:
        UsageError: It is neither "loopback" nor a number with a unit.

    Example:
        >>> bits_per_second("100mbit"), bits_per_second("2.5gbit"), bits_per_second("loopback")
        (100000000.0, 2500000000.0, None)
    """
    if rate == LOOPBACK:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--link {rate!r} is no rate.", fix="a number and kbit, mbit or gbit; or loopback")
    return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Place:
    """Where a rank runs.

    Args:
        prefix: Words to put before its command line.
        interface: Name of its network interface.
        address: Of rank 0, for all to meet.
    """

    prefix: tuple[str, ...]
    interface: str
    address: str


def why_not() -> str:
    """Return why this program cannot make links here; "" if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "not root"
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True) if shutil.which("unshare") else None
    if tried is not None and tried.returncode:
        return "this system allows no network namespaces"
    return ""


@contextmanager
def joined_by(rate: str, ranks: int) -> Iterator[list[Place]]:
    """Offer a place for each rank, at the ends of links of a rate, and take everything down afterwards.

    Raises:
        OSError: A command failed; what it said is in the message.
    """
    speed = bits_per_second(rate)
    if speed is None:
        yield [Place((), "lo", "127.0.0.1")] * ranks
        return
    # Two benchmarks at once must not share names; an interface's has 15 characters at most.
    tag = os.path.basename(tempfile.mktemp(prefix="", dir="/tmp"))[:6]
    hub, spaces = f"iclr18-{tag}", [f"iclr18-{tag}-{rank}" for rank in range(ranks)]
    made: list[str] = []
    try:
        for space in (hub, *spaces):
            _ip("netns", "add", space)
            made.append(space)
            _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for rank, space in enumerate(spaces):
            plug = f"plug{rank}"
            _ip("-n", hub, "link", "add", plug, "type", "veth", "peer", "name", INTERFACE, "netns", space)
            _ip("-n", hub, "link", "set", plug, "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"10.18.0.{rank + 1}/24", "dev", INTERFACE)
            _ip("-n", space, "link", "set", INTERFACE, "up")
            for where, cable in ((hub, plug), (space, INTERFACE)):
                _tc(where, cable, speed)
        yield [Place(("ip", "netns", "exec", space), INTERFACE, "10.18.0.1") for space in spaces]
    finally:
        for space in made:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


def _tc(space: str, cable: str, speed: float) -> None:
    # A bucket must hold what passes in one tick of the kernel's clock, or the rate is not reached.
    burst = max(BURST, int(speed / 8 / 250))
    _run("ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", cable, "root", "tbf", "rate", f"{speed:.0f}bit",
         "burst", f"{burst}b", "latency", "100ms")  # fmt: skip


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
