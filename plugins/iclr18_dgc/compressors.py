"""What `--compressor` means: the module that the loss is computed with, the optimiser, and what each step sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from iclr18_dgc.baselines import gradient_dropping
from iclr18_dgc.config import TrainConfig
from iclr18_dgc.hook import dgc_hook
from iclr18_dgc.optimizer import DGCOptimizer
from iclr18_dgc.schedule import Schedule
from iclr18_dgc.state import DGCState
from iclr18_dgc.traffic import Traffic

POWERSGD_STARTS = 10
"""Steps that PowerSGD leaves dense; torch's own default is 1000, for trainings of days."""
VALUE_BYTES = {"none": 4, "fp16": 2}
ONE_BUCKET_MB = 2**20


@dataclass
class Compressed:
    """A network made ready to train over a link.

    Args:
        model: What the loss is computed with: the network itself, or DDP around it.
        optimizer: A plain SGD where momentum is inside the update.
        state: What each rank remembers alone, if the compressor remembers anything.
        alone: The exchange of a single worker, which no hook makes.
        dense: Bytes of the gradient.
    """

    model: nn.Module
    optimizer: torch.optim.SGD
    name: str
    dense: int
    state: DGCState | PowerSGD | None = None
    alone: DGCOptimizer | None = None
    counted: Traffic = field(default_factory=Traffic)
    size: int = 1

    def exchange(self) -> None:
        """Finish the step's gradients; between `backward` and the optimiser's step."""
        if self.alone is not None:
            self.alone.exchange()
        elif not isinstance(self.state, DGCState):
            self.counted.steps += 1
            self.counted.dense += self.dense
            if self.size > 1:
                self.counted.reduced(self.size, self._payload())

    def _payload(self) -> int:
        if isinstance(self.state, PowerSGD):
            return self.state.payload(self.counted.steps - 1, self.dense)
        return self.dense * VALUE_BYTES[self.name] // 4

    @property
    def traffic(self) -> Traffic:
        """Bytes this worker claims to have sent and received."""
        return self.state.traffic if isinstance(self.state, DGCState) else self.counted


def compress(
    net: nn.Module, config: TrainConfig, schedule: Schedule, *, world_size: int, seed: int = 0, audit: bool = False,
    loss_scale: Any = None,
) -> Compressed:  # fmt: skip
    """Put a compressor between a network and its optimiser.

    Among several ranks that is DDP with a communication hook. Its buckets stay as they are first made
    (`find_unused_parameters`), so that a resumed training adds in the same order, to the same bits.

    Args:
        net: On its device.
        config: Its settings of the compressor and of SGD.
        schedule: Density at each step.
        world_size: Ranks of the default process group; 1: none is needed.
        seed: Of the sampled selection.
        audit: Keep a `Ledger`.
        loss_scale: See `DGCState`.
    """
    name, decays = config.compressor, decayed(net, config.weight_decay)
    state: DGCState | PowerSGD | None = None
    inside = name == "dgc"
    common: dict[str, Any] = {
        "clip": config.clip, "clip_scope": config.clip_scope, "values": config.values,
        "indices": config.indices, "seed": seed, "audit": audit, "loss_scale": loss_scale,
    }  # fmt: skip
    if inside:
        state = DGCState(net, schedule=schedule, momentum=config.momentum, nesterov=config.nesterov,
                         masking=config.masking, weight_decay=decays, **common)  # fmt: skip
    elif name == "gradient-dropping":
        state = gradient_dropping(net, schedule, **common)
    elif name == "powersgd" and world_size > 1:
        state = PowerSGD(config.rank, seed)
    groups = [
        {"params": [p], "weight_decay": 0.0 if inside else decays.get(n, 0.0)}
        for n, p in net.named_parameters() if p.requires_grad
    ]  # fmt: skip
    momentum = 0.0 if inside else config.momentum
    optimizer = torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=momentum, nesterov=config.nesterov and momentum > 0
    )
    dense = sum(4 * p.numel() for p in net.parameters() if p.requires_grad)
    made = Compressed(net, optimizer, name, dense, state, size=world_size)
    if world_size == 1:
        if isinstance(state, DGCState):
            made.alone = DGCOptimizer(optimizer, state)
        return made
    device = next(net.parameters()).device
    ddp = DistributedDataParallel(
        net, device_ids=[device.index] if device.type == "cuda" else None, find_unused_parameters=True,
        # Each bucket of PowerSGD sends from callbacks of its own, whose order two buckets would not agree on.
        bucket_cap_mb=ONE_BUCKET_MB if isinstance(state, PowerSGD) else None,
    )  # fmt: skip
    if isinstance(state, DGCState):
        ddp.register_comm_hook(state, dgc_hook)
    elif isinstance(state, PowerSGD):
        ddp.register_comm_hook(state.torch_state, powerSGD_hook.powerSGD_hook)
    elif name == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    made.model = ddp
    return made


def decayed(net: nn.Module, weight_decay: float) -> dict[str, float]:
    """Return the weight decay of each parameter that has one: those with more than one axis, no biases, no norms."""
    return {name: weight_decay for name, p in net.named_parameters() if p.dim() > 1} if weight_decay else {}


class PowerSGD:
    """torch's PowerSGD, with what it remembers (by bucket) in the form that checkpoints take.

    Args:
        rank: Of the factors.
        seed: Of their first values.
    """

    def __init__(self, rank: int, seed: int):
        group = dist.new_group() if dist.is_initialized() else None
        self.torch_state = powerSGD_hook.PowerSGDState(
            group, matrix_approximation_rank=rank, start_powerSGD_iter=POWERSGD_STARTS, min_compression_rate=1,
            random_seed=seed,
        )  # fmt: skip

    def payload(self, step: int, dense: int) -> int:
        """Return the bytes of a step, counted from 0."""
        inner = self.torch_state
        if step < POWERSGD_STARTS or not inner.iter:
            return dense
        compressed_steps = max(1, inner.iter - POWERSGD_STARTS)
        return 4 * inner.total_numel_after_compression // compressed_steps

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers."""
        inner = self.torch_state
        kind, keys, *rest = inner.rng.get_state(legacy=True)
        return {
            **{name: dict(getattr(inner, name)) for name in ("error_dict", "p_memory_dict", "q_memory_dict")},
            "iter": inner.iter,
            "counts": [inner.total_numel_before_compression, inner.total_numel_after_compression],
            "rng": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *map(float, rest)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        inner = self.torch_state
        for name in ("error_dict", "p_memory_dict", "q_memory_dict"):
            setattr(inner, name, dict(state[name]))
        inner.iter = state["iter"]
        inner.total_numel_before_compression, inner.total_numel_after_compression = state["counts"]
        kind, keys, place, has_gauss, cached = state["rng"]
        inner.rng.set_state((kind, keys.numpy().astype(np.uint32), int(place), int(has_gauss), cached))

    @staticmethod
    def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one state with the mean of what each rank's approximations left behind."""
        errors = {k: sum(s["error_dict"][k] for s in states) / len(states) for k in states[0]["error_dict"]}
        return {**states[0], "error_dict": errors}
