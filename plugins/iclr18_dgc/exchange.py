"""One step of DGC among the workers of a group: from gradients in flat buffers to the update in their place.

A buffer is started (selected, packed, on its way) and later finished (received, added, written back). Nothing a worker
remembers changes before all ranks agree that every gradient is finite. Where they agree before a buffer is started,
u and v are advanced at once; a buffer started while backward still runs is selected from a preview of v, and u and v
are advanced when it is finished.
"""

# n entries of a buffer · K entries sent of its sparsified tensors · D entries of the others · N workers

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from iclr18_dgc.compression import add_ranks_, clip_, compensate_, on_the_wire, preview, settle_
from iclr18_dgc.encoding import decode, encode
from iclr18_dgc.slab import Slab
from iclr18_dgc.state import DGCState


@dataclass
class Exchange:
    """A buffer on its way.

    Args:
        state, slab: What this worker remembers of its parameters.
        buffer: (n,) gradient; the update is written here.
        advanced: Whether u and v have been advanced.

    Attributes:
        gradient: (n,) unscaled and clipped, in the dtype of u and v; the buffer itself where that is its dtype.
        index, sent: (K,) what this worker sends.
        packets: N packets, one of each rank; none where the masked tensor goes whole, in `reduced`.
        kept: (D,) sum of the tensors that go whole.
    """

    state: DGCState
    slab: Slab
    buffer: Tensor
    advanced: bool
    gradient: Tensor
    index: Tensor
    sent: Tensor
    packets: list[Tensor] = field(default_factory=list)
    kept: Tensor | None = None
    reduced: Tensor | None = None
    works: list[Any] = field(default_factory=list)


