"""Options of the `wrm` commands. No torch here: help and dry runs stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

Method = Literal["wrm", "erm", "fgm", "ifgm", "pgm", "ibp"]
Cost = Literal["l2", "linf"]
Activation = Literal["elu", "relu", "softplus", "tanh", "sigmoid", "silu", "gelu", "maxmin"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """gamma multiplies the squared distance, summed over pixels: the inner problem is concave where 2 gamma > L."""

    dataset: Annotated[str, Option("Data set: digits, rings, mnist, npz:PATH, …", metavar="D")] = "digits"
    model: Annotated[str, Option("Network; auto: by the shape of the data.", metavar="M")] = "auto"
    activation: Annotated[Activation, Option("Activation of the network; a sound certificate needs a smooth one.")] = (
        "elu"
    )
    method: Annotated[
        Method, Option("Robust training, one of the paper's baselines, or ibp: training for interval bounds.")
    ] = "wrm"
    cost: Annotated[Cost, Option("Transport cost: squared 2-norm, or squared infinity-norm (heuristic, A.5.2).")] = "l2"
    gamma: Annotated[float, Option("Penalty on the transport cost, Eq. (2).", above=0)] = 1.0
    inner_steps: Annotated[int, Option("T_adv of Algorithm 1, and steps of IFGM and PGM.", min=1)] = 15
    schedule: Annotated[
        Literal["authors", "paper", "constant"],
        Option(
            "Inner steps: the authors' 1/sqrt(t) in units of 1/(2 gamma), T_adv + 1 of them; step / sqrt(t); constant."
        ),
    ] = "authors"
    inner_step_size: Annotated[float, Option("Inner step of the paper and constant schedules.", above=0)] = 0.1
    eps: Annotated[
        float | None, Option("Budget of FGM, IFGM, PGM (the paper: sqrt(rho_hat) of WRM), radius of ibp.", min=0)
    ] = None
    norm: Annotated[Literal["l2", "linf"], Option("Norm of that budget.")] = "l2"
    label_smoothing: Annotated[
        float, Option("Mass taken from the label; the authors' code trains with 0.1.", min=0, max=0.5)
    ] = 0.0
    spectral_cap: Annotated[
        float | None,
        Option(
            "Keep every layer's true operator norm at or below this, so that a sound certificate says something.",
            above=0,
        ),
    ] = None
    noise: Annotated[
        float, Option("Standard deviation of Gaussian noise on the inputs: base models of randomized smoothing.", min=0)
    ] = 0.0
    ibp_ramp: Annotated[
        float, Option("ibp: share of the steps over which the radius grows to eps.", above=0, max=1)
    ] = 0.5
    ibp_kappa: Annotated[float, Option("ibp: weight of the clean loss in the end.", min=0, max=1)] = 0.5
    decay: Annotated[
        float, Option("Share of the steps, at the end, over which the step size falls to 0.", min=0, max=1)
    ] = 0.0
    epochs: Annotated[int, Option("Passes over the training data.", min=1)] = 30
    batch_size: Annotated[int, Option("Examples per step.", min=1)] = 128
    learning_rate: Annotated[float, Option("Step size of Adam.", above=0)] = 1e-3
    limit: Annotated[int, Option("Train on the first LIMIT examples; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measured with the paper's fixed number of ascent steps and with a converged adversary, side by side."""

    split: Annotated[str, Option("Split of the run's data set.", metavar="SPLIT")] = "test"
    limit: Annotated[int, Option("Evaluate the first LIMIT examples; 0: all.", min=0)] = 0
    gamma: Annotated[float | None, Option("Penalty; by default the training's.", above=0)] = None
    inner_steps: Annotated[int, Option("Ascent steps of the fixed-step adversary.", min=1)] = 15
    converged: Annotated[bool, Option("Also solve the inner problem to stationarity.")] = True
    max_steps: Annotated[int, Option("Gradient steps at most for that.", min=1)] = 600
    tolerance: Annotated[float, Option("Residual at which an example counts as stationary.", above=0)] = 1e-4
    hessian: Annotated[
        bool, Option("Share of points where the inner problem is not concave (largest Hessian eigenvalue).")
    ] = True
    hessian_limit: Annotated[int, Option("Look at the Hessian of the first N examples; 0: all.", min=0)] = 1000


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """sound: proven by the ladder S0-S2 on the evaluated points. paper: the paper's procedure, an estimate."""

    mode: Annotated[Literal["sound", "paper"], Option("Proven bound, or the paper's procedure (an estimate).")] = (
        "sound"
    )
    loss: Annotated[
        Literal["cross-entropy", "error-probability"], Option("Loss that is bounded: cross-entropy or 1 - p_y.")
    ] = "cross-entropy"
    rho: Annotated[tuple[float, ...], Option("Budgets: average squared 2-norm displacement.", min=0)] = (
        0.0001,
        0.001,
        0.01,
    )
    gamma: Annotated[
        tuple[float, ...],
        Option("Penalties tried; by default a grid above L/2 (sound), the training's (paper).", above=0),
    ] = ()
    population: Annotated[
        bool, Option("Sound mode: bound the population with probability 1 - delta (loss 1 - p_y).")
    ] = False
    delta: Annotated[float, Option("Probability that a population statement fails.", above=0, max=0.5)] = 0.001
    split: Annotated[
        str, Option("Split; paper mode takes the training points, as the paper does.", metavar="SPLIT")
    ] = "auto"
    limit: Annotated[int, Option("Certify the first LIMIT examples; 0: all.", min=0)] = 0
    box: Annotated[bool, Option("Sound mode: adversaries keep to the inputs' declared range.")] = False
    inner_steps: Annotated[int, Option("Paper mode: ascent steps.", min=1)] = 15
    figure: Annotated[bool, Option("Draw Figure 2 into the run's plots.")] = True
    figure_limit: Annotated[int, Option("Figure 2 uses the first N test and training points; 0: all.", min=0)] = 2000


