"""One of four gloo ranks: `python dgc_ranks.py RANK FOLDER` runs every scenario and saves what became of it there.

test_dgc_ranks.py starts the four and compares them with each other and with a simulation in one process.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from iclr18_dgc import DGCOptimizer, DGCState, Schedule, dgc_hook
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from iclr18cli.errors import UserError

SIZE, STEPS, RATE, BATCH = 4, 10, 0.05, 6
WARM = {"final": 0.04, "warmup_steps": 6, "densities": [0.5, 0.25, 0.125]}
SCENARIOS = {
    "paper": {"schedule": WARM},
    "unmasked nesterov": {"schedule": WARM, "nesterov": True, "masking": False},
    "everything": {"schedule": WARM, "nesterov": True, "clip": 0.3, "weight_decay": 0.01},
    "model clip": {"schedule": 0.1, "clip": 0.4, "clip_scope": "model"},
    "average clip": {"schedule": 0.1, "clip": 0.05, "clip_scope": "model", "clip_convention": "average"},
    "fp16 run lengths": {"schedule": WARM, "values": "fp16", "indices": "runlength16"},
    "bf16 blocks": {"schedule": 0.1, "values": "bf16", "indices": "block16"},
    "dense": {"schedule": 1.0, "masking": False, "weight_decay": 0.01},
    "dense nesterov": {"schedule": 1.0, "masking": False, "nesterov": True, "weight_decay": 0.01},
    "dense masked": {"schedule": 1.0, "masking": True},
    "dropping": {"schedule": 0.1, "momentum": 0.0, "masking": False},
}

PAIRED = ["paper", "everything", "average clip", "bf16 blocks"]
"""Scenarios for a group of two as well."""


def settings(name):
    """Return the options of a state, values of 64 bits unless the scenario has others."""
    given = {"momentum": 0.9, "values": "fp64"} | SCENARIOS[name]
    if isinstance(given["schedule"], dict):
        given["schedule"] = Schedule(**given["schedule"])
    return given


def network(dtype=torch.float64):
    torch.manual_seed(5)
    layers = nn.Linear(12, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 5)
    return nn.Sequential(*layers).to(dtype)


def batch(rank, step, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(BATCH, 12, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(5, (BATCH,), generator=generator)


def loss_of(net, rank, step, dtype=torch.float64):
    x, y = batch(rank, step, dtype)
    return nn.functional.cross_entropy(net(x), y)


class Worker:
    """A network in training on one rank, through the hook or through the wrapper."""

    def __init__(self, front, options, *, group=None, dtype=torch.float64, momentum=0.0, **more):
        self.rank, self.dtype = dist.get_rank(group), dtype
        self.net = network(dtype)
        self.state = DGCState(self.net, group=group, **options, **more)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=RATE, momentum=momentum)
        self.forward = self.net
        if front == "hook":
            # Many small buckets, so that they are made anew after the first step and travel one by one.
            self.forward = DistributedDataParallel(self.net, process_group=group, bucket_cap_mb=0.0002)
            self.forward.register_comm_hook(self.state, dgc_hook)
        else:
            self.optimizer = DGCOptimizer(self.optimizer, self.state)

    def run(self, first, last, *, poison=None, scale=1.0):
        for step in range(first, last):
            self.optimizer.zero_grad()
            handle = None
            if poison is not None and (self.rank, step) == poison:
                handle = self.net[0].weight.register_hook(lambda g: g.clone().fill_(float("nan")))
            (loss_of(self.forward, self.rank, step, self.dtype) * scale).backward()
            if handle is not None:
                handle.remove()
            if scale != 1:
                assert isinstance(self.optimizer, torch.optim.SGD)
                for p in self.net.parameters():
                    p.grad.div_(scale)
            self.optimizer.step()
        return self

    def result(self):
        return {
            "w": {name: p.detach().clone() for name, p in self.net.named_parameters()},
            "state": self.state.state_dict(),
        }


def agreement(group, names):
    """Scenarios through both front ends."""
    found = {}
    for name in names:
        for front in ("hook", "wrapper"):
            found[name, front] = Worker(front, settings(name), group=group).run(0, STEPS).result()
    found["held", "hook"] = Worker("hook", settings("everything"), group=group, overlap=False).run(0, STEPS).result()
    found["small groups", "wrapper"] = (
        Worker("wrapper", settings("everything"), group=group, bucket_bytes=256).run(0, STEPS).result()
    )
    return found


def plain():
    """Ordinary DDP with momentum SGD."""
    found = {}
    for nesterov in (False, True):
        net = network()
        ddp = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(ddp, dist.get_rank(), step).backward()
            optimizer.step()
        found[nesterov] = {name: p.detach().clone() for name, p in net.named_parameters()}
    return found


def poisoned():
    """A NaN on rank 1 in step 4, in the bucket that leaves last; and the same training without that step."""
    found = {}
    for front in ("hook", "wrapper"):
        worker = Worker(front, settings("everything")).run(0, 4)
        before = worker.result()
        found[front] = before, worker.run(4, 5, poison=(1, 4)).result(), worker.run(5, STEPS).result()
    amp = Worker("hook", settings("paper"), loss_scale=lambda: 1024.0)
    found["scaled"] = amp.run(0, STEPS, scale=1024.0).result()
    amp.run(STEPS, STEPS + 1, poison=(2, STEPS), scale=1024.0)
    found["refused"] = all(bool(p.grad.isnan().all()) for p in amp.net.parameters())
    return found


def interrupted(folder):
    """Stop in the middle, save, go on in new objects; then go on with two ranks, and refuse what does not fit."""
    rank, found = dist.get_rank(), {}
    for front in ("hook", "wrapper"):
        options = settings("everything")
        half = Worker(front, options).run(0, 7)
        file = Path(folder) / f"half-{front}-{rank}.pt"
        torch.save({"dgc": half.state.state_dict(), "net": half.net.state_dict()}, file)
        rest = Worker(front, options)
        saved = torch.load(file, weights_only=True)
        rest.state.load_state_dict(saved["dgc"])
        rest.net.load_state_dict(saved["net"])
        found[front] = half.run(7, STEPS).result(), rest.run(7, STEPS).result()
    dist.barrier()
    saved = [torch.load(Path(folder) / f"half-hook-{r}.pt", weights_only=True) for r in range(SIZE)]
    pair = dist.new_group([0, 1])
    if rank < 2:
        fewer = Worker("hook", options, group=pair)
        try:
            fewer.state.load_state_dict(saved[rank]["dgc"])
        except UserError as error:
            found["another size"] = str(error)
        merged = DGCState.merge([one["dgc"] for one in saved])
        fewer.state.load_state_dict(merged)
        fewer.net.load_state_dict(saved[0]["net"])
        found["fewer before"] = [one["dgc"] for one in saved], fewer.state.state_dict()
        found["fewer"] = fewer.run(7, STEPS).result()
    stranger = Worker("wrapper", options)
    try:
        stranger.state.load_state_dict(saved[(rank + 1) % SIZE]["dgc"])
    except UserError as error:
        found["another rank"] = str(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        half.state.load_state_dict(saved[rank]["dgc"])
    found["warned"] = [str(one.message) for one in caught]
    return found


def many_steps():
    """Sixty steps in float32, as it is used."""
    worker = Worker("hook", {"schedule": Schedule(0.01, warmup_steps=20), "weight_decay": 1e-4}, dtype=torch.float32)
    worker.run(0, 60)
    return worker.result()


def flushed():
    """Without momentum, what was sent and what is flushed is all there was; with it, the books balance."""
    found = {}
    worker = Worker("wrapper", settings("dropping"))
    start = {name: p.detach().clone() for name, p in worker.net.named_parameters()}
    total = {name: torch.zeros_like(p) for name, p in start.items()}
    for step in range(STEPS):
        worker.optimizer.zero_grad()
        loss_of(worker.net, worker.rank, step).backward()
        for name, p in worker.net.named_parameters():
            total[name] += p.grad
        worker.optimizer.step()
    waited = worker.state.pending()
    worker.optimizer.flush()
    found["all"] = start, total, worker.result()["w"], waited, worker.state.pending()
    for front in ("hook", "wrapper"):
        audited = Worker(front, settings("everything"), audit=True).run(0, STEPS)
        found[front] = audited.state.ledger.imbalance(audited.state.residual)
    return found


def accumulated():
    """Two micro-batches a step: in no_sync() through the hook, and by adding gradients through the wrapper."""
    found = {}
    for front in ("hook", "wrapper"):
        worker = Worker(front, settings("paper"))
        for step in range(0, STEPS, 2):
            worker.optimizer.zero_grad()
            if front == "hook":
                with worker.forward.no_sync():
                    loss_of(worker.forward, worker.rank, step).backward()
            else:
                loss_of(worker.forward, worker.rank, step).backward()
            loss_of(worker.forward, worker.rank, step + 1).backward()
            worker.optimizer.step()
        found[front] = worker.result()
    return found


def overlapping():
    """Which buckets had left when the last one came, step by step, and how many slabs there are in the end."""
    seen = []

    def watching(state, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.is_last():
            seen.append([one.exchange is not None for one in state.inflight])
        return dgc_hook(state, bucket)

    net = network()
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.0002)
    state = DGCState(ddp, schedule=0.1)
    ddp.register_comm_hook(state, watching)
    for step in range(3):
        loss_of(ddp, dist.get_rank(), step).backward()
    return seen, len(state.homes), len(state.slabs)


class Skipping(nn.Module):
    """Leaves its second layer out in some steps: on all ranks, or on some."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.one, self.two = nn.Linear(12, 12).double(), nn.Linear(12, 12).double()

    def forward(self, x, step):
        x = self.one(x)
        return x if step % 3 == 2 or (step % 3 == 1 and dist.get_rank() < 2) else self.two(x)


