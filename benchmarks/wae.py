"""Time per training step of WAE-MMD: ours, a bare torch loop, and pythae's WAE_MMD on the same network and batches.

    python benchmarks/wae.py [--rounds 10] [--steps 5] [--batch 100] [--threads 1] [--device cpu] [--json FILE]

(a) ours: `iclr18_wae.train.fit` on a run opened as the command opens it (order, metrics, checkpoints, signals).
(b) bare: the same algebra and nothing around it, torch's default (not deterministic) algorithms.
(c) pythae: its model around the same encoder and decoder, loss.backward() and Adam; left out where it is not installed.
And the penalty with its gradient alone, n codes in d dimensions, ours against pythae's, with the values compared first.

All run in one process and take turns: (b) and (c) run while the iterator of (a) is asked for its next batch.
Data: MNIST, or random images of its shape.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import measuring
import torch
from iclr18_wae import algorithm
from iclr18_wae.config import SCALES, TrainConfig
from iclr18_wae.preparation import network
from iclr18_wae.train import fit
from torch import Tensor, nn

from iclr18cli.config import to_dict
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.run.start import open_run
from iclr18cli.settings import TrainSettings

OURS, BARE, PEER = "a ours", "b bare loop", "c pythae"
Segment = Callable[[int], None]


def data_of() -> Split:
    """Return MNIST, or random images of its shape if it is not on this machine."""
    try:
        return open_split("mnist", "train")
    except UserError:
        x = torch.randint(256, (10_000, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return Split(x, torch.zeros(10_000, dtype=torch.int64), ("any",), "random images of MNIST's shape", "train")


def bare_loop(net: Any, data: Split, config: TrainConfig) -> Segment:
    """Return the loop that does the same arithmetic and nothing else."""
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate, betas=(config.beta1, 0.999))
    kernel = algorithm.imq(2.0 * config.latent)
    at = 0

    def segment(steps: int) -> None:
        nonlocal at
        for _ in range(steps):
            x = data.inputs(slice(at, at + config.batch_size))
            at = (at + config.batch_size) % (len(data) - config.batch_size)
            z = net.encoder(x)
            rec = (net.decoder(z) - x).square().flatten(1).sum(1).mean()
            prior = torch.randn(config.batch_size, config.latent, device=x.device)
            loss = config.rec_scale * rec + config.penalty * algorithm.mmd(z, prior, kernel)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return segment


def pythae_model(net: Any, config: TrainConfig, shape: tuple[int, ...], models: Any) -> Any:
    """Return pythae's WAE_MMD around our encoder and decoder, with the same cost, kernels and weight."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner, self.latent_dim = inner, config.latent

        def forward(self, x: Tensor) -> Any:
            return ModelOutput(embedding=self.inner(x))

    class Decoder(BaseDecoder):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.inner(z))

    settings = models.WAE_MMD_Config(
        input_dim=shape, latent_dim=config.latent, kernel_choice="imq", kernel_bandwidth=1.0, scales=list(SCALES),
        reconstruction_loss_scale=config.rec_scale, reg_weight=config.penalty,
    )  # fmt: skip
    return models.WAE_MMD(settings, encoder=Encoder(net.encoder), decoder=Decoder(net.decoder))


