"""How dense the update is at each step: the paper's exponential warm-up, or any list. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAPER = (1 / 4, 1 / 16, 1 / 64, 1 / 256)
"""Densities of the warm-up, 4^-i: sparsity 75 %, 93.75 %, 98.4375 %, 99.6 %; 99.9 % follows, section 3.3."""


@dataclass(frozen=True)
class Schedule:
    """Density as a function of the step, counted from 0; the same for every tensor.

    Args:
        final: Density after the warm-up, in (0, 1].
        warmup_steps: Steps over which `densities` are spread evenly; 0: none.
        densities: Of the warm-up; none is taken below `final`.

    Raises:
        ValueError: A density outside (0, 1], warmup_steps < 0, or a warm-up without densities.

    Example:
        >>> plan = Schedule(0.001, warmup_steps=8)
        >>> [plan.at(step) for step in (0, 1, 2, 7, 8)]
        [0.25, 0.25, 0.0625, 0.00390625, 0.001]
    """

    final: float = 0.001
    warmup_steps: int = 0
    densities: Sequence[float] = PAPER

    def __post_init__(self) -> None:
        for density in (self.final, *self.densities):
            if not 0 < density <= 1:
                raise ValueError(f"a density must be in (0, 1]; received {density!r}")
        if self.warmup_steps < 0 or (self.warmup_steps and not self.densities):
            raise ValueError(
                "warmup_steps must be >= 0, with densities to spread over them; "
                f"received warmup_steps={self.warmup_steps!r}, densities={tuple(self.densities)!r}"
            )

    @classmethod
    def of_epochs(
        cls, final: float = 0.001, *, epochs: float, steps_per_epoch: int, densities: Sequence[float] = PAPER
    ) -> Schedule:
        """Return a warm-up of so many epochs: of four, one density each; of one, a quarter of it each.

        Section 3.3 has 4 epochs for images, 1 for language and speech; that one epoch is cut into quarters is our
        reading.

        Example:
            >>> Schedule.of_epochs(epochs=1, steps_per_epoch=100).at(30)
            0.0625
        """
        if epochs < 0 or steps_per_epoch < 1:
            raise ValueError(
                "epochs must be >= 0 and steps_per_epoch >= 1; "
                f"received epochs={epochs!r}, steps_per_epoch={steps_per_epoch!r}"
            )
        return cls(final, round(epochs * steps_per_epoch), densities)

    def at(self, step: int) -> float:
        """Return the density of a step."""
        if step >= self.warmup_steps:
            return self.final
        return max(self.final, self.densities[step * len(self.densities) // self.warmup_steps])

    def mean(self, steps: int) -> float:
        """Return the mean density over the first steps of a training: what a short run really sent.

        Example:
            >>> round(Schedule(0.001, warmup_steps=100).mean(200), 4)
            0.042
        """
        if steps < 1:
            raise ValueError(f"steps must be >= 1; received steps={steps!r}")
        return sum(self.at(step) for step in range(steps)) / steps
