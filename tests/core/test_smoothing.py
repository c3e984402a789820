"""Randomized smoothing: closed forms of linear models, exact counts, resumption, wrong constants that get caught."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binom, binomtest, norm
from torch import nn

from iclr18cli.certify import methods, randomized, smoothed
from iclr18cli.certify.config import SmoothingConfig
from iclr18cli.certify.kept_points import COLUMNS, KeptPoints
from iclr18cli.certify.randomized import (
    ABSTAIN,
    certified_radius,
    certify_point,
    class_counts,
    lower_confidence,
    max_radius,
    noise_generator,
    predict,
    upper_confidence,
)
from iclr18cli.certify.smoothed import certify_smoothed, fingerprint, smoothing
from iclr18cli.certify.smoothed_wording import Smoothing, wrong_radii
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError


def linear(weight, bias=0.0) -> nn.Module:
    """Class 0 where w.x + b > 0, for inputs of any rank."""
    weight = torch.as_tensor(weight, dtype=torch.float32).flatten()
    layer = nn.Linear(len(weight), 2)
    layer.weight.data = torch.stack([weight / 2, -weight / 2])
    layer.bias.data = torch.tensor([bias / 2, -bias / 2])
    return nn.Sequential(nn.Flatten(), layer)


def points_of(n=8):
    """Points of the plane at different distances from the line, and the distances, of `linear([3, 4], 1)`."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    margin = (x @ torch.tensor([3.0, 4.0]) + 1) / 5
    return linear([3.0, 4.0], 1.0), x, (margin < 0).long(), margin.abs()


# Bounds of a probability.


def test_the_largest_provable_radius_is_the_cards_number():
    assert max_radius(100_000, sigma=1.0, alpha=0.001) == pytest.approx(3.811, abs=5e-4)
    assert max_radius(1000, sigma=0.5, alpha=0.001) == pytest.approx(0.5 * 2.463, abs=5e-4)
    assert max_radius(9, sigma=1.0, alpha=0.001) == 0.0  # 0.001 ** (1/9) < 1/2: too few to certify anything
    assert max_radius(10, sigma=1.0, alpha=0.001) == pytest.approx(norm.ppf(0.001**0.1))


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (612, 1000), (99_987, 100_000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-7])
def test_the_confidence_bounds_are_those_of_scipys_exact_binomial_test(k, n, alpha):
    for side, ours in (("greater", lower_confidence(k, n, alpha)), ("less", upper_confidence(k, n, alpha))):
        theirs = binomtest(k, n, alternative=side).proportion_ci(1 - alpha, method="exact")
        assert ours == pytest.approx(theirs.low if side == "greater" else theirs.high, rel=1e-9, abs=1e-12)


def test_the_lower_bound_exceeds_the_truth_with_probability_at_most_alpha():
    for n, p, alpha in [(50, 0.9, 0.05), (1000, 0.55, 0.001), (200, 0.999, 0.01)]:
        wrong = sum(binom.pmf(k, n, p) for k in range(n + 1) if lower_confidence(k, n, alpha) > p)
        assert wrong <= alpha
    assert sum(binom.pmf(k, 50, 0.9) for k in range(51) if lower_confidence(k, 50, 0.1) > 0.9) > 0.02


def test_a_class_that_is_not_shown_to_have_half_of_the_draws_gets_no_radius():
    assert certified_radius(50_400, 100_000, sigma=1.0, alpha=0.001) == 0.0
    assert certified_radius(50_600, 100_000, sigma=1.0, alpha=0.001) > 0


