"""Attacks and certificates on tensors from Python: what they return, what they refuse, what they leave alone."""

from __future__ import annotations

import math
import pkgutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import iclr18cli.attack
import iclr18cli.certify
from iclr18cli.errors import UsageError, UserError
from iclr18cli.models.layers import Normalize


def line(offset: float = 0.5, slope: float = 1.0) -> nn.Sequential:
    """Return a classifier of numbers: class 1 beyond `offset`, its logits 0 and slope * (x - offset)."""
    net = nn.Linear(1, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [slope]]))
        net.bias.copy_(torch.tensor([0.0, -slope * offset]))
    return nn.Sequential(net)


X = torch.tensor([[0.1], [0.3], [0.45], [0.55], [0.8], [0.9], [0.6]])
Y = torch.tensor([0, 0, 0, 1, 1, 1, 0])
"""Distances to 0.5: 0.4, 0.2, 0.05, 0.05, 0.3, 0.4; the last point is wrong."""


@pytest.fixture
def attack():
    pytest.importorskip("iclr18cli.attack.diagnosis")
    return iclr18cli.attack.evaluate


@pytest.mark.parametrize("package", [iclr18cli.attack, iclr18cli.certify])
def test_the_names_are_functions_and_no_module_hides_one(package):
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
    for name in package.__all__:
        if not (package is iclr18cli.attack and "diagnosis" not in modules):
            assert getattr(package, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_importing_the_packages_loads_no_torch():
    program = (
        "import sys, iclr18cli.attack, iclr18cli.certify\n"
        "assert 'evaluate' in iclr18cli.attack.__all__\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_robust_accuracy_is_the_share_of_right_points_beyond_eps(attack):
    report = attack(line(), X, Y, eps=0.25, steps=10)
    assert (report.clean.correct, report.robust.correct, report.survivors) == (6, 3, [0, 4, 5])
    assert report.sample["dataset"] == "tensors"
    assert attack(line(), X, Y, eps=0.0).survivors == [0, 1, 2, 3, 4, 5]
    assert attack(line(), X, Y, eps=0.25, norm="l2", attack="pgd,square", queries=20, steps=5).survivors == [0, 4, 5]


def test_the_range_limits_the_adversary_and_none_frees_it(attack):
    net = line(offset=1.05)
    x, y = torch.tensor([[0.9], [0.99]]), torch.tensor([0, 0])
    assert attack(net, x, y, eps=0.2, steps=5).survivors == [0, 1]
    assert attack(net, x, y, eps=0.2, steps=5, input_range=None).survivors == []


def test_what_was_odd_about_the_model_comes_first_in_the_warnings(attack):
    soft = nn.Sequential(line(slope=5.0), nn.Softmax(1), nn.Dropout(0.9))
    report = attack(soft, X, Y, eps=0.1, steps=2, diagnose=False)
    assert "training mode" in report.warnings[0]
    assert "probabilities" in report.warnings[1]
    assert soft[2].training
    assert sum("probabilities" in warning for warning in report.warnings) == 1
    assert not any("training" in w for w in attack(soft, X, Y, eps=0.1, steps=2, diagnose=False, look=False).warnings)


def test_images_of_bytes_and_double_precision_are_taken_as_they_are_meant(attack):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.randint(0, 256, (12, 1, 2, 2), dtype=torch.uint8)
    y = net(x / 255).argmax(1)
    reports = [attack(net, points, y, eps=0.05, steps=3) for points in (x, x / 255, x.double() / 255)]
    assert reports[0].survivors == reports[1].survivors == reports[2].survivors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X * 3}, "outside input_range"),
        ({"x": X.long()}, "inputs are floating-point"),
        ({"x": X * math.nan}, "NaN"),
        ({"x": X[:3]}, "a label for each"),
        ({"y": Y[:, None]}, "a label for each"),
        ({"y": Y.float()}, "class numbers"),
        ({"y": Y - 1}, "class numbers"),
        ({"y": Y + 5}, "the labels reach 6"),
        ({"x": torch.zeros(7, 3)}, "cannot take inputs of shape"),
        ({"model": line}, "no torch model"),
        ({"model": nn.Sequential(line(), nn.Flatten(0))}, "class scores"),
        ({"classes": 5}, "5 are expected"),
    ],
)
def test_what_does_not_fit_is_refused_in_words_by_attacks_and_certificates(change, message):
    from iclr18cli.data.given import given

    options = {"model": line(), "x": X, "y": Y, "input_range": (0.0, 1.0)} | change
    with pytest.raises(UserError, match=message) as caught:
        given(**options)
    assert caught.value.fix


