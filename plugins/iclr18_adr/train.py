"""`adr train`: the three steps of ADR, and ENT, MCD, DANN and source-only training on the same networks.

B batch · s source · t target
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from iclr18_adr.config import TrainConfig
from iclr18_adr.domains import Domains, open_domains
from iclr18_adr.evaluate import accuracies
from iclr18_adr.model import Adapted
from iclr18_adr.steps import Players
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Order, Split, batches
from iclr18cli.errors import UsageError
from iclr18cli.models.registry import build

if TYPE_CHECKING:
    from iclr18cli.run.loop import Run

STATISTICS_BATCH = 200


def train(config: TrainConfig, run: Run) -> None:
    """Adapt, save the last iterate, and only then read labels of the target: to measure."""
    check(config)
    domains = open_domains(config, run)
    net, name, kwargs = network(config, domains)
    run.prepare(net)
    fit(net, domains.to(run.device), config, run)
    if config.target_statistics == "after":
        take_statistics(net, domains.target.to(run.device))
    run.save_model(net, model=name, kwargs=kwargs, split=domains.target)
    read = partial(open_split, split="test", data_dir=run.settings.data_dir, download=run.settings.download)
    target = accuracies(net, read(config.target).to(run.device))
    source = accuracies(net, read(config.source).to(run.device))
    final = {"target_c": target["c"], "target_cprime": target["cprime"]}
    final |= {"source_c": source["c"], "source_cprime": source["cprime"]}
    run.record("test", **final)
    run.finish(accuracy=target[config.classifier], **final)


def fit(net: Adapted, domains: Domains, config: TrainConfig, run: Run) -> Players:
    """Train in place for all iterations and return the players, whose Adams have counted their steps."""
    players = Players.of(net, config, run)
    adapts = config.critic not in ("none", "dann") and config.n > 0
    seen = config.target_statistics == "batches"
    B = config.batch_size
    orders = [
        Order(len(split), B, seed=run.seed, name=domain, device=run.device)
        for domain, split in (("source", domains.source), ("target", domains.target))
    ]
    net.train()
    for t in run.steps(config.iterations, total_name="iteration"):
        source, target = (run.share(each.at(t)) for each in orders)
        ys = domains.source.y[source]
        x = xs = net.fit(domains.source.inputs(source))
        if seen:
            xt = net.fit(domains.target.inputs(target))
            x = torch.cat([xs, xt])
        logged = players.source_step(x, ys, share=t / config.iterations)
        if adapts:
            logged |= players.critic_step(x, ys)
            for _ in range(config.n):
                logged |= players.generator_step(xt)
        run.log(**logged)
    return players


def take_statistics(net: Adapted, target: Split) -> None:
    """Replace every running mean and variance by those of the target's images, without labels (AdaBN, Li et al. 2016).

    One pass over whole batches; dropout is off. The trained weights stay.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    net.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    size = min(STATISTICS_BATCH, len(target))
    with torch.no_grad():
        for x, _ in batches(target.take(len(target) // size * size), size):
            f = net.features(net.fit(x))
            net.classifier(f)
            net.second(f)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    net.train()


def check(config: TrainConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UsageError: A critic that adapts without target images in its batches.
    """
    if config.critic != "none" and config.target_statistics != "batches":
        raise UsageError(
            f"--critic {config.critic} has target images in its batches.",
            why=f"--target-statistics {config.target_statistics} is a baseline of source-only training",
            fix="--critic none, or leave --target-statistics out",
        )


def network(config: TrainConfig, domains: Domains) -> tuple[Adapted, str, dict[str, object]]:
    """Return (network, registry name, arguments) for the shapes of the two sets."""
    C, H, W = domains.shape
    name = config.model
    if name == "auto":
        small, large = min(H, W) < 16, max(H, W) > 48
        name = "adr/small" if small else "adr/residual" if large else "adr/svhn" if C == 3 else "adr/usps"
    kwargs: dict[str, object] = {"input_shape": list(domains.target.shape), "classes": len(domains.target.classes)}
    kwargs |= {"shape": [C, H, W], "dropout": config.dropout, "predict": config.classifier}
    return build(name, **kwargs), name, kwargs  # type: ignore[return-value]