# One point.


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0])
def test_the_radius_of_a_linear_model_is_its_distance_to_the_boundary_for_every_sigma(sigma):
    net, x, y, distance = points_of()
    n, alpha = 100_000, 0.001
    for i in range(len(x)):
        if not 0.1 < distance[i] / sigma < 3:
            continue
        point = certify_point(net, x[i], int(y[i]), i, sigma=sigma, n=n, alpha=alpha, batch_size=4096)
        p = norm.cdf(float(distance[i]) / sigma)
        assert point.correct
        assert point.radius <= float(distance[i])
        # Two 4-sigma errors of the count, one for alpha and one for chance, through the slope of Phi^-1.
        slack = 8 * sigma * math.sqrt(p * (1 - p) / n) / norm.pdf(norm.ppf(p))
        assert point.radius >= float(distance[i]) - slack
        assert abs(point.nA / n - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_images_and_vectors_with_the_same_numbers_have_the_same_radius():
    x = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1))
    net = linear(torch.ones(18), -5.0)
    image = certify_point(net, x, 0, 3, sigma=0.5, n=5000, batch_size=100)
    vector = certify_point(net, x.flatten(), 0, 3, sigma=0.5, n=5000, batch_size=100)
    distance = abs(float(x.sum()) - 5) / math.sqrt(18)
    assert image.nA == vector.nA
    assert 0.9 * distance < image.radius <= distance


def test_the_batch_size_and_the_other_points_change_no_count(monkeypatch):
    monkeypatch.setattr(randomized, "BLOCK_NUMBERS", 64)  # 32 draws a block: several of them
    net, x, y, _ = points_of(3)
    found = [certify_point(net, x[2], int(y[2]), 2, sigma=1.0, n=1001, batch_size=size).nA for size in (1, 7, 32, 5000)]
    assert len(set(found)) == 1
    all_three = smoothing(net, x, y, sigma=1.0, n=1001, radii=[0.0], batch_size=13)
    assert all_three[0].solver["batch_size"] == 13
    other = certify_point(net, x[2], int(y[2]), 5, sigma=1.0, n=1001, batch_size=7).nA
    assert other != found[0]
    counts = class_counts(net, x[0], 1001, sigma=1.0, generator=torch.Generator().manual_seed(0), batch_size=10)
    assert counts.sum() == 1001


def test_selection_estimation_and_points_never_share_a_noise_draw():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return torch.stack([x[:, 0], -x[:, 0]], 1)

    x = torch.zeros(2, 3)
    smoothing(Spy(), x, torch.zeros(2, dtype=torch.long), sigma=1.0, n0=20, n=30, radii=[0.0], attack=False)
    noise = torch.cat(seen)
    noise = noise[noise.abs().sum(1) > 0]  # without the clean pass and the look at the memory
    assert len(noise) == 2 * (20 + 30)
    assert len(noise.unique(dim=0)) == len(noise)
    assert noise.min() < -1  # nothing is clipped to the range of images
    assert abs(float(noise.std()) - 1) < 0.15


def test_it_abstains_on_the_boundary_and_predicts_away_from_it():
    net = linear([1.0, 0.0])
    x = torch.tensor([[0.0, 5.0], [0.4, 0.0], [-0.4, 0.0]])
    point = certify_point(net, x[0], 0, 0, sigma=0.5, n=2000, batch_size=512)
    assert (point.predicted, point.radius, point.correct) == (ABSTAIN, 0.0, False)
    assert predict(net, x, sigma=0.5, n=500).tolist() == [ABSTAIN, 0, 1]
    assert predict(net, x, sigma=0.5, n=2).tolist() == [ABSTAIN] * 3  # two draws never reach p <= 0.001


def test_radii_are_wrong_no_more_often_than_alpha_allows():
    net, alpha, trials, n = linear([1.0]), 0.05, 1500, 100
    x = torch.full((1,), 0.7)
    radii = [
        certify_point(net, x, 0, i, sigma=1.0, n0=1, n=n, alpha=alpha, batch_size=n, seed=4) for i in range(trials)
    ]
    wrong = sum(point.predicted == 0 and point.radius > 0.7 for point in radii)
    assert wrong <= trials * alpha + 3 * math.sqrt(trials * alpha)
    assert wrong >= trials * alpha / 10  # the bound is not slack either: a smaller alpha would be seen
    too_far = [k for k in range(n + 1) if certified_radius(k, n, sigma=1, alpha=alpha) > 0.7]
    exact = sum(binom.pmf(k, n, norm.cdf(0.7)) for k in too_far)
    assert wrong == pytest.approx(trials * exact, abs=3.5 * math.sqrt(trials * alpha))


