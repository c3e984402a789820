"""Options of the `fraternal` commands. No torch here: help and dry runs stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

Method = Literal["fd", "eld", "pm", "none"]
Distance = Literal["logits-l2", "sym-kl"]
Group = Literal["embedding", "weights", "input", "hidden", "output"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The paper's language models; the defaults are a small one that learns in under two minutes."""

    dataset: Annotated[str, Option("Text: python-docs, ptb, wikitext-2, lines:PATH.", metavar="D")] = "python-docs"
    method: Annotated[Method, Option("fd: two masks; eld: against no mask; pm: Pi-model; none: plain.")] = "fd"
    kappa: Annotated[float, Option("Factor of the twins' squared distance.", min=0)] = 0.15
    distance: Annotated[Distance, Option("Of the twins: of logits (paper), or R-Drop's KL of probabilities.")] = (
        "logits-l2"
    )
    twin_mode: Annotated[
        Literal["two-pass", "batch"], Option("batch: one pass of a doubled batch; weight and word masks are shared.")
    ] = "two-pass"
    same_mask: Annotated[tuple[Group, ...], Option("Mask groups that both twins share.")] = ()
    hidden: Annotated[int, Option("H, hidden units.", min=1)] = 160
    embedding: Annotated[int, Option("E, entries of an embedding; 0: H.", min=0)] = 0
    layers: Annotated[int, Option("Recurrent layers.", min=1)] = 1
    cell: Annotated[Literal["lstm", "gru"], Option("Kind of recurrent layer.")] = "lstm"
    tied: Annotated[bool, Option("Embedding and decoder share a matrix.")] = True
    dropout_embedding: Annotated[float, Option("Probability that a word's row is zero.", min=0, max=0.99)] = 0.1
    dropout_input: Annotated[float, Option("Locked dropout of embeddings.", min=0, max=0.99)] = 0.5
    dropout_hidden: Annotated[float, Option("Locked dropout between layers.", min=0, max=0.99)] = 0.3
    dropout_output: Annotated[float, Option("Locked dropout of the last layer.", min=0, max=0.99)] = 0.5
    weight_drop: Annotated[float, Option("Of hidden-to-hidden matrices.", min=0, max=0.99)] = 0.5
    alpha: Annotated[float, Option("AR, activation penalty.", min=0)] = 0.0
    beta: Annotated[float, Option("TAR, temporal activation penalty.", min=0)] = 0.0
    epochs: Annotated[int, Option("Passes over the text at most.", min=1)] = 8
    batch_size: Annotated[int, Option("Sequences side by side.", min=1)] = 20
    bptt: Annotated[int, Option("Steps of back-propagation; drawn around it, the step size in proportion.", min=1)] = 35
    learning_rate: Annotated[float, Option("Step size of SGD.", above=0)] = 20.0
    clip: Annotated[float, Option("Largest norm of the gradient.", above=0)] = 0.25
    weight_decay: Annotated[float, Option("Added after clipping.", min=0)] = 0.0
    schedule: Annotated[Literal["plateau", "nt-asgd"], Option("How the step size ends.")] = "plateau"
    decay: Annotated[float, Option("plateau: the step size is divided by it.", min=1)] = 2.0
    patience: Annotated[int, Option("plateau: epochs without a new best before that.", min=1)] = 2
    least_rate: Annotated[float, Option("plateau: training ends below it.", min=0)] = 0.1
    reload_best: Annotated[bool, Option("plateau: go back to the best weights.")] = False
    nonmono: Annotated[int, Option("nt-asgd: epochs that validation may be worse.", min=1)] = 5
    limit: Annotated[int, Option("Train on the first LIMIT tokens; 0: all.", min=0)] = 0
    limit_eval: Annotated[int, Option("Validate and test on the first tokens; 0: all.", min=0)] = 0
    max_words: Annotated[int, Option("Words of the vocabulary at most; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """AWD-LSTM's second stage: averaged SGD from the first step; plain, as in the authors' fine-tuning."""

    method: Annotated[Method, Option("The authors fine-tune without twins.")] = "none"
    kappa: Annotated[float, Option("Factor of the twins' squared distance.", min=0)] = 0.15
    alpha: Annotated[float, Option("AR.", min=0)] = 2.0
    beta: Annotated[float, Option("TAR.", min=0)] = 1.0
    epochs: Annotated[int, Option("Passes over the text at most.", min=1)] = 500
    nonmono: Annotated[int, Option("It ends when validation is worse than the best of all but the last N.", min=1)] = 5


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """The semi-supervised image experiment: few labels, every image."""

    dataset: Annotated[str, Option("Images with labels.", metavar="D")] = "digits"
    labels: Annotated[int, Option("Images whose label is used, the same number of each class.", min=1)] = 100
    method: Annotated[Method, Option("none: dropout alone.")] = "fd"
    unlabelled: Annotated[bool, Option("Penalise the twins on images without a label, too.")] = True
    kappa: Annotated[float, Option("Factor of the twins' squared distance.", min=0)] = 0.15
    depth: Annotated[int, Option("Layers of the ResNet, 6n + 2.", min=8)] = 8
    dropout: Annotated[float, Option("Between convolutions.", min=0, max=0.99)] = 0.3
    epochs: Annotated[int, Option("Passes over all images.", min=1)] = 10
    batch_size: Annotated[int, Option("Labelled images of a step.", min=1)] = 50
    learning_rate: Annotated[float, Option("Of SGD, falling to 0 by a cosine.", above=0)] = 0.1
    weight_decay: Annotated[float, Option("Of SGD.", min=0)] = 1e-4


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Every token but the first counts, `<eos>` too."""

    split: Annotated[Literal["train", "valid", "test"], Option("Part of the data.")] = "test"
    batch_size: Annotated[int, Option("Pieces side by side; 1 reads the text as one.", min=1)] = 1
    limit: Annotated[int, Option("The first LIMIT tokens; 0: all.", min=0)] = 0
    dynamic_rate: Annotated[float, Option("Step size of dynamic evaluation; 0: none.", min=0)] = 0.0
    dynamic_decay: Annotated[float, Option("Its pull back to the trained weights.", min=0, max=1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Monte Carlo over pairs of masks."""

    pairs: Annotated[int, Option("Pairs of masks.", min=2)] = 32
    limit: Annotated[int, Option("Tokens of the test text; images of the test set.", min=40)] = 2000
    delta: Annotated[float, Option("Probability that an interval is wrong, if its model held.", above=0, max=0.5)] = (
        0.05
    )
