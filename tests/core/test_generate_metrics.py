"""Measures of samples: closed forms, brute force, invariances."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from iclr18cli.generate import metrics

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def test_the_frechet_distance_agrees_with_the_matrix_root_of_scipy():
    a, b = randn(200, 5) @ randn(5, 5, seed=1), randn(150, 5, seed=2) @ randn(5, 5, seed=3) + 1
    first, second = np.cov(a.numpy().T), np.cov(b.numpy().T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert metrics.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)


def test_the_frechet_distance_of_a_sample_to_itself_is_zero_and_to_its_shift_the_squared_shift():
    a, shift = randn(50, 4), randn(4, seed=1)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(a, a + shift) == pytest.approx(shift.square().sum().item(), rel=1e-6)


def test_the_frechet_distance_of_commuting_covariances_is_the_distance_of_their_roots():
    a = randn(300, 3)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T)).T)  # covariance I exactly
    one, two = torch.tensor([1.0, 2.0, 3.0], dtype=D), torch.tensor([2.0, 2.0, 0.5], dtype=D)
    assert metrics.frechet_distance(a * one, a * two) == pytest.approx((one - two).square().sum().item())


def test_the_frechet_distance_survives_a_singular_covariance():
    flat = torch.cat([randn(30, 2), torch.zeros(30, 6, dtype=D)], dim=1)
    assert metrics.frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_is_the_double_loop(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 4)
    a, b = randn(9, 3), randn(7, 3, seed=1)
    k = lambda x, y: (float(x @ y) / 3 + 1) ** 3
    within = lambda s: (
        sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / len(s) / (len(s) - 1)
    )
    cross = sum(k(x, y) for x in a for y in b) / 63
    assert metrics.kernel_distance(a, b) == pytest.approx(within(a) + within(b) - 2 * cross, rel=1e-12)


def test_the_kernel_distance_is_unbiased_and_its_interval_covers_zero_for_equal_laws():
    found = torch.tensor(
        [metrics.kernel_distance(randn(20, 2, seed=s), randn(20, 2, seed=1000 + s)) for s in range(300)]
    )
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(300)
    assert (found < 0).float().mean() > 0.3
    low, high = metrics.kernel_distance_interval(randn(400, 2), randn(400, 2, seed=5), generator=torch.Generator())
    assert low < 0 < high
    low, _ = metrics.kernel_distance_interval(randn(400, 2), randn(400, 2, seed=5) + 1, generator=torch.Generator())
    assert low > 0


def test_precision_and_recall_are_those_of_a_plain_computation(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 7)
    real, fake = randn(40, 2), 1.5 * randn(30, 2, seed=1) + 0.5
    reach = lambda s: np.sort(cdist(s, s), axis=1)[:, 3]
    distance = cdist(fake, real)
    hit = distance <= reach(real)[None]
    found = metrics.precision_recall(real, fake, neighbours=3)
    assert found["precision"] == pytest.approx(hit.any(1).mean())
    assert found["density"] == pytest.approx(hit.sum(1).mean() / 3)
    assert found["recall"] == pytest.approx((reach(fake)[None] >= distance.T).any(1).mean())
    assert found["coverage"] == pytest.approx((distance.min(0) <= reach(real)).mean())


def test_precision_sees_bad_samples_and_recall_missing_modes():
    modes = torch.tensor([[0.0, 0.0], [50.0, 0.0]], dtype=D)
    real = torch.cat([randn(100, 2) + m for m in modes])
    one_mode = metrics.precision_recall(real, randn(200, 2, seed=1) * 0.8)
    assert one_mode["precision"] > 0.8
    assert one_mode["recall"] < 0.6
    assert metrics.precision_recall(real, real)["precision"] == 1
    assert metrics.precision_recall(real, real + 1000)["precision"] == 0


def test_class_coverage_counts_classes_and_measures_their_spread():
    found = metrics.class_coverage(torch.tensor([0] * 50 + [1] * 50), 4)
    assert found == {"covered": 0.5, "total_variation": 0.5, "entropy": pytest.approx(math.log(2))}
    exact = metrics.class_coverage(torch.tensor([0, 0, 0, 1]), 2, reference_K=torch.tensor([0.75, 0.25]))
    assert exact["total_variation"] == 0
    with pytest.raises(ValueError, match="labels"):
        metrics.class_coverage(torch.tensor([4]), 4)


def test_the_classifier_score_is_the_number_of_classes_for_sure_and_varied_predictions_and_1_for_equal_ones():
    assert metrics.classifier_score(1000 * torch.eye(7)) == pytest.approx(7)
    assert metrics.classifier_score(torch.ones(5, 7)) == pytest.approx(1)


def test_sharpness_is_the_variance_of_the_laplacian_and_scales_with_the_square_of_the_range():
    x = randn(2, 1, 5, 6)
    picture = x[0, 0]
    responses = [
        picture[i - 1, j] + picture[i + 1, j] + picture[i, j - 1] + picture[i, j + 1] - 4 * picture[i, j]
        for i in range(1, 4) for j in range(1, 5)
    ]  # fmt: skip
    assert metrics.sharpness(x)[0].item() == pytest.approx(np.var([float(r) for r in responses]))
    torch.testing.assert_close(metrics.sharpness(2 * x), 4 * metrics.sharpness(x))
    linear = torch.arange(36.0).view(1, 1, 6, 6)
    assert metrics.sharpness(linear).item() == pytest.approx(0, abs=1e-18)
    torch.testing.assert_close(metrics.sharpness(x.expand(2, 3, 5, 6)), metrics.sharpness(x), rtol=1e-6, atol=1e-9)


def test_the_nearest_distance_finds_copies():
    a = randn(20, 3)
    assert metrics.nearest_distance(a[:5], a).tolist() == [0.0] * 5


@pytest.mark.parametrize("bad", [torch.zeros(1, 2), torch.full((4, 2), math.nan), torch.zeros(4, 3)])
def test_features_that_do_not_fit_are_refused(bad):
    for measure in (metrics.frechet_distance, metrics.kernel_distance):
        with pytest.raises(ValueError, match="features"):
            measure(bad, torch.zeros(4, 2))