# The set.


def test_the_number_of_wrong_radii_allowed_is_the_binomial_quantile():
    for n, alpha, delta in [(500, 0.001, 0.0005), (20, 0.001, 0.0005), (10_000, 0.01, 0.001), (3, 0.2, 0.3)]:
        q = wrong_radii(n, alpha, delta)
        assert binom.sf(q, n, alpha) <= delta
        assert q == 0 or binom.sf(q - 1, n, alpha) > delta


def test_certified_accuracy_counts_radii_falls_with_the_radius_and_is_below_cohens_figure():
    net, x, y, distance = points_of(40)
    radii = (0.0, 0.2, 0.5, 1.0, 1.5, 4.0)
    found = smoothing(net, x, y, sigma=0.5, n=5000, radii=radii)
    values = [c.value for c in found]
    assert values == sorted(values, reverse=True)
    for radius, c in zip(radii, found, strict=True):
        assert c.threat["radius"] == radius
        assert (c.verdict, c.subject, c.bound, c.kind) == ("proven-prob", "smoothed-model", "lower", "smoothing")
        true = float((distance > radius).double().mean())
        assert c.value <= c.constants["approximate_certified_accuracy"] <= true
        assert c.value >= c.constants["approximate_certified_accuracy"] - c.confidence["wrong_radii_allowed"] / 40
        assert c.value >= c.constants["jointly_certified_accuracy"]
        assert c.value <= c.empirical["value"]
        assert c.holds
        assert f"at least {round(c.value * 40)} of these 40 points given" in c.statement
        assert any("infinity-norm" in limit for limit in c.not_claimed)
        assert any(f"{c.constants['max_radius']:.4g}" in limit for limit in c.not_claimed)
        json.dumps(c.to_json())
    assert 0.5 < found[1].value < 1
    assert found[-1].vacuous
    assert any("cannot certify more than" in w and "--n" in w for w in found[-1].warnings)
    assert not found[0].vacuous


def test_a_wrong_label_and_an_abstention_count_as_failures_over_the_whole_set():
    net = linear([1.0, 0.0])
    x = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])
    (found,) = smoothing(net, x, torch.tensor([0, 1, 0, 1]), sigma=0.5, n=2000, radii=[0.5])
    assert found.value == 0.5
    assert found.constants["abstained"] == 0.25
    assert found.vacuous  # two classes: no better than chance
    assert found.vacuous_above == 0.5


def test_a_model_that_noise_confuses_is_named_with_the_remedy():
    (found,) = smoothing(*points_of(20)[:3], sigma=5.0, n=500, radii=[0.0], attack=False)
    assert found.constants["base_accuracy"] == 1.0
    assert any("--noise 5" in warning for warning in found.warnings)
    assert found.empirical is None
    assert not any("--noise" in w for w in smoothing(*points_of(20)[:3], sigma=0.05, n=500, radii=[0.0])[0].warnings)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 1)])
def test_a_wrong_constant_in_the_radius_is_exposed_by_the_attack(monkeypatch, shape):
    net, x, y, _ = points_of(12)
    x = x.reshape(-1, *shape)
    (right,) = smoothing(net, x, y, sigma=0.5, n=4000, radii=[0.1])
    assert right.holds
    assert right.solver["attacked_points"] >= 8

    def doubled(nA, n, *, sigma, alpha):
        return certified_radius(nA, n, sigma=2 * sigma, alpha=alpha)

    monkeypatch.setattr(randomized, "certified_radius", doubled)
    monkeypatch.setattr(smoothed, "certified_radius", doubled)
    (wrong,) = smoothing(net, x, y, sigma=0.5, n=4000, radii=[0.1])
    assert not wrong.holds
    assert len(wrong.solver["contradicted_points"]) >= 3
    assert any("attack changed" in warning for warning in wrong.warnings)


