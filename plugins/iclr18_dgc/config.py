"""Options of the `dgc` commands. No torch here: help and dry runs stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iclr18cli.plugin import Option

Compressor = Literal["dgc", "none", "fp16", "powersgd", "gradient-dropping"]
WARMUP = (0.25, 0.0625, 0.015625, 0.00390625)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """--batch-size is the global batch, of which --nproc N gives each worker its N-th part."""

    dataset: Annotated[str, Option("Data set: digits, mnist, cifar10, folder:PATH, …", metavar="D")] = "digits"
    model: Annotated[str, Option("Network; auto: by the shape of the data.", metavar="M")] = "auto"
    compressor: Annotated[
        Compressor, Option("What goes over the wire: DGC, the whole gradient, fp16, PowerSGD, gradient dropping.")
    ] = "dgc"
    density: Annotated[float, Option("Share of the entries sent after the warm-up.", above=0, max=1)] = 0.001
    warmup_epochs: Annotated[float, Option("Epochs over which the density falls, section 3.3; 0: none.", min=0)] = 1.0
    warmup_densities: Annotated[
        tuple[float, ...], Option("Densities of the warm-up, spread evenly over it.", above=0, max=1)
    ] = WARMUP
    momentum: Annotated[
        float, Option("m; momentum correction with dgc, the optimiser's otherwise.", min=0, max=0.999999)
    ] = 0.9
    nesterov: Annotated[bool, Option("Nesterov momentum, Appendix B.")] = False
    masking: Annotated[bool, Option("Momentum factor masking, section 3.2.")] = True
    clip: Annotated[
        float | None,
        Option(
            "Local clipping: threshold for the sum of the N workers' gradients, each clips at thr N^-1/2, section 3.2.",
            above=0,
        ),
    ] = None
    clip_scope: Annotated[Literal["tensor", "model"], Option("Norm of each tensor, or of the whole gradient.")] = (
        "tensor"
    )
    weight_decay: Annotated[float, Option("lambda on tensors with more than one axis.", min=0)] = 0.0
    values: Annotated[Literal["fp32", "fp16", "bf16"], Option("Type of the sent values; rounding stays behind.")] = (
        "fp32"
    )
    indices: Annotated[
        Literal["int32", "runlength16", "block16"], Option("Encoding of the sent positions; the paper: runlength16.")
    ] = "runlength16"
    rank: Annotated[int, Option("Rank of PowerSGD's factors.", min=1)] = 1
    learning_rate: Annotated[float, Option("Step size of SGD at the first step after its warm-up.", above=0)] = 0.05
    learning_rate_warmup: Annotated[
        float, Option("Epochs over which the step size rises from a tenth, linearly.", min=0)
    ] = 0.0
    decay: Annotated[
        Literal["constant", "cosine", "steps"],
        Option("Step size: constant, half a cosine to 0, or a tenth at 1/2 and again at 3/4 of the epochs."),
    ] = "constant"
    augment: Annotated[bool, Option("Random crops and flips (images of 32x32).")] = False
    epochs: Annotated[int, Option("Passes over the training data.", min=1)] = 20
    batch_size: Annotated[int, Option("Examples per step, of all workers together.", min=1)] = 128
    limit: Annotated[int, Option("Train on the first LIMIT examples; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The model's accuracy, and what its training sent by its own count."""

    split: Annotated[str, Option("Split of the run's data set.", metavar="SPLIT")] = "test"
    limit: Annotated[int, Option("Evaluate the first LIMIT examples; 0: all.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """The run's training goes on in real processes for a few steps, with books kept, and is then thrown away."""

    workers: Annotated[int, Option("Processes of the audit, with gloo on this machine's CPU.", min=2)] = 2
    steps: Annotated[int, Option("Steps that are audited.", min=1)] = 20
    batch_size: Annotated[int, Option("Examples per step of all workers together; 0: the run's.", min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Where this program may make network namespaces (root), the link is real and its interface counts the bytes."""

    link: Annotated[
        tuple[str, ...],
        Option("Rates: a number with mbit or gbit, or loopback. 10gbit is more than most machines can limit.",
               metavar="RATE"),
    ] = ("100mbit", "1gbit", "10gbit", "loopback")  # fmt: skip
    compressor: Annotated[tuple[str, ...], Option("Rows of the table.", metavar="C")] = (
        "none",
        "fp16",
        "powersgd",
        "dgc",
    )
    workers: Annotated[int, Option("Processes, one at each end of a link.", min=2)] = 2
    steps: Annotated[int, Option("Steps that are timed, after three that are not.", min=1)] = 10
    batch_size: Annotated[int, Option("Examples per step and worker.", min=1)] = 64
    hidden: Annotated[
        tuple[int, ...], Option("Hidden layers of the network, 784 inputs, 10 outputs: 5.8 million weights.", min=1)
    ] = (2048, 2048)
    density: Annotated[float, Option("Share of the entries that DGC sends.", above=0, max=1)] = 0.001
    rank: Annotated[int, Option("Rank of PowerSGD's factors.", min=1)] = 1
    model_only: Annotated[bool, Option("Compute the time on each link from bytes and loopback, as without root.")] = (
        False
    )
