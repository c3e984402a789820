"""Training for interval bounds, and noise as augmentation: what the losses are, and that they do their work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iclr18cli.attack.threat import Threat
from iclr18cli.certify.bounds import margins
from iclr18cli.certify.bounds.training import Ramp, interval_loss, robust_loss_bound
from iclr18cli.data.augment import GaussianNoise
from iclr18cli.data.registry import open_split
from iclr18cli.models.registry import build


def test_at_radius_zero_the_interval_loss_is_the_clean_loss_for_every_weight():
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(6, 4), torch.arange(6) % 3
    clean = F.cross_entropy(net(x), y)
    for kappa in (0.0, 0.3, 1.0):
        assert interval_loss(net, x, y, eps=0.0, kappa=kappa).item() == pytest.approx(clean.item(), rel=1e-5)


def test_no_point_of_the_ball_has_a_larger_loss_than_the_bound():
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(6, 4), torch.arange(6) % 3
    threat = Threat("linf", 0.1)
    bound = robust_loss_bound(net, x, y, threat=threat)
    for seed in range(50):
        z = threat.random(x, torch.Generator().manual_seed(seed))
        assert (F.cross_entropy(net(z), y, reduction="none") <= bound + 1e-5).all()


def test_the_ramp_starts_clean_rises_linearly_and_ends_at_its_targets():
    ramp = Ramp(0.2, 1000, warm=0.1, ramp=0.5, kappa=0.4)
    assert ramp.at(100) == (0.0, 1.0)
    assert ramp.at(350) == pytest.approx((0.1, 0.7))
    assert ramp.at(600) == ramp.at(1000) == pytest.approx((0.2, 0.4))


def test_a_few_epochs_on_digits_make_the_verified_error_small_where_plain_training_leaves_it_at_all():
    train, test = open_split("digits", "train"), open_split("digits", "test")
    verified = {}
    for method in ("plain", "ibp"):
        torch.manual_seed(0)
        net = build("mlp", input_shape=[1, 8, 8], classes=10, hidden=[64], activation="relu")
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        epochs, batch = 25, 64
        ramp, step = Ramp(0.05, epochs * -(-len(train) // batch)), 0
        for _ in range(epochs):
            for index in torch.randperm(len(train)).split(batch):
                step += 1
                eps, kappa = ramp.at(step) if method == "ibp" else (0.0, 1.0)
                loss = interval_loss(net, train.inputs(index), train.y[index], eps=eps, kappa=kappa)
                optimizer.zero_grad()
                loss.backward()
                assert all(p.grad.isfinite().all() for p in net.parameters())
                optimizer.step()
        found = margins(net, test.inputs(), test.y, threat=Threat("linf", 0.05), method="ibp")
        sure = found.scatter(1, test.y[:, None], torch.inf).amin(1) > 0
        verified[method] = 1 - sure.double().mean().item()
    assert verified["ibp"] < 0.35
    assert verified["ibp"] < verified["plain"] - 0.3


def test_noise_has_the_moments_it_says_and_leaves_the_batch_alone():
    x = torch.full((2000, 50), 0.5)
    noisy = GaussianNoise(0.25)(x, torch.Generator().manual_seed(0))
    assert (noisy - x).mean().item() == pytest.approx(0, abs=0.003)
    assert (noisy - x).std().item() == pytest.approx(0.25, rel=0.02)
    assert noisy.min() < 0  # nothing is clipped
    assert (x == 0.5).all()
    again = GaussianNoise(0.25)(x, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)
