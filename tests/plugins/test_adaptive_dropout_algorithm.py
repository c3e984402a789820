"""The bound, the regulariser and the masks of `adaptive-dropout` against brute force and closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from iclr18_adaptive_dropout.algorithm import (
    Layer,
    conjugate,
    factors,
    layers_of,
    rademacher_bound,
    rademacher_reg,
    rate_norm,
    scaling,
    weight_norm,
)
from iclr18_adaptive_dropout.certificate import largest_logit
from iclr18_adaptive_dropout.dropout import AdaptiveDropout, deterministic, project_, sampling
from iclr18_adaptive_dropout.model import RowShare, conv, mlp
from iclr18_adaptive_dropout.steps import Schedule
from torch import nn

INF = math.inf
FORMS = ["camera", "submission"]
NORMS = [INF, 2.0, 1.0, 3.0]


def net_of(widths=(5, 4, 3), seed=0, low=0.2):
    """A chain in float64 with random rates in [low, 1]; no biases, as in the theorem."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for fan_in, fan_out in itertools.pairwise(widths):
        drop, dense = AdaptiveDropout(fan_in), nn.Linear(fan_in, fan_out, bias=False)
        drop.theta.data = low + (1 - low) * torch.rand(fan_in, generator=random, dtype=torch.float64)
        dense.weight.data = torch.randn(fan_out, fan_in, generator=random, dtype=torch.float64)
        parts += [drop, dense, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def by_loops(net, x_max, n, p, form):
    """Reg without scaling, one number at a time."""
    q = INF if p == 1 else 1 if p == INF else p / (p - 1)
    drops, dense = net[0::3], net[1::3]
    d, k = dense[0].in_features, dense[-1].out_features
    value = k * math.sqrt(math.log(d) / n) * x_max
    for drop, layer in zip(drops, dense, strict=True):
        norms = []
        for row in layer.weight.tolist():
            sizes = [abs(w) for w in row]
            norms.append(max(sizes) if p == INF else sum(w**p for w in sizes) ** (1 / p))
        theta = drop.theta.tolist()
        if form == "camera":
            value *= 2 * max(norms) * sum(theta) ** (0 if q == INF else 1 / q)
        else:
            value *= max(norms) * (max(theta) if q == INF else sum(t**q for t in theta) ** (1 / q))
    return value


def reg(net, p=INF, form="camera", scale="none", x_max=1.0, n=100):
    return rademacher_reg(layers_of(net), x_max, n, p=p, form=form, scale=scale)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", NORMS)
def test_the_regulariser_is_the_product_written_out(p, form):
    net = net_of((5, 4, 6, 3))
    expected = by_loops(net, 0.7, 50, p, form)
    assert reg(net, p, form, x_max=0.7, n=50).item() == pytest.approx(expected, rel=1e-6)
    d, k, L = 5, 3, 3
    bound = rademacher_bound(layers_of(net), 0.7, 50, p=p, form=form).value
    ratio = math.sqrt(2 * math.log(2 * d)) / math.sqrt(math.log(d))
    assert bound == pytest.approx(expected * ratio, rel=1e-6)
    assert bound > 0
    assert (k, L) == (layers_of(net)[-1].fan_out, len(layers_of(net)))


def test_the_two_forms_differ_by_two_per_layer_where_q_is_one_or_rates_are_0_or_1():
    net = net_of()
    assert reg(net, INF, "camera").item() == pytest.approx(4 * reg(net, INF, "submission").item())
    for part in net[0::3]:
        part.theta.data = (torch.arange(len(part.theta)) % 2).double()
    assert reg(net, 2.0, "camera").item() == pytest.approx(4 * reg(net, 2.0, "submission").item())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", NORMS)
def test_the_regulariser_is_homogeneous_and_vanishes_with_a_layer(p, form):
    net, q = net_of(), conjugate(p)
    whole = reg(net, p, form).item()
    for at in (1, 4):
        net[at].weight.data *= 3
        assert reg(net, p, form).item() == pytest.approx(3 * whole, rel=1e-6)
        net[at].weight.data /= 3
    net[3].theta.data /= 2
    degree = 1.0 if form == "submission" else 1 / q
    assert reg(net, p, form).item() == pytest.approx(whole / 2**degree, rel=1e-6)
    net[3].theta.data *= 0
    if form == "submission" or p > 1:
        value = reg(net, p, form)
        assert value.item() == 0
        value.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
    net = net_of()
    net[4].weight.data *= 0
    assert reg(net, p, form).item() == 0
    assert reg(net_of(), p, form, x_max=0.0).item() == 0


def test_gradients_of_rates_are_the_closed_forms():
    for p, q in ((INF, 1.0), (2.0, 2.0), (3.0, 1.5)):
        net = net_of()
        value = reg(net, p, "camera")
        value.backward()
        for part in net[0::3]:
            expected = torch.full_like(part.theta, value.item() / (q * part.theta.sum().item()))
            torch.testing.assert_close(part.theta.grad, expected)
    net = net_of()
    value = reg(net, 2.0, "submission")
    value.backward()
    theta = net[3].theta
    torch.testing.assert_close(theta.grad, value.detach() * theta.detach() / theta.detach().square().sum())
    net = net_of()
    reg(net, 1.0, "camera").backward()  # 1/q = 0: the rates are not in it
    assert all(part.theta.grad is None or not part.theta.grad.any() for part in net[0::3])


def test_the_regulariser_grows_with_every_rate():
    for p, form in itertools.product((INF, 2.0), FORMS):
        net = net_of()
        reg(net, p, form).backward()
        assert all((part.theta.grad > 0).all() for part in net[0::3])


def test_gradients_of_weights_are_nonzero_only_where_the_largest_is_attained():
    net = net_of()
    reg(net, 2.0).backward()
    for dense in net[1::3]:
        rows = dense.weight.detach().norm(dim=1)
        assert (dense.weight.grad != 0).any(1).nonzero().flatten().tolist() == [rows.argmax().item()]
    net = net_of()
    reg(net, INF).backward()
    for dense in net[1::3]:
        assert dense.weight.grad.flatten().nonzero().flatten().tolist() == [dense.weight.abs().argmax().item()]


def test_norms_are_taken_of_the_incoming_weights_of_a_unit():
    weight = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 4.0]])  # rows: 3, 3, 5; columns: sqrt 27, 4
    assert weight_norm(weight, 2.0).item() == 5
    assert weight_norm(weight, 1.0).item() == 7
    assert weight_norm(weight, INF).item() == 4