@dataclass(frozen=True, kw_only=True)
class BoundaryConfig:
    """Figure 1: the three methods on rings from the same start, with ELU and with ReLU."""

    points: Annotated[int, Option("Training points.", min=10)] = 4000
    gamma: Annotated[float, Option("Penalty of WRM.", above=0)] = 2.0
    inner_steps: Annotated[int, Option("T_adv.", min=1)] = 15
    eps: Annotated[float | None, Option("2-norm budget of FGM; by default sqrt(rho_hat) of the WRM net.", min=0)] = None
    epochs: Annotated[int, Option("Passes over the data for each net.", min=1)] = 30
    batch_size: Annotated[int, Option("Examples per step.", min=1)] = 128
    learning_rate: Annotated[float, Option("Step size of Adam.", above=0)] = 0.01


@dataclass(frozen=True, kw_only=True)
class CurvesConfig:
    """Figures 3 and 4a for runs on one data set; PNG files go into the plots of the first run, or to `figures`."""

    limit: Annotated[int, Option("Use the first LIMIT test points; 0: all.", min=0)] = 1000
    points: Annotated[int, Option("Budgets per curve.", min=2)] = 8
    max_ratio: Annotated[float, Option("Largest eps / C_p, C_p the mean p-norm of the inputs.", above=0)] = 0.25
    steps: Annotated[int, Option("PGM steps.", min=1)] = 15
    figures: Annotated[str, Option("Folder for the PNG files.", metavar="DIR")] = ""


@dataclass(frozen=True, kw_only=True)
class CartpoleConfig:
    """Table 1. The paper's gamma, learning rate and episode count are not in its text; these are ours."""

    gamma: Annotated[float, Option("Penalty on (beta - beta')^2 of the robust agent.", above=0)] = 50.0
    episodes: Annotated[int, Option("Training episodes per agent.", min=1)] = 3000
    trials: Annotated[int, Option("Episodes per environment when measuring.", min=2)] = 1000
    agents: Annotated[int, Option("Agents of each kind, seeds seed, seed + 1, …", min=1)] = 3
