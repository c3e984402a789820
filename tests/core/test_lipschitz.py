"""Global-Lipschitz certificates: closed forms of linear nets, brute force on small ones, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from iclr18cli.certify import lipschitz_margin
from iclr18cli.certify.infinity_norms import infinity_norm
from iclr18cli.certify.lipschitz_margin import RADII, Asked, certified_radii, certify_lipschitz, lipschitz
from iclr18cli.certify.norms import METHODS, operator_norm
from iclr18cli.certify.pair_constants import INDUCED, SCALED, PairConstants, pair_constants
from iclr18cli.certify.smoothness import chain_constant, layers_of
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.activations import activation
from iclr18cli.models.layers import GroupSort, Normalize, PadShortcut, Residual
from iclr18cli.models.registry import build

NORMS = ("l2", "linf")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def dense(module: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Build the matrix of a map's linear part, column by column."""
    module = module.double().eval()
    eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (module(eye) - module(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T


def radii_of(net, x, y, norm):
    """The certified radii of points, as the certificate computes them."""
    known = pair_constants(net, tuple(x.shape[1:]), norm=norm)
    with torch.no_grad():
        return certified_radii(net.double()(x.double()), y, known.between)


def dual(rows: torch.Tensor, norm: str) -> torch.Tensor:
    return rows.norm(dim=-1) if norm == "l2" else rows.abs().sum(-1)


# ---- norms induced by infinity


CONVOLUTIONS = [
    ({"in_channels": 1, "out_channels": 4, "kernel_size": 3}, (1, 6, 6)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1}, (2, 5, 7)),
    ({"in_channels": 3, "out_channels": 2, "kernel_size": 5, "padding": 2, "stride": 2}, (3, 8, 7)),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 3, "dilation": 2, "padding": 3, "stride": 2}, (2, 8, 9)),
    ({"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 2}, (4, 5, 5)),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 4, "padding": "same"}, (2, 6, 5)),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (2, 6, 5)),
    (
        {"in_channels": 2, "out_channels": 2, "kernel_size": 5, "padding": 3},
        (2, 3, 3),
    ),  # the kernel is never all inside
]


@pytest.mark.parametrize(("arguments", "shape"), CONVOLUTIONS)
def test_the_infinity_norm_of_a_convolution_is_the_largest_row_sum_of_its_matrix(arguments, shape):
    layer = nn.Conv2d(**arguments)
    truth = float(dense(layer, shape).abs().sum(1).max())
    norm = infinity_norm(layer, shape)
    assert truth <= norm.value * (1 + 1e-15)
    assert norm.value == pytest.approx(truth, rel=1e-12)
    assert norm.output_shape == operator_norm(layer, shape).output_shape


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (5,)),
        (nn.AvgPool2d(3, stride=2, padding=1), (2, 7, 7)),
        (nn.AvgPool2d(2, divisor_override=3), (2, 6, 6)),
        (nn.AvgPool2d((2, 3), ceil_mode=True), (1, 5, 7)),
        (nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 7)),
        (Normalize([0.3, 0.1], [0.5, 0.25]), (2, 3, 3)),
        (PadShortcut(2, 2), (2, 5, 5)),
        (nn.Flatten(), (2, 3, 3)),
        (nn.Identity(), (4,)),
    ],
)
def test_the_infinity_norm_of_every_affine_layer_is_exact(layer, shape):
    norm = infinity_norm(layer, shape)
    assert norm.value == pytest.approx(float(dense(layer, shape).abs().sum(1).max()), rel=1e-12)
    assert norm.output_shape == operator_norm(layer, shape).output_shape
    assert norm.method in METHODS


def test_batch_normalisation_counts_with_its_scale_in_both_norms():
    layer = nn.BatchNorm2d(3)
    layer.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    layer.weight.data.copy_(torch.tensor([1.0, -3.0, 0.5]))
    layer.eval()
    assert infinity_norm(layer, (3, 2, 2)).value == pytest.approx(3 / math.sqrt(2), rel=1e-5)
    assert float(dense(layer, (3, 2, 2)).abs().sum(1).max()) <= infinity_norm(layer, (3, 2, 2)).value


