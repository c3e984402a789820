"""Auto-PGD: closed forms on linear models, the schedule worked out by hand, invariants, and strength against PGD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from iclr18cli.attack.apgd import apgd, apgd_ce, apgd_dlr, apgd_targeted
from iclr18cli.attack.apgd_steps import Halving, Sparse, checkpoints
from iclr18cli.attack.losses import Goal, objective
from iclr18cli.attack.pgd import pgd
from iclr18cli.attack.survivors import Survivors
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.errors import UserError

QUICK = Budget(steps=20, restarts=1)
NORMS = ["linf", "l2", "l1"]


def linear(weight: Tensor, bias: float = 0.0) -> nn.Linear:
    """Return logits (w.x + b, -(w.x + b)) / 2: the margin is w.x + b."""
    net = nn.Linear(len(weight), 2).to(weight.dtype)
    with torch.no_grad():
        net.weight.copy_(torch.stack([weight, -weight]) / 2)
        net.bias.copy_(torch.tensor([bias, -bias]) / 2)
    return net


def dual(weight: Tensor, norm: str) -> float:
    order = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    return torch.linalg.vector_norm(weight, order).item()


@pytest.fixture(scope="module")
def digits():
    """Return a small net trained for a second on 8x8 digits, and the points of 300 others that it gets right."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target, dtype=torch.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.005)
        for _ in range(10):
            for index in torch.randperm(1400).split(100):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[index]), y[index]).backward()
                optimiser.step()
    net.eval()
    x, y = x[1400:1700], y[1400:1700]
    right = net(x).argmax(1) == y
    assert right.float().mean() > 0.85
    return net, x[right], y[right]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_a_linear_model_is_broken_exactly_where_eps_exceeds_the_distance_to_its_boundary(norm, loss):
    w = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = linear(w, 0.3)
    y, distance = net(x).argmax(1), (x @ w + 0.3).abs() / dual(w, norm)
    for eps in distance.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist():
        z = apgd(net, x, y, threat=Threat(norm, eps, None), budget=Budget(steps=60, restarts=1, loss=loss))
        broken, far = net(z).argmax(1) != y, (distance / eps - 1).abs() > 1e-3
        assert torch.equal(broken[far], (distance < eps)[far])
        assert 0 < broken.sum() < 60


@pytest.mark.parametrize("norm", NORMS)
def test_the_highest_margin_of_a_linear_model_is_reached(norm):
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    net, x, y = linear(w, 9.0), torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0])
    z = apgd(net, x, y, threat=Threat(norm, 0.7, None), budget=Budget(steps=100, restarts=1, loss="margin"))
    assert (z @ w).item() == pytest.approx(-0.7 * dual(w, norm), rel=1e-6)


def test_l1_steps_spend_eps_on_the_coordinates_that_can_still_move():
    w = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    x, y = torch.tensor([[0.4, 0.5, 0.9, 0.9]], dtype=torch.float64), torch.tensor([0])
    z = apgd(linear(w, 9.0), x, y, threat=Threat("l1", 1.0), budget=Budget(steps=100, restarts=1, loss="margin"))
    # 0.4 of eps empties the best coordinate, 0.5 the second, and 0.1 is left for the third.
    assert z.tolist()[0] == pytest.approx([0.0, 0.0, 0.8, 0.9], abs=1e-6)


def test_the_checkpoints_are_those_worked_out_by_hand():
    # p = .22, then + max(.19, .06) = .41, + .16, + .13, + .10, + .07, + .06, + .06
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]
    assert checkpoints(1) == [1]


def test_a_step_is_halved_where_it_rises_too_seldom_or_stalls_without_having_been_halved():
    x = torch.zeros(4, 2)
    run = Survivors(x, Goal("margin", torch.zeros(4, dtype=torch.int64)))
    run.note(x, torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.bool))
    rule = Halving.first(run, Threat("linf", 0.5), dense=True)
    for step in range(22):  # 16 of 22 are fewer than 0.75 * 22 = 16.5; 17 are not
        rule.watch(torch.tensor([step < 16, step < 17, step < 22, step < 16]))
    run.note(x, torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.bool))
    assert rule.adapt(run, Threat("linf", 0.5)).tolist() == [True, False, False, True]
    assert rule.length.tolist() == [0.5, 1.0, 1.0, 0.5]
    for _ in range(19):
        rule.watch(torch.tensor([True, True, True, False]))
    run.note(x, torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.zeros(4, dtype=torch.bool))
    # No new best point: the first was halved last time and goes on, the third was not and is now.
    assert rule.adapt(run, Threat("linf", 0.5)).tolist() == [False, False, True, True]
    assert rule.length.tolist() == [0.5, 1.0, 0.5, 0.25]


