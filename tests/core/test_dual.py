"""The dual bound and its ascent: closed forms, branch and bound in two dimensions, the gap in a box."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from iclr18cli.certify.distributional import distributional_attack
from iclr18cli.certify.dual import (
    check_gammas,
    dual_bound,
    dual_gap,
    dual_values,
    lipschitz_bound,
    penalised_ascent,
    taylor_bound,
)
from iclr18cli.certify.problem import per_example_loss
from iclr18cli.certify.smoothness import smoothness
from iclr18cli.certify.sound import certify
from iclr18cli.errors import UserError


def _load(name: str):
    """Import a module beside this file: pytest's importlib mode puts no folder on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


branch_and_bound = _load("branch_and_bound")
small_problem = _load("small_problem")
blobs, small_net, split_of = small_problem.blobs, small_problem.small_net, small_problem.split_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


A = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)


def linear(x, y):
    return x @ A + 0.5


# Closed forms, wrm card section 6.


@pytest.mark.parametrize("gamma", [0.3, 2.0, 50.0])
def test_linear_loss_has_its_closed_transport_phi_and_distance(gamma):
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.zeros(7, dtype=torch.long)
    ascent = penalised_ascent(linear, x, y, gamma=gamma, L=0.0)
    torch.testing.assert_close(ascent.points, x + A / (2 * gamma))
    assert ascent.steps == 2
    values = dual_values(linear, x, y, ascent.points, gamma=gamma, L=0.0)
    torch.testing.assert_close(values.upper, linear(x, y) + A.square().sum() / (4 * gamma))
    torch.testing.assert_close((ascent.points - x).square().sum(1).mean(), A.square().sum() / (4 * gamma**2))


@pytest.mark.parametrize("rho", [1e-4, 0.3, 10.0])
def test_linear_loss_makes_every_rung_and_the_attack_equal_the_exact_worst_case(rho):
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.zeros(9, dtype=torch.long)
    clean = linear(x, y)
    worst = float(clean.mean()) + float(A.norm()) * math.sqrt(rho)
    gamma = float(A.norm()) / (2 * math.sqrt(rho))
    points = penalised_ascent(linear, x, y, gamma=gamma, L=0.0).points
    upper = dual_values(linear, x, y, points, gamma=gamma, L=0.0).upper
    squared = A.square().sum().expand(9)
    for value in (
        lipschitz_bound(clean, rho, K=float(A.norm())),
        taylor_bound(clean, squared, rho, L=0.0),
        dual_bound(upper, rho, gamma=gamma),
    ):
        assert worst <= value <= worst * (1 + 1e-8) + 1e-8
    attack = distributional_attack(linear, x, y, rho)
    assert attack.mean_squared_distance <= rho
    assert attack.value == pytest.approx(worst, rel=1e-4)


def test_quadratic_loss_has_its_closed_transport_and_is_refused_below_half_its_curvature():
    matrix = torch.tensor([[2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)
    slope = torch.tensor([1.0, -2.0], dtype=torch.float64)
    loss = lambda x, y: ((x @ matrix) * x).sum(1) / 2 + x @ slope
    L = float(torch.linalg.eigvalsh(matrix).abs().max())
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.zeros(6, dtype=torch.long)
    for factor in (1.05, 1.5, 8.0):
        gamma = factor * L / 2
        exact = torch.linalg.solve(2 * gamma * torch.eye(2, dtype=torch.float64) - matrix, (2 * gamma * x + slope).T).T
        ascent = penalised_ascent(loss, x, y, gamma=gamma, L=L, tolerance=1e-13, max_steps=2000)
        torch.testing.assert_close(ascent.points, exact, atol=1e-5, rtol=1e-5)
        phi = loss(exact, y) - gamma * (exact - x).square().sum(1)
        for points in (ascent.points, x, exact + torch.randn_like(x)):
            assert (dual_values(loss, x, y, points, gamma=gamma, L=L).upper >= phi - 1e-12).all()
        torch.testing.assert_close(dual_values(loss, x, y, exact, gamma=gamma, L=L).upper, phi)
    with pytest.raises(UserError, match="not above L/2"):
        check_gammas([L / 2], L=L)
    check_gammas([L / 2 * (1 + 1e-6)], L=L)


def test_logistic_regression_has_the_threshold_w_squared_over_eight():
    w = torch.tensor([3.0, 1.0])
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].weight.data.copy_(torch.stack([w, torch.zeros(2)]))
    needed = float(w.square().sum()) / 8
    with pytest.raises(UserError, match="not above L/2") as caught:
        certify(net, split_of(), gammas=[0.999 * needed], rhos=[0.01])
    assert f"{needed:.4g}" in caught.value.fix
    (found,) = certify(net, split_of(), gammas=[1.001 * needed], rhos=[0.01])
    assert found.solver["rungs"]["S2"] < math.inf


def test_logistic_regression_in_one_dimension_is_solved_as_well_as_a_grid_does():
    net = nn.Sequential(nn.Linear(1, 2)).double()
    net[0].weight.data.copy_(torch.tensor([[2.0], [-1.0]]))
    loss, L, gamma = per_example_loss(net, "cross-entropy"), 9 / 4, 1.3
    x, y = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.zeros(9, dtype=torch.long)
    z = torch.linspace(-6, 6, 200_001, dtype=torch.float64)[:, None]
    flat = loss(z, torch.zeros(len(z), dtype=torch.long))
    phi = torch.stack([(flat - gamma * (z[:, 0] - v).square()).max() for v in x[:, 0]])
    points = penalised_ascent(loss, x, y, gamma=gamma, L=L, tolerance=1e-10).points
    upper = dual_values(loss, x, y, points, gamma=gamma, L=L).upper.detach()
    assert (upper >= phi).all()
    torch.testing.assert_close(upper, phi, atol=1e-6, rtol=0)


# The dual bound on networks.


@pytest.mark.parametrize("activation", [nn.ELU, nn.Softplus, nn.Tanh])
@pytest.mark.parametrize("name", ["cross-entropy", "error-probability"])
def test_branch_and_bound_finds_phi_between_the_attained_value_and_the_dual_bound(activation, name):
    net = small_net(activation)
    known = smoothness(net, (2,), loss=name)
    loss = per_example_loss(net.requires_grad_(False), name)
    x, y = blobs(6)
    x = x.double()
    for factor in (1.02, 2.0):
        gamma = factor * known.L / 2
        points = penalised_ascent(loss, x, y, gamma=gamma, L=known.L, tolerance=1e-9).points
        values = dual_values(loss, x, y, points, gamma=gamma, L=known.L)
        rough = dual_values(loss, x, y, x + 0.05, gamma=gamma, L=known.L)
        for i in range(len(x)):
            low, high = branch_and_bound.phi(loss, x[i], y[i], gamma=gamma, K=known.K, L=known.L, tolerance=1e-6)
            assert low <= high <= low + 1e-5
            assert values.attained[i] <= high
            assert low <= values.upper[i] + 1e-12
            assert values.upper[i] <= high + values.gap[i]
            assert low <= rough.upper[i]


def test_branch_and_bound_agrees_with_a_grid_where_the_problem_is_not_concave():
    net = small_net()
    known = smoothness(net, (2,))
    loss = per_example_loss(net.requires_grad_(False), "cross-entropy")
    x, y = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor(0)
    low, high = branch_and_bound.phi(loss, x, y, gamma=0.5, K=known.K, L=known.L, tolerance=1e-3)
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis) + x
    best = (loss(grid, y.expand(len(grid))) - 0.5 * (grid - x).square().sum(1)).max()
    assert best <= high
    assert low >= best - 1e-2


