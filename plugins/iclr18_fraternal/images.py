"""`fraternal images`: a ResNet with few labels; the twins' distance needs none (section 4.3)."""

# B labelled images of a step · U others · N images of the training set

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclr18_fraternal.algorithm import twin_penalty
from iclr18_fraternal.config import ImagesConfig
from iclr18cli.data.augment import CropAndFlip
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split
from iclr18cli.device import derived_seed
from iclr18cli.errors import UsageError
from iclr18cli.models.measures import classified
from iclr18cli.models.modes import evaluating
from iclr18cli.models.registry import build

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run


def train(config: ImagesConfig, run: Run) -> None:
    """Minimise the loss of the labelled images and the distance of the twins on all that a step sees."""
    read: dict[str, Any] = {"data_dir": run.settings.data_dir, "download": run.settings.download}
    data, test = (open_split(config.dataset, split, **read) for split in ("train", "test"))
    labelled = labelled_index(data.y, config.labels, len(data.classes), run.seed)
    kwargs: dict[str, Any] = {"input_shape": list(data.shape), "classes": len(data.classes)}
    kwargs |= {"depth": config.depth, "dropout": config.dropout}
    net = run.prepare(build("resnet", **kwargs))
    fit(net, data.to(run.device), labelled, config, run)
    run.save_model(net, model="resnet", kwargs=kwargs, split=data)
    run.finish(**classified(net, test.to(run.device)), labels=len(labelled))


def labelled_index(y_N: Tensor, labels: int, classes: int, seed: int) -> Tensor:
    """Return which images have a label: the same number of each class, chosen by the seed.

    Raises:
        UsageError: The number is no multiple of the classes, or a class has not so many images.
    """
    each = labels // classes
    counts = torch.bincount(y_N, minlength=classes)
    if labels % classes or each > int(counts.min()):
        raise UsageError(
            f"--labels {labels} cannot be spread evenly over {classes} classes.",
            why=f"the smallest class has {int(counts.min())} images", fix=f"--labels {max(classes, each * classes)}",
        )  # fmt: skip
    order = torch.randperm(len(y_N), generator=torch.Generator().manual_seed(derived_seed(seed, "labels")))
    return torch.cat([order[y_N[order] == number][:each] for number in range(classes)]).sort().values


def fit(net: nn.Module, data: Split, labelled: Tensor, config: ImagesConfig, run: Run) -> None:
    """Train in place: each step B labelled images and, with `unlabelled`, as many others."""
    optimizer = torch.optim.SGD(
        net.parameters(), lr=config.learning_rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )
    run.track(net=net, optimizer=optimizer)
    others = config.unlabelled and config.method != "none"
    B, generator = min(config.batch_size, len(labelled)), run.generator("images")
    per_epoch = max(1, len(data) // (2 * B if others else B))
    augment = CropAndFlip() if data.shape[-1] >= 32 else None
    labelled = labelled.to(run.device)
    for step in run.steps(config.epochs * per_epoch):
        optimizer.param_groups[0]["lr"] = (
            config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / (config.epochs * per_epoch)))
        )
        known = labelled[torch.randperm(len(labelled), generator=generator)[:B].to(run.device)]
        own = run.share(known)
        index = own
        if others:
            index = torch.cat((own, run.share(torch.randint(len(data), (B,), generator=generator).to(run.device))))
        x = data.inputs(index)
        if augment is not None:
            noise = torch.Generator(run.device).manual_seed(derived_seed(run.seed, "augment", run.step, run.world.rank))
            x = augment(x, noise)
        loss, logged = image_loss(net, x, data.y[own], config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss, **logged)


def image_loss(net: nn.Module, x: Tensor, y_B: Tensor, config: ImagesConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, its parts): labels of the first B images, the twins' distance of all of them."""
    B = len(y_B)
    out1 = net(x)
    first = F.cross_entropy(out1[:B], y_B)
    if config.method == "none":
        return first, {}
    if config.method == "eld":
        with evaluating(net):
            out2 = net(x)
    else:
        out2 = net(x)
    penalty = twin_penalty(out1, out2)
    if config.method == "fd":
        first = 0.5 * (first + F.cross_entropy(out2[:B], y_B))
    return first + config.kappa * penalty, {"twins": penalty.detach()}