@pytest.mark.parametrize("q", [1.0, 1.5, 2.0, 4.0])
def test_expected_norms_of_masks_lie_between_the_two_norms_of_the_rates(q):
    p = INF if q == 1 else q / (q - 1)
    theta = torch.tensor([0.1, 0.5, 0.9, 0.3], dtype=torch.float64)
    mean = 0.0
    for mask in itertools.product((0.0, 1.0), repeat=4):
        r = torch.tensor(mask, dtype=torch.float64)
        mean += (theta * r + (1 - theta) * (1 - r)).prod().item() * r.norm(q).item()
    low, high = rate_norm(theta, p, "submission").item(), rate_norm(theta, p, "camera").item()
    assert low <= mean + 1e-12
    assert mean <= high + 1e-12
    assert q == 1 or low < mean < high
    whole = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    assert rate_norm(whole, p, "submission").item() == pytest.approx(rate_norm(whole, p, "camera").item())


@pytest.mark.parametrize("p", [INF, 2.0, 1.0])
def test_the_bound_is_above_the_exact_complexity_of_a_linear_class(p):
    """sup over |w|_p <= B of sum_i s_i w (theta * x_i) is B |theta * sum_i s_i x_i|_q; all signs are listed."""
    random = torch.Generator().manual_seed(1)
    n, d, B, q = 8, 3, 1.7, conjugate(p)
    x = torch.rand(n, d, generator=random, dtype=torch.float64) * 2 - 1
    drop, dense = AdaptiveDropout(d), nn.Linear(d, 1, bias=False)
    drop.theta.data = torch.tensor([0.9, 0.4, 0.1], dtype=torch.float64)
    direction = torch.rand(d, generator=random, dtype=torch.float64)
    dense.weight.data = (B * direction / direction.norm(p))[None]
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)
    exact = (B / n) * (drop.theta * (signs @ x)).norm(q, dim=1).mean().item()
    layers = layers_of(nn.Sequential(drop, dense))
    for form in FORMS:
        assert exact < rademacher_bound(layers, x.abs().max().item(), n, p=p, form=form).value