def test_a_model_without_gradients_is_certified_and_attacked_too():
    class Steps(nn.Module):
        def forward(self, x):
            return torch.stack([(x[:, 0] > 0).float(), (x[:, 0] <= 0).float()], 1)

    x = torch.tensor([[1.0, 0.0], [-0.8, 0.3]])
    found = smoothing(Steps(), x, torch.tensor([0, 1]), sigma=0.5, n=2000, radii=[0.5, 1.2])
    assert [c.value for c in found] == [1.0, 0.0]
    assert all(c.holds for c in found)


def test_the_model_and_the_global_generator_come_back_as_they_were():
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    net[0].weight.requires_grad_(False)
    state = torch.get_rng_state()
    x, y = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0])
    one, two = (smoothing(net, x, y, sigma=0.5, n=300, radii=[0.0]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert net[1].training
    assert not net[0].weight.requires_grad
    assert net[2].weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert one[0].constants == two[0].constants


def test_numbers_and_inputs_out_of_range_are_refused():
    net, x, y, _ = points_of(4)
    for wrong in ({"sigma": 0.0}, {"sigma": 1.0, "alpha": 0.5}, {"sigma": 1.0, "n": 0}, {"sigma": 1.0, "radii": ()}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            smoothing(net, x, y, **wrong)
    with pytest.raises(UserError, match="outside the declared range"):
        smoothing(net, x, y, sigma=1.0, input_range=(0.0, 1.0))
    with pytest.raises(UserError, match="do not fit the model's 2 classes"):
        smoothing(net, x, y + 1, sigma=1.0)
    with pytest.raises(UserError, match="NaN"):
        smoothing(net, x / 0 * 0, y, sigma=1.0)


# The file of finished points.


def stop_after(points):
    def progress(n):
        nonlocal points
        points -= n
        if points <= 0:
            raise KeyboardInterrupt

    return progress


def without_time(text):
    return [line.rsplit("\t", 1)[0] for line in text.splitlines()]


@pytest.mark.parametrize(
    "torn", [b"", b"3\t0\t0\t0.3", b"3\t0\t0\t0.3\t1\t900\t1000\t\xff\n", b"9\t0\t0\t0.3\t1\t9\t10\t1\n"]
)
def test_a_stopped_certification_goes_on_to_the_same_result(tmp_path, torn):
    net, x, y, _ = points_of(7)
    kwargs = {"sigma": 0.5, "n": 500, "radii": (0.0, 0.3), "seed": 5}
    whole = smoothing(net, x, y, **kwargs, record=tmp_path / "whole.tsv")
    path = tmp_path / "stopped.tsv"
    with pytest.raises(KeyboardInterrupt):
        smoothing(net, x, y, **kwargs, record=path, progress=stop_after(3))
    with path.open("ab") as file:
        file.write(torn)
    done = []
    resumed = smoothing(net, x, y, **kwargs, batch_size=77, record=path, progress=done.append)
    assert done == [3, 1, 1, 1, 1]
    assert resumed[0].solver["resumed_points"] == 3
    assert without_time(path.read_text()) == without_time((tmp_path / "whole.tsv").read_text())
    for a, b in zip(whole, resumed, strict=True):
        assert (a.value, a.constants, a.empirical) == (b.value, b.constants, b.empirical)
    lines = path.read_text().splitlines()
    assert tuple(lines[1].split("\t")) == COLUMNS
    assert len(lines) == 9
    before = path.read_bytes()
    smoothing(net, x, y, **kwargs, record=path)  # all done: nothing is counted again
    assert path.read_bytes() == before


def test_points_of_other_settings_another_model_or_other_data_are_never_mixed_in(tmp_path):
    net, x, y, _ = points_of(3)
    path = tmp_path / "points.tsv"
    kwargs = {"sigma": 0.5, "n": 200, "radii": (0.0,)}
    smoothing(net, x, y, **kwargs, record=path)
    kept = path.read_bytes()
    changed = [
        (net, x, {"n": 201}), (net, x, {"sigma": 0.6}), (net, x, {"alpha": 0.01}), (net, x, {"seed": 1}),
        (net, x, {"n0": 50}), (linear([3.0, 4.0], 1.1), x, {}), (net, x + 1e-3, {}),
    ]  # fmt: skip
    for model, points, other in changed:
        with pytest.raises(UserError, match="another certification"):
            smoothing(model, points, y, **(kwargs | other), record=path)
    assert path.read_bytes() == kept
    path.write_text("my notes\n")
    with pytest.raises(UserError, match="another certification"):
        KeptPoints(path, {}, [0])
    assert path.read_text() == "my notes\n"
    with pytest.raises(UserError, match="Cannot write"):
        smoothing(net, x, y, **kwargs, record=tmp_path)


def test_a_line_whose_numbers_disagree_is_computed_again(tmp_path):
    net, x, y, _ = points_of(3)
    path = tmp_path / "points.tsv"
    kwargs = {"sigma": 0.5, "n": 200, "radii": (0.0,)}
    whole = smoothing(net, x, y, **kwargs, record=path)
    good = path.read_text()
    lines = good.splitlines(keepends=True)
    words = lines[3].split("\t")
    words[5] = "201"  # more successes than draws
    path.write_text("".join([*lines[:3], "\t".join(words), *lines[4:]]))
    again = smoothing(net, x, y, **kwargs, record=path)
    assert again[0].solver["resumed_points"] == 1
    assert again[0].value == whole[0].value
    assert without_time(path.read_text()) == without_time(good)


def test_the_fingerprint_sees_one_weight_and_one_layer():
    first, second = linear([1.0, 2.0]), linear([1.0, 2.0])
    assert fingerprint(first) == fingerprint(second)
    second[1].weight.data[0, 0] += 1e-6
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(nn.Sequential(first, nn.ReLU())) != fingerprint(nn.Sequential(first, nn.ELU()))


def test_the_method_keeps_its_points_with_the_run_under_a_name_of_its_settings(tmp_path):
    net, x, y, _ = points_of(6)
    split = Split(x, y, ("a", "b"), "plane", "test", None)

    @contextmanager
    def progress(total, label):
        assert total == len(split)
        yield SimpleNamespace(advance=lambda n: None)

    run = SimpleNamespace(
        split=lambda name, limit: split,
        model=lambda: net,
        progress=progress,
        seed=0,
        keep=lambda kind, name, each_rank=False: tmp_path / kind / name,
    )
    config = SmoothingConfig(n=500, radius=(0.1,))
    (found,) = methods.smoothing(config, run)
    assert "6 test points of plane" in found.statement
    methods.smoothing(config, run)
    assert len(list((tmp_path / "certify").glob("smoothing-*.tsv"))) == 1
    methods.smoothing(SmoothingConfig(n=501, radius=(0.1,)), run)
    assert len(list((tmp_path / "certify").glob("smoothing-*.tsv"))) == 2
    run.keep = lambda kind, name, each_rank=False: None
    (bare,) = methods.smoothing(config, run)
    assert bare.value == found.value
    (direct,) = certify_smoothed(net, split, Smoothing(sigma=0.25, n=500, radii=(0.1,)))
    assert direct.value == found.value


def test_mnist_digits_are_images_to_it(shared_data):
    from iclr18cli.data.registry import open_split

    split = open_split("mnist", "test", data_dir=shared_data).take(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    generator = torch.Generator().manual_seed(0)
    net[1].weight.data.normal_(generator=generator)
    (found,) = certify_smoothed(net, split, Smoothing(sigma=0.25, n=200, radii=(0.0,)))
    assert found.sample["dataset"] == "mnist"
    assert any("/ 28" in limit for limit in found.not_claimed)
    same = smoothing(net, split.x, split.y, sigma=0.25, n=200, radii=(0.0,))
    assert same[0].constants == found.constants


def test_streams_differ_by_every_name():
    draws = [
        torch.randn(3, generator=noise_generator(torch.device("cpu"), *names)).tolist()
        for names in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1)]
    ]
    assert len({tuple(d) for d in draws}) == 4