def unused():
    """Layers without gradient, through both front ends."""
    found = {}
    for front in ("hook", "wrapper"):
        net = forward = Skipping()
        state = DGCState(net, **settings("paper"))
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
        if front == "hook":
            forward = DistributedDataParallel(net, find_unused_parameters=True)
            forward.register_comm_hook(state, dgc_hook)
        else:
            optimizer = DGCOptimizer(optimizer, state)
        for step in range(STEPS):
            optimizer.zero_grad()
            forward(batch(dist.get_rank(), step)[0], step).square().mean().backward()
            optimizer.step()
        found[front] = {name: p.detach().clone() for name, p in net.named_parameters()}
    return found


def refused():
    """Momentum behind the hook."""
    worker = Worker("hook", settings("paper"), momentum=0.9)
    try:
        worker.run(0, 1)
    except UserError as error:
        return str(error)
    return ""


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=SIZE)
    found = {"4": agreement(None, SCENARIOS), "interrupted": interrupted(folder)}
    for scenario in (plain, poisoned, many_steps, flushed, accumulated, overlapping, unused, refused):
        found[scenario.__name__] = scenario()
    pair = dist.new_group([0, 1])
    if rank < 2:
        found["2"] = agreement(pair, PAIRED)
    torch.save(found, Path(folder) / f"found-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps({"done": rank}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
