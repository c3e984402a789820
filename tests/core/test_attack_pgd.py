"""Threat sets and our own PGD: closed forms on linear models, invariants, and what must be left untouched."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from iclr18cli.attack.losses import objective
from iclr18cli.attack.pgd import fgsm, noise, pgd, steepest
from iclr18cli.attack.threat import Budget, Threat, onto_l1_ball, onto_l1_ball_in_box, unit
from iclr18cli.errors import UserError


def linear(weight: Tensor, bias: float = 0.0) -> nn.Linear:
    """Return logits (w.x + b, -(w.x + b)) / 2: the margin is w.x + b."""
    net = nn.Linear(len(weight), 2).to(weight.dtype)
    with torch.no_grad():
        net.weight.copy_(torch.stack([weight, -weight]) / 2)
        net.bias.copy_(torch.tensor([bias, -bias]) / 2)
    return net


def dual(weight: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(weight, {"l2": 2, "linf": 1, "l1": torch.inf}[norm])


def curved(seed: int = 0, inputs: int = 6, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, classes)).double()


def points(n: int, d: int, seed: int = 1) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_pgd_breaks_a_linear_model_exactly_when_eps_exceeds_the_distance_to_its_boundary(norm, loss):
    w = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = linear(w, 0.3)
    y = net(x).argmax(1)
    distance = (x @ w + 0.3).abs() / dual(w, norm)  # Hölder
    for eps in distance.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist():
        z = pgd(net, x, y, threat=Threat(norm, eps * (1 + 1e-9), None), budget=Budget(steps=20, restarts=1, loss=loss))
        broken = net(z).argmax(1) != y
        far = (distance / eps - 1).abs() > 1e-6
        assert torch.equal(broken[far], (distance < eps)[far])
        assert 0 < broken.sum() < 50


def test_pgd_reaches_the_closed_form_maximum_of_a_linear_margin():
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    net, x, y = linear(w, 9.0), torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0])
    for norm in ("l2", "linf", "l1"):
        z = pgd(net, x, y, threat=Threat(norm, 0.7, None), budget=Budget(steps=10, restarts=1, loss="margin"))
        assert (z @ w).item() == pytest.approx(-0.7 * dual(w, norm).item(), rel=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_kept_iterate_is_never_worse_than_the_last_one_nor_than_the_input(norm):
    class Wavy(nn.Module):
        """Class 0 wins everywhere, by a margin with many maxima and minima."""

        def forward(self, x: Tensor) -> Tensor:
            margin = 3 + (9 * x).sin().sum(1)
            return torch.stack([margin, torch.zeros_like(margin)], 1)

    net, x = Wavy(), points(40, 2)
    y = net(x).argmax(1)
    threat, steps = Threat(norm, 0.4, (0.0, 1.0)), 7
    budget = Budget(steps=steps, restarts=1, step_size=0.5)  # far too long: the path jumps about
    z = x.clone()
    for _ in range(steps):
        z.requires_grad_()
        (g,) = torch.autograd.grad(objective(net(z), y, loss="cross-entropy").sum(), z)
        z = threat.bring_back(z.detach() + 0.5 * steepest(g, threat, z.detach()), x)
    best = pgd(net, x, y, threat=threat, budget=budget)
    loss = lambda p: objective(net(p), y, loss="cross-entropy")
    assert (loss(best) >= loss(z) - 1e-12).all()
    assert (loss(best) >= loss(x) - 1e-12).all()
    assert (loss(best) > loss(z) + 1e-3).any()  # or this test would not tell best from last


def test_more_restarts_never_break_fewer_points():
    net, x = curved(3), points(200, 6)
    y = net(x).argmax(1)
    threat = Threat("linf", 0.08, None)
    broken = [
        net(pgd(net, x, y, threat=threat, budget=Budget(steps=2, restarts=r, step_size=0.08))).argmax(1) != y
        for r in (1, 2, 4, 8)
    ]
    for few, many in itertools.pairwise(broken):
        assert (many | ~few).all()


def test_random_restarts_escape_a_start_without_gradient():
    class Flat(nn.Module):
        """Class 0 wins, by a margin that is constant near 0 and falls outside |x| > 0.2."""

        def forward(self, x: Tensor) -> Tensor:
            margin = 1 - 4 * (x[:, 0].abs() - 0.2).clamp(min=0)
            return torch.stack([margin, torch.zeros_like(margin)], 1)

    x, y, threat = torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), Threat("linf", 0.5, None)
    stuck = pgd(Flat(), x, y, threat=threat, budget=Budget(restarts=1))
    assert torch.equal(stuck, x)
    z = pgd(Flat(), x, y, threat=threat, budget=Budget(restarts=12))
    assert (Flat()(z).argmax(1) != y).all()


def test_a_zero_or_tiny_gradient_gives_no_nan_and_keeps_its_direction():
    assert unit(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert unit(torch.tensor([[3e-30, -4e-30]]))[0].tolist() == pytest.approx([0.6, -0.8])
    assert steepest(torch.tensor([[math.nan, 2.0]]), Threat("l2", 1.0)).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_a_points_path_does_not_depend_on_its_batch(norm):
    net, x = curved(), points(30, 6)
    y, threat, budget = net(x).argmax(1), Threat(norm, 0.05, (0.0, 1.0)), Budget(steps=10, restarts=1)
    together = pgd(net, x, y, threat=threat, budget=budget)
    alone = torch.cat([pgd(net, x[i : i + 1], y[i : i + 1], threat=threat, budget=budget) for i in range(30)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["l2", "linf", "l1"]),
    eps=st.floats(0, 3),
    shape=st.sampled_from([(2,), (5,), (1, 4, 4), (3, 2, 2, 2)]),
    domain=st.sampled_from([None, (0.0, 1.0), (-1.0, 1.0), (-2.5, 0.5)]),
    seed=st.integers(0, 1000),
    attack=st.sampled_from([pgd, noise, fgsm]),
)
def test_attacks_never_leave_the_ball_or_the_domain(norm, eps, shape, domain, seed, attack):
    draw = torch.Generator().manual_seed(seed)
    low, high = domain or (-3.0, 3.0)
    x = low + (high - low) * torch.rand(4, *shape, generator=draw)
    x = torch.where(torch.rand(x.shape, generator=draw) < 0.3, torch.full_like(x, low), x)  # corners of the domain too
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3))
    threat = Threat(norm, eps, domain)
    y = torch.randint(3, (4,), generator=draw)
    z = attack(net, x, y, threat=threat, budget=Budget(steps=3, restarts=2), generator=draw)
    assert (threat.check(z, x) <= eps * (1 + 1e-5) + 1e-5).all()
    if domain:
        assert z.min() >= low - 1e-6
        assert z.max() <= high + 1e-6


def test_random_starts_are_uniform_in_the_ball():
    x, draw = torch.zeros(20000, 2), torch.Generator().manual_seed(0)
    radius = Threat("l2", 2.0, None).random(x, draw).norm(dim=1)
    assert radius.max() <= 2 * (1 + 1e-6)
    assert (radius < 1).double().mean().item() == pytest.approx(0.25, abs=0.015)  # area of the half disc
    box = Threat("linf", 2.0, None).random(x, draw)
    assert (box.abs() < 1).all(1).double().mean().item() == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize(
    ("norm", "inside"), [("l2", [0.6, 0.8, 0.0]), ("linf", [1.0, 1.0, 0.0]), ("l1", [0.0, 1.0, 0.0])]
)
def test_projection_has_the_values_worked_out_by_hand(norm, inside):
    threat = Threat(norm, 1.0, None)
    assert threat.project(torch.tensor([[3.0, 4.0, 0.0]]))[0].tolist() == pytest.approx(inside)
    assert torch.equal(threat.project(torch.zeros(1, 3)), torch.zeros(1, 3))


def test_the_check_finds_what_left_the_threat_set():
    x = torch.full((1, 4), 0.5)
    for z, threat in [
        (x + 0.1001, Threat("linf", 0.1)),
        (x + 0.0501, Threat("l2", 0.1)),
        (x + 0.6, Threat("linf", 1.0)),
        (x * math.nan, Threat("l2", 1.0, None)),
        (x[:, :2], Threat("l2", 1.0)),
    ]:
        with pytest.raises(RuntimeError):
            threat.check(z, x)
    assert Threat("l2", 0.1).check(x + 0.05, x).item() == pytest.approx(0.1)


@pytest.mark.parametrize("attack", [pgd, noise])
def test_inputs_outside_the_declared_range_are_refused_with_the_range_seen(attack):
    net, y = nn.Linear(2, 2), torch.tensor([0])
    with pytest.raises(UserError, match=r"\[-2, 3\]"):
        attack(net, torch.tensor([[-2.0, 3.0]]), y, threat=Threat("linf", 0.1, (0.0, 1.0)))
    with pytest.raises(UserError, match="NaN"):
        attack(net, torch.tensor([[math.nan, 0.0]]), y, threat=Threat("linf", 0.1, None))


def test_flags_gradients_and_statistics_of_the_model_are_untouched():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)).train()
    net[1].eval()
    net[4].weight.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = ({k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()],
              [p.requires_grad for p in net.parameters()])  # fmt: skip
    x = torch.rand(6, 4, requires_grad=True)
    z = pgd(net, x, torch.zeros(6, dtype=torch.int64), threat=Threat("linf", 0.1))
    assert all(torch.equal(v, before[0][k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == before[1]
    assert [p.requires_grad for p in net.parameters()] == before[2]
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert all(p.grad is None for name, p in net.named_parameters() if name != "0.weight")
    assert x.grad is None
    assert not z.requires_grad


def test_pgd_works_inside_no_grad_and_inference_mode():
    net, x = curved(), points(5, 6)
    y, threat, budget = net(x).argmax(1), Threat("l2", 0.3, None), Budget(steps=5, restarts=2)
    expected = pgd(net, x, y, threat=threat, budget=budget)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(pgd(net, x.clone(), y, threat=threat, budget=budget), expected)


@pytest.mark.parametrize("attack", [pgd, noise])
def test_the_generator_decides_everything_random_and_the_global_one_is_untouched(attack):
    net, x = curved(), points(30, 6)
    y, threat = net(x).argmax(1), Threat("l2", 0.02, None)
    budget = Budget(steps=2, restarts=3)
    state = torch.get_rng_state()
    run = lambda seed: attack(net, x, y, threat=threat, budget=budget, generator=torch.Generator().manual_seed(seed))
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first, again)
    assert attack is pgd or not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_targeted_pgd_reaches_the_target_and_nothing_else_counts():
    net = nn.Linear(2, 3).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        net.bias.zero_()
    x, y = torch.tensor([[0.5, 0.0]], dtype=torch.float64), torch.tensor([0])
    for target in (1, 2):
        z = pgd(net, x, y, threat=Threat("l2", 2.0, None), targets=torch.tensor([target]))
        assert net(z).argmax(1).item() == target


def test_eps_zero_gives_the_input_back():
    net, x = curved(), points(3, 6)
    for attack in (pgd, noise):
        assert torch.equal(attack(net, x, net(x).argmax(1), threat=Threat("l2", 0.0, None)), x)


def test_a_model_without_gradient_is_refused_by_pgd_and_served_by_noise():
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot((x[:, 0] > 0.5).long(), 2).float()

    x, y = torch.tensor([[0.45, 0.0]]), torch.tensor([0])
    with pytest.raises(UserError, match="noise"):
        pgd(Rounded(), x, y, threat=Threat("linf", 0.1))
    assert Rounded()(noise(Rounded(), x, y, threat=Threat("linf", 0.1))).argmax(1).item() == 1


def test_the_margin_climbs_where_cross_entropy_is_saturated():
    net = linear(torch.tensor([300.0, 0.0]), 0.0)  # float32: p_y rounds to 1 at a margin of 150
    x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    threat = Threat("l2", 0.6, None)
    z = pgd(net, x, y, threat=threat, budget=Budget(steps=10, restarts=1, loss="margin"))
    assert net(z).argmax(1).item() == 1
    assert objective(net(x), y, loss="margin").item() == pytest.approx(-150)


@pytest.mark.parametrize(
    "wrong",
    [lambda: Budget(steps=0), lambda: Budget(restarts=0), lambda: Budget(step_size=-1), lambda: Threat("l3", 1),
     lambda: Threat("l2", -1), lambda: Threat("l2", math.nan), lambda: Threat("l2", 1, (1.0, 0.0))],
)  # fmt: skip
def test_impossible_threats_and_budgets_are_refused(wrong):
    with pytest.raises(ValueError, match="received"):
        wrong()


@pytest.mark.parametrize("attack", [pgd, noise])
def test_a_model_left_in_training_mode_is_attacked_as_it_predicts(attack):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    x, threat = torch.rand(10, 4), Threat("l2", 0.2)
    y, budget = net(x).argmax(1), Budget(steps=4, restarts=2)
    expected = attack(net, x, y, threat=threat, budget=budget)
    mean = net[1].running_mean.clone()
    assert torch.equal(attack(net.train(), x, y, threat=threat, budget=budget), expected)
    assert torch.equal(net[1].running_mean, mean)
    assert net[3].training


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_noise_also_tries_the_extreme_points_of_the_ball(norm):
    w = torch.tensor([1.0, -1.0])
    net, x, y = linear(w, 1.0), torch.zeros(1, 2), torch.tensor([0])
    reach = 1.0 / dual(w, norm).item()
    eps = reach * (1.003 if norm == "l2" else 1.00001)  # what is uniform in the ball all but never lands behind that
    z = noise(net, x, y, threat=Threat(norm, eps, None), budget=Budget(steps=300, restarts=1))
    assert net(z).argmax(1).item() == 1


def test_an_l1_step_moves_the_one_percent_of_coordinates_with_the_largest_gradient_that_can_move():
    gradient = torch.zeros(1, 300)
    gradient[0, [3, 50, 120, 299]] = torch.tensor([-4.0, 2.0, 3.0, -1.0])
    step = steepest(gradient.reshape(1, 3, 100), Threat("l1", 1.0)).flatten()
    assert step[[3, 50, 120]].tolist() == pytest.approx([-1 / 3, 1 / 3, 1 / 3])
    assert step.abs().sum().item() == pytest.approx(1)
    z = torch.full((1, 300), 0.5)
    z[0, 3], z[0, 50] = 0.0, 1.0  # both at the edge they would be moved over
    step = steepest(gradient, Threat("l1", 1.0), z)[0]
    assert step.nonzero().flatten().tolist() == [120, 299]
    assert step[[120, 299]].tolist() == [0.5, -0.5]
    assert torch.equal(steepest(gradient, Threat("l1", 1.0, None), z), steepest(gradient, Threat("l1", 1.0)))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.floats(0, 6), d=st.integers(1, 12), spread=st.floats(0.05, 3))
def test_the_projection_onto_l1_ball_and_box_is_that_of_bisection(seed, radius, d, spread):
    draw = torch.Generator().manual_seed(seed)
    delta = spread * torch.randn(5, d, generator=draw, dtype=torch.float64)
    room = torch.rand(5, d, generator=draw, dtype=torch.float64)
    room = torch.where(torch.rand(5, d, generator=draw) < 0.3, 0.0, room)
    low, high = torch.zeros(5, 1, dtype=torch.float64), delta.abs().amax(1, keepdim=True)
    shrink = lambda threshold: torch.minimum((delta.abs() - threshold).clamp(min=0), room)
    for _ in range(80):  # the multiplier of |d|_1 <= radius
        middle = (low + high) / 2
        over = shrink(middle).sum(1, keepdim=True) > radius
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    exact = torch.where(shrink(0).sum(1, keepdim=True) <= radius, shrink(0), shrink(high)) * delta.sign()
    assert torch.allclose(onto_l1_ball_in_box(delta, room, radius), exact, rtol=0, atol=1e-9)
    wide = onto_l1_ball_in_box(delta, torch.full_like(room, 1e9), radius)
    assert torch.allclose(wide, onto_l1_ball(delta, radius), rtol=0, atol=1e-9)


def test_an_l1_point_is_brought_back_to_the_nearest_of_ball_and_domain_together():
    threat, x = Threat("l1", 1.0), torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64)
    # The first coordinate cannot move; clipping after the projection would have spent most of eps on it.
    z = threat.bring_back(x + torch.tensor([[-5.0, 0.4, -0.3]], dtype=torch.float64), x)
    assert z.tolist()[0] == pytest.approx([0.0, 0.9, 0.2])


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_fgsm_is_one_step_of_length_eps_that_breaks_what_a_linear_model_allows(norm):
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    net, x = linear(w, 0.3), torch.randn(80, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, distance = net(x).argmax(1), (x @ w + 0.3).abs() / dual(w, norm)
    threat = Threat(norm, distance.median().item() * 1.0001, None)
    z = fgsm(net, x, y, threat=threat)
    assert threat.check(z, x).tolist() == pytest.approx([threat.eps] * 80)
    assert torch.equal(net(z).argmax(1) != y, distance < threat.eps)
    wrong = fgsm(net, x, 1 - y, threat=threat)
    assert torch.equal(wrong, x)
    assert torch.equal(fgsm(net, x, y, threat=threat, targets=1 - y), z)
    with torch.inference_mode():
        assert torch.equal(fgsm(net, x.clone(), y.clone(), threat=threat), z)


@pytest.mark.parametrize("loss", ["cross-entropy", "margin", "dlr"])
def test_targets_are_reached_with_every_loss_as_often_as_they_can_be(loss):
    torch.manual_seed(0)
    net, x = nn.Linear(5, 4).double(), points(40, 5)
    y = net(x).argmax(1)
    targets = (y + 1) % 4
    budget = Budget(steps=30, restarts=2, loss=loss)
    z = pgd(net, x, y, threat=Threat("l2", 9.0, None), budget=budget, targets=targets)
    assert (net(z).argmax(1) == targets).float().mean() > 0.9
    near = pgd(net, x, y, threat=Threat("l2", 1e-4, None), budget=budget, targets=targets)
    assert torch.equal(net(near).argmax(1) == targets, torch.zeros(40, dtype=torch.bool))
    assert torch.equal(pgd(net, x, y, threat=Threat("l2", 9.0, None), targets=y), x)  # reached already


def test_every_step_is_one_pass_and_broken_examples_leave_the_batch():
    net, x = curved(), points(64, 6)
    y, sizes = net(x).argmax(1), []
    hook = net.register_forward_hook(lambda *seen: sizes.append(len(seen[2])))
    pgd(net, x, y, threat=Threat("linf", 1e-5, None), budget=Budget(steps=10, restarts=2))
    assert sizes == [64] * 22
    sizes.clear()
    pgd(net, x, y, threat=Threat("linf", 2.0, None), budget=Budget(steps=40, restarts=5))
    hook.remove()
    assert sum(sizes) < 64 * 20