def test_an_l1_step_shrinks_until_the_best_point_has_become_sparser():
    x, threat = torch.zeros(1, 100), Threat("l1", 3.0)
    run = Survivors(x, Goal("margin", torch.zeros(1, dtype=torch.int64)))
    rule = Sparse.first(run, threat, dense=True)
    assert (rule.length.item(), rule.moved.item()) == (3.0, pytest.approx(20))
    for value, nonzero, sparser, length in [(1, 90, True, 3.0), (2, 88, False, 2.0), (3, 60, True, 3.0)]:
        z = torch.where(torch.arange(100) < nonzero, 0.01, 0.0)[None]
        run.note(z, torch.tensor([float(value)]), torch.tensor([False]))
        assert rule.adapt(run, threat).item() is sparser
        assert rule.length.item() == pytest.approx(length)
        assert rule.moved.item() == pytest.approx(nonzero / 1.5)
    for _ in range(10):
        rule.adapt(run, threat)
    assert rule.length.item() == pytest.approx(0.3)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.45), ("l1", 2.0)])
def test_it_leaves_no_more_digits_than_pgd_when_it_tries_every_target(digits, norm, eps):
    net, x, y = digits
    threat, slack = Threat(norm, eps), 0.015 * len(x)  # a random start against PGD's, which is x
    left = lambda attack, **budget: (
        net(attack(net, x, y, threat=threat, budget=Budget(steps=40, restarts=1, **budget))).argmax(1) == y
    ).sum().item()  # fmt: skip
    cross_entropy, ratio, targeted, madry = left(apgd_ce), left(apgd_dlr), left(apgd_targeted), left(pgd)
    assert 0.05 * len(x) < cross_entropy < 0.9 * len(x)
    assert targeted <= madry
    assert targeted <= min(cross_entropy, ratio) + slack
    if norm != "l1":
        assert cross_entropy <= madry + slack
        assert ratio <= left(pgd, loss="dlr") + slack


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.floats(0, 3),
    shape=st.sampled_from([(2,), (5,), (1, 4, 4), (3, 2, 2, 2)]),
    domain=st.sampled_from([None, (0.0, 1.0), (-2.5, 0.5)]),
    seed=st.integers(0, 1000),
    attack=st.sampled_from([apgd_ce, apgd_dlr, apgd_targeted]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_points_stay_in_the_ball_and_in_the_domain_and_are_never_worse_than_the_input(
    norm, eps, shape, domain, seed, attack, dtype
):
    draw = torch.Generator().manual_seed(seed)
    low, high = domain or (-3.0, 3.0)
    x = low + (high - low) * torch.rand(4, *shape, generator=draw, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=draw) < 0.3, torch.full_like(x, low), x)  # corners of the domain too
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    y, threat = torch.randint(4, (4,), generator=draw), Threat(norm, eps, domain)
    z = attack(net, x, y, threat=threat, budget=Budget(steps=12, restarts=2, target_classes=2), generator=draw)
    threat.check(z, x)
    wrong, right = net(x).argmax(1) != y, net(z).argmax(1) == y
    assert torch.equal(z[wrong], x[wrong])
    if attack is not apgd_targeted:
        loss = "dlr" if attack is apgd_dlr else "cross-entropy"
        value = lambda p: objective(net(p), y, loss=loss)[right]
        assert (value(z) >= value(x) - 1e-5).all()


def test_more_restarts_never_return_a_worse_point(digits):
    net, x, y = digits
    threat, budget = Threat("l2", 0.05), Budget(steps=3, restarts=1, loss="margin")
    value = []
    for restarts in (1, 4):
        more = Budget(steps=3, restarts=restarts, loss="margin")
        z = apgd(net, x, y, threat=threat, budget=more, generator=torch.Generator().manual_seed(0))
        assert z.dtype == x.dtype
        value.append(objective(net(z), y, loss="margin"))
    assert budget.restarts == 1
    still = value[1] < 0
    assert (value[1] >= value[0] - 1e-5)[still].all()
    assert (value[1] > value[0]).any()


