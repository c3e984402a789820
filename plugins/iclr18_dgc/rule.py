"""The settings of DGC, checked once. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from iclr18_dgc.schedule import Schedule

Values = Literal["fp64", "fp32", "fp16", "bf16"]
Indices = Literal["int32", "runlength16", "block16"]
Scope = Literal["tensor", "model"]
Convention = Literal["sum", "average"]
Selection = Literal["sampled", "exact"]

VALUE_BYTES: dict[str, int] = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one step of DGC does; the defaults are the paper's, on wires of 8 bytes per entry.

    Args:
        schedule: Density at each step; a number stands for a constant density.
        momentum: m, in [0, 1). 0 with a momentum optimiser behind it is Gradient Dropping, see `baselines`.
        nesterov: v takes m u + g after u <- m u + g, Appendix B.
        masking: Clear u where an entry was sent (momentum factor masking, section 3.2).
        clip: Threshold of local gradient clipping, thr in section 3.2; None: no clipping.
        clip_scope: Norm of each tensor, or of the whole gradient.
        clip_convention: What `clip` limits. "sum": the sum of the workers' gradients as `backward` leaves them, each
            the mean over its own batch: every worker clips at thr N^-1/2, as section 3.2 and Paddle write it.
            "average": their average, the gradient of the whole batch: every worker clips at thr N^1/2.
        weight_decay: lambda, a number or parameter name -> lambda (names left out: 0). Kept in a momentum buffer of
            its own that every rank computes alike.
        values: Type of the sent values; what rounding loses stays in v.
        indices: Encoding of the sent positions, see `encoding`.
        selection: "sampled": threshold from a sample, then exact top-k among those that passed; "exact": top-k at once.
        sample_ratio: Share of a tensor in the sample, section 5: 0.001 to 0.01.
        dense_below: Tensors with fewer entries are sent whole, as biases and norms are.

    Raises:
        ValueError: A value is out of range.
    """

    schedule: Schedule | float = field(default_factory=Schedule)
    momentum: float = 0.9
    nesterov: bool = False
    masking: bool = True
    clip: float | None = None
    clip_scope: Scope = "tensor"
    clip_convention: Convention = "sum"
    weight_decay: float | Mapping[str, float] = 0.0
    values: Values = "fp32"
    indices: Indices = "int32"
    selection: Selection = "sampled"
    sample_ratio: float = 0.01
    dense_below: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            object.__setattr__(self, "schedule", Schedule(float(self.schedule)))
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); received momentum={self.momentum!r}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be > 0 or None; received clip={self.clip!r}")
        decays = self.weight_decay.values() if isinstance(self.weight_decay, Mapping) else (self.weight_decay,)
        if not all(decay >= 0 for decay in decays):
            raise ValueError(f"weight_decay must be >= 0; received weight_decay={self.weight_decay!r}")
        if not 0 < self.sample_ratio <= 1:
            raise ValueError(f"sample_ratio must be in (0, 1]; received sample_ratio={self.sample_ratio!r}")
        if self.dense_below < 0:
            raise ValueError(f"dense_below must be >= 0; received dense_below={self.dense_below!r}")
        kinds = {
            "clip_scope": Scope, "clip_convention": Convention, "values": Values, "indices": Indices,
            "selection": Selection,
        }  # fmt: skip
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                words = ", ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name} must be one of {words}; received {name}={getattr(self, name)!r}")

    def density(self, step: int) -> float:
        """Return the density of a step, counted from 0."""
        assert isinstance(self.schedule, Schedule)  # by __post_init__
        return self.schedule.at(step)

    def decay_of(self, name: str) -> float:
        """Return the weight decay of a parameter."""
        return self.weight_decay.get(name, 0.0) if isinstance(self.weight_decay, Mapping) else self.weight_decay

    def clip_at(self, size: int) -> float | None:
        """Return the norm at which one of so many workers clips, section 3.2.

        Example:
            >>> Rule(clip=1.0).clip_at(4), Rule(clip=1.0, clip_convention="average").clip_at(4)
            (0.5, 2.0)
        """
        if self.clip is None:
            return None
        return self.clip * size ** (-0.5 if self.clip_convention == "sum" else 0.5)
