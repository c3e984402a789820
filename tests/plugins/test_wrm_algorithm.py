"""The exact properties of papers/wrm.md, section 6 (1-9 and 12), in float64 on tiny problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from iclr18_wrm.algorithm import (
    converged_ascent,
    fgm,
    hessian_top,
    ifgm,
    norm_ball_ascent,
    pgm,
    prox_linf_squared,
    robust_surrogate,
    smooth_labels,
    soft_cross_entropy,
    stationarity_residual,
    step_sizes,
    surrogate_ascent,
    transport_cost,
)
from scipy.optimize import minimize
from torch import nn
from torch.nn.functional import cross_entropy

from iclr18cli.models.modes import evaluating

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


@pytest.fixture
def problem():
    """A trained-looking 2-6-3 ELU net with its per-example loss, where gamma = 4 is in the concave regime."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.ELU(), nn.Linear(6, 3)).to(D)
    x, y = randn(40, 2), torch.arange(40) % 3
    return net, x, y, lambda z: cross_entropy(2 * net(z), y, reduction="none")


def solve(loss, x, gamma, **kwargs):
    return converged_ascent(loss, x, gamma=gamma, tolerance=1e-10, max_steps=600, **kwargs)


def quadratic(A, b):
    return lambda z: 0.5 * torch.einsum("bi,ij,bj->b", z, A, z) + z @ b


# 1: linear loss


