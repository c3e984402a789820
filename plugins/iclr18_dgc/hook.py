"""Front end for DistributedDataParallel: a communication hook that exchanges sparse updates in place of gradients."""

# DDP looks at the annotations of a hook, so they are not postponed here (no `from __future__ import annotations`).

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from iclr18_dgc.exchange import Exchange, agree, finish, prepared, skip, start, together, total
from iclr18_dgc.guard import guard
from iclr18_dgc.slab import Slab
from iclr18_dgc.state import DGCState

Future = torch.futures.Future


@dataclass
class InFlight:
    """A bucket that DDP waits for.

    Args:
        slab, buffer: Its parameters and its flat gradient.
        future: Gets the buffer, once the update is in it.
        finite: Its sum, finite if the gradient is; taken before anything changes the buffer.
        exchange: On its way; None if it is held back until the last bucket.
    """

    slab: Slab
    buffer: Tensor
    future: Future[Tensor]
    finite: Tensor
    exchange: Exchange | None


def dgc_hook(state: DGCState, bucket: dist.GradBucket) -> Future[Tensor]:
    """Exchange a bucket of gradients by DGC: `ddp.register_comm_hook(state, dgc_hook)`.

    `.grad` then holds the update of the whole group, momentum and weight decay inside; the optimiser is
    `SGD(lr, momentum=0, weight_decay=0)`. Buckets travel while backward goes on, unless `state.overlap` is off or
    clipping needs the norm of the whole gradient; all of them are delivered with the last one, when the ranks have
    agreed that every gradient is finite. Inside `no_sync()` DDP calls no hook: the accumulated gradient comes next.

    Args:
        state: Of the same module and process group as the DDP object.
        bucket: From DDP.

    Returns:
        A future of the flat bucket.

    Raises:
        UserError: The state is of another model or another process group.
    """
    if bucket.index() == 0:
        state.inflight.clear()  # of a backward pass that an error ended
        state.check_place()
        guard(state)
    buffer = bucket.buffer()
    slab = state.slab([state.name_of(parameter) for parameter in bucket.parameters()])
    future: Future[Tensor] = Future(devices=[buffer.device] if buffer.device.type == "cuda" else None)
    alone = bucket.is_last() and not state.inflight
    held = alone or not state.overlap or (state.rule.clip is not None and state.rule.clip_scope == "model")
    one = InFlight(slab, buffer, future, buffer if held else total(buffer), None)
    if not held:
        (gradient,) = prepared(state, [slab], [buffer])
        one.exchange = start(state, slab, buffer, gradient, agreed=False)
    state.inflight.append(one)
    if bucket.is_last():
        _deliver(state, held=held)
    return future


def _deliver(state: DGCState, *, held: bool) -> None:
    """Finish the step of all buckets."""
    flight: list[InFlight] = state.inflight
    buffers = [one.buffer for one in flight]
    if held:
        together(state, [one.slab for one in flight], buffers)
    else:
        on_way = [one.exchange for one in flight if one.exchange is not None]
        if agree(state, [one.finite for one in flight]):
            finish(state, on_way)
        else:
            skip(state, buffers, on_way)
        state.step += 1
        state.traffic.steps += 1
    for one in flight:
        for name, parameter in one.slab.parameters.items():
            if parameter.grad is None:
                # DDP writes no gradient where no rank had one in this step, but entries that waited may have been sent.
                parameter.grad = one.slab.shaped(one.buffer, name).clone()
        one.future.set_result(one.buffer)
    state.inflight = []
