"""Time per training step of `wrm train`, against a bare torch loop and against a straightforward port.

    python benchmarks/wrm_step.py [--net mnist|rings|both] [--rounds 10] [--threads 1] [--device cpu] [--json FILE]

(a) ours: `iclr18_wrm.train.fit` on a run opened as the command opens it (order, metrics, checkpoints, signals).
(b) bare: the same batches from the same uint8 storage, the same 16 input gradients and the same training step, with
    nothing around them and torch's default (not deterministic) algorithms.
(c) port: what one writes first: training mode, the inner loop through `loss.backward()` with parameter gradients, and
    images through a DataLoader from PIL images and back.

All three run in one process and take turns in segments of a few steps: (b) and (c) run while the iterator of (a) is
asked for its next batch. (a) writes its metrics once per segment, more often than by default. Goals on MNIST, batch
128, 15 inner steps: a/b at most 1.03, c/a at least 1.25. With ICLR18_DATA unset or without MNIST, random uint8 images
of the same shape stand in, and the table says so.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import measuring
import torch
import torch.nn.functional as F
from iclr18_wrm.algorithm import step_sizes
from iclr18_wrm.config import TrainConfig
from iclr18_wrm.train import fit, network
from torch import Tensor, nn

from iclr18cli.config import to_dict
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split, order
from iclr18cli.errors import UserError
from iclr18cli.run.start import open_run
from iclr18cli.settings import TrainSettings

Segment = Callable[[int], None]
"""Run so many training steps."""

CONFIGS = {
    "mnist": TrainConfig(dataset="mnist", model="wrm/elu-cnn", gamma=0.3684, batch_size=128, epochs=25),
    "rings": TrainConfig(dataset="rings", model="wrm/2-4-2", gamma=2.0, batch_size=128, epochs=30, learning_rate=0.01),
}
OURS, BARE, PORT = "a ours", "b bare loop", "c straightforward port"


def data_of(config: TrainConfig) -> Split:
    """Return the training data, or random images of MNIST's shape if it is not on this machine."""
    try:
        return open_split(config.dataset, "train")
    except UserError:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (60_000, 1, 28, 28), dtype=torch.uint8, generator=generator)
        y = torch.randint(10, (60_000,), generator=generator)
        return Split(x, y, tuple("0123456789"), "random images of MNIST's shape", "train")


