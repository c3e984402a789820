"""Attacks that look for the nearest error: exact distances on linear models, invariants, and what stays untouched."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from iclr18cli.attack.carlini_wagner import carlini_wagner_l2
from iclr18cli.attack.deepfool import deepfool
from iclr18cli.attack.fab import fab, fab_targeted
from iclr18cli.attack.fmn import fmn
from iclr18cli.attack.hyperplane import length, nearest_boundary, onto_hyperplane
from iclr18cli.attack.nearest import Nearest
from iclr18cli.attack.pgd import pgd
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.errors import UserError

ATTACKS = {
    "fab-t": (fab_targeted, ("linf", "l2", "l1"), Budget(steps=40, restarts=1)),
    "fab": (fab, ("linf", "l2", "l1"), Budget(steps=40, restarts=1)),
    "deepfool": (deepfool, ("linf", "l2"), Budget(steps=50)),
    "cw": (carlini_wagner_l2, ("l2",), Budget(steps=100, searches=8)),
    "fmn": (fmn, ("linf", "l2", "l1"), Budget(steps=200)),
}
CASES = [(name, norm) for name, (_, norms, _) in ATTACKS.items() for norm in norms]
ONE_NORM = [(name, norms[0]) for name, (_, norms, _) in ATTACKS.items()]
BOX = (0.0, 1.0)


def attack(name, net, x, y, norm, domain, eps=inf, **changes) -> Tensor:
    function, _, budget = ATTACKS[name]
    budget = Budget(**(vars(budget) | changes))
    return function(net, x, y, threat=Threat(norm, eps, domain), budget=budget, generator=None)


def linear(inputs: int, classes: int, seed: int = 0) -> nn.Module:
    """A linear model with its boundaries near the centre of the box; no coordinate outweighs all others."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Linear(inputs, classes).double()
    with torch.no_grad():
        sign = torch.randn(classes, inputs, generator=g, dtype=torch.float64).sign()
        net.weight.copy_(sign * (1 + 0.5 * torch.rand(classes, inputs, generator=g, dtype=torch.float64)))
        net.bias.copy_(-net.weight.sum(1) / 2 + 0.1 * torch.randn(classes, generator=g, dtype=torch.float64))
    return net


def curved(seed: int = 0, inputs: int = 6, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, classes)).double()
        with torch.no_grad():
            net[0].weight *= 3
    return net


def points(n: int, d: int, seed: int = 1) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shortest(x: np.ndarray, w: np.ndarray, c: float, norm: str, domain) -> float:
    """min |delta| with w.delta = c inside the box, by scipy's solvers; infinite where there is none."""
    d = len(x)
    low, high = (np.full(d, -np.inf), np.full(d, np.inf)) if domain is None else (domain[0] - x, domain[1] - x)
    if norm == "l2":
        start = np.clip(c * w / (w @ w), low, high)
        done = minimize(
            lambda t: t @ t,
            start,
            jac=lambda t: 2 * t,
            bounds=list(zip(low, high, strict=True)),
            constraints=[{"type": "eq", "fun": lambda t: w @ t - c, "jac": lambda t: w}],
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        return float(np.sqrt(done.fun)) if abs(w @ done.x - c) < 1e-7 else np.inf
    eye = np.eye(d)
    extra = np.ones((d, 1)) if norm == "linf" else eye  # sizes: one for all coordinates, or one for each
    k = extra.shape[1]
    done = linprog(
        np.r_[np.zeros(d), np.ones(k)],
        A_ub=np.block([[eye, -extra], [-eye, -extra]]),
        b_ub=np.zeros(2 * d),
        A_eq=np.r_[w, np.zeros(k)][None],
        b_eq=[c],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * k],
    )
    return float(done.fun) if done.status == 0 else np.inf


def exact_distance(net: nn.Module, x: Tensor, y: Tensor, norm: str, domain) -> Tensor:
    weight, bias = net.weight.detach().numpy(), net.bias.detach().numpy()
    found = []
    for point, true in zip(x.numpy(), y.tolist(), strict=True):
        ways = [
            shortest(
                point,
                weight[k] - weight[true],
                -((weight[k] - weight[true]) @ point + bias[k] - bias[true]),
                norm,
                domain,
            )
            for k in range(len(bias))
            if k != true
        ]
        found.append(min(ways))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("domain", [None, BOX])
