"""Gradients of several ranks: averaged at the end of every backward pass, so that each rank takes the same step.

N ranks · B examples of a global batch, b_r of them on rank r
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.modules.batchnorm import _BatchNorm

from iclr18cli.launch import World

BUCKET_BYTES = 25 * 2**20
"""Small gradients travel in pieces of about this size: one is on its way while the next is put together."""

ALONE_BYTES = 2**20
"""A gradient of this size travels from where it lies, without a copy."""


class Averaging:
    """Replaces gradients by their mean over a global batch, sum_r (b_r / B) grad_r, whatever made the loss.

    Unlike DistributedDataParallel this hangs on the parameters, not on a wrapper's forward pass: a loss may come from
    any function of the network (bounds, inner maximisations, several passes), and the module stays what it is. A second
    backward pass before the step is right too: the mean of an average that all ranks share is the average.

    Args:
        world: The ranks.
        share: Returns N b_r / B of the current batch: 1 where the shares are equal.
    """

    def __init__(self, world: World, share: Callable[[], float]):
        self.world, self._share = world, share
        self._order: dict[Tensor, int] = {}
        self._arrived: set[Tensor] = set()
        self._statistics: list[Tensor] = []

    def watch(self, module: nn.Module) -> None:
        """Give a module the same weights on every rank, and average its gradients from now on."""
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in self._order:
                self._order[parameter] = len(self._order)
                parameter.register_post_accumulate_grad_hook(self._note)
        for layer in module.modules():
            if isinstance(layer, _BatchNorm) and layer.track_running_stats:
                assert layer.running_mean is not None
                assert layer.running_var is not None
                self._statistics += [layer.running_mean, layer.running_var]

    def _note(self, parameter: Tensor) -> None:
        if not self._arrived:
            Variable._execution_engine.queue_callback(self._average)
        self._arrived.add(parameter)

    def _average(self) -> None:
        """Run by autograd when a backward pass is over."""
        arrived = sorted(self._arrived, key=self._order.__getitem__)
        self._arrived.clear()
        gradients = [parameter.grad for parameter in arrived if parameter.grad is not None]
        average_([*gradients, *self._statistics], self.world, self._share())


@torch.no_grad()
def average_(tensors: list[Tensor], world: World, share: float) -> None:
    """Replace tensors by their weighted mean over the ranks, sum_r share_r / N · tensor_r, in place.

    Args:
        tensors: The same shapes on every rank.
        world: The N ranks.
        share: This rank's weight; the weights of all ranks sum to N.
    """
    waiting = []
    for bucket in _buckets(tensors):
        whole = len(bucket) == 1 and bucket[0].is_contiguous()
        flat = bucket[0].view(-1) if whole else torch.cat([tensor.reshape(-1) for tensor in bucket])
        flat.mul_(share / world.size)
        waiting.append((bucket, flat, whole, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, whole, work in waiting:
        assert work is not None
        work.wait()
        if whole:
            continue
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)])


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in groups of one type and device: large ones alone, where they lie, small ones together."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in group:
            length = tensor.numel() * tensor.element_size()
            if length >= ALONE_BYTES:
                yield [tensor]
                continue
            bucket.append(tensor)
            size += length
            if size >= BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket
