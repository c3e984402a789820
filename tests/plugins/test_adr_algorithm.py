"""The exact properties of papers/adr.md, section 7, and the critics of the baselines."""

from __future__ import annotations

import copy
import itertools
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from iclr18_adr.algorithm import (
    adversarial_loss,
    authors_entropy,
    authors_symmetric_kl,
    class_balance,
    draws,
    entropy,
    l1_distance,
    reverse_gradient,
    sampling,
    symmetric_kl,
)
from iclr18_adr.config import TrainConfig
from iclr18_adr.domains import Domains, chosen
from iclr18_adr.model import Adapted, Fit, dense_head, small
from iclr18_adr.steps import Players
from iclr18_adr.train import check, fit, take_statistics
from torch import nn

from iclr18cli.data.tensors import Order, Split
from iclr18cli.errors import UsageError, UserError
from iclr18cli.models.modes import frozen
from iclr18cli.run.loop import Run

D = torch.float64
DIGITS = tuple("0123456789")


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


class Alone:
    """What the steps and the loop need of a run, without a directory."""

    seed, device, weight = 0, torch.device("cpu"), 1.0
    settings = SimpleNamespace(data_dir=None, download=False)

    def __init__(self):
        self.scaler, self.logged = torch.amp.GradScaler("cpu", enabled=False), []

    descend = Run.descend
    autocast = staticmethod(nullcontext)
    share = staticmethod(lambda index: index)
    prepare = staticmethod(lambda module: module)

    def track(self, **objects):
        pass

    def steps(self, count, total_name=""):
        return range(count)

    def log(self, **metrics):
        self.logged.append(metrics)


def tiny(dropout=0.5, classes=3, seed=0):
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU())
    heads = [dense_head((12, 8), classes, dropout=dropout, on_features=True) for _ in range(2)]
    return Adapted((1, 4, 4), features, heads, "c").to(D).train()