def test_the_way_onto_a_hyperplane_is_as_short_as_scipy_finds_it_and_ends_on_it(norm, domain):
    g = torch.Generator().manual_seed(3)
    x, w = points(60, 6, seed=2), torch.randn(60, 6, generator=g, dtype=torch.float64)
    x[:20] = x[:20].round()  # corners of the box
    w[::3, 0] = 0.0  # coordinates that do not matter
    w[1::5, 1] = w[1::5, 2]  # ties
    c = torch.randn(60, generator=g, dtype=torch.float64)
    delta = onto_hyperplane(x, w, c, norm=norm, domain=domain)
    expected = torch.tensor(
        [shortest(*row, norm, domain) for row in zip(x.numpy(), w.numpy(), c.tolist(), strict=True)]
    )
    meets = expected.isfinite()
    assert domain is None or 10 < meets.sum() < 60
    assert torch.allclose((w * delta).sum(1)[meets], c[meets], atol=1e-12)
    assert torch.allclose(length(delta, norm)[meets], expected[meets].double(), atol=1e-6)
    if domain is not None:
        assert (x + delta).min() >= -1e-15
        assert (x + delta).max() <= 1 + 1e-15
        up = (w * c[:, None] > 0).double()
        corner = torch.where(w == 0, x, up)  # the corner nearest to a plane that misses the box
        assert torch.allclose((x + delta)[~meets], corner[~meets], atol=1e-15)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_way_onto_a_hyperplane_survives_float32_tiny_normals_and_many_coordinates(norm):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(20, 784, generator=g) * (torch.rand(20, 784, generator=g) < 0.2)  # mostly black
    w = torch.randn(20, 784, generator=g)
    most = (torch.where(w > 0, 1 - x, x) * w.abs()).sum(1)
    for share in (0.01, 0.5, 0.999):
        c = share * most
        delta = onto_hyperplane(x, w * 1e-25, c * 1e-25, norm=norm, domain=BOX)
        wide = onto_hyperplane(x.double(), w.double(), c.double(), norm=norm, domain=BOX)
        assert torch.allclose((w.double() * delta).sum(1), c.double(), rtol=1e-5)
        assert torch.allclose(length(delta, norm).double(), length(wide, norm), rtol=1e-4)
    still = onto_hyperplane(x, torch.zeros_like(w), torch.ones(20), norm=norm, domain=BOX)
    assert torch.equal(still, torch.zeros_like(x))
    assert onto_hyperplane(x, torch.zeros_like(w), torch.ones(20), norm=norm, domain=None).abs().max() == 0


def test_the_nearest_boundary_of_a_linear_model_is_found_with_its_gap_and_normal():
    net, x = linear(5, 4), points(30, 5)
    y = net(x).argmax(1)
    classes = torch.stack([torch.tensor([k for k in range(4) if k != true]) for true in y.tolist()])
    for norm in ("linf", "l2", "l1"):
        gap, w = nearest_boundary(net, x, y, classes, norm)
        dual = {"linf": 1, "l2": 2, "l1": inf}[norm]
        for i in range(30):
            rows = net.weight[classes[i]] - net.weight[y[i]]
            gaps = net(x[i])[classes[i]] - net(x[i])[y[i]]
            best = (gaps.abs() / torch.linalg.vector_norm(rows, dual, dim=1)).argmin()
            assert gap[i].item() == pytest.approx(gaps[best].item(), rel=1e-12)
            assert torch.allclose(w[i], rows[best])


# How far above the exact distance each attack may end, relative: what its own rule of stopping allows.
TOLERANCE = {"fab-t": 2e-3, "fab": 2e-3, "deepfool": 1e-6, "cw": 5e-3, "fmn": 1e-2}


