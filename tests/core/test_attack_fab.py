"""FAB: targets, radius and restarts. Exact distances and the contract are in test_attack_minimal."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import Tensor, nn

from iclr18cli.attack.fab import fab, fab_targeted
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.data.registry import open_split

BOX = (0.0, 1.0)


class Counted(nn.Module):
    """A model that counts the examples it is shown."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.examples = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.examples += len(x)
        return self.model(x)


def curved(seed: int, inputs: int = 6, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, classes)).double()


def points(n: int, d: int) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_finite_radius_breaks_the_same_points_with_less_work(norm):
    net, x = Counted(curved(0)), points(40, 6)
    y = net(x).argmax(1)
    budget = Budget(steps=30, restarts=1)
    net.examples = 0
    free = fab_targeted(net, x, y, threat=Threat(norm, inf, None), budget=budget)
    work, net.examples = net.examples, 0
    distance = Threat(norm, inf, None).distance(free, x)
    eps = distance.median().item() * 1.01
    z = fab_targeted(net, x, y, threat=Threat(norm, eps, None), budget=budget)
    within = (Threat(norm, inf, None).distance(z, x) <= eps) & (net(z).argmax(1) != y)
    assert torch.equal(within, distance <= eps)
    assert 0 < within.sum() < 40
    assert net.examples < 0.8 * work


def test_more_target_classes_are_never_worse_and_find_a_near_class_that_is_not_the_likeliest():
    net = nn.Linear(2, 3).double()
    with torch.no_grad():  # class 1 is likelier, but its boundary is far: class 2 is what a small step reaches
        net.weight.copy_(torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 5.0]]))
        net.bias.copy_(torch.tensor([1.0, 0.5, 0.0]))
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    threat, distances = Threat("l2", inf, None), []
    for classes in (1, 2, 9):
        z = fab_targeted(net, x, y, threat=threat, budget=Budget(steps=50, restarts=1, target_classes=classes))
        distances.append(threat.distance(z, x).item())
    assert distances[0] == pytest.approx(5.0, rel=1e-3)
    assert distances[1] == distances[2] == pytest.approx(0.2, rel=1e-3)


def test_random_restarts_escape_a_start_without_gradient_and_repeat_with_the_generator():
    class Flat(nn.Module):
        """Class 0 wins, by a margin that is constant near 0 and falls outside |x| > 0.1."""

        def forward(self, x: Tensor) -> Tensor:
            margin = 1 - 4 * (x[:, 0].abs() - 0.1).clamp(min=0)
            return torch.stack([margin, torch.zeros_like(margin)], 1)

    x, y, threat = torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), Threat("linf", 0.5, None)
    for attack in (fab, fab_targeted):
        assert torch.equal(attack(Flat(), x, y, threat=threat, budget=Budget(restarts=1)), x)
        runs = [
            attack(Flat(), x, y, threat=threat, budget=Budget(restarts=6), generator=torch.Generator().manual_seed(s))
            for s in (3, 3, 4)
        ]
        assert (Flat()(runs[0]).argmax(1) != 0).all()
        assert threat.check(runs[0], x).min() >= 0.35  # 4 * (|x| - 0.1) = 1
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])


def test_untargeted_and_targeted_runs_agree_where_there_are_two_classes():
    net, x = curved(3, classes=2), points(20, 6)
    y = net(x).argmax(1)
    threat, budget = Threat("linf", inf, None), Budget(steps=30, restarts=1)
    one, other = (attack(net, x, y, threat=threat, budget=budget) for attack in (fab, fab_targeted))
    assert (net(one).argmax(1) != y).all()
    assert torch.equal(one, other)


def test_real_digits_are_broken_close_by_with_every_point_inside_the_domain(shared_data):
    split = open_split("mnist", "test", data_dir=shared_data)
    x, y = split.inputs(slice(0, 60)), split.y[:60]
    # Ridge regression on one-hot labels of other digits: a model that is right often, without training.
    train, labels = split.inputs(slice(1000, 4000)).flatten(1).double(), split.y[1000:4000]
    rows = torch.cat([train, torch.ones(len(train), 1, dtype=torch.float64)], 1)
    one_hot = nn.functional.one_hot(labels, 10).double()
    solution = torch.linalg.solve(rows.T @ rows + 50 * torch.eye(785, dtype=torch.float64), rows.T @ one_hot)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        net[1].weight.copy_(solution[:-1].T)
        net[1].bias.copy_(solution[-1])
    right = net(x).argmax(1) == y
    assert right.float().mean() > 0.6
    threat = Threat("linf", inf, BOX)
    z = fab_targeted(net, x, y, threat=threat, budget=Budget(steps=20, restarts=1))
    distance = threat.check(z, x)[right]
    assert (net(z).argmax(1) != y).all()
    assert torch.equal(z[~right], x[~right])
    # No point of a linear model is nearer than its nearest plane without the box.
    logits, w = net(x), net[1].weight
    gaps = (logits.gather(1, y[:, None]) - logits) / (w[None] - w[y][:, None]).abs().sum(2).clamp(min=1e-9)
    bound = gaps.scatter(1, y[:, None], inf).amin(1)[right].double()
    assert (distance >= bound * (1 - 1e-4)).all()
    assert distance.median() < 3 * bound.median()
