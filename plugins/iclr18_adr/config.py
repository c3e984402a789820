"""Options of the `adr` commands. No torch here: help and dry runs stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

Critic = Literal["adr", "l1", "ent", "mcd", "dann", "none"]
Variant = Literal["paper", "authors"]
Head = Literal["c", "cprime"]
Protocol = Literal["all", "p1", "p2"]
Statistics = Literal["batches", "after", "none"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Labels of the target are never read in training; the last iterate is what is kept."""

    source: Annotated[str, Option("Labelled data set: fonts, mnist, usps, svhn, folder:PATH, …", metavar="S")] = "fonts"
    target: Annotated[str, Option("Data set without labels: digits, usps, mnist, …", metavar="T")] = "digits"
    protocol: Annotated[
        Protocol,
        Option("Training images. p1: 2,000 of MNIST, 1,800 of USPS; p2: 55,000 and 6,562; drawn by the seed."),
    ] = "all"
    critic: Annotated[
        Critic,
        Option(
            "adr: symmetric KL of two dropout draws; l1: their L1; the baselines ent, mcd, dann; none: source only."
        ),
    ] = "adr"
    variant: Annotated[
        Variant, Option("Formula of the critic: the paper's, or the authors' code (softmax twice, 1/K).")
    ] = "paper"
    n: Annotated[int, Option("Generator updates of step 3; 0: no critic at all.", min=0)] = 4
    trade_off: Annotated[float, Option("Weight of the critic's term in steps 2 and 3, and of DANN's.", above=0)] = 1.0
    class_balance: Annotated[
        float, Option("Weight of -mean_k log mean_B p_k on the target in steps 1 and 2.", min=0)
    ] = 0.0
    target_statistics: Annotated[
        Statistics,
        Option(
            "Target images in batch normalisation: in the batches, as ADR has them; critic none also: after training, "
            "statistics taken anew on the target; none."
        ),
    ] = "batches"
    dropout: Annotated[float, Option("Dropout of the classifiers.", min=0, max=0.95)] = 0.5
    classifier: Annotated[Head, Option("Which one the saved model predicts with: C, or C' (MCD: F2).")] = "c"
    model: Annotated[str, Option("Network; auto: by the larger shape of the two sets.", metavar="M")] = "auto"
    iterations: Annotated[int, Option("Iterations of the three steps.", min=1)] = 400
    batch_size: Annotated[int, Option("Source images and target images per iteration.", min=2)] = 64
    learning_rate: Annotated[float, Option("Step size of the Adams of G, C and C'.", above=0)] = 2e-4
    weight_decay: Annotated[float, Option("Their weight decay (added to the gradient).", min=0)] = 5e-4
    limit: Annotated[int, Option("Train on the first LIMIT examples of each set; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Target labels are read here, to measure; nothing is chosen by them."""

    classifier: Annotated[Literal["c", "cprime", "both"], Option("Measure C, C' (MCD: F2), or both.")] = "both"
    split: Annotated[str, Option("Split of both data sets.", metavar="SPLIT")] = "test"
    limit: Annotated[int, Option("Evaluate the first LIMIT examples of each; 0: all.", min=0)] = 0
    draws: Annotated[int, Option("Pairs of dropout masks behind the mean sensitivity.", min=1)] = 4


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Three statements about the target: accuracy on unseen points, agreement of critics, radii under noise."""

    delta: Annotated[float, Option("Probability that the bound of the accuracy fails.", above=0, max=0.5)] = 0.001
    critics: Annotated[int, Option("Dropout draws of C that are asked.", min=2)] = 32
    limit: Annotated[int, Option("Count the first LIMIT target points; 0: all.", min=0)] = 0
    split: Annotated[str, Option("Split of the target; train points were seen, without labels.", metavar="SPLIT")] = (
        "test"
    )
    sigma: Annotated[float, Option("Noise of the smoothed classifier.", above=0)] = 0.25
    radius: Annotated[tuple[float, ...], Option("Radii of the smoothed classifier, 2-norm.", min=0)] = (0.0, 0.25)
    draws: Annotated[int, Option("Draws per point that count the class; the literature takes 100000.", min=1)] = 1000
    smoothing_limit: Annotated[int, Option("Points that are smoothed; 0: no smoothing.", min=0)] = 50


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Two principal components of G's outputs, those of source and target together, a panel per run."""

    limit: Annotated[int, Option("Points of each domain.", min=10)] = 500
    split: Annotated[str, Option("Split of both data sets.", metavar="SPLIT")] = "test"