def prepared(state: DGCState, slabs: Iterable[Slab], buffers: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of some buffers, unscaled and clipped locally, in the dtype of u and v.

    Clipping comes before u (section 3.2): with scope "model" the buffers must be all of them.
    """
    slabs, scale = list(slabs), state.loss_scale() if state.loss_scale is not None else 1.0
    gradients = [buffer.to(slab.dtype) for slab, buffer in zip(slabs, buffers, strict=True)]
    if scale != 1:
        for gradient in gradients:
            gradient.div_(scale)
    threshold = state.rule.clip_at(state.size)
    if threshold is not None:
        parts = [part for slab, g in zip(slabs, gradients, strict=True) for part in slab.parts(g)]
        clip_(parts, threshold, together=state.rule.clip_scope == "model")
    return gradients


def start(state: DGCState, slab: Slab, buffer: Tensor, gradient: Tensor, *, agreed: bool) -> Exchange:
    """Select, pack and send.

    Args:
        gradient: As `prepared` returned it; kept until the end unless `agreed`.
        agreed: All ranks know that every gradient of this step is finite.
    """
    rule, N = state.rule, state.size
    if agreed:
        compensate_(slab.u, slab.v, gradient, momentum=rule.momentum, nesterov=rule.nesterov)
        if state.ledger is not None:
            state.ledger.enter(slab, gradient)
        candidate = slab.v
    else:
        out = state.scratch("candidate", slab.v)
        candidate = preview(slab.u, slab.v, gradient, momentum=rule.momentum, nesterov=rule.nesterov, out=out)
    density = state.density
    index_K = slab.select(candidate, density, state.generator, state.scratch("magnitude", slab.v))
    value_K = candidate[index_K]
    sent_K = on_the_wire(value_K, rule.values)
    on_way = Exchange(state, slab, buffer, agreed, gradient, index_K, sent_K)
    state.traffic.dense += slab.n * slab.itemsize
    state.traffic.entries += len(index_K)
    kept_D = candidate[slab.kept]
    if len(index_K) and density * N < 1:
        packet = encode(index_K, sent_K, slab.n, values=rule.values, indices=rule.indices)
        state.traffic.gathered(N, len(packet))
        on_way.packets = [packet]
        if N > 1:
            on_way.packets = [torch.empty_like(packet) for _ in range(N)]
            on_way.works.append(dist.all_gather(on_way.packets, packet, group=state.group, async_op=True))
    elif len(index_K):
        # Gathering would move more than an all-reduce: N packets of 8 bytes per entry against 2 of 4, section 4.
        masked = torch.zeros_like(slab.v)
        masked[index_K] = sent_K
        masked[slab.kept] = kept_D
        on_way.reduced = _all_reduce(on_way, masked)
        return on_way
    if len(kept_D):
        on_way.kept = _all_reduce(on_way, kept_D)
    return on_way


def total(gradient: Tensor) -> Tensor:
    """Return the sum of a gradient, which is finite only if all its terms are, in one pass over them.

    In float32 at least; one that overflows there is no gradient to step by, either.
    """
    return gradient.sum(dtype=torch.float64 if gradient.dtype == torch.float64 else torch.float32)


def agree(state: DGCState, gradients: Iterable[Tensor]) -> bool:
    """Return whether every gradient of every rank is finite: an all-reduce of one byte."""
    odd = torch.stack([total(gradient).isfinite().logical_not() for gradient in gradients]).any()
    flag = odd.to(torch.uint8).view(1)
    state.traffic.reduced(state.size, 1)
    if state.size > 1:
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=state.group)
    return not flag.item()


def finish(state: DGCState, on_way: Iterable[Exchange]) -> None:
    """Take what was sent out of v, receive, and write the update: the mean over the workers, and weight decay."""
    on_way, rule = list(on_way), state.rule
    for one in on_way:
        slab = one.slab
        if not one.advanced:
            compensate_(slab.u, slab.v, one.gradient, momentum=rule.momentum, nesterov=rule.nesterov)
            if state.ledger is not None:
                state.ledger.enter(slab, one.gradient)
        settle_(slab.u, slab.v, one.index, one.sent, masking=rule.masking)
        slab.v[slab.kept] = 0
        if state.ledger is not None:
            state.ledger.leave(slab, one.index, one.sent)
    for one in on_way:
        for work in one.works:
            work.wait()
        _write(one)


def skip(state: DGCState, buffers: Iterable[Tensor], on_way: Iterable[Exchange] = ()) -> None:
    """Leave u, v and the parameters alone: a gradient of zeros, or with a loss scale one that the scaler refuses."""
    for one in on_way:
        for work in one.works:
            work.wait()
    for buffer in buffers:
        buffer.fill_(0.0 if state.loss_scale is None else float("nan"))
    state.skipped += 1


def together(state: DGCState, slabs: list[Slab], buffers: list[Tensor]) -> bool:
    """Do a whole step from all the gradients of this worker, and return whether it was taken."""
    taken = agree(state, buffers)
    if taken:
        gradients = prepared(state, slabs, buffers)
        on_way = [
            start(state, slab, buffer, gradient, agreed=True)
            for slab, buffer, gradient in zip(slabs, buffers, gradients, strict=True)
        ]
        finish(state, on_way)
    else:
        skip(state, buffers)
    state.step += 1
    state.traffic.steps += 1
    return taken


def _all_reduce(one: Exchange, tensor: Tensor) -> Tensor:
    """Start the sum over the workers of a tensor, in place."""
    state = one.state
    state.traffic.reduced(state.size, tensor.numel() * tensor.element_size())
    if state.size > 1:
        one.works.append(dist.all_reduce(tensor, group=state.group, async_op=True))
    return tensor


def _write(one: Exchange) -> None:
    """Write the update of a buffer whose parts have arrived."""
    state, slab, buffer = one.state, one.slab, one.buffer
    same = buffer.dtype == slab.dtype
    if one.reduced is not None:
        out = one.reduced.div_(state.size) if state.size > 1 else one.reduced
    else:
        out = buffer.zero_() if same else torch.zeros_like(slab.v)
        n, k = slab.n, len(one.index)
        packets = [decode(p, n, k, values=state.rule.values, indices=state.rule.indices) for p in one.packets]
        if packets:
            add_ranks_(out, packets)
        if one.kept is not None:
            out[slab.kept] = one.kept / state.size
    slab.add_decay_(out)
    if state.loss_scale is not None:
        out.mul_(state.loss_scale())
    if out is not buffer:
        buffer.copy_(out)