def bare_loop(net: nn.Module, data: Split, config: TrainConfig) -> Segment:
    """Return the loop that does the same arithmetic and nothing else."""
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    alphas = step_sizes(config.schedule, gamma=config.gamma, steps=config.inner_steps)
    permutation, at = order(len(data), seed=0, epoch=0).to(data.x.device), 0

    def segment(steps: int) -> None:
        nonlocal at
        for _ in range(steps):
            index = permutation[at : at + config.batch_size]
            at = (at + config.batch_size) % (len(data) - config.batch_size)
            x, y = data.x[index], data.y[index]
            x = x.float().div_(255) if x.dtype == torch.uint8 else x
            z = x
            for alpha in alphas:
                z = z.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
                with torch.no_grad():
                    z = z + alpha * (gradient - 2 * config.gamma * (z - x))
            loss = F.cross_entropy(net(z.detach()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return segment


class Images(torch.utils.data.Dataset):
    """MNIST as an image data set does it: a PIL image per example, back to a tensor by a transform."""

    def __init__(self, data: Split):
        self.x, self.y = data.x.cpu().numpy(), data.y.cpu()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import numpy as np
        from PIL import Image

        image = Image.fromarray(self.x[index, 0])
        pixels = torch.from_numpy(np.array(image)).view(1, *self.x.shape[2:])
        return pixels.float().div(255), int(self.y[index])


def port(net: nn.Module, data: Split, config: TrainConfig) -> Segment:
    """Return the loop that a first translation of the paper into torch has."""
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    alphas = step_sizes(config.schedule, gamma=config.gamma, steps=config.inner_steps)
    device = data.x.device
    pictures = data.x.dtype == torch.uint8
    dataset = Images(data) if pictures else torch.utils.data.TensorDataset(data.x.cpu(), data.y.cpu())
    loader = torch.utils.data.DataLoader(dataset, batch_size=config.batch_size, shuffle=True)

    def forever() -> Iterator[Any]:
        while True:
            yield from loader

    batches = forever()
    next(batches)

    def segment(steps: int) -> None:
        for _ in range(steps):
            x, y = (part.to(device) for part in next(batches))
            net.train()
            z = x.clone().requires_grad_()
            for alpha in alphas:
                cost = (z - x).flatten(1).square().sum(1)
                phi = F.cross_entropy(net(z), y, reduction="none") - config.gamma * cost
                phi.sum().backward()
                z.data += alpha * z.grad
                z.grad.zero_()
            loss = F.cross_entropy(net(z.detach()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return segment


def measure(config: TrainConfig, *, rounds: int, steps: int, clock: measuring.Clock) -> tuple[measuring.Samples, str]:
    """Return the seconds of every segment, and the name of the data."""
    device = clock.device
    data = data_of(config).to(device)
    torch.manual_seed(0)
    net = network(config, data)[0].to(device)
    enough = -(-((rounds + 1) * steps + 1) // max(1, len(data) // config.batch_size))
    config = replace(config, epochs=max(config.epochs, enough))
    others = {BARE: bare_loop(copy.deepcopy(net), data, config), PORT: port(copy.deepcopy(net), data, config)}
    turns = measuring.Turns(rounds, steps, OURS, others, clock)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(runs_dir=folder, device=device, log_every=steps)
        with open_run("wrm", to_dict(config), settings, plugin="iclr18-wrm") as run:
            turns.around(run, "epochs")
            fit(net, data, config, run)
    return turns.samples, data.name


def own_milliseconds(samples: measuring.Samples, steps: int) -> float:
    """Return the median over the rounds of what a step of ours takes more than a bare one."""
    pairs = zip(samples[OURS], samples[BARE], strict=True)
    return statistics.median(1000 * (ours - bare) / steps for ours, bare in pairs)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--net", choices=("mnist", "rings", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=10, help="segments of each that count (default 10)")
    parser.add_argument("--steps", type=int, default=0, help="steps per segment (default 2 on MNIST, 320 on rings)")
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    clock = measuring.clock_of(options)
    document: dict[str, Any] = {"machine": {}}
    for name in ("mnist", "rings") if options.net == "both" else (options.net,):
        steps = options.steps or {"mnist": 2, "rings": 320}[name]
        rounds = options.rounds
        samples, source = measure(CONFIGS[name], rounds=rounds, steps=steps, clock=clock)
        rows = []
        for kind, times in samples.items():
            low, high = measuring.spread(samples, kind, BARE)
            rows.append([kind, measuring.milliseconds(times, per=steps), 1000 * min(times) / steps,
                         measuring.ratio(samples, kind, BARE), f"{low:.3f}-{high:.3f}"])  # fmt: skip
        about = measuring.machine(options.device)
        over, faster = measuring.ratio(samples, OURS, BARE), measuring.ratio(samples, PORT, OURS)
        measuring.report(
            f"wrm train, {CONFIGS[name].model} on {source}, batch 128, 15 inner steps (16 gradients); "
            f"{rounds} interleaved segments of {steps} steps, {clock.kind} time",
            ["loop", "ms/step", "least", "/ bare", "quartiles"], rows, about,
            [f"a/b = {over:.3f} (goal on MNIST: at most 1.03)   c/a = {faster:.3f} (goal on MNIST: at least 1.25)",
             f"a - b per step: {own_milliseconds(samples, steps):.2f} ms (median)"],
        )  # fmt: skip
        document[name] = {"seconds": samples, "steps": steps, "data": source, "a/b": over, "c/a": faster}
        document["machine"] = about
    measuring.write(options.json, document)


if __name__ == "__main__":
    main()