def test_a_layer_without_a_norm_is_refused_in_the_infinity_norm_too():
    with pytest.raises(UserError, match="padding_mode"):
        infinity_norm(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 5))
    with pytest.raises(UserError, match="LayerNorm"):
        infinity_norm(nn.LayerNorm(3), (3,))


def test_the_constant_of_random_chains_is_above_what_they_do_in_both_norms():
    for word in ("relu", "maxmin", "gelu", "groupsort"):
        net = build("small-cnn", input_shape=(1, 8, 8), filters=4, activation=word).double().eval()
        for norm, order in (("l2", 2), ("linf", math.inf)):
            K = chain_constant(layers_of(net), (1, 8, 8), norm=norm).constant
            x, step = torch.rand(64, 1, 8, 8).double(), 1e-3 * torch.randn(64, 1, 8, 8).double()
            moved = (net(x + step) - net(x)).norm(order, dim=1) / step.flatten(1).norm(order, dim=1)
            assert moved.max() <= K


# ---- constants of pairs


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_classifier_gets_the_distance_to_its_boundary(norm):
    net = nn.Linear(6, 4)
    x = torch.randn(200, 6)
    y = net(x).argmax(1)
    z, W = net.double()(x.double()).detach(), net.weight.detach().double()
    gaps = z.gather(1, y[:, None]) - z
    slopes = dual(W[y][:, None] - W[None], norm)
    truth = (gaps / slopes).scatter(1, y[:, None], math.inf).amin(1)
    found = radii_of(net, x, y, norm)
    assert torch.all(found <= truth)
    assert torch.allclose(found, truth, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_deep_linear_net_with_convolution_pooling_and_normalisation_is_exact_too(norm):
    net = nn.Sequential(
        Normalize([0.4], [0.3]), nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(27, 8), nn.Linear(8, 3),
    )  # fmt: skip
    net[2].running_var.fill_(0.3)
    net.eval()
    x = torch.rand(50, 1, 6, 6)
    y = net(x).argmax(1)
    known = pair_constants(net, (1, 6, 6), norm=norm)
    A = dense(net, (1, 6, 6))
    for i in range(3):
        for j in range(3):
            truth = float(dual(A[i] - A[j], norm))
            assert truth <= known.between[i, j] <= truth * (1 + 1e-5) + 1e-6
    assert known.folded == [str(n) for n in range(8)]
    assert radii_of(net, x, y, norm).min() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_of_linear_maps_is_bounded_by_one_plus_the_norm_and_no_less_than_the_truth(norm):
    block = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))
    net = nn.Sequential(Residual(block, nn.Identity()), nn.Flatten(), nn.Linear(32, 3)).eval()
    known = pair_constants(net, (2, 4, 4), norm=norm)
    A, F, W = dense(net, (2, 4, 4)), dense(block, (2, 4, 4)), net[2].weight.detach().double()
    size = float(torch.linalg.svdvals(F)[0]) if norm == "l2" else float(F.abs().sum(1).max())
    for i in range(3):
        for j in range(i):
            assert float(dual(A[i] - A[j], norm)) <= known.between[i, j] * (1 + 1e-12)
            if norm == "l2":
                assert known.between[i, j] >= float(dual(W[i] - W[j], norm)) * (1 + size) * (1 - 1e-9)
    assert known.folded == ["1", "2"]


def test_pairs_are_never_worse_than_root_two_times_the_norm_of_all_logits():
    net = build("mlp", input_shape=(5,), hidden=(7, 6), classes=4, activation="relu")
    known = pair_constants(net, (5,))
    assert float(known.between.max()) <= math.sqrt(2) * known.K * (1 + 1e-9)
    rest = chain_constant(layers_of(net)[:-1], (5,)).constant
    W = net[-1].weight.detach().double()
    assert float(known.between[0, 1]) == pytest.approx(float((W[0] - W[1]).norm()) * rest, rel=1e-6)