def peer_loop(model: Any, data: Split, config: TrainConfig) -> Segment:
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(config.beta1, 0.999))
    at = 0

    def segment(steps: int) -> None:
        nonlocal at
        for _ in range(steps):
            x = data.inputs(slice(at, at + config.batch_size))
            at = (at + config.batch_size) % (len(data) - config.batch_size)
            loss = model({"data": x}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return segment


def steps_of_all(
    config: TrainConfig, data: Split, models: Any, *, rounds: int, steps: int, clock: measuring.Clock
) -> measuring.Samples:
    """Return seconds of every segment; the others take their turn while our loop asks for a batch."""
    torch.manual_seed(0)
    net = network(config, data)[0].to(clock.device)
    others = {BARE: bare_loop(copy.deepcopy(net), data, config)}
    if models is not None:
        others[PEER] = peer_loop(pythae_model(copy.deepcopy(net), config, data.shape, models), data, config)
    turns = measuring.Turns(rounds, steps, OURS, others, clock)
    config = replace(config, epochs=-(-((rounds + 1) * steps + 1) // (len(data) // config.batch_size)))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(runs_dir=folder, device=clock.device, log_every=steps)
        with open_run("wae", to_dict(config), settings, plugin="iclr18") as run:
            turns.around(run, "epochs")
            fit(net, data, config, run)
    return turns.samples


def penalties(n: int, d: int, models: Any, *, rounds: int, clock: measuring.Clock) -> measuring.Samples:
    """Time the penalty and its gradient alone; the two values must agree."""
    z, prior = torch.randn(n, d, device=clock.device), torch.randn(n, d, device=clock.device)
    kernel = algorithm.imq(2.0 * d)

    def ours(z: Tensor) -> Tensor:
        return algorithm.mmd(z, prior, kernel)

    tasks = {"ours": ours}
    if models is not None:
        settings = models.WAE_MMD_Config(
            input_dim=(d,), latent_dim=d, kernel_choice="imq", kernel_bandwidth=1.0, scales=list(SCALES)
        )
        peer = models.WAE_MMD(settings, encoder=None, decoder=None)
        tasks["pythae"] = lambda z: peer.loss_function(z, z, z, prior)[2]
        torch.testing.assert_close(tasks["pythae"](z), ours(z), rtol=1e-3, atol=1e-4)

    def timed(function: Callable[[Tensor], Tensor]) -> float:
        def once() -> None:
            point = (z + 0.0).requires_grad_()
            function(point).backward()

        once()
        return clock.of(once)

    return measuring.interleaved({name: lambda f=f: timed(f) for name, f in tasks.items()}, rounds=rounds)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="segments of each that count (default 10)")
    parser.add_argument("--steps", type=int, default=5, help="steps per segment (default 5)")
    parser.add_argument("--batch", type=int, default=100)
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    clock = measuring.clock_of(options)
    models = measuring.peer("pythae.models")
    config = TrainConfig(dataset="mnist", widths=(32, 64, 128), batch_size=options.batch)
    data = data_of().to(options.device)
    samples = steps_of_all(config, data, models, rounds=options.rounds, steps=options.steps, clock=clock)
    rows = []
    for name, times in samples.items():
        low, high = measuring.spread(samples, name, BARE)
        rows.append([name, measuring.milliseconds(times, per=options.steps), measuring.ratio(samples, name, BARE),
                     f"{low:.3f}-{high:.3f}"])  # fmt: skip
    about = measuring.machine(options.device)
    notes = [] if models is not None else ["pythae is not installed: its rows are left out."]
    measuring.report(
        f"WAE-MMD on {data.name}, widths 32-64-128, d = 8, batch {options.batch}; {options.rounds} interleaved "
        f"segments of {options.steps} steps, {clock.kind} time",
        ["loop", "ms/step", "/ bare", "quartiles"], rows, about, notes,
    )  # fmt: skip
    document: dict[str, Any] = {"machine": about, "step": samples, "penalty": {}}
    rows = []
    for n, d in ((100, 8), (100, 64), (500, 64)):
        found = penalties(n, d, models, rounds=options.rounds, clock=clock)
        document["penalty"][f"n={n} d={d}"] = found
        for name, times in found.items():
            rows.append([f"n={n} d={d}", name, measuring.milliseconds(times), measuring.ratio(found, name, "ours")])
    measuring.report("MMD penalty and its gradient, seven IMQ kernels", ["size", "by", "ms", "/ ours"], rows, about)
    measuring.write(options.json, document)


if __name__ == "__main__":
    main()