def assert_near(name: str, excess: Tensor, classes: int, tolerance: float) -> None:
    """One boundary: all attacks are exact. Several: only FAB-T tries each of them, the others descend to a near one."""
    assert (excess >= -1e-6).all()
    assert excess.median() <= tolerance
    if classes == 2 or name == "fab-t":
        # Adam's step is a few times longer than the way to the nearest of these boundaries.
        assert excess.max() <= (0.08 if name == "cw" else tolerance)


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("classes", [2, 3])
def test_without_a_domain_the_exact_distance_of_a_linear_model_is_found(name, norm, classes):
    net, x = linear(5, classes), 4 * points(20, 5) - 2
    y = net(x).argmax(1)
    z = attack(name, net, x, y, norm, None)
    assert (net(z).argmax(1) != y).all()
    distance, exact = Threat(norm, inf, None).distance(z, x), exact_distance(net, x, y, norm, None)
    assert_near(name, distance / exact - 1, classes, TOLERANCE[name])


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("classes", [2, 3])
def test_inside_a_box_the_exact_distance_of_a_linear_model_is_found(name, norm, classes):
    net, x = linear(6, classes, seed=8), (3 * points(25, 6, seed=4) - 1).clamp(0, 1)  # many coordinates at 0 and 1
    y = net(x).argmax(1)
    exact, free = exact_distance(net, x, y, norm, BOX), exact_distance(net, x, y, norm, None)
    assert (exact > free * 1.01).sum() >= 3  # the box is in the way of some
    z = attack(name, net, x, y, norm, BOX)
    distance = Threat(norm, inf, BOX).check(z, x)
    reachable = exact.isfinite()
    assert torch.equal(net(z).argmax(1) != y, reachable)
    assert torch.equal(z[~reachable], x[~reachable])
    assert_near(name, (distance / exact - 1)[reachable], classes, max(TOLERANCE[name], 5e-3))


def pgd_distance(net, x, y, norm, domain) -> Tensor:
    """The smallest radius at which PGD breaks each point, by bisection."""
    low, high = torch.zeros(len(x), dtype=x.dtype), torch.full((len(x),), inf, dtype=x.dtype)
    for k in range(11):
        for i, eps in enumerate(torch.where(high.isinf(), torch.tensor(1.0), (low + high) / 2).tolist()):
            z = pgd(
                net, x[i : i + 1], y[i : i + 1], threat=Threat(norm, eps, domain), budget=Budget(steps=20, restarts=1)
            )
            broken = net(z).argmax(1).item() != y[i]
            assert broken or k > 0
            low[i], high[i] = (low[i], eps) if broken else (eps, high[i])
    return high


@pytest.fixture(scope="module")
def bisected():
    net, x = curved(), points(9, 6)
    y = net(x).argmax(1)
    return net, x, y, {norm: pgd_distance(net, x, y, norm, None) for norm in ("linf", "l2")}


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if case[1] != "l1"])
def test_on_a_curved_model_the_distance_is_not_above_that_of_pgd_with_a_bisected_radius(name, norm, bisected):
    net, x, y, reference = bisected
    z = attack(name, net, x, y, norm, None)
    excess = Threat(norm, inf, None).distance(z, x) / reference[norm] - 1
    assert (net(z).argmax(1) != y).all()
    if name in ("fab-t", "fab"):
        assert excess.max() <= 2e-3
    else:  # one path for each point: now and then to another class than the nearest
        assert excess.median() <= (0.05 if name == "deepfool" else 2e-3)
        assert excess.max() < 0.5


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_wrong_points_come_back_unchanged_and_the_others_do_not_depend_on_them(name, norm):
    net, x = curved(2), points(10, 6)
    y = net(x).argmax(1)
    mixed = torch.where(torch.arange(10) < 4, (y + 1) % 4, y)
    z = attack(name, net, x, mixed, norm, BOX, steps=30)
    assert torch.equal(z[:4], x[:4])
    alone = attack(name, net, x[4:], y[4:], norm, BOX, steps=30)
    assert torch.allclose(z[4:], alone, atol=1e-9)
    assert torch.equal(attack(name, net, x[:4], mixed[:4], norm, BOX, steps=30), x[:4])
    assert attack(name, net, x[:0], y[:0], norm, BOX).shape == (0, 6)


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("domain", [None, BOX])
def test_a_model_that_never_errs_gives_the_inputs_back(name, norm, domain):
    net = nn.Linear(3, 3).double()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    x = points(5, 3)
    z = attack(name, net, x, torch.zeros(5, dtype=torch.int64), norm, domain, steps=10, searches=2)
    assert torch.equal(z, x)