def test_a_net_that_ends_in_an_activation_is_certified_by_the_plain_rule():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    known = pair_constants(net, (3,))
    assert float(known.between[0, 2]) == pytest.approx(math.sqrt(2) * known.K, rel=1e-9)
    assert known.folded == []


def test_linf_takes_the_better_of_two_routes_and_says_which():
    wide = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))  # orthogonal: row sums are about 0.8 root d
    nn.init.orthogonal_(wide[0].weight)
    known = pair_constants(wide, (64,), norm="linf")
    two = pair_constants(wide, (64,))
    assert known.routes[SCALED] == pytest.approx(8 * float(two.between.max()), rel=1e-9)
    assert known.route == min(known.routes, key=known.routes.get)
    assert float(known.between.max()) == pytest.approx(min(known.routes.values()), rel=1e-9)
    one = pair_constants(nn.Linear(64, 2), (64,), norm="linf")
    assert one.route == INDUCED


def test_with_little_memory_only_the_last_layer_is_folded_and_the_bound_stays_one():
    net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 3))
    full, tight = pair_constants(net, (40,)), pair_constants(net, (40,), memory=3000)
    assert (full.folded, tight.folded) == (["0", "1"], ["1"])
    assert torch.all(tight.between >= full.between * (1 - 1e-9))


# ---- GroupSort


@pytest.mark.parametrize("size", [2, 3, 4])
def test_groupsort_sorts_every_group_and_is_one_lipschitz_in_both_norms(size):
    layer = GroupSort(size)
    x, z = torch.randn(500, 12, dtype=torch.float64), torch.randn(500, 12, dtype=torch.float64)
    groups = layer(x).unflatten(1, (-1, size))
    assert torch.equal(groups, x.unflatten(1, (-1, size)).sort(2, descending=True).values)
    for order in (2, math.inf, 1):
        apart = (layer(x) - layer(z)).norm(order, dim=1)
        assert torch.all(apart <= (x - z).norm(order, dim=1) * (1 + 1e-12))