def test_broken_examples_leave_the_batch(digits):
    net, x, y = digits
    sizes = []

    class Counting(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            sizes.append(len(z))
            return net(z)

    apgd(Counting(), x, y, threat=Threat("linf", 0.5), budget=Budget(steps=100, restarts=3))
    assert sizes[0] == sizes[1] == len(x)
    assert sum(sizes) < 15 * len(x)
    sizes.clear()
    apgd(Counting(), x, y, threat=Threat("linf", 1e-4), budget=Budget(steps=10, restarts=1))
    assert sizes == [len(x)] * (1 + 10 + 1)  # the input, the start and ten steps: one pass each


def test_a_points_result_does_not_depend_on_its_batch(digits):
    net, x, y = (part.double() if i < 2 else part for i, part in enumerate(digits))
    try:
        for norm in NORMS:
            target = torch.full_like(y[:1], 3)
            for aim in ({}, {"targets": target}):
                start = lambda: torch.Generator().manual_seed(3)
                alone = apgd(net, x[:1], y[:1], threat=Threat(norm, 0.02), budget=QUICK, generator=start(), **aim)
                many = {key: value.expand(30) for key, value in aim.items()}
                together = apgd(net, x[:30], y[:30], threat=Threat(norm, 0.02), budget=QUICK, generator=start(), **many)
                assert torch.allclose(alone, together[:1], rtol=0, atol=1e-9)
    finally:
        net.float()


def test_targets_are_reached_and_nothing_else_counts():
    net = nn.Linear(2, 3).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        net.bias.zero_()
    x, y = torch.tensor([[0.5, 0.0]], dtype=torch.float64), torch.tensor([0])
    for target in (1, 2):
        aim = torch.tensor([target])
        z = apgd(net, x, y, threat=Threat("l2", 2.0, None), budget=QUICK, targets=aim)
        assert net(z).argmax(1).item() == target


def test_the_targeted_attack_goes_down_the_list_of_classes_until_one_is_reached():
    class Decoy(nn.Module):
        """Class 1 is likeliest after 0 but out of reach; class 3 is the least likely and wins where x_0 > 1."""

        def forward(self, x: Tensor) -> Tensor:
            zero = 0 * x[:, 0]
            return torch.stack([zero + 1, zero + 0.9, 0.1 * x[:, 1] - 9, 8 * (x[:, 0] - 1) + 1], 1)

    x, y, threat = torch.zeros(5, 2), torch.zeros(5, dtype=torch.int64), Threat("linf", 1.1, None)
    few = apgd_targeted(Decoy(), x, y, threat=threat, budget=Budget(steps=20, restarts=1, target_classes=1))
    assert (Decoy()(few).argmax(1) == 0).all()
    z = apgd_targeted(Decoy(), x, y, threat=threat, budget=Budget(steps=20, restarts=1))
    assert (Decoy()(z).argmax(1) == 3).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_with_fewer_than_four_classes_the_targeted_attack_climbs_the_margin(classes):
    torch.manual_seed(0)
    net, x = nn.Linear(2, classes), torch.randn(30, 2)
    y = net(x).argmax(1)
    z = apgd_targeted(net, x, y, threat=Threat("l2", 9.0, None), budget=QUICK)
    assert (net(z).argmax(1) != y).all()
    with pytest.raises(UserError, match="needs 3 classes"):
        apgd_dlr(nn.Linear(2, 2), x, y.clamp(max=1), threat=Threat("l2", 9.0, None))


@pytest.mark.parametrize("attack", [apgd, apgd_targeted])
@pytest.mark.parametrize("norm", NORMS)
def test_the_generator_decides_everything_random_and_the_global_one_is_untouched(digits, attack, norm):
    net, x, y = (part if i == 0 else part[:40] for i, part in enumerate(digits))
    threat, budget = Threat(norm, 0.01), Budget(steps=5, restarts=1, target_classes=2)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    run = lambda seed: attack(net, x, y, threat=threat, budget=budget, generator=torch.Generator().manual_seed(seed))
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_flags_stay_and_the_callers_gradient_mode_does_not_matter():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 5)).train()
    net[1].eval()
    x, flags = torch.rand(6, 4), [module.training for module in net.modules()]
    y, threat = net.eval()(x).argmax(1), Threat("linf", 0.05)
    expected = [attack(net, x, y, threat=threat, budget=QUICK) for attack in (apgd, apgd_targeted)]
    net.train()[1].eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            own_x, own_y = x.clone(), y.clone()
            found = [attack(net, own_x, own_y, threat=threat, budget=QUICK) for attack in (apgd, apgd_targeted)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [module.training for module in net.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_nothing_to_attack_is_nothing_returned():
    net, none = nn.Linear(3, 5), torch.zeros(0, 3)
    for attack in (apgd, apgd_targeted):
        assert attack(net, none, torch.zeros(0, dtype=torch.int64), threat=Threat("l2", 1.0)).shape == (0, 3)
        x, y = torch.rand(2, 3), torch.tensor([0, 1])
        assert torch.equal(attack(net, x, y, threat=Threat("l1", 0.0)), x)
        with pytest.raises(UserError, match="outside the declared range"):
            attack(net, x + 3, y, threat=Threat("l1", 1.0))