def test_a_bias_counts_as_a_weight_of_an_input_that_is_one():
    net = mlp(input_shape=(3,), classes=2, hidden=(), init=(0.5,)).double()
    net[1].weight.data = torch.tensor([[1.0, 2.0, -3.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    net[1].bias.data = torch.tensor([0.0, 4.0], dtype=torch.float64)
    bound = rademacher_bound(layers_of(net), 0.5, 10, p=INF).value
    assert bound == pytest.approx(2 * math.sqrt(2 * math.log(8) / 10) * 1.0 * (2 * 4 * 2.5))


def test_scaling_is_by_fan_in_or_fan_out_and_they_differ_by_a_constant():
    layers = [Layer(None, torch.ones(4, 9), 9, 4), Layer(None, torch.ones(2, 4), 4, 2)]
    assert scaling(layers[0], INF, "fan-in") == pytest.approx(math.sqrt(13) / 9)
    assert scaling(layers[0], INF, "paper") == pytest.approx(math.sqrt(13) / 4)
    assert scaling(layers[0], 2.0, "paper") == pytest.approx(math.sqrt(13 / math.log(4)) / 4)
    assert scaling(layers[0], 2.0, "none") == 1
    for p in (INF, 2.0):
        ratio = factors(layers, p=p, scale="paper").prod() / factors(layers, p=p, scale="fan-in").prod()
        assert ratio.item() == pytest.approx(9 / 2)
    assert math.isfinite(scaling(Layer(None, torch.ones(1, 3), 3, 1), 2.0, "fan-in"))  # log 1 = 0


def test_logarithms_keep_a_deep_wide_product_finite_and_in_range():
    torch.manual_seed(0)
    net = mlp(input_shape=(784,), classes=10, hidden=(1024,))
    assert reg(net).item() == pytest.approx(by_loops_fast(net), rel=1e-4)
    assert reg(net, scale="fan-in").item() == pytest.approx(24.8, rel=0.02)  # the card's own figures
    assert 1e4 < reg(net).item() < 2e4
    deep = mlp(input_shape=(1000,), classes=10, hidden=(1000,) * 30, init=(0.8,))
    assert math.isfinite(reg(deep, scale="fan-in").item())


def by_loops_fast(net):
    value = 10 * math.sqrt(math.log(784) / 100)
    for layer in layers_of(net):
        value *= 2 * layer.weight.abs().max().item() * layer.drop.theta.sum().item()
    return value


def test_convolutions_give_their_rates_and_not_their_weights():
    net = conv(input_shape=(1, 8, 8), classes=3, filters=(2, 3), hidden=(6,), init=(0.5,))
    layers = layers_of(net)
    assert [layer.weight is None for layer in layers] == [True, True, False, False]
    assert (layers[0].fan_in, layers[1].fan_in) == (64, 2 * 4 * 4)
    c = factors(layers, p=INF)
    assert c[0].item() == 2 * 0.5 * 64
    assert factors(layers, p=INF, scale="fan-in")[0].item() == 2 * 0.5
    value = reg(net, scale="fan-in")
    value.backward()
    assert net[1].weight.grad is None
    assert (net[0].theta.grad > 0).all()
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match="dense"):
        rademacher_bound(layers, 1.0, 10, p=INF)


def tied(layer):
    """Return another layer with the same weight."""
    twin = nn.Linear(layer.in_features, layer.out_features)
    twin.weight = layer.weight
    return twin


def test_chains_that_have_no_bound_are_refused():
    drop = AdaptiveDropout(3)
    for parts in ((drop,), (AdaptiveDropout(3), AdaptiveDropout(3), nn.Linear(3, 2)), (drop, nn.Linear(4, 2))):
        with pytest.raises(ValueError, match=r"received|between|belong"):
            layers_of(nn.Sequential(*parts))
    shared = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="two layers share"):
        layers_of(nn.Sequential(shared, nn.ReLU(), nn.Sequential(nn.Linear(3, 3)), tied(shared)))
    with pytest.raises(ValueError, match="BatchNorm1d"):
        layers_of(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="p must be"):
        conjugate(0.5)
    with pytest.raises(ValueError, match="n must be"):
        reg(net_of(), n=0)
    for bad in ({"init": 1.5}, {"init": -0.1}, {"per": "row"}, {"shape": 0}):
        with pytest.raises(ValueError, match="received"):
            AdaptiveDropout(**({"shape": 3} | bad))


# ---- masks


def test_with_rates_of_one_masked_deterministic_and_plain_networks_are_the_same():
    torch.manual_seed(0)
    net = mlp(input_shape=(6,), classes=3, hidden=(5,), init=(1.0,))
    plain = nn.Sequential(*(part for part in net if not isinstance(part, AdaptiveDropout)))
    x = torch.randn(7, 6)
    assert torch.equal(net.train()(x), plain(x))
    assert torch.equal(net.eval()(x), plain(x))


def expectation(net, x):
    """E_r f(x) by listing all masks of all layers."""
    drops = [part for part in net if isinstance(part, AdaptiveDropout)]
    mean = 0.0
    for masks in itertools.product(*(itertools.product((0.0, 1.0), repeat=len(drop.theta)) for drop in drops)):
        chance, out, at = 1.0, x, 0
        for part in net:
            if isinstance(part, AdaptiveDropout):
                r = torch.tensor(masks[at], dtype=torch.float64)
                chance *= (part.theta * r + (1 - part.theta) * (1 - r)).prod().item()
                out, at = out * r, at + 1
            else:
                out = part(out)
        mean = mean + chance * out
    return mean


def test_the_deterministic_pass_is_the_mean_over_masks_for_one_layer_and_not_for_two():
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    with torch.no_grad():
        one = net_of((3, 2)).eval()
        torch.testing.assert_close(one(x), expectation(one, x))
        two = net_of((3, 4, 2), seed=3).eval()
        gap = (two(x) - expectation(two, x)).abs().max().item()
        assert gap > 1e-3
        with sampling(two):
            sampled = two(x.expand(200_000, 3)).mean(0)
        torch.testing.assert_close(sampled, expectation(two, x)[0], atol=0.02, rtol=0)


def test_masks_follow_the_rates_as_they_are_now_and_are_not_divided_by_them():
    torch.manual_seed(0)
    drop = AdaptiveDropout(3, 0.5)
    drop.theta.data = torch.tensor([0.0, 0.3, 1.0])
    out = drop(torch.full((20_000, 3), 2.0))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert out[:, 0].max() == 0
    assert out[:, 2].min() == 2
    assert out[:, 1].mean().item() == pytest.approx(0.6, abs=0.03)


def test_evaluation_does_not_depend_on_the_generator_or_move_it():
    net, x = net_of().eval(), torch.randn(4, 5, dtype=torch.float64)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = net(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(net(x), first)
    net.train()
    with deterministic(net):
        assert torch.equal(net(x), first)
    assert all(part.training for part in net.modules())


def test_one_rate_per_layer_is_that_of_all_its_units():
    shared, each = AdaptiveDropout((2, 3), 0.25, "layer"), AdaptiveDropout((2, 3), 0.25)
    assert shared.theta.shape == ()
    assert torch.equal(shared.rates, each.rates)
    x = torch.randn(4, 2, 3)
    assert torch.equal(shared.eval()(x), each.eval()(x))
    assert rate_norm(shared.rates, INF).item() == 1.5


def test_rates_are_in_the_state_dict_in_single_precision():
    net = mlp(per="layer")
    found = {name: value for name, value in net.state_dict().items() if name.endswith("theta")}
    assert [value.dtype for value in found.values()] == [torch.float32] * 2
    assert [round(value.item(), 6) for value in found.values()] == [0.8, 0.5]


def test_projection_clips_and_forgets_the_momentum_of_what_it_clipped():
    theta = torch.tensor([-0.5, 0.5, 1.5, 1.0])
    momentum = torch.tensor([1.0, 2.0, 3.0, 4.0])
    project_(theta, momentum)
    assert theta.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert momentum.tolist() == [0.0, 2.0, 0.0, 4.0]
    nearest = torch.linspace(0, 1, 1001)
    for value in (-0.5, 0.25, 1.7):
        moved = torch.tensor([value])
        project_(moved)
        assert moved.item() == pytest.approx(nearest[(nearest - value).abs().argmin()].item())


def test_shares_of_counts_do_not_depend_on_their_unit_and_a_row_of_zeros_stays():
    x = torch.tensor([[2.0, 0.0, 6.0], [0.0, 0.0, 0.0]])
    assert RowShare()(x).tolist() == [[0.25, 0.0, 0.75], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(RowShare()(x / 255), RowShare()(x))


def test_no_logit_leaves_its_bound():
    torch.manual_seed(0)
    net = mlp(input_shape=(6,), classes=3, hidden=(8, 8)).eval()
    for part in net:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.bias)
    bound = largest_logit(layers_of(net), 1.0)
    x = torch.randint(2, (500, 6)).float()
    assert net(x).abs().max().item() <= bound
    alone = mlp(input_shape=(2,), classes=1, hidden=(), init=(0.5,))
    alone[1].weight.data = torch.tensor([[2.0, -4.0]])
    assert largest_logit(layers_of(alone), 1.0) == pytest.approx(3.0)


def test_the_schedule_ends_lower_and_lambda_grows_from_nothing():
    plan = Schedule(1000, (0.5, 0.75), 0.3, 0.0)
    assert [plan.rate(step) for step in (1, 500, 501, 751)] == pytest.approx([1, 1, 0.3, 0.09])
    assert plan.growth(1) == 1
    assert Schedule(1000, (), 0.3, 0.5).growth(250) == 0.5
