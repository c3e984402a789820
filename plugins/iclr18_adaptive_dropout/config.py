"""Options of the `adaptive-dropout` commands. No torch here: help and dry runs stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

P = Literal["inf", "2", "1"]
Form = Literal["camera", "submission"]
Scale = Literal["fan-in", "paper", "none"]
Mode = Literal["adaptive", "fixed", "none"]
Per = Literal["unit", "layer"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The defaults are the small setting of the README; nothing is chosen by the test split."""

    dataset: Annotated[str, Option("Data set: digits, mnist, cifar10, subj, mr, sentences:PATH, …", metavar="D")] = (
        "digits"
    )
    model: Annotated[Literal["mlp", "conv"], Option("Dense layers, or convolutions and dense layers.")] = "mlp"
    hidden: Annotated[tuple[int, ...], Option("Widths of the dense hidden layers.", min=1)] = (256,)
    filters: Annotated[tuple[int, ...], Option("Filters of the convolutions.", min=1)] = (96, 128, 256)
    rows: Annotated[
        Literal["auto", "sum", "raw"],
        Option("First layer. sum: every input is divided by its sum; auto: sum for counts of words."),
    ] = "auto"
    mode: Annotated[Mode, Option("adaptive: rates are learnt; fixed: they stay, no regulariser; none: no dropout.")] = (
        "adaptive"
    )
    init: Annotated[
        tuple[float, ...],
        Option("Starting rates: input, hidden; conv: input, convolutions, dense. The last goes on.", min=0, max=1),
    ] = (0.8, 0.5)
    per: Annotated[Per, Option("A rate for each unit, or one for each layer.")] = "unit"
    p: Annotated[P, Option("Norm of the weights; that of the rates is q, 1/p + 1/q = 1.")] = "inf"
    bound: Annotated[Form, Option("Form of the bound.")] = "camera"
    scale: Annotated[Scale, Option("Scaling of its factors: by fan-in (authors' code), by fan-out (paper).")] = "fan-in"
    lambda_reg: Annotated[float, Option("lambda, factor of the regulariser.", min=0)] = 2e-4
    lambda_warmup: Annotated[float, Option("Share of training over which lambda grows from 0.", min=0, max=1)] = 0.0
    reg_n: Annotated[Literal["batch", "dataset"], Option("n in the regulariser.")] = "batch"
    every: Annotated[int, Option("I: a step of the rates after every I-th step of the weights.", min=1)] = 10
    theta_lr: Annotated[float, Option("Step size of the rates.", min=0)] = 2.0
    theta_momentum: Annotated[float, Option("Nesterov momentum of the rates.", min=0, max=0.999)] = 0.0
    delay: Annotated[int, Option("Epochs before the first step of the rates.", min=0)] = 0
    epochs: Annotated[int, Option("Passes over the training data.", min=1)] = 60
    batch_size: Annotated[int, Option("Examples per step.", min=1)] = 100
    learning_rate: Annotated[float, Option("Step size of the weights.", above=0)] = 0.02
    momentum: Annotated[float, Option("Their Nesterov momentum.", min=0, max=0.999)] = 0.95
    milestones: Annotated[
        tuple[float, ...], Option("Shares of training after which their step size is multiplied.", min=0, max=1)
    ] = (0.5, 0.75)
    decay: Annotated[float, Option("By this.", above=0, max=1)] = 0.3
    limit: Annotated[int, Option("Train on the first LIMIT examples; 0: all.", min=0)] = 0
    drawn: Annotated[bool, Option("LIMIT examples drawn by the seed in place of the first.")] = False
    hold_out: Annotated[
        float, Option("Share of them that is held out and measured instead of the test split.", min=0, max=0.5)
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One pass with the rates in place of the masks, as the paper tests; then votes of sampled masks."""

    split: Annotated[str, Option("Split of the data.", metavar="SPLIT")] = "test"
    limit: Annotated[int, Option("Evaluate the first LIMIT examples; 0: all.", min=0)] = 0
    draws: Annotated[int, Option("Sampled masks; 0: none.", min=0)] = 10


@dataclass(frozen=True, kw_only=True)
class RatesConfig:
    """Writes plots/rates.png (a map of images' input rates, a histogram of each layer) and plots/rates.csv."""

    below: Annotated[float, Option("Units with a lower rate count as cut.", min=0, max=1)] = 0.05
    words: Annotated[int, Option("Words with the highest and lowest rates, of texts.", min=0)] = 10


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """The bound itself: not scaled, n examples of the whole training split."""

    p: Annotated[Literal["run", "inf", "2", "1"], Option("Norm; run: the one it was trained with.")] = "run"
    bound: Annotated[Literal["run", "camera", "submission"], Option("Form of the bound.")] = "run"
    delta: Annotated[float, Option("Probability that a statement fails.", above=0, max=0.5)] = 0.001