@pytest.mark.parametrize("shape", [(8,), (8, 3, 5)])
@pytest.mark.parametrize("word", ["maxmin", "groupsort"])
def test_groupsort_keeps_the_length_of_gradients_and_works_along_channels(word, shape):
    layer = activation(word)
    x = torch.randn(10, *shape, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(10, *shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(layer(x), x, upstream)
    assert torch.allclose(gradient.flatten(1).norm(dim=1), upstream.flatten(1).norm(dim=1))
    assert torch.allclose(layer(x).sum(1), x.sum(1))


def test_a_width_that_cannot_be_grouped_is_refused_with_one_that_can():
    with pytest.raises(UserError, match="3 wide") as caught:
        GroupSort(2)(torch.zeros(1, 3))
    assert "4" in caught.value.fix
    net = nn.Sequential(nn.Linear(2, 5), GroupSort(2), nn.Linear(5, 2))
    with pytest.raises(UserError, match="5 wide"):
        pair_constants(net, (2,))
    with pytest.raises(ValueError, match="size=1"):
        GroupSort(1)


def test_an_orthogonal_maxmin_net_has_the_constant_of_its_last_layer():
    net = build("mlp", input_shape=(8,), hidden=(8, 8), classes=3, activation="maxmin").double()
    for layer in (net[0], net[2]):
        nn.init.orthogonal_(layer.weight)
    W = net[-1].weight.detach()
    known = pair_constants(net, (8,))
    assert float(known.between[0, 1]) == pytest.approx(float((W[0] - W[1]).norm()), rel=1e-6)


# ---- radii


def small_net(word: str) -> nn.Sequential:
    """2-6-4-3, with three classes over the plane."""
    net = build("mlp", input_shape=(2,), hidden=(8, 4), classes=3, activation=word).double().eval()
    for parameter in net.parameters():
        parameter.data.mul_(1.6)
    return net.requires_grad_(False)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("word", ["relu", "elu", "maxmin", "groupsort", "gelu"])
def test_no_point_of_a_fine_grid_within_the_radius_changes_the_class(word, norm):
    net = small_net(word)
    x = 4 * torch.rand(60, 2, dtype=torch.float64) - 2
    y = net(x).argmax(1)
    radius = radii_of(net, x, y, norm)
    assert radius.min() > 0
    axis = torch.linspace(-1, 1, 41, dtype=torch.float64)
    disc = torch.cartesian_prod(axis, axis)
    if norm == "l2":
        disc = disc[disc.norm(dim=1) <= 1]
    for i in range(len(x)):
        assert torch.all(net(x[i] + radius[i] * (1 - 1e-9) * disc).argmax(1) == y[i])


def test_wrong_points_get_radius_zero_and_ties_too():
    between = torch.ones(2, 2, dtype=torch.float64)
    logits = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    found = certified_radii(logits, torch.zeros(3, dtype=torch.long), between)
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2] == pytest.approx(2.0)


def test_a_constant_classifier_is_certified_at_any_radius():
    net = nn.Linear(2, 2)
    net.weight.data.zero_()
    net.bias.data.copy_(torch.tensor([1.0, 0.0]))
    (found,) = lipschitz(net, torch.randn(10, 2), torch.zeros(10, dtype=torch.long), radii=(1e6,))
    assert (found.value, found.holds, found.empirical["value"]) == (1.0, True, 1.0)


# ---- the certificate


def three_blobs(n: int = 90) -> Split:
    y = torch.arange(n) % 3
    centres = torch.tensor([[0.0, 1.5], [1.3, -0.8], [-1.3, -0.8]])
    return Split(centres[y] + 0.5 * torch.randn(n, 2), y, ("a", "b", "c"), "blobs", "test", None)


def trained(split: Split, word: str = "maxmin") -> nn.Sequential:
    net = build("mlp", input_shape=(2,), hidden=(8,), classes=3, activation=word)
    optimiser = torch.optim.Adam(net.parameters(), 0.02, weight_decay=1e-3)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(split.x), split.y).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return net


@pytest.mark.parametrize("norm", NORMS)
def test_the_certificate_counts_the_whole_sample_and_no_attack_beats_it(norm):
    split = three_blobs()
    net = trained(split)
    radii = (0.0, 0.05, 0.2, 50.0)
    found = certify_lipschitz(net, split, Asked(norm=norm, radii=radii))
    own = radii_of(net, split.x, split.y, norm)
    for radius, certificate in zip(radii, found, strict=True):
        assert certificate.value == float((own > radius).double().mean())
        assert certificate.threat["radius"] == radius
        assert certificate.threat["norm"] == norm
        assert certificate.verdict == "proven"
        assert certificate.holds
        assert certificate.value <= certificate.empirical["value"] <= certificate.constants["clean_accuracy"]
        assert certificate.vacuous == (certificate.value <= 1 / 3)
        assert certificate.sample["sha256"] == split.digest()
    assert found[1].value > 0.5
    assert found[0].value > found[2].value > found[3].value == 0
    assert {row["method"] for row in found[0].solver["norms"]} <= set(found[0].solver["methods"])


