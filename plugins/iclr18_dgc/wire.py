"""Bytes that really went over the wire: by the kernel's count for this process's sockets, or a network interface's."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

TCP_INFO_BYTES = 232
ACKED, RECEIVED = 120, 128
"""Offsets of tcpi_bytes_acked and tcpi_bytes_received, 64 bits each, in Linux's struct tcp_info."""


@dataclass(frozen=True)
class Counted:
    """Bytes sent and received so far."""

    sent: int
    received: int

    def __sub__(self, before: Counted) -> Counted:
        return Counted(self.sent - before.sent, self.received - before.received)


def of_this_process() -> Counted | None:
    """Return what all open TCP connections of this process carried; None where the kernel does not say (not Linux).

    Payload alone, headers and repeats excluded; what the other end has not acknowledged yet does not count.
    """
    if not Path("/proc/self/fd").is_dir() or not hasattr(socket, "TCP_INFO"):
        return None
    sent = received = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        except OSError:
            continue  # closed in between, or no TCP
        if len(info) >= RECEIVED + 8:
            sent += struct.unpack_from("=Q", info, ACKED)[0]
            received += struct.unpack_from("=Q", info, RECEIVED)[0]
    return Counted(sent, received)


def of_interface(name: str) -> Counted:
    """Return what a network interface carried, headers of all layers included."""
    folder = Path("/sys/class/net") / name / "statistics"
    return Counted(int((folder / "tx_bytes").read_text()), int((folder / "rx_bytes").read_text()))
