"""Constants K and L: bounds of gradients and Hessians that autograd never exceeds, and closed forms they equal."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iclr18cli.certify.norms import matrix_norm, operator_norm
from iclr18cli.certify.problem import per_example_loss
from iclr18cli.certify.slopes import slopes
from iclr18cli.certify.smoothness import HEADS, smoothness
from iclr18cli.errors import UserError
from iclr18cli.models.activations import ACTIVATIONS, activation
from iclr18cli.models.layers import Normalize, Residual
from iclr18cli.models.registry import build

SMOOTH = [name for name in ACTIVATIONS if name not in ("relu", "leaky-relu", "maxmin", "groupsort")]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def hessian(f, x):
    return torch.func.vmap(torch.func.hessian(f))(x)


@pytest.mark.parametrize(
    "module", [activation(name) for name in SMOOTH] + [nn.CELU(0.5), nn.GELU("tanh"), nn.LogSigmoid()]
)
def test_activation_constants_bound_the_derivatives_and_are_nearly_attained(module):
    s1, s2, _ = slopes(module)
    x = torch.linspace(-12, 12, 480_002, dtype=torch.float64)
    first = torch.func.vmap(torch.func.grad(module))(x)
    second = (first[1:] - first[:-1]) / (x[1:] - x[:-1])
    assert s1 * (1 - 1e-4) <= first.abs().max() <= s1
    assert s2 * (1 - 1e-4) <= second.abs().max() <= s2 * (1 + 1e-8)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("loss", ["cross-entropy", "error-probability"])
def test_head_constants_bound_gradient_and_hessian_in_the_logits(loss, classes):
    slope, curvature = HEADS[loss]
    z = torch.randn(40_000, classes, dtype=torch.float64) * torch.rand(40_000, 1, dtype=torch.float64) * 8
    if classes > 2:  # two classes are where the constants are attained: put the others far away
        z[::2, 2:] -= 20
    y = torch.zeros(len(z), dtype=torch.long)
    f = per_example_loss(nn.Identity(), loss)
    one = lambda v: f(v[None], y[:1])[0]
    gradient = torch.func.vmap(torch.func.grad(one))(z).norm(dim=1)
    bend = torch.linalg.eigvalsh(hessian(one, z)).abs().amax()
    assert 0.98 * slope <= gradient.max() <= slope * (1 + 1e-12)
    assert 0.98 * curvature <= bend <= curvature * (1 + 1e-12)


def test_the_curvature_of_the_error_probability_is_sharper_than_the_cards():
    assert HEADS["error-probability"][1] == pytest.approx(0.19245, abs=1e-5)
    assert HEADS["error-probability"][1] < 8 / 27


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("loss", ["cross-entropy", "error-probability"])
def test_constants_bound_autograds_gradients_and_hessians_of_small_nets(name, loss):
    net = build("mlp", input_shape=(2,), hidden=(4, 2), classes=3, activation=name).double()
    for parameter in net.parameters():
        parameter.data.mul_(2)
    known = smoothness(net, (2,), loss=loss)
    x = 3 * torch.randn(3000, 2, dtype=torch.float64)
    f = per_example_loss(net, loss)
    for label in range(3):
        y = torch.tensor([label])
        one = lambda v, y=y: f(v[None], y)[0]
        assert torch.func.vmap(torch.func.grad(one))(x).norm(dim=1).max() <= known.K
        # The largest difference quotient of gradients, because ELU's second derivative jumps.
        h = hessian(one, x)
        assert torch.linalg.eigvalsh((h + h.mT) / 2).abs().max() <= known.L


def test_constants_bound_a_convolutional_net_with_normalisation_pooling_and_residuals():
    net = nn.Sequential(
        Normalize([0.3], [0.5]),
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        Residual(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Softplus(2.0, 60.0)), nn.Identity()),
        nn.AvgPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(3 * 9, 4),
    ).double()
    net[2].running_var.fill_(0.3)
    net.eval()
    known = smoothness(net, (1, 6, 6))
    assert [name for name, _ in known.norms] == ["0", "1", "2", "4.block.0", "4.shortcut", "5", "6", "7", "8"]
    one = lambda v: F.cross_entropy(net(v[None]), torch.tensor([1]), reduction="none")[0]
    x = torch.rand(20, 1, 6, 6, dtype=torch.float64)
    gradients = torch.func.vmap(torch.func.grad(one))(x).flatten(1)
    assert gradients.norm(dim=1).max() <= known.K
    bends = torch.linalg.eigvalsh(hessian(one, x).reshape(20, 36, 36)).abs().max()
    assert bends <= known.L
    pairs = [((x[i] - x[j]).norm(), (gradients[i] - gradients[j]).norm()) for i, j in itertools.pairwise(range(20))]
    assert all(apart <= known.L * distance for distance, apart in pairs)


def chain_formula(norms: list[float], s1: float, s2: float) -> tuple[float, float]:
    """Return K_f and the sum over the layers, written out as in the wrm card, section 5."""
    depth = len(norms)
    K = s1 ** (depth - 1) * math.prod(norms)
    total = sum(
        s2 * s1 ** (depth - 1 - j) * math.prod(norms[j:]) * (s1 ** (j - 1) * math.prod(norms[:j])) ** 2
        for j in range(1, depth)
    )
    return K, total


@pytest.mark.parametrize("name", SMOOTH)
def test_the_recursion_is_the_formula_of_the_card_for_chains(name):
    net = build("mlp", input_shape=(3,), hidden=(5, 4, 3), classes=4, activation=name)
    known = smoothness(net, (3,))
    s1, s2, _ = slopes(activation(name))
    K, total = chain_formula([norm.value for _, norm in known.norms], s1, s2)
    assert known.K_logits == pytest.approx(K, rel=1e-9)
    assert known.L_logits == pytest.approx(total, rel=1e-9)
    assert pytest.approx(math.sqrt(2) * K, rel=1e-9) == known.K
    assert pytest.approx(K**2 / 2 + math.sqrt(2) * total, rel=1e-9) == known.L


def test_norms_capped_at_1_7_give_the_cards_l_of_44():
    K, total = chain_formula([1.7] * 3, 1.0, 1.0)
    assert K**2 / 2 + math.sqrt(2) * total == pytest.approx(44.0, abs=0.1)


def test_logistic_regression_has_its_exact_constants():
    w = torch.tensor([1.5, -2.0, 0.5], dtype=torch.float64)
    net = nn.Sequential(nn.Linear(3, 2)).double()
    net[0].weight.data.copy_(torch.stack([w + 7, torch.full_like(w, 7.0)]))  # what both rows share does not count
    known = smoothness(net, (3,))
    assert pytest.approx(float(w.norm()), rel=1e-9) == known.K
    assert pytest.approx(float(w.square().sum()) / 4, rel=1e-9) == known.L
    error = smoothness(net, (3,), loss="error-probability")
    assert pytest.approx(float(w.norm()) / 4, rel=1e-9) == error.K
    assert pytest.approx(float(w.square().sum()) / (6 * math.sqrt(3)), rel=1e-9) == error.L


def test_taking_the_mean_row_off_never_raises_the_norm():
    net = build("mlp", input_shape=(4,), hidden=(6,), classes=5)
    _, last = smoothness(net, (4,)).norms[-1]
    assert last.value <= operator_norm(net[-1], (6,)).value * (1 + 1e-12)
    weight = net[-1].weight.detach().double()
    assert last.value == pytest.approx(matrix_norm(weight - weight.mean(0)))


def test_nested_sequentials_count_like_flat_ones():
    flat = build("mlp", input_shape=(2,), hidden=(4, 2), classes=2)
    nested = nn.Sequential(nn.Sequential(*flat[:2]), nn.Sequential(*flat[2:4], nn.Sequential(flat[4])))
    assert pytest.approx(smoothness(flat, (2,)).L) == smoothness(nested, (2,)).L


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ReLU(), "ReLU has a kink"),
        (nn.LeakyReLU(), "LeakyReLU has a kink"),
        (nn.ELU(alpha=0.5), "alpha = 0.5"),
        (nn.Hardtanh(), "Hardtanh"),
    ],
)
def test_kinks_leave_k_and_take_l_away(layer, reason):
    net = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(4, 2)).double()
    known = smoothness(net, (2,))
    assert not known.smooth
    assert math.inf == known.L
    assert reason in known.reason
    x = torch.randn(500, 2, dtype=torch.float64)
    one = lambda v: F.cross_entropy(net(v[None]), torch.tensor([0]), reduction="none")[0]
    assert torch.func.vmap(torch.func.grad(one))(x).norm(dim=1).max() <= known.K < math.inf


def test_overlapping_max_pooling_counts_its_overlap():
    net = nn.Sequential(nn.MaxPool2d(3, stride=1), nn.Flatten(), nn.Linear(16, 2))
    known = smoothness(net, (1, 6, 6))
    assert pytest.approx(math.sqrt(2) * 3 * known.norms[-1][1].value, rel=1e-9) == known.K
    assert "MaxPool2d" in known.reason


def test_what_has_no_constants_is_refused_with_the_layers_name():
    class Attention(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(UserError, match=r"'1' \(Attention\)") as caught:
        smoothness(nn.Sequential(nn.Linear(2, 2), Attention()), (2,))
    assert caught.value.why
    assert caught.value.fix

    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    with pytest.raises(UserError, match="Doubled"):
        smoothness(Doubled(nn.Linear(2, 2)), (2,))
    with pytest.raises(UserError, match="threshold"):
        smoothness(nn.Sequential(nn.Softplus(threshold=2), nn.Linear(2, 2)), (2,))
    with pytest.raises(ValueError, match="hinge"):
        smoothness(nn.Linear(2, 2), (2,), loss="hinge")


def test_the_core_networks_can_be_walked():
    for name, shape, arguments in (
        ("small-cnn", (1, 8, 8), {"downsampling": "average"}),
        ("wrm/2-4-2", (2,), {}),
        ("wrm/elu-cnn", (1, 28, 28), {"filters": 2}),
    ):
        known = smoothness(build(name, **arguments).eval(), shape)
        assert known.smooth
        assert 0 < known.K < known.L < math.inf
    known = smoothness(build("resnet20", input_shape=(3, 8, 8)).eval(), (3, 8, 8))
    assert not known.smooth
    assert 0 < known.K < math.inf
