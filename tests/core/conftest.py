"""A network that a user might bring, trained once for all tests of models that no run made."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iclr18cli.data.registry import open_split

MEAN, STD = 0.3, 0.4
"""What the network wants its inputs normalised by."""


@pytest.fixture(scope="session")
def digits():
    """Train a small network on normalised digits: (its weights, points, labels)."""
    data = open_split("digits", "train")
    x, y = data.inputs(), data.y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(150):
            optimiser.zero_grad()
            F.cross_entropy(net((x - MEAN) / STD), y).backward()
            optimiser.step()
    net.eval().requires_grad_(False)
    assert (net((x - MEAN) / STD).argmax(1) == y).float().mean() > 0.97
    return net, x[:200], y[:200]