def test_the_bound_is_the_same_in_any_batch_size_and_leaves_the_model_as_it_was():
    split = three_blobs()
    net = trained(split).train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    one, two = (certify_lipschitz(net, split, Asked(batch_size=size)) for size in (7, 1000))
    assert [c.value for c in one] == [c.value for c in two]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_constant_that_is_too_small_is_caught_by_the_attack(monkeypatch):
    split = three_blobs()
    net = trained(split)

    def halved(*arguments, **options) -> PairConstants:
        known = pair_constants(*arguments, **options)
        return PairConstants(known.between / 4, known.K, known.norms, known.folded, known.routes, known.route)

    assert all(c.holds for c in certify_lipschitz(net, split, Asked()))
    monkeypatch.setattr(lipschitz_margin, "pair_constants", halved)
    for norm in NORMS:
        found = certify_lipschitz(net, split, Asked(norm=norm))
        assert not any(c.holds for c in found)
        assert all(c.solver["contradicted_points"] for c in found)
        assert any("attack" in warning for warning in found[0].warnings)
        assert all(c.holds for c in certify_lipschitz(net, split, Asked(norm=norm, attack=False)))


def test_halving_the_constant_of_a_linear_net_is_caught_at_each_points_own_radius(monkeypatch):
    """The table's radius is far below every certified one, so only the attack at a point's own radius can see it."""
    net, x = nn.Linear(5, 2), torch.randn(40, 5)
    y = net(x).argmax(1)

    def halved(*arguments, **options) -> PairConstants:
        known = pair_constants(*arguments, **options)
        return PairConstants(known.between / 2, known.K, known.norms, known.folded, known.routes, known.route)

    monkeypatch.setattr(lipschitz_margin, "pair_constants", halved)
    for norm in NORMS:
        (found,) = lipschitz(net, x, y, norm=norm, radii=(1e-6,))
        assert len(found.solver["contradicted_points"]) == 40


def test_every_point_is_written_to_the_record(tmp_path):
    split = three_blobs(30)
    net = trained(split)
    (found,) = certify_lipschitz(net, split, Asked(radii=(0.1,)), record=lambda: tmp_path / "points.tsv")
    heads, *rows = [line.split("\t") for line in (tmp_path / "points.tsv").read_text().splitlines()]
    assert heads == ["index", "label", "correct", "radius"]
    assert [int(row[0]) for row in rows] == list(range(30))
    assert sum(float(row[3]) > 0.1 for row in rows) / 30 == found.value
    assert [float(row[3]) for row in rows] == radii_of(net, split.x, split.y, "l2").tolist()
    assert found.solver["record"] == str(tmp_path / "points.tsv")


def test_default_radii_are_those_of_the_norm():
    split = three_blobs(12)
    net = trained(split)
    for norm in NORMS:
        found = certify_lipschitz(net, split, Asked(norm=norm, attack=False))
        assert tuple(c.threat["radius"] for c in found) == RADII[norm]


def test_what_cannot_be_certified_is_refused_with_a_reason():
    split = three_blobs(12)
    attention = nn.Sequential(nn.Linear(2, 4), nn.MultiheadAttention(4, 1), nn.Linear(4, 3))
    with pytest.raises(UserError, match="MultiheadAttention") as caught:
        certify_lipschitz(attention, split, Asked())
    assert caught.value.why
    assert caught.value.fix
    with pytest.raises(UserError, match="classes"):
        certify_lipschitz(nn.Linear(2, 2), split, Asked())
    with pytest.raises(UserError, match="range"):
        lipschitz(nn.Linear(2, 3), split.x, split.y, input_range=(0.0, 1.0))
    with pytest.raises(UserError, match="logits"):
        lipschitz(nn.Conv2d(1, 2, 1), torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="l1"):
        lipschitz(nn.Linear(2, 3), split.x, split.y, norm="l1")
    with pytest.raises(ValueError, match="radii"):
        lipschitz(nn.Linear(2, 3), split.x, split.y, radii=(-1.0,))


def test_a_trained_digit_classifier_is_attacked_and_certified():
    split = open_split("digits", "test").take(60)
    net = build("resnet20", input_shape=(1, 8, 8), activation="relu").eval()
    found = certify_lipschitz(net, split, Asked(radii=(0.0, 1e-6)))
    assert found[0].value == found[0].constants["clean_accuracy"]
    assert all(c.holds for c in found)
    assert all(norm["norm"] > 0 for norm in found[0].solver["norms"])
