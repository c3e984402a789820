"""The Wasserstein certificate by smoothing: tight on a line, never beaten, and a wrong constant gets caught."""

from __future__ import annotations

import importlib.util
import json
import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binomtest, norm
from torch import nn

from iclr18cli.certify import methods, smoothed_shift, smoothed_wasserstein
from iclr18cli.certify.config import WassersteinSmoothingConfig
from iclr18cli.certify.problem import per_example_loss
from iclr18cli.certify.smoothed_shift import mean_bounds, shift_bound
from iclr18cli.certify.smoothed_wasserstein import move_points, noisy_values, wasserstein_smoothing
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError

_spec = importlib.util.spec_from_file_location("small_problem", Path(__file__).with_name("small_problem.py"))
assert _spec is not None
assert _spec.loader is not None
small_problem = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_problem)


def line(x, y=None) -> tuple[nn.Module, Split]:
    """Class 0 right of the origin, soft enough for a gradient, with points on the line."""
    net = nn.Linear(1, 2, bias=False)
    net.weight.data = torch.tensor([[2.0], [-2.0]])
    x = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1)
    labels = torch.zeros(len(x), dtype=torch.long) if y is None else torch.as_tensor(y)
    return net, Split(x, labels, ("right", "left"), "line", "test", None)


@pytest.mark.parametrize(("distance", "sigma"), [(0.5, 0.5), (0.1, 1.0), (3.0, 0.7), (0.0, 1.0)])
def test_the_shift_is_the_total_variation_of_the_two_gaussians(distance, sigma):
    apart = quad(
        lambda t: abs(norm.pdf(t, 0, sigma) - norm.pdf(t, distance, sigma)), -8, 11, points=[distance / 2], limit=200
    )[0]
    assert shift_bound(distance, sigma) == pytest.approx(apart / 2, abs=1e-8)
    assert shift_bound(distance, sigma) == pytest.approx(2 * norm.cdf(distance / (2 * sigma)) - 1, abs=1e-12)


def test_the_cards_number_for_the_shift():
    assert shift_bound(0.5, 0.5) == pytest.approx(0.383, abs=5e-4)


def test_the_bound_is_tight_for_points_half_a_step_from_a_linear_boundary():
    # Unmoved, h_s = Phi(-e/2 sigma); across the boundary Phi(e/2 sigma): the difference is erf(e / (2 sqrt2 sigma)).
    e, sigma = 0.6, 0.5
    net, split = line([e / 2] * 30)
    (found,) = wasserstein_smoothing(net, split, sigma=sigma, rhos=[e**2], draws=40_000)
    true = norm.cdf(e / 2 / sigma)
    assert found.constants["clean"] == pytest.approx(1 - true, abs=0.01)
    assert true <= found.value <= true + 0.015
    assert found.empirical["value"] == pytest.approx(true, abs=0.01)
    assert found.empirical["mean_squared_distance"] <= e**2
    assert found.holds
    assert found.verdict == "proven-prob"
    assert found.subject == "smoothed-model"


def test_half_the_shift_is_exposed_by_the_attack(monkeypatch):
    net, split = line([0.3] * 30)
    monkeypatch.setattr(smoothed_shift, "shift_bound", lambda distance, sigma: shift_bound(distance, sigma) / 2)
    (found,) = wasserstein_smoothing(net, split, sigma=0.5, rhos=[0.36])
    assert not found.holds
    assert any("beat the bound" in warning for warning in found.warnings)


@pytest.mark.parametrize("measure", ["error", "error-probability"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU])
def test_no_distribution_within_the_budget_has_a_larger_error_under_noise(measure, activation):
    net, split = small_problem.small_net(activation), small_problem.split_of(30)
    rhos, sigma = (0.0, 0.01, 0.3), 0.6
    found = wasserstein_smoothing(net, split, sigma=sigma, rhos=rhos, measure=measure)
    values = [c.value for c in found]
    assert values == sorted(values)
    assert all(c.holds for c in found)
    loss = per_example_loss(net.requires_grad_(False), "error-probability")
    x, y = split.x.double(), split.y
    index = torch.arange(len(y)).repeat(300)
    for rho, c in zip(rhos, found, strict=True):
        assert c.empirical["mean_squared_distance"] <= rho
        moves = [x] if rho == 0 else small_problem.adversaries(loss, x, y, rho)
        for moved in moves:
            generator = torch.Generator().manual_seed(9)
            options = {"sigma": sigma, "measure": measure, "generator": generator, "batch_size": 4096}
            assert noisy_values(net, moved, y, index, **options).mean() <= c.value
    assert found[0].value == pytest.approx(found[0].constants["clean_upper"])
    assert found[-1].empirical["value"] > found[0].empirical["value"] + 0.02


def test_the_mean_of_errors_has_the_exact_binomial_interval():
    values = torch.tensor([1.0] * 13 + [0.0] * 187, dtype=torch.float64)
    bounds = mean_bounds(values, "error", 0.001)
    exact = {
        side: binomtest(13, 200, alternative=side).proportion_ci(0.999, method="exact") for side in ("less", "greater")
    }
    assert bounds.upper == pytest.approx(exact["less"].high, rel=1e-9)
    assert bounds.lower == pytest.approx(exact["greater"].low, rel=1e-9)


def test_probabilities_with_little_variance_beat_hoeffding_and_the_rest_gets_it():
    n, delta = 10_000, 0.001
    calm = mean_bounds(torch.full((n,), 0.2, dtype=torch.float64), "error-probability", delta)
    assert calm.upper - 0.2 == pytest.approx(7 * math.log(4 / delta) / (3 * (n - 1)))
    wild = mean_bounds((torch.arange(n) % 2).double(), "error-probability", delta)
    assert wild.upper - 0.5 == pytest.approx(math.sqrt(math.log(2 / delta) / (2 * n)))
    assert wild.lower == pytest.approx(1 - wild.upper)
    assert mean_bounds(torch.tensor([0.4], dtype=torch.float64), "error-probability", delta).upper == 1.0


