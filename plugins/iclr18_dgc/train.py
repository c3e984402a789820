"""`dgc train`: momentum SGD on a classifier, its gradients compressed on their way between the workers."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import nn

from iclr18_dgc.compressors import Compressed, compress
from iclr18_dgc.config import EvalConfig, TrainConfig
from iclr18_dgc.schedule import Schedule
from iclr18cli.data.augment import CropAndFlip
from iclr18cli.data.registry import find, open_split
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError
from iclr18cli.models.measures import classified
from iclr18cli.models.registry import build, suggest

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run
    from iclr18cli.run.opened import OpenedRun


def train(config: TrainConfig, run: Run) -> None:
    """Train; every worker computes the gradient of its share of the batch and sends what the compressor keeps of it."""
    if find(config.dataset)[0].task == "language":
        from iclr18_dgc.language import train_text

        return train_text(config, run)
    read = partial(open_split, config.dataset, data_dir=run.settings.data_dir, download=run.settings.download)
    data, test = read("train"), read("test")
    data = data.take(config.limit) if config.limit else data
    check(config, data)
    net, name, kwargs = network(config, data)
    net = net.to(run.device)
    made = fit(net, data, config, run)
    run.save_model(net, model=name, kwargs=kwargs, split=data)
    measured = classified(net, test.to(run.device))
    run.record("test", **measured)
    sent = made.traffic
    run.finish(
        accuracy=measured["accuracy"], test_loss=measured["loss"], payload_bytes=sent.payload, dense_bytes=sent.dense,
        ratio=sent.ratio, sent_bytes=sent.sent, workers=run.world.size,
    )  # fmt: skip


def fit(net: nn.Module, data: Split, config: TrainConfig, run: Run) -> Compressed:
    """Train a network in place and return what it was trained with."""
    per_epoch = steps_per_epoch(config, len(data))
    scaler = run.scaler
    made = compress(
        net, config, schedule(config, per_epoch), world_size=run.world.size, seed=run.seed,
        loss_scale=scaler.get_scale if scaler.is_enabled() else None,
    )  # fmt: skip
    run.track(net=net, optimizer=made.optimizer)
    if made.state is not None:
        run.track_own(compressor=made.state)
    augment = CropAndFlip() if config.augment else None
    for x, y in run.epochs(data, config.epochs, batch_size=config.batch_size, augment=augment):
        for group in made.optimizer.param_groups:
            group["lr"] = learning_rate(config, run.step - 1, per_epoch)
        with run.autocast():
            loss = F.cross_entropy(made.model(x), y)
        made.optimizer.zero_grad()
        scaler.scale(loss * run.weight).backward()  # the compressors average, so unequal shares are weighted here
        made.exchange()
        scaler.step(made.optimizer)
        scaler.update()
        run.log(loss=loss)
    return made


def steps_per_epoch(config: TrainConfig, examples: int) -> int:
    """Return how many global batches make one pass."""
    return -(-examples // config.batch_size)


def schedule(config: TrainConfig, per_epoch: int) -> Schedule:
    """Return the density at each step, section 3.3."""
    return Schedule.of_epochs(
        config.density, epochs=config.warmup_epochs, steps_per_epoch=per_epoch, densities=config.warmup_densities
    )


def learning_rate(config: TrainConfig, step: int, per_epoch: int) -> float:
    """Return the step size of a step, counted from 0."""
    rising = config.learning_rate_warmup * per_epoch
    if step < rising:
        return config.learning_rate * (0.1 + 0.9 * step / rising)
    done = (step - rising) / max(1.0, config.epochs * per_epoch - rising)
    factor = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done))}.get(config.decay)
    if factor is None:
        factor = 0.1 ** ((done >= 0.5) + (done >= 0.75))
    return config.learning_rate * factor


def network(config: TrainConfig, data: Split) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return (network, registry name, arguments) for the data's shape and classes."""
    name = suggest(data.shape) if config.model == "auto" else config.model
    kwargs: dict[str, Any] = {"classes": len(data.classes), "input_shape": list(data.shape)}
    return build(name, **kwargs), name, kwargs


def check(config: TrainConfig, data: Split) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UsageError: Crops of something else than images, Nesterov without momentum, or clipping of a compressor that
            does not clip.
    """
    if config.augment and len(data.shape) != 3:
        raise UsageError(f"--augment crops images; '{config.dataset}' has inputs of shape {data.shape}.")
    if config.nesterov and config.momentum == 0:
        raise UsageError("--nesterov needs a momentum.", fix="--momentum 0.9")
    if config.clip is not None and config.compressor not in ("dgc", "gradient-dropping"):
        raise UsageError(
            f"--clip is local clipping, inside a sparse compressor; --compressor {config.compressor} is none.",
            fix="leave it out, or --compressor dgc",
        )


def evaluate(config: EvalConfig, run: OpenedRun) -> dict[str, Any]:
    """Measure a run on a split, and repeat what its training counted."""
    if run.card.task == "language":
        from iclr18_dgc.language import evaluate_text

        return evaluate_text(config, run)
    split = run.split(config.split, config.limit).to(run.device)
    kept = run.directory.info.get("metrics", {})
    counted = {name: kept[name] for name in ("payload_bytes", "dense_bytes", "ratio", "workers") if name in kept}
    return {"dataset": split.name, "split": split.split, **classified(run.model(), split), **counted}
