"""Options of the `sngan` commands. No torch here: help and dry runs stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

Norm = Literal["sn", "none", "bn", "ln", "wn", "clip", "gp", "orthonormal"]
Mode = Literal["reshape", "operator"]
Loss = Literal["hinge", "softplus", "wasserstein"]
Letter = Literal["A", "B", "C", "D", "E", "F"]

SETTINGS: dict[str, tuple[float, float, float, int]] = {
    "A": (1e-4, 0.5, 0.9, 5),
    "B": (1e-4, 0.5, 0.999, 1),
    "C": (2e-4, 0.5, 0.999, 1),
    "D": (1e-3, 0.5, 0.9, 5),
    "E": (1e-3, 0.5, 0.999, 5),
    "F": (1e-3, 0.9, 0.999, 5),
}
"""Table 1: Adam's alpha, beta_1, beta_2, and n_dis, the critic's updates per update of the generator."""

COLLAPSED = 1.5
"""Entropy of the samples' classes, in nats, below which a run counts as collapsed; ten equal classes have 2.30."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One iteration is one update of the generator, taken first, and n_dis of the critic, each with fresh batches."""

    dataset: Annotated[str, Option("Images: digits, fashion-mnist, cifar10, stl10, folder:PATH, …", metavar="D")] = (
        "digits"
    )
    model: Annotated[str, Option("sngan/dcgan or sngan/resnet.", metavar="M")] = "sngan/dcgan"
    norm: Annotated[
        Norm,
        Option("What holds the critic: sn; a baseline: bn, ln, wn layers, weight clipping, gp, orthonormal; or none."),
    ] = "sn"
    mode: Annotated[
        Mode, Option("sn: norm of the reshaped kernel (the paper's), or of the convolution itself on its image.")
    ] = "reshape"
    power_iterations: Annotated[int, Option("sn: power iterations per use of a weight in training.", min=1)] = 1
    clip: Annotated[float, Option("clip: every number of the critic stays in [-clip, clip].", above=0)] = 0.01
    gp_weight: Annotated[float, Option("gp: weight of (|grad D| - 1)^2 between real and fake.", above=0)] = 10.0
    orthonormal_weight: Annotated[float, Option("orthonormal: weight of sum |W W^T - I|^2.", above=0)] = 1e-3
    setting: Annotated[Letter, Option("Adam and n_dis by Table 1; the options below override it.")] = "C"
    learning_rate: Annotated[float | None, Option("alpha of both Adams.", above=0)] = None
    beta1: Annotated[float | None, Option("beta_1 of both.", min=0, max=0.9999)] = None
    beta2: Annotated[float | None, Option("beta_2 of both.", min=0, max=0.99999)] = None
    n_dis: Annotated[int | None, Option("Updates of the critic per update of the generator.", min=1)] = None
    schedule: Annotated[Literal["constant", "linear"], Option("alpha: constant, or falling to 0 linearly.")] = (
        "constant"
    )
    loss: Annotated[Loss, Option("hinge; softplus: the standard loss; wasserstein.")] = "hinge"
    conditional: Annotated[bool, Option("Classes: projection critic, conditional batch norm in the generator.")] = False
    latent: Annotated[int, Option("Dimension of z ~ N(0, I).", min=1)] = 128
    width: Annotated[int, Option("Filters: dcgan 64 in the paper, resnet 128 (generator twice that).", min=1)] = 16
    iterations: Annotated[int, Option("Updates of the generator.", min=1)] = 600
    batch_size: Annotated[int, Option("Real images, and as many fakes, per update of the critic.", min=2)] = 64
    generator_batch: Annotated[int, Option("Fakes per update of the generator; 0: as many.", min=0)] = 0
    dequantize: Annotated[bool, Option("Uniform noise of one grey level on real images that are stored as bytes.")] = (
        True
    )
    limit: Annotated[int, Option("Train on the first LIMIT examples; 0: all.", min=0)] = 0

    @property
    def adam(self) -> tuple[float, float, float]:
        """Return (alpha, beta_1, beta_2): the setting's, unless given."""
        given = (self.learning_rate, self.beta1, self.beta2)
        alpha, beta1, beta2 = (
            own if own is not None else table for own, table in zip(given, SETTINGS[self.setting][:3], strict=True)
        )
        return alpha, beta1, beta2

    @property
    def rounds(self) -> int:
        """Return n_dis: the setting's, unless given."""
        return SETTINGS[self.setting][3] if self.n_dis is None else self.n_dis


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Sample measures use a classifier trained here on the same data, once; they are not FID."""

    split: Annotated[str, Option("Split compared with.", metavar="SPLIT")] = "test"
    limit: Annotated[int, Option("Compare with the first LIMIT examples; 0: all, 10,000 at most.", min=0)] = 0
    feature_steps: Annotated[int, Option("Training steps of that classifier; 0: enough.", min=0)] = 0
    inception: Annotated[bool, Option("Also FID and KID, if torch-fidelity and its weights are here.")] = False


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The grid goes into the plots of the run."""

    count: Annotated[int, Option("Number of samples.", min=1, max=10_000)] = 100
    columns: Annotated[int, Option("Samples per row; 0: as many as rows.", min=0)] = 10


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Two statements: a Lipschitz bound of the critic, and what the reshaped norms would have claimed."""

    eps: Annotated[float, Option("2-norm perturbation of the first statement, unit of the input.", above=0)] = 0.1
    split: Annotated[str, Option("Split where the largest gradient is looked for.", metavar="SPLIT")] = "test"
    points: Annotated[int, Option("Points from which it is looked for.", min=1)] = 64
    steps: Annotated[int, Option("Steps up D from each; the gradient is measured at every one.", min=0)] = 20