@pytest.mark.parametrize("schedule", ["authors", "paper", "constant"])
def test_a_linear_loss_moves_every_point_by_a_over_two_gamma(schedule):
    a, x, gamma = randn(5), randn(7, 5, seed=1), 0.7
    # A first step of 1/(2 gamma) lands on the maximiser of a linear loss, and later ones leave it there.
    z = surrogate_ascent(lambda z: z @ a + 3, x, gamma=gamma, steps=4, schedule=schedule, step_size=1 / (2 * gamma))
    torch.testing.assert_close(z, (x + a / (2 * gamma)).expand_as(x), rtol=1e-12, atol=1e-12)
    phi = robust_surrogate(lambda z: z @ a + 3, z, x, gamma=gamma)
    torch.testing.assert_close(phi, x @ a + 3 + a @ a / (4 * gamma), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(transport_cost(z, x), (a @ a / (4 * gamma**2)).expand(7), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cost", ["l2", "linf"])
def test_the_dual_of_a_linear_loss_has_the_dual_norm_at_every_rho(cost):
    a, x = randn(5), randn(7, 5, seed=1)
    loss = lambda z: z @ a + 3
    dual_norm = a.norm() if cost == "l2" else a.abs().sum()
    for rho in (0.01, 0.3, 4.0):
        gamma = (dual_norm / (2 * math.sqrt(rho))).item()  # where gamma rho + phi has its minimum
        certificates = []
        for g in (gamma, 0.9 * gamma, 1.1 * gamma):
            z, residual = solve(loss, x, g, cost=cost)
            assert residual.max() < 1e-9
            certificates.append(g * rho + robust_surrogate(loss, z, x, gamma=g, cost=cost).mean())
        torch.testing.assert_close(certificates[0], loss(x).mean() + dual_norm * math.sqrt(rho))
        assert certificates[0] < min(certificates[1:])


def test_the_infinity_norm_ascent_moves_all_coordinates_of_a_linear_loss_alike():
    a, x, gamma = randn(6), randn(3, 6, seed=1), 0.8
    for schedule in ("authors", "constant"):
        z = surrogate_ascent(lambda z: z @ a, x, gamma=gamma, steps=800, schedule=schedule, step_size=0.3, cost="linf")
        expected = x + a.sign() * a.abs().sum() / (2 * gamma)
        # The last steps of 1/sqrt(t) are short: they approach the maximiser slowly.
        torch.testing.assert_close(z, expected, rtol=0, atol=1e-2 if schedule == "authors" else 1e-9)


# 2: quadratic loss


def test_a_quadratic_loss_has_the_closed_form_maximiser():
    M = randn(4, 4)
    A, b, x, gamma = M + M.T, randn(4, seed=2), randn(6, 4, seed=3), 4.0
    assert 2 * gamma > torch.linalg.eigvalsh(A)[-1]
    z, residual = solve(quadratic(A, b), x, gamma)
    expected = torch.linalg.solve(2 * gamma * torch.eye(4, dtype=D) - A, (2 * gamma * x + b).T).T
    torch.testing.assert_close(z, expected, rtol=1e-8, atol=1e-8)
    assert residual.max() < 1e-8


def test_the_surrogate_blows_up_exactly_at_two_gamma_equal_to_the_largest_curvature():
    A, b, x = torch.diag(torch.tensor([3.0, -5.0], dtype=D)), torch.ones(2, dtype=D), torch.zeros(1, 2, dtype=D)
    above, residual = converged_ascent(quadratic(A, b), x, gamma=1.5 + 0.01, max_steps=2000)
    assert residual.item() < 1e-5
    assert above[0, 0].item() == pytest.approx(1 / 0.02, rel=1e-5)
    for gamma, least in ((1.5 - 0.01, 1e3), (1.0, 1e9)):
        values = []
        for steps in (20, 60, 180):
            z, residual = converged_ascent(quadratic(A, b), x, gamma=gamma, max_steps=steps)
            assert residual.item() > 1
            values.append(robust_surrogate(quadratic(A, b), z, x, gamma=gamma).item())
        assert values[0] < values[1] < values[2]
        assert values[2] > least


# 3: logistic loss


def test_a_logistic_loss_moves_along_its_weight_only_and_has_the_curvature_w_squared_over_four():
    w = randn(5)
    loss = lambda z: nn.functional.softplus(-(z @ w))
    x = torch.cat([randn(6, 5, seed=1), torch.zeros(1, 5, dtype=D)])
    z, _ = solve(loss, x, 1.1 * (w @ w).item() / 8)
    move = z - x
    torch.testing.assert_close(move, torch.outer(move @ w, w) / (w @ w), atol=1e-9, rtol=0)
    curvature = hessian_top(loss, x)
    sigma = torch.sigmoid(x @ w)
    torch.testing.assert_close(curvature, sigma * (1 - sigma) * (w @ w))
    assert curvature[-1].item() == pytest.approx((w @ w).item() / 4)


# 4-6: the surrogate as a function of gamma


def test_mean_phi_plus_gamma_rho_is_the_mean_loss_at_the_perturbed_points(problem):
    _, x, _, loss = problem
    z = surrogate_ascent(loss, x, gamma=4.0)
    phi, rho = robust_surrogate(loss, z, x, gamma=4.0).mean(), transport_cost(z, x).mean()
    torch.testing.assert_close(phi + 4.0 * rho, loss(z).mean(), rtol=1e-14, atol=1e-14)


def test_phi_is_convex_and_decreasing_in_gamma_and_tends_to_the_clean_loss(problem):
    _, x, _, loss = problem
    gammas = torch.linspace(3.0, 9.0, 7, dtype=D)
    phi = torch.stack([robust_surrogate(loss, solve(loss, x, g)[0], x, gamma=g) for g in gammas.tolist()]).detach()
    assert (phi.diff(dim=0) < 0).all()
    assert (phi.diff(n=2, dim=0) > 0).all()
    assert (phi > loss(x)).all()
    far = robust_surrogate(loss, solve(loss, x, 1e7)[0], x, gamma=1e7)
    torch.testing.assert_close(far, loss(x), atol=1e-6, rtol=0)


def test_the_derivative_of_mean_phi_in_gamma_is_minus_rho_and_rho_falls(problem):
    _, x, _, loss = problem
    rho, step = [], 1e-3
    for gamma in (3.5, 5.0, 8.0):
        low, high = (
            robust_surrogate(loss, solve(loss, x, g)[0], x, gamma=g).mean() for g in (gamma - step, gamma + step)
        )
        rho.append(transport_cost(solve(loss, x, gamma)[0], x).mean().item())
        assert ((high - low) / (2 * step)).item() == pytest.approx(-rho[-1], rel=1e-5)
    assert rho[0] > rho[1] > rho[2] > 0


# 7: Danskin


def test_the_parameter_gradient_at_the_maximiser_is_the_derivative_of_phi(problem):
    net, x, _, loss = problem

    def mean_phi():
        with evaluating(net):
            return robust_surrogate(loss, solve(loss, x, 4.0)[0], x, gamma=4.0).mean().item()

    z, _ = solve(loss, x, 4.0)
    gradients = torch.autograd.grad(loss(z).mean(), list(net.parameters()))
    checked = 0
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        for index in range(0, parameter.numel(), 4):
            values = []
            for change in (1e-4, -1e-4):
                with torch.no_grad():
                    parameter.view(-1)[index] += change
                values.append(mean_phi())
                with torch.no_grad():
                    parameter.view(-1)[index] -= change
            assert (values[0] - values[1]) / 2e-4 == pytest.approx(gradient.view(-1)[index].item(), abs=1e-7)
            checked += 1
    assert checked >= 10


# 8: each example alone


@pytest.mark.parametrize(
    "perturb",
    [
        lambda loss, x: surrogate_ascent(loss, x, gamma=2.0),
        lambda loss, x: surrogate_ascent(loss, x, gamma=2.0, cost="linf", schedule="paper", step_size=0.1),
        lambda loss, x: converged_ascent(loss, x, gamma=2.0)[0],
        lambda loss, x: pgm(loss, x, eps=0.3),
        lambda loss, x: hessian_top(loss, x),
        lambda loss, x: hessian_top(loss, x, exact_up_to=0, iterations=2),
    ],
)
def test_permuting_or_splitting_the_batch_changes_nothing(problem, perturb):
    net, x, y, _ = problem

    def run(index):
        return perturb(lambda z: cross_entropy(2 * net(z), y[index], reduction="none"), x[index])

    everything = run(torch.arange(40))
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run(shuffled), everything[shuffled], atol=1e-11, rtol=0)
    torch.testing.assert_close(run(torch.tensor([7])), everything[7:8], atol=1e-11, rtol=0)


def test_the_cost_sums_over_pixels_and_is_squared():
    x = torch.zeros(2, 1, 28, 28)
    z = x.clone()
    z[0] += 0.5
    z[1, 0, 0, 0] = -0.25
    assert transport_cost(z, x).tolist() == [784 * 0.25, 0.0625]
    assert transport_cost(z, x, cost="linf").tolist() == [0.25, 0.0625]
    with pytest.raises(ValueError, match="received cost='l1'"):
        transport_cost(z, x, cost="l1")


# 9: modes, flags, gradients


def test_evaluating_restores_every_flag_and_leaves_gradients_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    net.train()
    net[1].eval()
    net[3].weight.requires_grad_(False)
    net[0].weight.grad = torch.full_like(net[0].weight, 7.0)
    modes, flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    statistics = net[1].running_mean.clone()
    x, y = torch.randn(8, 3), torch.arange(8) % 2

    def ascend_and_fail():
        with evaluating(net) as held:
            assert held is net
            assert not any(m.training for m in net.modules())
            assert not any(p.requires_grad for p in net.parameters())
            surrogate_ascent(lambda z: cross_entropy(net(z), y, reduction="none"), x, gamma=1.0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        ascend_and_fail()
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert (net[0].weight.grad == 7).all()
    assert all(p.grad is None for p in net.parameters() if p is not net[0].weight)
    assert torch.equal(net[1].running_mean, statistics)


def test_no_ascent_makes_parameter_gradients_even_without_freezing(problem):
    net, x, _, loss = problem
    surrogate_ascent(loss, x, gamma=2.0)
    converged_ascent(loss, x, gamma=2.0, max_steps=5)
    pgm(loss, x, eps=0.1)
    hessian_top(loss, x)
    assert all(p.grad is None for p in net.parameters())
    assert not surrogate_ascent(loss, x, gamma=2.0).requires_grad
    assert not x.requires_grad


def test_the_ascent_works_under_no_grad(problem):
    _, x, _, loss = problem
    expected = surrogate_ascent(loss, x, gamma=2.0)
    with torch.no_grad():
        assert torch.equal(surrogate_ascent(loss, x, gamma=2.0), expected)


# 12: the authors' code, and the limit of gamma


def test_the_authors_schedule_is_their_iteration_and_takes_sixteen_gradients(problem):
    _, x, _, loss = problem
    gamma, calls = 0.5 / 1.3, []
    eps = 0.5 / gamma

    def counted(z):
        calls.append(1)
        return loss(z)

    def gradient(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss(z).sum(), z)[0]

    z = x + eps * gradient(x)
    for t in range(15):
        z = z + (eps * gradient(z) - (z - x)) / np.sqrt(t + 2)
    torch.testing.assert_close(surrogate_ascent(counted, x, gamma=gamma, steps=15), z, rtol=1e-10, atol=1e-10)
    assert len(calls) == 16


def test_the_paper_schedule_is_alpha_over_root_t(problem):
    _, x, _, loss = problem
    gamma, z = 2.0, x
    for t in range(1, 6):
        z = z.detach().requires_grad_()
        phi = loss(z) - gamma * (z - x).square().sum(1)
        z = z + 0.2 / t**0.5 * torch.autograd.grad(phi.sum(), z)[0]
    ours = surrogate_ascent(loss, x, gamma=gamma, steps=5, step_size=0.2, schedule="paper")
    torch.testing.assert_close(ours, z.detach(), rtol=1e-12, atol=1e-12)
    assert step_sizes("constant", gamma=1.0, steps=3, step_size=0.2) == [0.2] * 3


def test_a_training_step_at_infinite_gamma_is_a_step_of_erm(problem):
    net, x, _, loss = problem
    z = surrogate_ascent(loss, x, gamma=1e12)
    robust = torch.autograd.grad(loss(z).mean(), list(net.parameters()))
    erm = torch.autograd.grad(loss(x).mean(), list(net.parameters()))
    for ours, theirs in zip(robust, erm, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_bad_settings_are_refused_with_what_was_received():
    x, loss = torch.zeros(1, 2), lambda z: z.sum(1)
    with pytest.raises(ValueError, match=r"received gamma=0"):
        surrogate_ascent(loss, x, gamma=0)
    with pytest.raises(ValueError, match=r"gamma=-1"):
        surrogate_ascent(loss, x, gamma=-1, schedule="paper")
    with pytest.raises(ValueError, match="gamma=nan"):
        converged_ascent(loss, x, gamma=math.nan)
    with pytest.raises(ValueError, match="schedule='adam'"):
        surrogate_ascent(loss, x, gamma=1, schedule="adam")
    with pytest.raises(ValueError, match="cost='l1'"):
        surrogate_ascent(loss, x, gamma=1, cost="l1")
    with pytest.raises(ValueError, match="norm='l1'"):
        pgm(loss, x, eps=1, norm="l1")
    with pytest.raises(ValueError, match="eps=-1"):
        pgm(loss, x, eps=-1)


# The converged solver


@pytest.mark.parametrize(("cost", "box"), [("l2", None), ("linf", None), ("l2", (-1.0, 1.0)), ("linf", (-0.5, 2.0))])
def test_the_converged_ascent_is_monotone_also_outside_the_concave_regime(problem, cost, box):
    _, x, _, loss = problem
    x = x if box is None else x.clamp(*box)
    phi, gamma = loss(x).detach(), 0.05
    for steps in (2, 4, 8, 16, 64, 256):
        z, residual = converged_ascent(loss, x, gamma=gamma, max_steps=steps, cost=cost, box=box)
        new = robust_surrogate(loss, z, x, gamma=gamma, cost=cost).detach()
        assert (new >= phi - 1e-12).all()
        assert box is None or (z.min() >= box[0] and z.max() <= box[1])
        phi = new
    assert residual.median() < 1e-4


def test_the_converged_residual_is_the_stationarity_residual_and_beats_fifteen_steps(problem):
    _, x, _, loss = problem
    z, residual = converged_ascent(loss, x, gamma=0.6, tolerance=1e-8)
    torch.testing.assert_close(residual, stationarity_residual(loss, z, x, gamma=0.6), atol=1e-12, rtol=0)
    assert residual.max() < 1e-8
    few = surrogate_ascent(loss, x, gamma=0.6)
    gain = robust_surrogate(loss, z, x, gamma=0.6) - robust_surrogate(loss, few, x, gamma=0.6)
    assert gain.min() > -1e-12
    assert stationarity_residual(loss, few, x, gamma=0.6).max() > 1e-4


def test_the_gap_of_any_point_is_bounded_by_its_residual():
    M = randn(4, 4)
    A, b, x, gamma = M + M.T, randn(4, seed=2), randn(6, 4, seed=3), 4.0
    loss, L = quadratic(A, b), torch.linalg.eigvalsh(M + M.T)[-1]
    best = robust_surrogate(loss, solve(loss, x, gamma)[0], x, gamma=gamma)
    for z in (x, x + 0.3, randn(6, 4, seed=9)):
        gap = best - robust_surrogate(loss, z, x, gamma=gamma)
        bound = stationarity_residual(loss, z, x, gamma=gamma).square() / (2 * (2 * gamma - L))
        assert (gap >= -1e-10).all()
        assert (gap <= bound + 1e-10).all()


def test_the_converged_ascent_ends_in_single_precision(problem):
    net, x, y, _ = problem
    net = net.float()
    z, residual = converged_ascent(
        lambda z: cross_entropy(net(z), y, reduction="none"), x.float(), gamma=4.0, tolerance=0
    )
    assert z.dtype == torch.float32
    assert residual.max() < 1e-5


def test_a_box_keeps_the_ascent_inside(problem):
    _, x, _, loss = problem
    z = surrogate_ascent(loss, x.clamp(0, 1), gamma=0.1, box=(0.0, 1.0))
    assert z.min() >= 0
    assert z.max() <= 1
    assert (surrogate_ascent(loss, x, gamma=0.1).abs() > x.abs().max()).any()


# The proximal map of the infinity norm


@pytest.mark.parametrize("s", [0.1, 1.0, 7.0])
def test_the_proximal_map_agrees_with_brute_force(s):
    v = randn(5, 6)
    ours = prox_linf_squared(v, s)
    for row, result in zip(v.numpy(), ours.numpy(), strict=True):
        # Epigraph form: |u|_inf is a variable of its own, so the problem is smooth.
        best = minimize(
            lambda p, row=row: 0.5 * ((p[:-1] - row) ** 2).sum() + s / 2 * p[-1] ** 2,
            np.append(row, np.abs(row).max()),
            constraints=[
                {"type": "ineq", "fun": lambda p: p[-1] - p[:-1]},
                {"type": "ineq", "fun": lambda p: p[-1] + p[:-1]},
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(result, best.x[:-1], atol=1e-5)


def test_the_clipping_level_solves_h_of_beta_equal_to_zero():
    v, s = randn(50, 17), torch.linspace(0.01, 50, 50, dtype=D)
    u = prox_linf_squared(v, s)
    beta = u.abs().amax(1)
    h = (v.abs() - beta[:, None]).clamp(min=0).sum(1) - s * beta
    torch.testing.assert_close(h, torch.zeros_like(h), atol=1e-12, rtol=0)
    assert torch.equal(u.sign(), v.sign())
    inside = v.abs() < beta[:, None]
    assert torch.equal(u[inside], v[inside])
    assert torch.equal(prox_linf_squared(v, 0.0), v)
    assert torch.equal(prox_linf_squared(torch.zeros(1, 3), 2.0), torch.zeros(1, 3))


def test_the_proximal_map_works_on_images_example_by_example():
    v = randn(3, 2, 4, 4)
    u = prox_linf_squared(v, 1.5)
    assert u.shape == v.shape
    torch.testing.assert_close(u[1:2], prox_linf_squared(v[1:2], 1.5))


# The baselines


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_baseline_stays_in_its_ball_and_reaches_its_rim_on_a_linear_loss(norm):
    a, x, eps = randn(6), randn(4, 6, seed=1), 0.3
    dual = a.norm() if norm == "l2" else a.abs().sum()
    loss = lambda z: z @ a
    for attack in (fgm, ifgm, pgm):
        z = attack(loss, x, eps=eps, norm=norm)
        torch.testing.assert_close(loss(z) - loss(x), (eps * dual).expand(4), rtol=1e-10, atol=1e-12)
        assert (transport_cost(z, x, cost=norm) <= eps**2 * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgm_projects_and_ifgm_stays_inside_without_projection(problem, norm):
    _, x, _, loss = problem
    for z in (ifgm(loss, x, eps=0.5, norm=norm), pgm(loss, x, eps=0.5, norm=norm, step_size=1.0)):
        assert (transport_cost(z, x, cost=norm).sqrt() <= 0.5 + 1e-12).all()
        assert loss(z).mean() > loss(x).mean()
    free = norm_ball_ascent(loss, x, eps=0.5, norm=norm, steps=5, step_size=1.0, project=False)
    assert (transport_cost(free, x, cost=norm).sqrt() > 0.5).any()


def test_a_vanishing_gradient_moves_nothing():
    x = randn(3, 4)
    for norm in ("l2", "linf"):
        assert torch.equal(pgm(lambda z: 0 * z.sum(1), x, eps=0.5, norm=norm), x)
    assert torch.equal(pgm(lambda z: z.sum(1), x, eps=0.0), x)


# Labels


def test_smoothed_labels_are_the_authors_clipped_one_hot():
    targets = smooth_labels(torch.tensor([3, 0]), 10, dtype=D)
    expected = np.clip(np.eye(10)[[3, 0]], 0.1 / 9, 0.9)
    np.testing.assert_allclose(targets.numpy(), expected, rtol=1e-15)
    torch.testing.assert_close(targets.sum(1), torch.ones(2, dtype=D))
    logits = randn(2, 10)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), -(targets * logits.log_softmax(1)).sum(1))
    hard = smooth_labels(torch.tensor([3, 0]), 10, amount=0.0, dtype=D)
    torch.testing.assert_close(
        soft_cross_entropy(logits, hard), cross_entropy(logits, torch.tensor([3, 0]), reduction="none")
    )
    with pytest.raises(ValueError, match=r"amount=0\.95"):
        smooth_labels(torch.tensor([0]), 10, amount=0.95)


# Curvature


def test_the_exact_curvature_agrees_with_torch_func(problem):
    net, x, y, loss = problem

    def one(x, y):
        return cross_entropy(2 * net(x), y)

    hessians = torch.func.vmap(torch.func.hessian(one))(x, y)
    torch.testing.assert_close(hessian_top(loss, x), torch.linalg.eigvalsh(hessians)[:, -1])


def test_lanczos_agrees_with_the_exact_hessian_and_never_exceeds_it():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ELU(), nn.Flatten(), nn.Linear(4 * 36, 5)).to(D)
    x, y = randn(6, 1, 8, 8), torch.arange(6) % 5
    loss = lambda z: cross_entropy(3 * net(z), y, reduction="none")
    exact = hessian_top(loss, x)
    torch.testing.assert_close(hessian_top(loss, x, exact_up_to=0, iterations=40), exact, rtol=1e-6, atol=1e-9)
    previous = torch.full_like(exact, -math.inf)
    for iterations in (1, 3, 6, 12, 20):
        ritz = hessian_top(loss, x, exact_up_to=0, iterations=iterations)
        assert (ritz <= exact + 1e-9).all()
        assert (ritz >= previous - 1e-9).all()
        previous = ritz


def test_lanczos_keeps_the_sign_of_a_concave_loss_when_its_space_is_exhausted():
    A = -torch.diag(
        torch.tensor([1.0] * 60 + [2.0] * 20, dtype=D)
    )  # two distinct eigenvalues: exhausted after two steps
    top = hessian_top(quadratic(A, torch.zeros(80, dtype=D)), randn(3, 80), iterations=20)
    torch.testing.assert_close(top, -torch.ones(3, dtype=D))


def test_an_affine_loss_has_no_curvature():
    assert hessian_top(lambda z: z.sum(1), randn(3, 5)).tolist() == [0, 0, 0]
    assert hessian_top(lambda z: z.flatten(1).sum(1), randn(3, 9, 9)).tolist() == [0, 0, 0]