def test_the_interval_of_probabilities_covers_the_truth():
    generator = torch.Generator().manual_seed(0)
    missed = 0
    for _ in range(400):
        values = torch.rand(200, generator=generator, dtype=torch.float64) ** 8  # skewed, mean 1/9
        missed += mean_bounds(values, "error-probability", 0.05).upper < 1 / 9
    assert missed <= 400 * 0.05


def test_the_statement_fails_no_more_often_than_delta():
    net, split = line([0.3, 0.1, 0.8])
    true = sum(norm.cdf(-d / 0.5) for d in (0.3, 0.1, 0.8)) / 3
    failed = sum(
        wasserstein_smoothing(
            net, split, sigma=0.5, rhos=[0.0], draws=200, delta=0.1, seed=seed, attack=False, batch_size=256
        )[0].value < true
        for seed in range(200)
    )  # fmt: skip
    assert 1 <= failed <= 200 * 0.1 + 3 * math.sqrt(200 * 0.1)


def test_the_batch_size_changes_no_count_and_the_seed_does(monkeypatch):
    monkeypatch.setattr(smoothed_wasserstein, "BLOCK_NUMBERS", 100)
    net, split = small_problem.small_net(nn.ReLU), small_problem.split_of(30)
    options = {"sigma": 0.5, "rhos": [0.01], "draws": 1001, "attack": False}
    one, two, three = (
        wasserstein_smoothing(net, split, **options, batch_size=size)[0].constants for size in (3, 64, 5000)
    )
    assert one == two == three
    assert wasserstein_smoothing(net, split, **options, seed=1)[0].constants["clean"] != one["clean"]


def test_a_population_statement_takes_one_draw_per_point_and_no_training_points():
    net, split = small_problem.small_net(nn.ReLU), small_problem.split_of(50)
    (found,) = wasserstein_smoothing(net, split, sigma=0.5, rhos=[0.01], population=True)
    assert found.constants["draws"] == 50
    assert "the distribution these 50 test points of blobs come from" in found.statement
    assert any("independent draws" in a for a in found.assumptions)
    k = round(found.constants["clean"] * 50)
    assert found.constants["clean"] * 50 == pytest.approx(k)
    train = small_problem.split_of(50, "train")
    with pytest.raises(UserError, match="training points"):
        wasserstein_smoothing(net, train, sigma=0.5, population=True)


def test_a_black_box_without_gradients_and_images_are_certified():
    class Brightness(nn.Module):
        def forward(self, x):
            light = (x.flatten(1).mean(1) > 0.5).float()
            return torch.stack([light, 1 - light], 1)

    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = (x.flatten(1).mean(1) <= 0.5).long()
    split = Split(x, y, ("light", "dark"), "patches", "test")
    (found,) = wasserstein_smoothing(Brightness(), split, sigma=0.5, rhos=[0.04], draws=5000)
    assert found.holds
    assert found.empirical["mean_squared_distance"] == pytest.approx(0.04, rel=1e-3)
    assert found.value == pytest.approx(found.constants["clean_upper"] + shift_bound(0.2, 0.5))


def test_moved_points_keep_to_the_budget_over_the_whole_sample(monkeypatch):
    monkeypatch.setattr(smoothed_wasserstein, "MOVED", 10)
    net, split = small_problem.small_net(nn.ReLU).float(), small_problem.split_of(40)
    found = move_points(net, split.x, split.y, [0.01, 0.1], sigma=0.5, seed=0, batch_size=512)
    for (points, distance), rho in zip(found, [0.01, 0.1], strict=True):
        assert torch.equal(points[10:], split.x[10:])
        assert 0.5 * rho < distance <= rho
        assert (points.double() - split.x.double()).square().sum(1).mean() == pytest.approx(distance)


def test_the_certificate_says_what_it_is_about_and_when_it_says_nothing():
    net, split = line([0.5] * 10)
    low, high = wasserstein_smoothing(net, split, sigma=0.5, rhos=[0.0001, 25.0])
    assert low.statement.startswith(
        "With probability at least 0.999 over the draws, for these 10 test points of line, "
    )
    assert "moved by at most 0.0001 squared 2-norm on average" in low.statement
    assert not low.vacuous
    assert high.vacuous
    assert high.value == 1.0
    assert high.vacuous_above == 0.5
    assert any("majority vote" in limit for limit in low.not_claimed)
    json.dumps(low.to_json())
    for wrong in ({"sigma": -1.0}, {"sigma": 1.0, "rhos": [-1.0]}, {"sigma": 1.0, "measure": "loss"}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            wasserstein_smoothing(net, split, **wrong)


def test_the_method_passes_its_options_on():
    net, split = line([0.5] * 10)

    @contextmanager
    def progress(total, label):
        yield SimpleNamespace(advance=lambda n: None)

    run = SimpleNamespace(split=lambda name, limit: split, model=lambda: net, progress=progress, seed=3)
    config = WassersteinSmoothingConfig(rho=(0.02,), sigma=0.7, draws=300, delta=0.01, measure="error-probability")
    (found,) = methods.wasserstein_smoothing(config, run)
    assert found.threat["radius"] == 0.02
    assert found.constants["sigma"] == 0.7
    assert found.constants["draws"] == 300
    assert found.confidence["delta"] == 0.01
    assert found.solver["seed"] == 3
    assert found.quantity == "expected 1 - p_y under noise"
