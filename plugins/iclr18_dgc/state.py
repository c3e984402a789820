"""What a worker remembers between steps, by the names of the parameters, and how that is saved, loaded and merged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iclr18_dgc.ledger import Ledger
from iclr18_dgc.rule import Rule
from iclr18_dgc.saved import FORMAT, MERGED, check_fits, merge
from iclr18_dgc.slab import Slab
from iclr18_dgc.traffic import Traffic
from iclr18cli.device import derived_seed
from iclr18cli.errors import UserError

BUCKET_BYTES = 25 * 2**20


class DGCState:
    """Velocity u and residual v of one worker, its settings, its counters, and the group it exchanges with.

    Hand it to DDP with `dgc_hook`, or to a `DGCOptimizer` without DDP. u and v take twice the memory of the parameters.

    Args:
        model: Its trainable parameters, under their names there; a DDP module stands for what it wraps.
        group: Process group; None: the default one, or this process alone if there is none.
        seed: Of the sampler; each rank draws on its own.
        overlap: In the hook, send each bucket while backward goes on; otherwise all together when it ends.
        loss_scale: With AMP, `scaler.get_scale`: gradients are divided by it before they enter u, since v mixes steps
            with different scales, and the update is multiplied by it, so that the scaler can take it out again.
        audit: Keep a `Ledger`.
        bucket_bytes: Of a `DGCOptimizer`: tensors are exchanged in groups of at least so many bytes.
        **settings: Of `Rule`: schedule, momentum, nesterov, masking, clip, weight_decay, values, indices, ...

    Attributes:
        step: Steps so far; the schedule counts by it.
        skipped: Steps that no rank took because a gradient on one of them was not finite.
        traffic: Bytes, claimed.

    Raises:
        ValueError: A setting is out of range, or the model has nothing to train.

    Example:
        >>> state = DGCState(nn.Linear(100, 10), schedule=0.01, momentum=0.9)
        >>> state.rank, state.size, state.density
        (0, 1, 0.01)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        group: dist.ProcessGroup | None = None,
        seed: int = 0,
        overlap: bool = True,
        loss_scale: Callable[[], float] | None = None,
        audit: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
        **settings: Any,
    ):
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.rule, self.group = Rule(**settings), group
        self.overlap, self.loss_scale = overlap, loss_scale
        self.rank, self.size = place(group)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("the model has no trainable parameter; received one without")
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.seed = seed
        self.generator = torch.Generator().manual_seed(derived_seed(seed, "dgc", self.rank))
        self.step, self.skipped = 0, 0
        self.traffic = Traffic()
        self.ledger = Ledger() if audit else None
        self.inflight: list[Any] = []
        self._scratch: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self.slabs: dict[tuple[str, ...], Slab] = {}
        self._home: dict[str, Slab] = {}
        for names in buckets(self.parameters, bucket_bytes):
            self.slab(names)

    @property
    def density(self) -> float:
        """Density of the coming step."""
        return self.rule.density(self.step)

    @property
    def residual(self) -> dict[str, Tensor]:
        """Name -> v, in the shape of the parameter; views."""
        return {name: self._home[name].shaped(self._home[name].v, name) for name in self.parameters}

    @property
    def velocity(self) -> dict[str, Tensor]:
        """Name -> u, in the shape of the parameter; views."""
        return {name: self._home[name].shaped(self._home[name].u, name) for name in self.parameters}

    @property
    def decay(self) -> dict[str, Tensor]:
        """Name -> momentum of weight decay, the same on all ranks; views."""
        homes = self._home.items()
        return {name: slab.shaped(slab.decay, name) for name, slab in homes if slab.decay is not None}

    def name_of(self, parameter: Tensor) -> str:
        """Return the name of a parameter.

        Raises:
            UserError: It was not in the model when this state was made.
        """
        if id(parameter) not in self.names:
            raise UserError(
                "A gradient belongs to no parameter that this DGCState knows.",
                why=f"shape {tuple(parameter.shape)}; the state was made for {len(self.parameters)} parameters",
                fix="make the DGCState from the module that is trained, after its last parameter was added",
            )
        return self.names[id(parameter)]

    def slab(self, names: Sequence[str]) -> Slab:
        """Return the slab of exactly these parameters; a new one takes over what was kept under their names."""
        key = tuple(names)
        if key in self.slabs:
            return self.slabs[key]
        slab = Slab({name: self.parameters[name] for name in key}, self.rule)
        for name in key:
            if (old := self._home.get(name)) is not None:
                for mine, theirs in ((slab.u, old.u), (slab.v, old.v), (slab.decay, old.decay)):
                    if mine is not None and theirs is not None:
                        mine[slab.places[name]] = theirs[old.places[name]]
                        theirs[old.places[name]] = 0
                self.slabs.pop(old.names, None)  # it is not whole any more, and gone once its last name has moved
            self._home[name] = slab
        self.slabs[key] = slab
        return slab

    @property
    def homes(self) -> list[Slab]:
        """Every slab that keeps something, each once, in an order that all ranks share."""
        return list({id(slab): slab for slab in self._home.values()}.values())

    def scratch(self, purpose: str, like: Tensor) -> Tensor:
        """Return memory of the size of a flat tensor, the same each time: new pages cost more than the work."""
        key = (purpose, like.dtype, like.device)
        held = self._scratch.get(key)
        if held is None or held.numel() < like.numel():
            held = self._scratch[key] = torch.empty_like(like)
        return held[: like.numel()]

    def check_place(self) -> None:
        """Raise UserError if the process group or the device is not the one this state was made on."""
        if place(self.group) != (self.rank, self.size):
            raise UserError(
                "The process group is not the one this DGCState was made in.",
                why=f"made as rank {self.rank} of {self.size}, now {place(self.group)[0]} of {place(self.group)[1]}",
                fix="call torch.distributed.init_process_group before making the DGCState",
            )
        for slab in self.homes:
            device = slab.parameters[slab.names[0]].device
            if device != slab.u.device:
                raise UserError(
                    "The model has moved to another device since its DGCState was made.",
                    why=f"it is on {device}, and what it has still to send is on {slab.u.device}",
                    fix="move the model first, then make the DGCState",
                )

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that is remembered: tensors, numbers and words, no objects; save one for each rank."""
        return {
            "format": FORMAT,
            "rank": self.rank,
            "size": self.size,
            "step": self.step,
            "skipped": self.skipped,
            "u": {name: tensor.clone() for name, tensor in self.velocity.items()},
            "v": {name: tensor.clone() for name, tensor in self.residual.items()},
            "decay": {name: tensor.clone() for name, tensor in self.decay.items()},
            "sampler": self.generator.get_state(),
            "traffic": self.traffic.state_dict(),
            **({"ledger": self.ledger.state_dict()} if self.ledger else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state this rank saved, or from a merged one.

        Warns where it drops gradients that wait here to be sent.

        Raises:
            UserError: The state is another rank's or of another number of ranks; of other parameters; or of a newer
                version. Nothing has changed then.
        """
        check_fits(state, rank=self.rank, size=self.size, parameters=self.parameters)
        if self.pending():
            warnings.warn(
                f"iclr18 dgc: loading a state drops the gradients that waited to be sent since step {self.step}; "
                "call flush() first to send them",
                stacklevel=2,
            )
        for name, slab in self._home.items():
            slab.u[slab.places[name]] = state["u"][name].to(slab.u).view(-1)
            slab.v[slab.places[name]] = state["v"][name].to(slab.v).view(-1)
            if slab.decay is not None:
                if name in state["decay"]:
                    slab.decay[slab.places[name]] = state["decay"][name].to(slab.v).view(-1)
                else:
                    slab.decay[slab.places[name]] = 0
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        if state["rank"] == MERGED:
            self.generator.manual_seed(derived_seed(self.seed, "dgc", self.rank, self.step))
        else:
            self.generator.set_state(state["sampler"].cpu())
        self.traffic.load_state_dict(state["traffic"])
        if self.ledger is not None:
            self.ledger = Ledger()
            if "ledger" in state:
                self.ledger.load_state_dict(state["ledger"])

    merge = staticmethod(merge)

    def pending(self) -> bool:
        """Return whether gradients wait here to be sent."""
        return any(bool(slab.v.any()) for slab in self.homes)

    @torch.no_grad()
    def flush(self) -> None:
        """Put the mean of what all workers still hold back into `.grad`, and clear v; a dense step for the optimiser.

        Every rank must call it; `optimizer.step()` follows. With masking u is cleared as well: all of it was sent.
        """
        self.check_place()
        for slab in self.homes:
            if self.ledger is not None:
                self.ledger.leave_all(slab)
            if self.size > 1:
                dist.all_reduce(slab.v, group=self.group)
                self.traffic.reduced(self.size, slab.v.numel() * slab.v.element_size())
            scale = self.loss_scale() if self.loss_scale is not None else 1.0
            for name in (name for name in slab.names if self._home[name] is slab):
                parameter = slab.parameters[name]
                parameter.grad = (slab.shaped(slab.v, name) / self.size * scale).to(parameter.dtype)
            slab.v.zero_()
            if self.rule.masking:
                kept = slab.u[slab.kept]
                slab.u.zero_()
                slab.u[slab.kept] = kept


def place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Return (rank, size) of this process in a group; (0, 1) where torch.distributed is not in use."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def buckets(parameters: Mapping[str, nn.Parameter], least_bytes: int) -> list[list[str]]:
    """Return the names of parameters exchanged together, last ones first; one dtype and device each."""
    made: list[list[str]] = []
    growing: dict[tuple[torch.dtype, torch.device], tuple[list[str], int]] = {}
    for name, parameter in reversed(list(parameters.items())):
        key = (parameter.dtype, parameter.device)
        names, size = growing.pop(key, ([], 0))
        names, size = [*names, name], size + parameter.numel() * parameter.element_size()
        if size >= least_bytes:
            made.append(names)
        else:
            growing[key] = names, size
    return made + [names for names, _ in growing.values()]
