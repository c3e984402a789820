"""Time and strength of our PGD against torchattacks' PGD, on one network.

    python benchmarks/attack.py [--points 256] [--steps 40] [--eps 0.1] [--train-steps 40] [--json FILE]

Both attack the same points of MNIST with the same steps, step length and one start, linf, and the time is for the
attack alone. Ours starts at the point itself, keeps every example's best iterate and leaves solved examples out;
torchattacks 3.5 starts at a random point and returns the last iterate. The network is the ELU CNN after a few steps of
plain training, so that some points break early and some do not. Without MNIST, random images of the same shape stand
in.
"""

from __future__ import annotations

import measuring
import torch
import torch.nn.functional as F
from torch import nn
from wrm_step import CONFIGS, data_of

from iclr18cli.attack import pgd as own
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.data.tensors import Split, order
from iclr18cli.models.registry import build

OURS, PEER = "iclr18 pgd", "torchattacks PGD"


def trained(data: Split, steps: int) -> nn.Module:
    """Return the ELU CNN after some steps of Adam on clean data."""
    torch.manual_seed(0)
    net = build(CONFIGS["mnist"].model, classes=10, activation="elu", input_shape=list(data.shape)).to(data.x.device)
    optimizer = torch.optim.Adam(net.parameters())
    for index in order(len(data), seed=0, epoch=0).to(data.x.device).split(128)[:steps]:
        loss = F.cross_entropy(net(data.inputs(index)), data.y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def main() -> None:
    import torchattacks

    parser = measuring.arguments(__doc__)
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--train-steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    clock = measuring.clock_of(options)
    data = data_of(CONFIGS["mnist"]).to(options.device)
    net = trained(data, options.train_steps)
    test = data.take(torch.arange(len(data) - options.points, len(data)))
    x, y = test.inputs(), test.y
    budget = Budget(steps=options.steps, restarts=1)
    threat = Threat("linf", options.eps, (0.0, 1.0))
    step_length = budget.step_length(options.eps)
    found: dict[str, torch.Tensor] = {}

    def ours() -> None:
        found[OURS] = own.pgd(net, x, y, threat=threat, budget=budget)

    def peer() -> None:
        attack = torchattacks.PGD(net, eps=options.eps, alpha=step_length, steps=options.steps, random_start=True)
        found[PEER] = attack(x, y)

    tasks = {OURS: lambda: clock.of(ours), PEER: lambda: clock.of(peer)}
    measuring.interleaved(tasks, rounds=1)
    samples = measuring.interleaved(tasks, rounds=options.rounds)
    with torch.no_grad():
        clean = (net(x).argmax(1) == y).double().mean().item()
        robust = {name: (net(z).argmax(1) == y).double().mean().item() for name, z in found.items()}
    rows = [
        [name, measuring.milliseconds(times, per=len(y)), measuring.ratio(samples, name, PEER), 100 * robust[name]]
        for name, times in samples.items()
    ]
    about = measuring.machine(options.device)
    measuring.report(
        f"PGD linf, eps {options.eps:g}, {options.steps} steps, one start, {len(y)} points of {data.name}, ELU CNN "
        f"after {options.train_steps} training steps (clean accuracy {100 * clean:.1f} %), {clock.kind} time",
        ["attack", "ms/point", "/ torchattacks", "accuracy left %"], rows, about,
    )  # fmt: skip
    measuring.write(options.json, {"seconds": samples, "robust": robust, "clean": clean, "machine": about})


if __name__ == "__main__":
    main()
