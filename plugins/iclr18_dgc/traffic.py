"""Bytes that a worker claims to have sent and received, to be compared with the network interface. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Traffic:
    """Counts of one worker over all its steps; without the framing of the transport.

    An all-gather of P bytes counts (N - 1) P sent and as many received; an all-reduce of P bytes 2 (N - 1)/N P each
    way, as by a ring. `payload` is what this worker had to say, whatever N: the paper's gradient size.

    Args:
        steps: Steps counted, those that were skipped included.
        payload: Bytes of packets, of tensors sent whole, and of the byte about finiteness.
        dense: Bytes of the gradient itself over the same steps.
        sent, received: Bytes through the interface, each way.
        entries: Entries sent of the compressed tensors.
    """

    steps: int = 0
    payload: int = 0
    dense: int = 0
    sent: int = 0
    received: int = 0
    entries: int = 0

    @property
    def ratio(self) -> float:
        """How many times smaller the payload is than the gradient."""
        return self.dense / self.payload if self.payload else 1.0

    def gathered(self, size: int, bytes_each: int) -> None:
        """Count an all-gather of packets among so many ranks."""
        self.payload += bytes_each
        self.sent += (size - 1) * bytes_each
        self.received += (size - 1) * bytes_each

    def reduced(self, size: int, bytes_each: int) -> None:
        """Count an all-reduce among so many ranks."""
        self.payload += bytes_each
        through = -(-2 * (size - 1) * bytes_each // size)
        self.sent += through
        self.received += through

    def state_dict(self) -> dict[str, int]:
        """Return the counts as plain numbers."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from counts that `state_dict` returned."""
        for name in asdict(self):
            setattr(self, name, int(state[name]))