def players(net, **options):
    config = TrainConfig(**({"learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 16} | options))
    return Players.of(net, config, Alone())


def batch(B=16, classes=3):
    xs, xt = randn(B, 1, 4, 4, seed=1), randn(B, 1, 4, 4, seed=2) + 0.3
    return torch.cat([xs, xt]), torch.arange(B) % classes, xt


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(module, before):
    return all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


# The sensitivity, Eq. (1)


def test_sensitivity_is_the_mean_of_the_two_divergences_symmetric_and_zero_only_at_equal_predictions():
    z1, z2 = randn(50, 7, scale=3), randn(50, 7, seed=1, scale=3)
    p1, p2 = z1.softmax(1), z2.softmax(1)
    kl = lambda p, q: (p * (p / q).log()).sum(1)
    d = symmetric_kl(z1, z2)
    torch.testing.assert_close(d, (kl(p1, p2) + kl(p2, p1)) / 2, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(d, 0.5 * ((p1 - p2) * (p1.log() - p2.log())).sum(1), rtol=1e-11, atol=1e-13)
    assert torch.equal(d, symmetric_kl(z2, z1))
    assert (d > 0).all()
    assert (symmetric_kl(z1, z1) == 0).all()


def test_sensitivity_is_finite_at_logits_of_ten_thousand():
    z = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.float32)
    d = symmetric_kl(z, -z)
    assert torch.isfinite(d).all()
    assert d.item() == pytest.approx(2e4)


def test_two_classes_have_the_closed_form_of_their_logit_differences():
    u, v = randn(30, scale=4), randn(30, seed=1, scale=4)
    z1, z2 = torch.stack([u, torch.zeros_like(u)], 1), torch.stack([v, torch.zeros_like(v)], 1)
    torch.testing.assert_close(symmetric_kl(z1, z2), 0.5 * (u.sigmoid() - v.sigmoid()) * (u - v))


def test_pinsker_bounds_the_sensitivity_from_below():
    z1, z2 = randn(500, 10, scale=2), randn(500, 10, seed=1, scale=2)
    assert (symmetric_kl(z1, z2) >= 0.5 * (z1.softmax(1) - z2.softmax(1)).abs().sum(1) ** 2).all()


def test_a_constant_added_to_the_logits_of_one_sample_changes_nothing():
    z1, z2 = randn(20, 5), randn(20, 5, seed=1)
    torch.testing.assert_close(symmetric_kl(z1 + randn(20, 1, seed=2, scale=9), z2), symmetric_kl(z1, z2))


def test_the_gradient_is_the_closed_form_and_exactly_zero_at_equal_predictions():
    z1, z2 = randn(9, 6).requires_grad_(), randn(9, 6, seed=1)
    (gradient,) = torch.autograd.grad(symmetric_kl(z1, z2).sum(), z1)
    p1, p2 = z1.softmax(1), z2.softmax(1)
    ratio = (p1 / p2).log()
    expected = 0.5 * (p1 * (ratio - (p1 * ratio).sum(1, keepdim=True)) + (p1 - p2))
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(symmetric_kl(z1, z1.detach()).sum(), z1)
    assert (gradient == 0).all()


def test_different_shapes_are_refused_with_what_was_received():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        symmetric_kl(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="received 'dann'"):
        adversarial_loss("dann", torch.zeros(2, 3), torch.zeros(2, 3))


# The authors' formulas


def test_the_authors_formula_is_theirs_and_has_the_values_of_the_card():
    z1, z2 = randn(8, 10, scale=2), randn(8, 10, seed=1, scale=2)
    p1, p2 = z1.softmax(1), z2.softmax(1)
    theirs = 0.5 * (
        F.kl_div(F.log_softmax(p1, 1), p2, reduction="none").mean()
        + F.kl_div(F.log_softmax(p2, 1), p1, reduction="none").mean()
    )
    torch.testing.assert_close(authors_symmetric_kl(z1, z2).mean(), theirs)
    first, other = 1e3 * torch.eye(10, dtype=D)[:1], 1e3 * torch.eye(10, dtype=D)[1:2]
    assert authors_symmetric_kl(first, first).item() == pytest.approx(0.146, abs=5e-4)
    assert authors_symmetric_kl(first, other).item() == pytest.approx(0.246, abs=5e-4)


def test_minimising_the_authors_formula_at_equal_predictions_sharpens_them():
    z = randn(20, 10).requires_grad_()
    (gradient,) = torch.autograd.grad(authors_symmetric_kl(z, z).sum(), z)
    assert gradient.abs().sum() > 0.01
    assert entropy((z - gradient).detach()).mean() < entropy(z).mean()


def test_entropy_lies_between_zero_and_log_k_and_the_authors_is_k_times_smaller():
    z = randn(200, 10, scale=5)
    assert (entropy(z) >= 0).all()
    assert (entropy(z) <= math.log(10)).all()
    assert entropy(torch.zeros(1, 10, dtype=D)).item() == pytest.approx(math.log(10))
    torch.testing.assert_close(10 * authors_entropy(z), entropy(z), rtol=1e-3, atol=2e-5)


def test_class_balance_is_at_least_log_k_with_equality_at_a_uniform_mean():
    assert class_balance(randn(50, 10)) > math.log(10)
    balanced = 50 * torch.eye(10, dtype=D)  # each prediction certain, their mean uniform
    assert class_balance(balanced).item() == pytest.approx(math.log(10), abs=2e-5)


def test_l1_is_the_mean_over_classes():
    z = 1e3 * torch.eye(4, dtype=D)
    assert l1_distance(z[:1], z[1:2]).item() == pytest.approx(2 / 4)


# The steps


def test_without_dropout_the_adversarial_loss_is_zero_step_3_stands_still_and_step_2_is_source_training():
    net, (x, ys, xt) = tiny(dropout=0.0), batch()
    f = net.features(x)
    assert adversarial_loss("adr", *draws("adr", net.classifier, net.second, f)) == 0
    trained = copy.deepcopy(net)
    before = weights(net)
    assert players(net).generator_step(xt)["d_generator"] == 0
    assert same(net, before)
    plain = torch.optim.Adam(trained.classifier.parameters(), lr=1e-3)
    F.cross_entropy(trained.classifier(trained.features(x))[:16], ys).backward()
    plain.step()
    players(net).critic_step(x, ys)
    for ours, theirs in zip(net.classifier.parameters(), trained.classifier.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_dropout_in_evaluation_mode_gives_no_sensitivity():
    net = tiny().eval()
    assert adversarial_loss("adr", *draws("adr", net.classifier, net.second, net.features(batch()[0]))) == 0


@pytest.mark.parametrize("critic", ["adr", "l1", "ent", "mcd"])
def test_step_2_leaves_the_generator_and_step_3_the_classifiers_bit_for_bit(critic):
    net, (x, ys, xt) = tiny(), batch()
    team = players(net, critic=critic)
    team.source_step(x, ys)
    G, C, second = weights(net.features), weights(net.classifier), weights(net.second)
    team.critic_step(x, ys)
    assert same(net.features, G)
    assert not same(net.classifier, C)
    assert same(net.second, second) == (critic != "mcd")
    C, second = weights(net.classifier), weights(net.second)
    team.generator_step(xt)
    assert same(net.classifier, C)
    assert same(net.second, second)
    assert not same(net.features, G)
    assert all(p.requires_grad for p in net.parameters())


def test_the_loss_of_c_prime_does_not_reach_the_generator_nor_c():
    (x, ys, _), after = batch(), []
    for scale in (1.0, -3.0):
        net = tiny()
        with torch.no_grad():
            net.second[-1].weight *= scale
        torch.manual_seed(5)
        players(net).source_step(x, ys)
        after.append([*weights(net.features), *weights(net.classifier)])
    assert all(torch.equal(p, q) for p, q in zip(*after, strict=True))


def test_step_2_descends_source_loss_minus_sensitivity_and_step_3_the_sensitivity():
    net, (x, ys, xt) = tiny(), batch()
    team = players(net, learning_rate=1e-12)

    def gradients(part, loss):
        return torch.autograd.grad(loss, list(part.parameters()))

    other = copy.deepcopy(net)
    torch.manual_seed(7)
    f = other.features(x).detach()
    z1, z2 = other.classifier(f), other.classifier(f)
    expected = gradients(other.classifier, F.cross_entropy(z1[:16], ys) - symmetric_kl(z1[16:], z2[16:]).mean())
    torch.manual_seed(7)
    team.critic_step(x, ys)
    for parameter, gradient in zip(net.classifier.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9)
    torch.manual_seed(8)
    f = other.features(xt)
    expected = gradients(other.features, symmetric_kl(other.classifier(f), other.classifier(f)).mean())
    for _ in range(2):  # the second repeat must not add to the gradients of the first
        torch.manual_seed(8)
        team.generator_step(xt)
    for parameter, gradient in zip(net.features.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9)


def mean_sensitivity(net, xt):
    torch.manual_seed(11)
    with torch.no_grad():
        f = net.features(xt)
        return torch.stack([symmetric_kl(net.classifier(f), net.classifier(f)).mean() for _ in range(100)]).mean()


def test_a_small_step_2_raises_the_sensitivity_of_its_batch_and_a_small_step_3_lowers_it():
    net, (x, ys, xt) = tiny(), batch()
    # Many copies of each image, each with masks of its own: the step then follows the mean over masks.
    many = xt.repeat(100, 1, 1, 1)
    before = mean_sensitivity(net, many)
    team = players(net, learning_rate=3e-3, trade_off=10.0)
    team.critic_step(torch.cat([x[:16].repeat(100, 1, 1, 1), many]), ys.repeat(100))
    raised = mean_sensitivity(net, many)
    assert raised > before
    team.generator_step(many)
    assert mean_sensitivity(net, many) < raised


def test_the_mean_over_masks_converges_to_the_enumeration_of_all_pairs():
    torch.manual_seed(0)
    C, f = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)).to(D).train(), randn(1, 3, scale=2)
    masks = torch.tensor(list(itertools.product((0.0, 2.0), repeat=3)), dtype=D)
    z = C[1](masks * f)
    exact = symmetric_kl(z.repeat_interleave(8, 0), z.repeat(8, 1)).mean()
    many = f.expand(200_000, 3)
    torch.testing.assert_close(symmetric_kl(C(many), C(many)).mean(), exact, rtol=0.02, atol=0)


def test_reversed_gradients_have_the_opposite_sign():
    x = randn(3).requires_grad_()
    y = reverse_gradient(x, 0.5)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [-0.5] * 3


def stop():
    raise RuntimeError("stop")


def test_frozen_and_sampling_restore_what_they_found():
    net = tiny().eval()
    net.classifier[1].weight.requires_grad_(False)
    flags, modes = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]
    with pytest.raises(RuntimeError, match="stop"), frozen(net), sampling(net.classifier):  # noqa: PT012
        assert not any(p.requires_grad for p in net.parameters())
        assert {type(m) for m in net.modules() if m.training} == {nn.Dropout}
        stop()
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [m.training for m in net.modules()] == modes


def test_statistics_taken_on_the_target_are_its_own_and_move_no_weight():
    net, data = small(), domains()
    before, modes = weights(net), [layer.momentum for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    take_statistics(net, data.target)
    assert same(net, before)
    assert [layer.momentum for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)] == modes
    first = net.features[0](net.fit(data.target.inputs()))
    torch.testing.assert_close(net.features[1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="baseline of source-only"):
        check(TrainConfig(target_statistics="after"))


# Segmentation


def test_the_critic_of_dense_predictions_is_the_one_of_each_pixel():
    z1, z2 = randn(2, 5, 3, 4), randn(2, 5, 3, 4, seed=1)
    d = symmetric_kl(z1, z2)
    assert d.shape == (2, 3, 4)
    pixels = lambda z: z.permute(0, 2, 3, 1).reshape(-1, 5)
    torch.testing.assert_close(d.flatten(), symmetric_kl(pixels(z1), pixels(z2)))
    torch.testing.assert_close(class_balance(z1), class_balance(pixels(z1)))


def test_the_three_steps_segment_synthetic_images_and_make_the_critics_agree_on_the_target():
    ys = torch.zeros(8, 8, 8, dtype=torch.int64)
    ys[:, :, 4:] = 1
    xs = ys[:, None].to(D) + randn(8, 1, 8, 8, scale=0.2)
    xt, found = 0.9 * xs + 0.05, {}
    for n in (0, 4):
        torch.manual_seed(0)
        G = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        heads = [nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(8, 2, 1)) for _ in range(2)]
        net = Adapted((1, 8, 8), G, heads, "c").to(D).train()
        team = players(net, learning_rate=3e-3)
        for _ in range(80):
            team.source_step(torch.cat([xs, xt]), ys)
            if n:
                team.critic_step(torch.cat([xs, xt]), ys)
            for _ in range(n):
                team.generator_step(xt)
        found[n] = mean_sensitivity(net, xt)
    assert found[4] < found[0]
    assert (net.eval()(xt).argmax(1) == ys).double().mean() > 0.9


# The loop


def domains(target_labels=None):
    random = torch.Generator().manual_seed(3)
    x = torch.randint(256, (2, 64, 1, 8, 8), dtype=torch.uint8, generator=random)
    y = torch.arange(64) % 10
    labels = y if target_labels is None else target_labels
    return Domains(Split(x[0], y, DIGITS, "s", "train"), Split(x[1], labels, DIGITS, "t", "train"))


def trained(data, **options):
    torch.manual_seed(0)
    net = small()
    config = TrainConfig(**({"iterations": 6, "batch_size": 16} | options))
    return net, fit(net, data, config, Alone())


def test_after_t_iterations_the_adams_have_counted_t_times_one_plus_n_two_t_and_t_steps():
    _, team = trained(domains(), n=3)
    count = lambda optimizer: {int(state["step"]) for state in optimizer.state.values()}
    assert count(team.G) == {6 * (1 + 3)}
    assert count(team.C) == {2 * 6}
    assert count(team.second) == {6}


def test_labels_of_the_target_change_no_weight():
    one, _ = trained(domains())
    other, _ = trained(domains(torch.zeros(64, dtype=torch.int64)))
    assert same(one, weights(other))


def test_zero_generator_updates_are_source_only_training_bit_for_bit():
    one, _ = trained(domains(), n=0)
    other, _ = trained(domains(), critic="none")
    assert same(one, weights(other))
    adapted, _ = trained(domains())
    assert not same(one, weights(adapted))


def test_source_only_without_target_statistics_never_sees_the_target():
    white = Split(torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64), DIGITS, "t", "train")
    data = domains()
    options = {"critic": "none", "target_statistics": "none"}
    one, _ = trained(data, **options)
    other, _ = trained(Domains(data.source, white), **options)
    assert all(torch.equal(p, q) for p, q in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    statistics = [
        trained(Domains(data.source, t), critic="none")[0].features[1].running_mean for t in (data.target, white)
    ]
    assert not torch.equal(*statistics)


@pytest.mark.parametrize(
    ("critic", "n", "passes"), [("none", 4, (1, 1)), ("ent", 2, (4, 4)), ("adr", 2, (4, 7)), ("mcd", 2, (4, 4))]
)
def test_no_pass_is_done_that_the_algorithm_does_not_need(critic, n, passes):
    torch.manual_seed(0)
    net, calls = small(), {"G": 0, "C": 0}
    net.features.register_forward_hook(lambda *_: calls.update(G=calls["G"] + 1))
    net.classifier.register_forward_hook(lambda *_: calls.update(C=calls["C"] + 1))
    fit(net, domains(), TrainConfig(iterations=1, batch_size=16, critic=critic, n=n), Alone())
    assert (calls["G"], calls["C"]) == passes


def test_an_order_visits_every_image_once_an_epoch_and_depends_on_t_alone():
    one = Order(64, 16, seed=0, name="source", device=torch.device("cpu"))
    seen = torch.cat([one.at(t) for t in range(4)])
    assert seen.sort().values.tolist() == list(range(64))
    other = Order(64, 16, seed=0, name="source", device=torch.device("cpu"))
    assert torch.equal(other.at(9), Order(64, 16, seed=0, name="source", device=torch.device("cpu")).at(9))
    assert not torch.equal(other.at(0), Order(64, 16, seed=0, name="target", device=torch.device("cpu")).at(0))


def test_protocols_take_the_authors_numbers_of_images_by_the_seed():
    x, y = torch.zeros(7291, 1, 2, 2, dtype=torch.uint8), torch.arange(7291) % 10
    x[:, 0, 0, 0] = torch.arange(7291) % 251
    split = Split(x, y, DIGITS, "usps", "train")
    p1 = chosen(split, "usps", TrainConfig(protocol="p1"), 0)
    assert len(p1) == 1800
    assert len(chosen(split, "usps", TrainConfig(protocol="p2"), 0)) == 6562
    assert not torch.equal(p1.y, chosen(split, "usps", TrainConfig(protocol="p1"), 1).y)
    with pytest.raises(UserError, match="says nothing about 'svhn'"):
        chosen(split, "svhn", TrainConfig(protocol="p1"), 0)
    with pytest.raises(UserError, match="fewer than a batch"):
        chosen(split, "usps", TrainConfig(limit=10), 0)


def test_domains_of_different_classes_or_no_images_are_refused():
    data = domains()
    letters = Split(data.target.x, data.target.y, tuple("abcdefghij"), "letters", "train")
    with pytest.raises(UserError, match="different classes"):
        Domains(data.source, letters)
    points = Split(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), DIGITS, "points", "train")
    with pytest.raises(UserError, match="holds no images"):
        Domains(points, points)


def test_fit_repeats_grey_averages_colours_and_keeps_constants_and_range():
    grey, colour = torch.full((2, 1, 16, 16), 0.25), torch.rand(2, 3, 32, 32)
    assert torch.allclose(Fit((3, 28, 28))(grey), torch.full((2, 3, 28, 28), 0.25))
    out = Fit((1, 28, 28))(colour)
    assert out.shape == (2, 1, 28, 28)
    assert out.min() >= 0
    assert out.max() <= 1
    assert Fit((3, 32, 32))(colour) is colour
