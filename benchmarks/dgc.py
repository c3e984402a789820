"""What DGC costs one worker in a training step: selection and packing, against the same step of plain SGD.

    python benchmarks/dgc.py [--net resnet20|mlp|both] [--density 0.001] [--rounds 8] [--steps 2] [--top-k]

step: forward, backward and update, batch 128 of random 3x32x32 images (ResNet-20) or 64 of random vectors (an MLP of
5.82 million parameters). Loops of one table run in one process and take turns in segments of a few steps. There is one
worker, so that everything but the network's time is there: compensation, selection, packing, unpacking, adding. `hook`
goes through DistributedDataParallel on a gloo group of one, and so does the loop it is compared with.

"update ms" is what comes after backward: the optimiser's step, and with a DGCOptimizer all of DGC; its difference to
plain SGD is steadier than that of whole steps. Goal: DGC at most 1.25 times plain SGD on ResNet-20.

--top-k: milliseconds to choose k entries of a tensor, at once and by a sampled threshold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
import torch.distributed as dist
import torch.nn.functional as F
from iclr18_dgc import DGCOptimizer, DGCState, dgc_hook
from iclr18_dgc.compression import entries
from iclr18_dgc.selection import top_exact, top_sampled
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iclr18cli.models.vision import mlp, resnet20

Step = Callable[[], None]
RATE = 0.01
PLAIN, SGD_DDP = "plain SGD", "plain SGD, DDP"
COLUMNS = ["loop", "ms/step", "least", "/ plain", "quartiles", "/ plain, DDP", "update ms"]
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (resnet20, (128, 3, 32, 32)),
    "mlp": (lambda: mlp(input_shape=(784,), hidden=(2048, 2048), activation="relu"), (64, 784)),
}
"""Name -> (network, shape of a batch)."""


def training(forward: nn.Module, x: Tensor, update: Step, clear: Step) -> Step:
    """Return one training step."""
    y = torch.arange(len(x), device=x.device) % 10

    def step() -> None:
        clear()
        F.cross_entropy(forward(x), y).backward()
        update()

    return step


def loops(
    name: str, density: float, device: str, clock: measuring.Clock
) -> tuple[dict[str, Step], dict[str, list[float]]]:
    """Return the steps that are compared, each on its own network, and the seconds of their updates as they go on."""
    make, shape = NETS[name]
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(device)

    def sgd(net: nn.Module, momentum: float = 0.9) -> torch.optim.SGD:
        return torch.optim.SGD(net.parameters(), lr=RATE, momentum=momentum)

    def network() -> nn.Module:
        torch.manual_seed(0)
        return make().to(device)

    made: dict[str, Step] = {}
    updates: dict[str, list[float]] = {}

    def add(label: str, forward: nn.Module, optimizer: Any) -> None:
        kept = updates[label] = []
        made[label] = training(forward, x, lambda: kept.append(clock.of(optimizer.step)), optimizer.zero_grad)

    net = network()
    add(PLAIN, net, sgd(net))
    for label, options in {
        "DGC": {},
        "DGC, top-k at once": {"selection": "exact"},
        "DGC, fp16 + run lengths": {"values": "fp16", "indices": "runlength16"},
        "DGC, Nesterov, clipping": {"nesterov": True, "clip": 1.0},
    }.items():
        net = network()
        add(label, net, DGCOptimizer(sgd(net, 0.0), DGCState(net, schedule=density, **options)))
    net = network()
    add(SGD_DDP, DistributedDataParallel(net), sgd(net))
    net = network()
    ddp = DistributedDataParallel(net)
    ddp.register_comm_hook(DGCState(net, schedule=density), dgc_hook)
    add("DGC, DDP hook", ddp, sgd(net, 0.0))
    return made, updates


def step_table(name: str, options: Any, clock: measuring.Clock) -> tuple[list[list[Any]], measuring.Samples]:
    """Time the loops of one network."""
    made, updates = loops(name, options.density, options.device, clock)
    for step in made.values():  # the first step makes what the others use again
        step()
        step()

    def segment(step: Step) -> Callable[[], float]:
        return lambda: clock.of(lambda: [step() for _ in range(options.steps)])

    samples = measuring.interleaved({label: segment(step) for label, step in made.items()}, rounds=options.rounds)
    rows = []
    for label, times in samples.items():
        low, high = measuring.spread(samples, label, PLAIN)
        rows.append([label, measuring.milliseconds(times, per=options.steps), 1000 * min(times) / options.steps,
                     measuring.ratio(samples, label, PLAIN), f"{low:.3f}-{high:.3f}",
                     measuring.ratio(samples, label, SGD_DDP), measuring.milliseconds(updates[label])])  # fmt: skip
    return rows, samples


def selection_table(options: Any, clock: measuring.Clock) -> list[list[Any]]:
    """Time top-k at once and by a sampled threshold."""
    generator, rows = torch.Generator().manual_seed(0), []
    for n in (4096, 36_864, 262_144, 4_000_000):
        magnitude = torch.randn(n, generator=generator).abs_().to(options.device)
        for density in (0.25, 0.015625, 0.001):
            k, calls = entries(n, density), max(1, 1_000_000 // n)
            ways: dict[str, Callable[[], object]] = {
                "exact": lambda m=magnitude, k=k: top_exact(m, k),
                "sampled": lambda m=magnitude, k=k: top_sampled(m, k, ratio=0.01, generator=generator),
            }
            tasks = {
                way: (lambda f=f, calls=calls: clock.of(lambda: [f() for _ in range(calls)])) for way, f in ways.items()
            }
            samples = measuring.interleaved(tasks, rounds=options.rounds)
            rows.append([n, density, k, *(measuring.milliseconds(samples[way], per=calls) for way in ways),
                         measuring.ratio(samples, "exact", "sampled")])  # fmt: skip
    return rows


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--net", choices=(*NETS, "both"), default="resnet20")
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="steps in a segment (default 2)")
    parser.add_argument("--top-k", action="store_true", help="also time the selection alone")
    measuring.add_torch_options(parser)
    options = parser.parse_args()
    clock = measuring.clock_of(options)
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'group'}", rank=0, world_size=1)
        for name in NETS if options.net == "both" else [options.net]:
            rows, samples = step_table(name, options, clock)
            about = measuring.machine(options.device)
            parameters = sum(p.numel() for p in NETS[name][0]().parameters())
            title = (f"dgc, {name} ({parameters:,} parameters), batch {NETS[name][1][0]}, density {options.density:g}; "
                     f"{options.rounds} interleaved segments of {options.steps} steps, {clock.kind} time")  # fmt: skip
            goal = measuring.ratio(samples, "DGC", PLAIN)
            notes = [f"DGC / plain SGD = {goal:.3f}" + (" (goal: at most 1.25)" if name == "resnet20" else "")]
            measuring.report(title, COLUMNS, rows, about, notes)
            document[name] = {"seconds": samples, "steps": options.steps, "DGC / plain SGD": goal, "machine": about}
        dist.destroy_process_group()
    if options.top_k:
        columns = ["n", "density", "k", "exact ms", "sampled ms", "exact / sampled"]
        rows, about = selection_table(options, clock), measuring.machine(options.device)
        measuring.report(f"choosing k of n entries, {clock.kind} time", columns, rows, about)
        document["top-k"] = {"columns": columns, "rows": rows, "machine": about}
    measuring.write(options.json, document)


if __name__ == "__main__":
    main()