def test_unknown_options_are_refused(attack):
    with pytest.raises(UsageError, match="takes no stepz"):
        attack(line(), X, Y, eps=0.1, stepz=3)


def test_lipschitz_radii_are_the_distances_to_the_boundary():
    found = iclr18cli.certify.lipschitz(line(), X, Y, radii=(0.04, 0.19, 0.35))
    assert [c.value for c in found] == pytest.approx([6 / 7, 4 / 7, 2 / 7])
    assert all(c.holds and c.verdict == "proven" for c in found)
    scaled = nn.Sequential(Normalize([0.5], [0.1]), line(offset=0.0))
    found = iclr18cli.certify.lipschitz(scaled, X, Y, radii=(0.04, 0.19, 0.35))
    assert [c.value for c in found] == pytest.approx([6 / 7, 4 / 7, 2 / 7])


def test_smoothing_certifies_the_exact_radii_of_a_line_up_to_its_draws():
    found = iclr18cli.certify.smoothing(line(), X, Y, sigma=0.25, n=20_000, radii=(0.02, 0.15, 0.25), seed=1)
    assert [c.value for c in found] == pytest.approx([6 / 7, 4 / 7, 3 / 7])
    assert found[0].subject == "smoothed-model"
    assert found[0].sample["dataset"] == "tensors"


def test_wasserstein_bounds_are_above_the_clean_loss_and_grow_with_the_budget():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 8), nn.ELU(), nn.Linear(8, 2))
    clean = nn.functional.cross_entropy(net(X), Y).item()
    found = iclr18cli.certify.wasserstein(net, X, Y, rhos=(0.0, 0.001, 0.01))
    values = [c.value for c in found]
    assert values == sorted(values)
    assert clean <= values[0] + 1e-6
    assert all(c.holds for c in found)
    noisy = iclr18cli.certify.wasserstein_smoothing(net, X, Y, sigma=0.25, rhos=(0.001, 0.01), draws=500)
    assert noisy[0].value < noisy[1].value <= 1
    assert noisy[0].verdict == "proven-prob"


def test_certificates_carry_what_was_odd_about_the_model():
    net = nn.Sequential(line(slope=5.0), nn.Dropout(0.5))
    (found,) = iclr18cli.certify.lipschitz(net, X, Y, radii=(0.1,))
    assert "training mode" in found.warnings[0]
    assert net.training
    (found,) = iclr18cli.certify.lipschitz(net, X, Y, radii=(0.1,), look=False)
    assert not any("training mode" in w for w in found.warnings)


@pytest.fixture
def free_algorithms():
    """Torch as a Python caller has it: an earlier test of a command may have left deterministic algorithms on."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before, warn_only=True)


def test_any_method_by_name_states_what_its_own_function_states(free_algorithms):
    (one,) = iclr18cli.certify.certificates(line(), X, Y, method="lipschitz", radius=(0.19,))
    (two,) = iclr18cli.certify.lipschitz(line(), X, Y, radii=(0.19,))
    assert (one.value, one.constants, one.sample) == (two.value, two.constants, two.sample)
    many = X.repeat(30, 1), Y.repeat(30)
    (found,) = iclr18cli.certify.certificates(line(), *many, method="smoothing", n=100, radius=(0.0,))
    assert found.sample["n"] == 210  # the command line's limit does not apply
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UsageError, match="no certificate method 'lipshitz'"):
        iclr18cli.certify.certificates(line(), X, Y, method="lipshitz")
    with pytest.raises(UsageError, match="Unknown option 'radii'"):
        iclr18cli.certify.certificates(line(), X, Y, method="lipschitz", radii=(0.1,))


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_bounds_over_a_ball_certify_exactly_the_points_beyond_eps_of_a_line(method):
    from iclr18cli.certify.registry import certifiers

    if method not in certifiers():
        pytest.skip(f"{method} is no method yet")
    found = getattr(iclr18cli.certify, method)(line(), X, Y, eps=(0.19,))
    assert found[0].value == pytest.approx(4 / 7)