@pytest.mark.parametrize(("name", "norm"), ONE_NORM)
def test_a_model_without_gradient_is_refused(name, norm):
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0].detach().round() + 1, torch.zeros(len(x), dtype=x.dtype)], 1)

    with pytest.raises(UserError, match="needs gradients"):
        attack(name, Rounded(), points(2, 3), torch.zeros(2, dtype=torch.int64), norm, BOX)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_images_keep_shape_type_and_domain_and_nothing_of_the_model_or_the_generators_is_touched(name, norm):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 3)).train()
    x = (3 * torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0)) - 1.5).clamp(-1, 1)
    kept = x.clone()
    y = net.eval()(x).argmax(1)
    net.train()
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        z = attack(name, net, x, y, norm, (-1.0, 1.0), steps=30)
    again = attack(name, net, x, y, norm, (-1.0, 1.0), steps=30)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(z, again)
    assert torch.equal(x, kept)
    assert not z.requires_grad
    Threat(norm, inf, (-1.0, 1.0)).check(z, x)
    assert all(part.training for part in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert (net.eval()(z).argmax(1) != y).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_gpu_gives_the_distances_of_the_cpu(name, norm):
    net, x = curved(8), points(8, 6)
    y = net(x).argmax(1)
    here = attack(name, net, x, y, norm, BOX, restarts=2)
    there = attack(name, net.cuda(), x.cuda(), y.cuda(), norm, BOX, restarts=2)
    assert there.is_cuda
    distance = Threat(norm, inf, BOX).distance
    assert torch.allclose(distance(there.cpu(), x), distance(here, x), rtol=1e-3)


@pytest.mark.parametrize(("name", "norm"), ONE_NORM)
def test_scaled_inputs_without_a_domain_give_scaled_distances(name, norm):
    net, x = curved(5), points(5, 6)
    y = net(x).argmax(1)

    class Scaled(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return net(z / 1000)

    near = Threat(norm, inf, None).distance(attack(name, net, x, y, norm, None), x)
    far = Threat(norm, inf, None).distance(attack(name, Scaled(), 1000 * x, y, norm, None), 1000 * x)
    assert near.isfinite().all()
    assert torch.allclose(far, 1000 * near, rtol=1e-3)


@pytest.mark.parametrize("offset", [-50.0, 50.0])
@pytest.mark.parametrize(("name", "norm"), ONE_NORM)
def test_a_constant_added_to_all_logits_changes_nothing(name, norm, offset):
    net, x = curved(6), points(5, 6)
    y = net(x).argmax(1)

    class Shifted(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return net(z) + offset

    plain, shifted = (attack(name, model, x, y, norm, BOX, steps=40) for model in (net, Shifted()))
    assert (net(plain).argmax(1) != y).all()
    assert torch.allclose(plain, shifted, atol=1e-6)


def test_carlini_wagner_moves_pixels_at_exactly_0_and_1():
    net = linear(4, 2)
    corners = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0]], dtype=torch.float64)
    y = net(corners).argmax(1)
    z = attack("cw", net, corners, y, "l2", BOX)
    assert (net(z).argmax(1) != y).all()
    assert ((z - corners).abs() > 1e-3).any(1).all()


def test_carlini_wagner_does_not_depend_on_the_scale_of_the_logits():
    net, x = curved(7), points(4, 6)
    y = net(x).argmax(1)
    distances = []
    for scale in (1e-4, 1.0, 1e4):
        scaled = nn.Sequential(net, nn.Linear(4, 4, bias=False)).double()
        with torch.no_grad():
            scaled[1].weight.copy_(scale * torch.eye(4))
        z = attack("cw", scaled, x, y, "l2", BOX, steps=50)
        assert (net(z).argmax(1) != y).all()
        distances.append(Threat("l2", inf).distance(z, x))
    assert torch.allclose(distances[0], distances[1], rtol=1e-3)
    assert torch.allclose(distances[2], distances[1], rtol=1e-3)


def test_carlini_wagner_refuses_other_norms():
    with pytest.raises(ValueError, match="linf"):
        attack("cw", linear(3, 2), points(1, 3), torch.tensor([0]), "linf", BOX)


def test_the_final_search_finds_the_crossing_of_the_segment_and_keeps_the_point_wrong():
    class Cubic(nn.Module):
        """Class 1 wins where the cube of the first coordinate exceeds 0.3."""

        def forward(self, x: Tensor) -> Tensor:
            gap = x[:, 0] ** 3 - 0.3
            return torch.stack([-gap, gap], 1)

    x = torch.zeros(1, 2, dtype=torch.float64)
    nearest = Nearest(Cubic(), x, torch.tensor([0]), Threat("l2", inf))
    nearest.offer(torch.tensor([0]), torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([True]))
    z = nearest.draw_closer(30)
    assert z[0].tolist() == pytest.approx([0.3 ** (1 / 3)] * 2, rel=1e-5)
    assert z[0, 0] ** 3 > 0.3
    nearest.offer(torch.tensor([0]), torch.tensor([[0.01, 0.0]], dtype=torch.float64), torch.tensor([False]))
    assert torch.equal(nearest.point_BX, z)  # what is not misclassified is never kept
