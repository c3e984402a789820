"""Options of the `wae` commands. No torch here: help and dry runs stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

Method = Literal["wae-mmd", "wae-gan", "ae", "vae", "aae"]
Encoder = Literal["deterministic", "gaussian", "implicit"]
PriorName = Literal["normal", "sphere", "uniform"]
Cost = Literal["l2sq", "l2", "l1", "bernoulli"]

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Factors t of the seven kernels C t / (C t + |x - y|^2) that the authors sum."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Against the plain squared error the penalty's weight is lambda / rec_scale: 200 with the authors' numbers."""

    dataset: Annotated[str, Option("Data set: digits, mnist, fashion-mnist, celeba, npz:PATH, …", metavar="D")] = (
        "digits"
    )
    model: Annotated[str, Option("Network; auto: by the shape of the data.", metavar="M")] = "auto"
    method: Annotated[Method, Option("The paper's two, or a baseline on the same networks.")] = "wae-mmd"
    encoder: Annotated[Encoder | None, Option("Q(z|x); by default gaussian for vae, else deterministic.")] = None
    input_noise: Annotated[
        float, Option("sd of noise on the pixels while training; the authors' configurations: 0.01.", min=0)
    ] = 0.0
    latent: Annotated[int, Option("Dimension d of the code.", min=1)] = 8
    prior: Annotated[PriorName, Option("P_Z: N(0, s^2 I), the unit sphere, or uniform on [-1, 1]^d.")] = "normal"
    prior_variance: Annotated[float, Option("s^2 of the normal prior.", above=0)] = 1.0
    penalty: Annotated[float, Option("lambda, the weight of D_Z(Q_Z, P_Z).", min=0)] = 10.0
    cost: Annotated[Cost, Option("c(x, G(z)), summed over pixels; bernoulli: cross-entropy.")] = "l2sq"
    rec_scale: Annotated[float, Option("Factor of the cost; the authors' 0.05. Not used by vae and aae.", above=0)] = (
        0.05
    )
    kernel: Annotated[Literal["imq", "rbf"], Option("Kernel of the MMD.")] = "imq"
    scales: Annotated[tuple[float, ...], Option("Factors of C whose IMQ kernels are summed.", above=0)] = SCALES
    p_trick: Annotated[bool, Option("wae-gan: add log p_Z(z) to the adversary's logit.")] = False
    decoder_variance: Annotated[float, Option("vae, aae: sigma^2 of the Gaussian decoder in -log p(x|z).", above=0)] = (
        0.1
    )
    pretrain_steps: Annotated[
        int, Option("Steps on the encoder alone, to give codes the prior's mean and covariance.", min=0)
    ] = 0
    widths: Annotated[tuple[int, ...], Option("Filters or units of the encoder's layers, mirrored.", min=1)] = (32, 64)
    kernel_size: Annotated[int, Option("Side of the convolutions.", min=3, max=7)] = 4
    batch_norm: Annotated[bool, Option("Normalise after the convolutions.")] = True
    authors_init: Annotated[bool, Option("Weights from N(0, 0.01^2) instead of torch's default.")] = False
    spectral_cap: Annotated[
        float | None, Option("Keep the operator norm of every layer of wae/mlp at or below this.", above=0)
    ] = None
    adversary_width: Annotated[int, Option("Units of each of the adversary's four layers.", min=1)] = 512
    epochs: Annotated[int, Option("Passes over the training data.", min=1)] = 150
    batch_size: Annotated[int, Option("Examples per step; a shorter last batch is left out.", min=2)] = 100
    learning_rate: Annotated[float, Option("Step size of Adam on encoder and decoder.", above=0)] = 1e-3
    adversary_rate: Annotated[float, Option("Step size of Adam on the adversary.", above=0)] = 5e-4
    beta1: Annotated[float, Option("beta_1 of Adam.", min=0, max=0.999)] = 0.5
    schedule: Annotated[
        Literal["constant", "manual", "smooth"],
        Option("Step size: constant; /2 from epoch 30, /10 from 50, /100 from 100; or falling to 1/100 smoothly."),
    ] = "smooth"
    limit: Annotated[int, Option("Train on the first LIMIT examples; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Sample measures use a classifier trained here on the same data, once; they are not FID."""

    split: Annotated[str, Option("Split compared with.", metavar="SPLIT")] = "test"
    limit: Annotated[int, Option("Compare with the first LIMIT examples; 0: all, 10,000 at most.", min=0)] = 0
    samples: Annotated[bool, Option("Measure samples; the feature classifier is trained once if it is not kept.")] = (
        True
    )
    feature_steps: Annotated[int, Option("Training steps of that classifier; 0: enough.", min=0)] = 0
    inception: Annotated[bool, Option("Also FID and KID, if torch-fidelity and its weights are here.")] = False


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The grid goes into the plots of the run."""

    count: Annotated[int, Option("Number of samples.", min=1, max=10_000)] = 100
    columns: Annotated[int, Option("Samples per row; 0: as many as rows.", min=0)] = 10


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig:
    """Codes of pairs of test images, and the way between."""

    pairs: Annotated[int, Option("Number of pairs.", min=1, max=100)] = 8
    steps: Annotated[int, Option("Images per pair, both ends included.", min=2, max=50)] = 10
    path: Annotated[Literal["linear", "spherical"], Option("Straight line or great circle.")] = "linear"
    split: Annotated[str, Option("Split the pairs are from.", metavar="SPLIT")] = "test"


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Three statements: a bound of MMD(Q_Z, P_Z), a permutation test, and a Lipschitz bound where one is known."""

    split: Annotated[str, Option("Split whose codes are tested.", metavar="SPLIT")] = "test"
    limit: Annotated[int, Option("Use the first LIMIT examples; 0: all.", min=0)] = 0
    draws: Annotated[int, Option("Draws for the bound where the prior is not normal.", min=10)] = 5000
    test_points: Annotated[int, Option("Codes, and as many draws, in the permutation test.", min=2, max=5000)] = 1000
    permutations: Annotated[int, Option("Random permutations.", min=19)] = 999
    level: Annotated[float, Option("Level of the test.", above=0, max=0.5)] = 0.01
    delta: Annotated[float, Option("Probability that the bound fails.", above=0, max=0.5)] = 0.001
    eps: Annotated[float, Option("2-norm perturbation of the Lipschitz statement, unit of the input.", above=0)] = 0.1


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Projected gradient ascent through encoder and decoder; a random encoder is attacked in expectation."""

    goal: Annotated[
        Literal["reconstruction", "code", "target"],
        Option("Raise |G(Q(z)) - x|^2; move the code; or pull it to the code of the next image."),
    ] = "reconstruction"
    norm: Annotated[Literal["l2", "linf"], Option("Norm of the perturbation.")] = "l2"
    eps: Annotated[tuple[float, ...], Option("Radii, unit of the input.", min=0)] = (0.25, 0.5, 1.0)
    steps: Annotated[int, Option("Gradient steps.", min=1)] = 40
    restarts: Annotated[int, Option("Starts; the first is the image itself.", min=1)] = 2
    noise_draws: Annotated[int, Option("Draws of the encoder's noise per gradient.", min=1)] = 4
    split: Annotated[str, Option("Split.", metavar="SPLIT")] = "test"
    limit: Annotated[int, Option("Attack the first LIMIT examples; 0: all.", min=0)] = 200
