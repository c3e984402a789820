"""A 2-4-2-2 network and two blobs, small enough for brute force; and attacks of every kind within a budget."""

from __future__ import annotations

import math

import torch
from torch import nn

from iclr18cli.certify.distributional import distributional_attack, within_budget
from iclr18cli.certify.dual import value_and_gradient
from iclr18cli.data.tensors import Split


def small_net(activation: type[nn.Module] = nn.ELU) -> nn.Sequential:
    """2-4-2-2, trained a little on two blobs so that the losses differ between points."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 4), activation(), nn.Linear(4, 2), activation(), nn.Linear(2, 2)).double()
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 1.5)
    x, y = blobs(200)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x.double()), y).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return net.eval()


def blobs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 2
    return torch.randn(n, 2, generator=generator) + 1.5 * (2.0 * y[:, None] - 1), y


def split_of(n: int = 60, split: str = "test") -> Split:
    return Split(*blobs(n), ("a", "b"), "blobs", split, None)


def adversaries(loss, x, y, rho, box=None):
    """Yield points within the budget: ours, random ones, one norm ball for all, everything on the best few."""
    yield distributional_attack(loss, x, y, rho, box=box).points
    for _ in range(5):
        yield within_budget(x, x + torch.randn_like(x), rho, box=box)
    gradient = value_and_gradient(loss, x, y)[1]
    yield within_budget(x, x + gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-12), rho, box=box)
    z = x.clone()
    for _ in range(50):
        gradient = value_and_gradient(loss, z, y)[1]
        z = within_budget(x, z + 0.2 * math.sqrt(rho) * gradient / gradient.norm(dim=1, keepdim=True), rho, box=box)
    yield z
    axis = torch.linspace(-4, 4, 81, dtype=x.dtype)
    grid = torch.cartesian_prod(axis, axis)
    for i in range(len(x)):
        reach = grid[(grid - x[i]).square().sum(1) <= rho * len(x)]
        if len(reach) and box is None:
            z = x.clone()
            z[i] = reach[loss(reach, y[i].expand(len(reach))).argmax()]
            yield z
