"""`adaptive-dropout train`: block coordinate descent on weights and rates, and the two baselines."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from iclr18_adaptive_dropout.config import TrainConfig
from iclr18_adaptive_dropout.evaluate import WORDS
from iclr18_adaptive_dropout.steps import Blocks, Schedule
from iclr18cli.data.holdout import stratified
from iclr18cli.data.registry import open_split
from iclr18cli.data.sentences import holds_counts, words
from iclr18cli.data.tensors import Split
from iclr18cli.device import derived_seed
from iclr18cli.errors import UsageError
from iclr18cli.models.measures import classified
from iclr18cli.models.registry import build
from iclr18cli.run.atomic import write_bytes

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run


def train(config: TrainConfig, run: Run) -> None:
    """Learn, save the last iterate, and measure it on the test split or on the held-out part."""
    read = partial(open_split, config.dataset, data_dir=run.settings.data_dir, download=run.settings.download)
    data, valid = training_part(read("train"), config.limit, config.drawn, config.hold_out, run.seed)
    measured = read("test") if valid is None else valid
    net, name, kwargs = network(config, data)
    net = run.prepare(net)
    fit(net, data, config, run)
    run.save_model(net, model=name, kwargs=kwargs, split=data)
    keep_words(run, data.name)
    final = classified(net, measured.to(run.device))
    run.record("test" if valid is None else "valid", **final)
    run.finish(**final, measured_on="test" if valid is None else "held-out training examples")


def keep_words(run: Run, dataset: str) -> None:
    """Write the vocabulary of a text set beside the model, a word a line: its inputs are counts of these words."""
    if holds_counts(dataset) and run.world.first:
        known = words(dataset, data_dir=run.settings.data_dir)
        write_bytes(run.path / WORDS, "".join(f"{word}\n" for word in known).encode())


def fit(net: nn.Module, data: Split, config: TrainConfig, run: Run) -> Blocks:
    """Train in place, section 3: a step of the weights per batch, after every I-th one of the rates."""
    blocks = Blocks.of(net, config, run, len(data))
    per_epoch = -(-len(data) // config.batch_size)
    plan = Schedule(config.epochs * per_epoch, config.milestones, config.decay, config.lambda_warmup)
    adaptive = config.mode == "adaptive"
    net.train()
    for x, y in run.epochs(data, config.epochs, batch_size=config.batch_size):
        strength = config.lambda_reg * plan.growth(run.step) if adaptive else 0.0
        logged = blocks.weight_step(x, y, lr=config.learning_rate * plan.rate(run.step), strength=strength)
        if adaptive and run.step % config.every == 0 and run.epoch > config.delay:
            logged |= blocks.rate_step(x, y, strength=strength)
        run.log(**logged)
    return blocks


def training_part(
    data: Split, limit: int, drawn: bool, share: float, seed: int
) -> tuple[Split, Split | None]:  # fmt: skip
    """Return (examples to train on, those held out, or None).

    Args:
        data: The training split.
        limit, drawn: Take so many, the first or drawn by the seed; 0: all.
        share: Of them held out, each class alike, the same ones for every seed unless they are drawn.
        seed: Of the run.
    """
    if limit and drawn:
        generator = torch.Generator().manual_seed(derived_seed(seed, "limit"))
        data = data.take(torch.randperm(len(data), generator=generator)[:limit])
    elif limit:
        data = data.take(limit)
    if not share:
        return data, None
    index = {part: torch.from_numpy(chosen) for part, chosen in stratified(data.y.numpy(), share).items()}
    return data.take(index["train"]), data.take(index["test"])


def network(config: TrainConfig, data: Split) -> tuple[nn.Module, str, dict[str, object]]:
    """Return (network, registry name, arguments) for the data's shape and classes.

    Raises:
        UsageError: More starting rates than kinds of units, or convolutions on what is no image.
    """
    init = [1.0] if config.mode == "none" else list(config.init)
    kinds = 3 if config.model == "conv" else 2
    if not 1 <= len(init) <= kinds:
        raise UsageError(f"--init takes 1 to {kinds} rates for --model {config.model}.", why=f"received {len(init)}",
                         fix="--init 0.9,0.75,0.5" if kinds == 3 else "--init 0.8,0.5")  # fmt: skip
    kwargs: dict[str, object] = {"input_shape": list(data.shape), "classes": len(data.classes)}
    kwargs |= {"hidden": list(config.hidden), "init": init, "per": config.per}
    if config.drawn and not config.limit:
        raise UsageError("--drawn says which of LIMIT examples are taken.", fix="add --limit, or leave --drawn out")
    if config.model == "conv":
        if len(data.shape) != 3:
            raise UsageError(f"--model conv takes images; '{data.name}' has inputs of shape {data.shape}.",
                             fix="--model mlp")  # fmt: skip
        if config.rows == "sum":
            raise UsageError("--rows sum is for --model mlp.", fix="leave it out")
        kwargs["filters"] = list(config.filters)
    else:
        sums = config.rows == "sum" or (config.rows == "auto" and holds_counts(data.name))
        if sums and len(data.shape) != 1:
            raise UsageError(f"--rows sum takes vectors; '{data.name}' has inputs of shape {data.shape}.",
                             fix="--rows auto")  # fmt: skip
        if sums and bool((data.x < 0).any()):
            raise UsageError(f"--rows sum takes inputs >= 0; '{data.name}' has negative ones.", fix="--rows raw")
        # Shares are about 1 / 12: biases, whose input is 1, would outrun the weights at any useful step size.
        kwargs |= {"rows": sums, "bias": not sums}
    name = f"adaptive-dropout/{config.model}"
    return build(name, **kwargs), name, kwargs