def test_phi_falls_with_gamma_is_convex_in_it_and_tends_to_the_clean_loss():
    net = small_net().requires_grad_(False)
    known, loss = smoothness(net, (2,)), per_example_loss(net, "cross-entropy")
    x, y = blobs(20)
    x = x.double()
    gammas = known.L / 2 * torch.linspace(1.1, 6, 9, dtype=torch.float64)
    phi = []
    for gamma in gammas.tolist():
        points = penalised_ascent(loss, x, y, gamma=gamma, L=known.L, tolerance=1e-12, max_steps=500).points
        phi.append(float(dual_values(loss, x, y, points, gamma=gamma, L=known.L).upper.mean()))
    steps = torch.tensor(phi).diff()
    assert (steps < 0).all()
    assert (steps.diff() > -1e-9).all()
    huge = dual_values(loss, x, y, x, gamma=1e9, L=known.L).upper
    torch.testing.assert_close(huge, loss(x, y), atol=1e-6, rtol=0)


@pytest.mark.parametrize("box", [(0.0, 1.0), (-0.3, 0.7)])
def test_the_gap_in_a_box_is_the_maximum_over_a_dense_grid(box):
    gamma, L = 2.0, 1.5
    r, z = 4 * torch.randn(12, 2, dtype=torch.float64), torch.rand(12, 2, dtype=torch.float64)
    axis = torch.linspace(*box, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    s = grid[None] - z[:, None]
    best = ((r[:, None] * s).sum(2) - (gamma - L / 2) * s.square().sum(2)).amax(1)
    gap = dual_gap(r, z, gamma=gamma, L=L, box=box)
    assert (gap >= best - 1e-12).all()
    torch.testing.assert_close(gap, best, atol=2e-4, rtol=0)
    assert (gap <= dual_gap(r, z, gamma=gamma, L=L) + 1e-12).all()


def test_every_point_gives_a_valid_bound_in_a_box():
    net = small_net().requires_grad_(False)
    known, loss = smoothness(net, (2,)), per_example_loss(net, "cross-entropy")
    gamma, box = 0.6 * known.L, (-1.0, 1.0)
    x, y = torch.rand(5, 2, dtype=torch.float64) * 2 - 1, torch.arange(5) % 2
    axis = torch.linspace(*box, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for i in range(5):
        objective = loss(grid, y[i].expand(len(grid))) - gamma * (grid - x[i]).square().sum(1)
        for point in (x[i], torch.zeros(2), torch.tensor([5.0, -3.0])):
            upper = dual_values(loss, x[i : i + 1], y[i : i + 1], point[None], gamma=gamma, L=known.L, box=box).upper
            assert upper[0] >= objective.max()


def test_ascent_stays_in_its_box_and_each_example_depends_on_itself_alone():
    net = small_net().requires_grad_(False)
    known, loss = smoothness(net, (2,)), per_example_loss(net, "cross-entropy")
    x, y = torch.rand(16, 2, dtype=torch.float64), torch.arange(16) % 2
    options = {"gamma": 0.55 * known.L, "L": known.L, "tolerance": 1e-10}
    boxed = penalised_ascent(loss, x, y, box=(0.0, 1.0), **options).points
    assert boxed.min() >= 0
    assert boxed.max() <= 1
    whole, order = penalised_ascent(loss, x, y, **options).points, torch.randperm(16)
    torch.testing.assert_close(penalised_ascent(loss, x[order], y[order], **options).points, whole[order])
    torch.testing.assert_close(penalised_ascent(loss, x[3:4], y[3:4], **options).points, whole[3:4])
