"""Interval and linear bounds: they contain every output, are exact where they must be, and a wrong one is caught."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from iclr18cli.attack.threat import Threat
from iclr18cli.certify import bounds
from iclr18cli.certify.bounds import certificate as certificates
from iclr18cli.certify.bounds import crown, margins, output_bounds
from iclr18cli.certify.bounds.certificate import Asked, certify_bounds
from iclr18cli.certify.bounds.intervals import of_threat, propagate
from iclr18cli.certify.bounds.network import chain
from iclr18cli.certify.bounds.relaxation import lines
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.models.layers import Normalize, PadShortcut, Residual

ACTIVATIONS = {
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.1), "elu": nn.ELU, "elu-half": lambda: nn.ELU(0.5),
    "softplus": nn.Softplus, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip
WAYS = (("ibp", "ibp"), ("crown", "ibp"), ("crown", "crown"))
THREATS = (("linf", 0.1), ("l2", 0.3), ("l1", 0.6))


def dense(activation: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    act = ACTIVATIONS[activation]
    return nn.Sequential(nn.Linear(5, 12), act(), nn.Linear(12, 12), act(), nn.Linear(12, 4)).eval()


def residual(activation: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    act = ACTIVATIONS[activation]
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), act(), nn.Conv2d(4, 6, 3, stride=2, padding=1))
    net = nn.Sequential(
        Normalize([0.3], [0.5]), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), act(),
        Residual(block, PadShortcut(2, 2)), act(), nn.Dropout(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 8), act(),
        nn.Linear(8, 5),
    )  # fmt: skip
    net[2].running_mean.uniform_(-1, 1)
    net[2].running_var.uniform_(0.5, 2)
    return net.eval()


def corners_and_insides(threat: Threat, x: Tensor, n: int, seed: int = 0) -> Tensor:
    """Return n points of the set per input: half inside, half pushed out to the boundary; (n, B, X)."""
    generator, many = torch.Generator().manual_seed(seed), x.repeat(n, *[1] * (x.dim() - 1))
    z = threat.random(many, generator)
    delta = z - many
    if threat.norm == "linf":
        outer = threat.eps * delta.sign()
    else:
        size = (delta.flatten(1).norm(dim=1, p=2 if threat.norm == "l2" else 1)).clamp(min=1e-12)
        outer = delta * (threat.eps / size).reshape(-1, *[1] * (x.dim() - 1))
    z[::2] = threat.bring_back(many + outer, many)[::2]
    return z.reshape(n, *x.shape)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make", [dense, residual])
def test_bounds_contain_every_sampled_output_and_crown_is_never_looser(make, activation):
    net, generator = make(activation), torch.Generator().manual_seed(1)
    x = torch.rand(2, *((5,) if make is dense else (1, 4, 4)), generator=generator)
    y = net(x).argmax(1)
    for norm, eps in THREATS:
        threat = Threat(norm, eps)
        z = corners_and_insides(threat, x.double(), 400)
        out = net.double()(z.flatten(0, 1)).reshape(400, 2, -1)
        net.float()
        gap = out.gather(2, y[None, :, None].expand(400, 2, 1)) - out
        widths, least = [], []
        for method, intermediate in WAYS:
            lower, upper = output_bounds(net, x, threat=threat, method=method, intermediate=intermediate)
            assert (out >= lower).all()
            assert (out <= upper).all()
            found = margins(net, x, y, threat=threat, method=method, intermediate=intermediate)
            assert (gap >= found).all()
            widths.append((upper - lower).sum())
            least.append(found)
        assert widths[0] >= widths[1] - 1e-9
        assert widths[1] >= widths[2] - 1e-6
        assert (least[1] >= least[0]).all()
        assert (least[2] >= least[1] - 1e-6).all()


def test_a_hundred_thousand_outputs_of_twenty_random_nets_lie_between_the_bounds():
    names = list(ACTIVATIONS)
    for seed in range(20):
        net = dense(names[seed % len(names)], seed)
        x = torch.rand(1, 5, generator=torch.Generator().manual_seed(seed))
        out = net.double()(corners_and_insides(Threat("linf", 0.2), x.double(), 5000, seed).flatten(0, 1))
        net.float()
        for method, intermediate in WAYS:
            lower, upper = output_bounds(net, x, threat=Threat("linf", 0.2), method=method, intermediate=intermediate)
            assert (out >= lower).all()
            assert (out <= upper).all()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", float("inf"))])
def test_one_dense_layer_is_bounded_exactly_by_the_dual_norm(norm, dual):
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    x, y, eps = torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), 0.3
    logits = net(x).double()
    for method in ("ibp", "crown"):
        found = margins(net, x, y, threat=Threat(norm, eps, None), method=method)
        rows = net.weight.double()
        difference = rows[y][:, None] - rows
        exact = logits.gather(1, y[:, None]) - logits - eps * torch.linalg.vector_norm(difference, ord=dual, dim=2)
        wrong = torch.arange(3) != y[:, None]
        assert torch.allclose(found[wrong], exact[wrong], atol=1e-5)


def test_a_ball_reaching_beyond_the_domain_is_cut_with_it():
    net = nn.Linear(1, 2, bias=False)
    net.weight.data = torch.tensor([[1.0], [-1.0]])
    x, y = torch.tensor([[0.1]]), torch.tensor([0])
    inside = margins(net, x, y, threat=Threat("linf", 0.5, (0.0, 1.0)))
    outside = margins(net, x, y, threat=Threat("linf", 0.5, None))
    assert inside[0, 1] == pytest.approx(0.0, abs=1e-5)  # x' = 0
    assert outside[0, 1] == pytest.approx(-0.8, abs=1e-5)  # x' = -0.4


def test_exhaustive_search_on_a_tiny_net_finds_no_point_below_the_bound_and_comes_near():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    x, eps = torch.tensor([[0.4, 0.6]]), 0.15
    axis = torch.linspace(-eps, eps, 301)
    grid = x + torch.cartesian_prod(axis, axis)
    y = net(x).argmax(1)
    out = net(grid).double()
    true = (out[:, y] - out[:, 1 - y]).min()
    found = margins(net, x, y, threat=Threat("linf", eps, None), intermediate="crown")[0, 1 - int(y)]
    loose = margins(net, x, y, threat=Threat("linf", eps, None), method="ibp")[0, 1 - int(y)]
    assert loose <= found <= true + 1e-6
    assert true - found < 0.5 * (true - loose) + 1e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_both_lines_hold_on_the_whole_interval_for_every_sign_of_its_ends(activation):
    layer = ACTIVATIONS[activation]()
    ends = [-6.0, -2.0, -0.7, -1e-6, 0.0, 1e-12, 0.3, 1.0, 5.0]
    pairs = [(low, high) for low, high in itertools.product(ends, ends) if low <= high]
    low, high = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    found = lines(layer, low, high)
    for share in torch.linspace(0, 1, 401, dtype=torch.float64):
        at = low + share * (high - low)
        value = layer(at)
        assert (found.lower_slope * at + found.lower_offset <= value + 1e-9).all()
        assert (found.upper_slope * at + found.upper_offset >= value - 1e-9).all()


def test_max_pooling_has_interval_bounds_and_crown_says_why_it_has_none():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)).eval()
    x, threat = torch.rand(2, 1, 6, 6), Threat("linf", 0.1)
    lower, upper = output_bounds(net, x, threat=threat, method="ibp")
    out = net(corners_and_insides(threat, x, 300).flatten(0, 1)).reshape(300, 2, 3)
    assert (out >= lower).all()
    assert (out <= upper).all()
    with pytest.raises(UserError, match=r"MaxPool2d.*--method ibp"):
        margins(net, x, torch.tensor([0, 1]), threat=threat, method="crown")


def test_a_layer_that_comes_twice_and_activations_in_place_are_bounded_as_what_they_are():
    torch.manual_seed(0)
    layer, act = nn.Linear(4, 4), nn.ReLU(inplace=True)
    net = nn.Sequential(layer, act, layer, act, layer)
    net[0].weight.data *= 2
    x, threat = torch.rand(3, 4), Threat("linf", 0.2)
    assert len(chain(net)) == 5
    out = net(corners_and_insides(threat, x, 500).flatten(0, 1)).reshape(500, 3, 4)
    for method, intermediate in WAYS:
        lower, upper = output_bounds(net, x, threat=threat, method=method, intermediate=intermediate)
        assert (out >= lower).all()
        assert (out <= upper).all()


class Own(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Own(), "Own"), (nn.GELU(), "GELU"), (nn.LayerNorm(4), "LayerNorm"), (nn.Softplus(threshold=1.0), "jumps"),
        (nn.BatchNorm1d(4, track_running_stats=False), "running statistics"), (nn.ELU(-1.0), "does not rise"),
    ],
)  # fmt: skip
def test_layers_without_bounds_are_refused_by_name(layer, words):
    net = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    with pytest.raises(UserError, match=words):
        margins(net, torch.rand(2, 4), torch.tensor([0, 1]), threat=Threat("linf", 0.1))


def test_what_works_in_place_at_the_fork_of_a_residual_is_refused():
    net = nn.Sequential(Residual(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), nn.Identity()))
    with pytest.raises(UserError, match="in place"):
        chain(net)


def test_crown_refuses_activations_that_are_neither_convex_nor_s_shaped_and_ibp_takes_them():
    net = nn.Sequential(nn.Linear(3, 4), nn.ELU(2.0), nn.Linear(4, 2))
    x, y = torch.rand(2, 3), torch.tensor([0, 1])
    assert margins(net, x, y, threat=Threat("linf", 0.1), method="ibp").shape == (2, 2)
    with pytest.raises(UserError, match="not convex"):
        margins(net, x, y, threat=Threat("linf", 0.1), method="crown")


def sharp() -> nn.Sequential:
    """A net whose classes change within the unit cube."""
    net = dense("relu")
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 3
            layer.bias.data -= layer(torch.full((1, layer.in_features), 0.5))[0].detach() / 2
    return net


def points(net: nn.Module, n: int = 40) -> Split:
    x = torch.rand(n, 5, generator=torch.Generator().manual_seed(5))
    y = net(x).argmax(1)
    y[:4] = (y[:4] + 1) % 4
    return Split(x=x, y=y, classes=("a", "b", "c", "d"), name="own", split="test")


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_a_certificate_counts_wrong_points_as_failures_and_stays_below_the_attack(method):
    net = sharp()
    split = points(net)
    small, large = certify_bounds(net, split, Asked(method=method, eps=(0.001, 0.5)))
    assert small.verdict == "proven"
    assert small.holds
    assert large.holds
    assert small.value <= 0.9  # four labels are wrong
    assert small.value > large.value
    assert small.value <= small.empirical["value"]
    assert large.value <= large.empirical["value"]
    assert large.vacuous == (large.value <= 0.25)
    assert f"at least {round(small.value * 40)}" in small.statement
    assert small.constants["clean_accuracy"] == pytest.approx(0.9)


def test_a_wrong_constant_is_caught_by_the_attack_in_the_same_run(monkeypatch):
    net = sharp()
    split = points(net)
    honest = certify_bounds(net, split, Asked(eps=(0.4,)))[0]
    assert honest.holds

    def shrunk(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, **options: object) -> Tensor:
        return bounds.margins(model, x, y, threat=Threat(threat.norm, threat.eps / 50, threat.domain), **options)

    monkeypatch.setattr(certificates, "margins", shrunk)
    caught = certify_bounds(net, split, Asked(eps=(0.4,)))[0]
    assert not caught.holds
    assert caught.solver["contradicted_points"]
    assert any("fault of this program" in text for text in caught.warnings)


def test_the_points_file_has_a_line_per_point(tmp_path):
    net = sharp()
    certify_bounds(net, points(net), Asked(eps=(0.01,)), record=lambda eps: tmp_path / f"{eps}.tsv")
    heading, *rows = (tmp_path / "0.01.tsv").read_text().splitlines()
    assert heading.split("\t")[:4] == ["index", "label", "correct", "certified"]
    assert len(rows) == 40
    assert all(float(row.split("\t")[4]) > 0 for row in rows if row.split("\t")[3] == "1")


def test_models_and_flags_come_back_as_they_were():
    net = sharp().train()
    before = [p.clone() for p in net.parameters()]
    certify_bounds(net, points(net.eval()), Asked(eps=(0.01,)))
    net.train()
    margins(net, torch.rand(2, 5), torch.tensor([0, 1]), threat=Threat("linf", 0.1))
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_tightening_by_crown_only_shrinks_the_boxes_of_hidden_layers():
    net = residual("relu").double()
    x, threat = torch.rand(1, 1, 4, 4, dtype=torch.float64), Threat("linf", 0.2)
    steps = chain(net)
    loose: dict = {}
    propagate(steps, of_threat(x, threat), loose)
    tight = dict(loose)
    with torch.no_grad():
        crown.tighten(steps, of_threat(x, threat), tight, x, threat)
    assert set(tight) == set(loose)
    assert all((tight[path].lower >= loose[path].lower - 1e-9).all() for path in loose)
    assert any((tight[path].upper < loose[path].upper - 1e-3).any() for path in loose)


def test_auto_lirpa_agrees_where_it_is_installed():
    package = pytest.importorskip("auto_LiRPA")
    net = sharp()
    x, y, eps = torch.rand(3, 5), torch.tensor([0, 1, 2]), 0.05
    eye = torch.eye(4)
    bounded = package.BoundedModule(net, x)
    ball = package.PerturbationLpNorm(norm=float("inf"), eps=eps)
    theirs = bounded.compute_bounds(
        x=(package.BoundedTensor(x, ball),), C=eye[y][:, None] - eye[None], method="IBP", bound_upper=False
    )[0]
    assert torch.allclose(margins(net, x, y, threat=Threat("linf", eps, None), method="ibp").float(), theirs, atol=1e-4)
