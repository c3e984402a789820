"""The law P_Z that codes are to follow: draws, the map that puts codes on its support, and C of its kernel."""

# N codes · D latent dimensions

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Prior:
    """P_Z on R^D.

    Args:
        kind: "normal", N(0, variance I); "sphere", uniform on the unit sphere; "uniform", on [-1, 1]^D.
        D: Dimension.
        variance: s^2 of the normal.
    """

    kind: str
    D: int
    variance: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("normal", "sphere", "uniform"):
            raise ValueError(f"prior must be normal, sphere or uniform; received {self.kind!r}")
        if self.D < 1 or self.variance <= 0:
            raise ValueError(f"D must be >= 1 and variance > 0; received {self.D} and {self.variance}")

    def draw(self, count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """Return (count, D) float32 draws; the numbers come from the generator's device."""
        shape = (count, self.D)
        if self.kind == "uniform":
            return (torch.rand(shape, generator=generator, device=generator.device) * 2 - 1).to(device)
        z_ND = torch.randn(shape, generator=generator, device=generator.device)
        z_ND = F.normalize(z_ND) if self.kind == "sphere" else z_ND * self.variance**0.5
        return z_ND.to(device)

    def place(self, e_ND: Tensor) -> Tensor:
        """Map what the encoder puts out to the support."""
        match self.kind:
            case "sphere":
                return F.normalize(e_ND)
            case "uniform":
                return e_ND.tanh()
        return e_ND

    @property
    def C(self) -> float:  # noqa: N802 - the paper's letter
        """Return the kernel's constant: E |z - z'|^2 for normal and sphere; D, as in the authors' code, for uniform."""
        return {"normal": 2.0 * self.D * self.variance, "sphere": 2.0, "uniform": float(self.D)}[self.kind]

    def covariance(self) -> Tensor:
        """Return the covariance of the law, (D, D) float64."""
        share = {"normal": self.variance, "sphere": 1 / self.D, "uniform": 1 / 3}[self.kind]
        return share * torch.eye(self.D, dtype=torch.float64)
