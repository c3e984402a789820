"""Options of the `alternating` commands. No torch here: help and dry runs stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

Method = Literal["alternating", "refined", "greedy", "uniform", "uniform-matrix", "balanced", "exact", "ternary"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Section 5: plain SGD, its step divided when validation gets worse than the best."""

    dataset: Annotated[str, Option("Text: python-docs, ptb, wikitext-2, lines:PATH.", metavar="D")] = "python-docs"
    start: Annotated[str, Option("Run of a float model to start from; empty: from scratch.", metavar="RUN")] = ""
    bits_weights: Annotated[int, Option("Bits of a weight; 0: float training.", min=0, max=8)] = 2
    bits_activations: Annotated[int, Option("Bits of a hidden state's entry; 0: float.", min=0, max=8)] = 2
    method: Annotated[Method, Option("How weights are coded.")] = "alternating"
    iterations: Annotated[int, Option("T, alternations.", min=0)] = 2
    hidden: Annotated[int, Option("Hidden units, and entries of an embedding.", min=1)] = 300
    layers: Annotated[int, Option("Recurrent layers.", min=1)] = 1
    cell: Annotated[Literal["lstm", "gru"], Option("Kind of recurrent layer.")] = "lstm"
    dropout: Annotated[float, Option("Dropout of embeddings and outputs.", min=0, max=0.99)] = 0.5
    epochs: Annotated[int, Option("Passes over the text at most.", min=1)] = 80
    batch_size: Annotated[int, Option("Sequences side by side.", min=1)] = 20
    unroll: Annotated[int, Option("Steps of back-propagation.", min=1)] = 30
    learning_rate: Annotated[float, Option("First step size of SGD.", above=0)] = 20.0
    decay: Annotated[float, Option("The step size is divided by it after a worse validation.", min=1)] = 1.2
    least_rate: Annotated[float, Option("Training stops below this step size.", min=0)] = 0.001
    clip: Annotated[float, Option("Largest norm of the gradient.", above=0)] = 0.25
    limit: Annotated[int, Option("Train on the first LIMIT tokens; 0: all.", min=0)] = 0
    limit_eval: Annotated[int, Option("Validate and test on the first tokens; 0: all.", min=0)] = 0
    max_words: Annotated[int, Option("Words of the vocabulary at most; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """What Table 1 compares."""

    bits_weights: Annotated[int, Option("Bits of a weight.", min=1, max=8)] = 2
    bits_activations: Annotated[
        int, Option("Bits of a hidden state's entry; 0: float, as in Table 1.", min=0, max=8)
    ] = 0
    method: Annotated[Method, Option("How weights are coded; exact and ternary take 2 bits.")] = "alternating"
    iterations: Annotated[int, Option("T for the weights; they are coded once, more is better.", min=0)] = 2
    limit: Annotated[int, Option("Measure on the first LIMIT tokens; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Perplexity per token, end of lines counted."""

    split: Annotated[Literal["train", "valid", "test"], Option("Part of the text.")] = "test"
    batch_size: Annotated[int, Option("Sequences side by side.", min=1)] = 10
    limit: Annotated[int, Option("The first LIMIT tokens; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Checks of what is stored and computed, and an interval."""

    vectors: Annotated[int, Option("Hidden states that are coded again.", min=1)] = 64
    limit: Annotated[int, Option("Tokens of the test text; 0: all.", min=0)] = 0
    delta: Annotated[float, Option("Probability that the interval is wrong, if its model held.", above=0, max=0.5)] = (
        0.05
    )


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Batch 1; the float32 cells are fair ones, see benchmarks/multibit.py."""

    hidden: Annotated[tuple[int, ...], Option("Sizes.", min=1)] = (256, 512, 1024, 2048)
    bits: Annotated[tuple[int, ...], Option("Bits of weights and states.", min=1, max=8)] = (2, 3)
    steps: Annotated[int, Option("Steps of a sequence.", min=1)] = 32
    rounds: Annotated[int, Option("Sequences that are timed; the median counts.", min=1)] = 7
