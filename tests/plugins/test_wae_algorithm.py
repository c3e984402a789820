"""The exact properties of papers/wae.md, section 5."""

import math
from itertools import pairwise

import pytest
import torch
from iclr18_wae import algorithm
from iclr18_wae.algorithm import (
    adversary_logit,
    adversary_loss,
    cost,
    expected_imq,
    fooling_loss,
    imq,
    imq_against_normal,
    median_bandwidth,
    mmd,
    moment_loss,
    normal_divergence,
    normal_log_density,
    rbf,
    squared_distances,
)
from iclr18_wae.config import SCALES
from iclr18_wae.prior import Prior
from scipy.integrate import quad
from torch.autograd import gradcheck
from torch.distributions import Independent, Normal, kl_divergence

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


# The estimate


def test_mmd_is_the_double_loop_of_algorithm_2():
    q, p = randn(6, 3), 0.5 * randn(5, 3, seed=1)
    k = lambda x, y: sum(6.0 * t / (6.0 * t + float((x - y).square().sum())) for t in SCALES)
    within = lambda s: (
        sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / len(s) / (len(s) - 1)
    )
    cross = sum(k(x, y) for x in q for y in p) / 30
    torch.testing.assert_close(mmd(q, p, imq(6.0)).item(), within(q) + within(p) - 2 * cross, rtol=1e-12, atol=1e-13)


def test_large_samples_in_parts_give_the_value_of_one_piece(monkeypatch):
    q, p = randn(50, 3), randn(40, 3, seed=1)
    whole = mmd(q, p, imq(6.0))
    monkeypatch.setattr(algorithm, "ROWS", 16)
    torch.testing.assert_close(mmd(q, p, imq(6.0)), whole, rtol=1e-12, atol=1e-13)


def test_mmd_of_two_points_each_is_the_value_by_hand():
    q, p = torch.tensor([[0.0], [1.0]], dtype=D), torch.tensor([[0.0], [2.0]], dtype=D)
    # k(r) = 1/(1 + r^2): within 1/2 and 1/5; cross the mean of 1, 1/5, 1/2, 1/2.
    assert mmd(q, p, imq(1.0, (1.0,))).item() == pytest.approx(1 / 2 + 1 / 5 - 2 * (1 + 1 / 5 + 1 / 2 + 1 / 2) / 4)


def test_mmd_ignores_translations_rotations_orders_and_which_sample_is_first():
    q, p = randn(20, 4), randn(15, 4, seed=1) + 0.3
    value = mmd(q, p, imq(8.0))
    rotation = torch.linalg.qr(randn(4, 4, seed=2)).Q
    shift = randn(4, seed=3)
    for a, b in ((q + shift, p + shift), (q @ rotation, p @ rotation), (q.flip(0), p[torch.randperm(15)]), (p, q)):
        torch.testing.assert_close(mmd(a, b, imq(8.0)), value, rtol=1e-10, atol=1e-12)


def test_the_estimate_is_unbiased_often_negative_and_the_v_statistic_is_biased():
    kernel = imq(4.0)
    unbiased, biased = [], []
    for seed in range(400):
        q, p = randn(20, 2, seed=seed), randn(20, 2, seed=10_000 + seed)
        unbiased.append(mmd(q, p, kernel))
        mean = lambda a, b: kernel(squared_distances(a, b)).mean()
        biased.append(mean(q, q) + mean(p, p) - 2 * mean(q, p))
    unbiased, biased = torch.stack(unbiased), torch.stack(biased)
    assert unbiased.mean().abs() < 4 * unbiased.std() / 20
    assert 0.4 < (unbiased < 0).double().mean() < 0.8
    assert biased.mean() > 20 * biased.std() / 20


def test_equal_samples_have_a_v_statistic_of_zero_and_an_estimate_below_it():
    q = randn(12, 3)
    kernel = imq(6.0)
    # Dropping the diagonal alone: within = (n m - k(0)) / (n - 1) with m the mean over all pairs.
    m = kernel(squared_distances(q, q)).mean()
    assert mmd(q, q, kernel).item() == pytest.approx((2 * (12 * m - 7) / 11 - 2 * m).item())
    assert mmd(q, q, kernel) < 0


@pytest.mark.parametrize(("a", "b", "d"), [(1.0, 2.0, 2), (0.25, 1.0, 8), (1.0, 1.0, 3)])
def test_mmd_between_gaussians_is_the_quadrature(a, b, d):
    C = 2.0 * d
    wanted = expected_imq(2 * a, d, C) + expected_imq(2 * b, d, C) - 2 * expected_imq(a + b, d, C)
    found = torch.stack([
        mmd(a**0.5 * randn(1000, d, seed=s), b**0.5 * randn(1000, d, seed=50 + s), imq(C)) for s in range(12)
    ])  # fmt: skip
    assert abs(found.mean().item() - wanted) < 4 * found.std().item() / 12**0.5
    assert wanted > -1e-12


def test_the_expected_kernel_is_the_mean_over_draws():
    r = randn(400_000, 3) * 1.5**0.5
    values = imq(6.0)(r.square().sum(1))
    assert expected_imq(1.5, 3, 6.0) == pytest.approx(values.mean().item(), abs=4 * values.std().item() / 400_000**0.5)


def test_the_kernel_mean_of_the_prior_is_the_quadrature_and_the_mean_over_draws():
    x, z = 2 * randn(5, 4), 1.3 * randn(200_000, 4, seed=1)
    found = imq_against_normal(x.square().sum(1), 4, 8.0, variance=1.69)
    drawn = imq(8.0)(squared_distances(x, z))
    assert ((found - drawn.mean(1)).abs() < 4 * drawn.std(1) / 200_000**0.5).all()
    squares = (x[0] ** 2).sum().item()
    wanted = sum(
        quad(
            lambda u, c=8.0 * t: c * math.exp(-u * c - u * squares / (1 + 3.38 * u)) * (1 + 3.38 * u) ** -2, 0, math.inf
        )[0]
        for t in SCALES
    )
    assert found[0].item() == pytest.approx(wanted, rel=1e-9)
    assert imq_against_normal(torch.zeros(1), 4, 8.0, variance=0.0).item() == pytest.approx(7, rel=1e-12)


def test_mmd_to_the_normal_law_is_what_many_draws_approach():
    q = randn(30, 2) + 0.5
    against = torch.stack([mmd(q, randn(500, 2, seed=s), imq(4.0)) for s in range(1, 9)])
    found = algorithm.mmd_to_normal(q, 4.0, variance=1.0)
    assert abs(found - against.mean()) < 4 * against.std() / 8**0.5


def test_one_code_is_refused():
    with pytest.raises(ValueError, match="2 points"):
        mmd(randn(1, 2), randn(5, 2), imq(4.0))


# Kernels


def test_imq_is_one_at_zero_falls_and_its_gram_matrix_is_positive():
    kernel = imq(4.0, (1.0,))
    r = torch.linspace(0, 100, 50, dtype=D)
    values = kernel(r)
    assert values[0] == 1
    assert all(one > other > 0 for one, other in pairwise(values.tolist()))
    assert imq(4.0)(torch.zeros(1)).item() == 7
    x = randn(40, 3)
    assert torch.linalg.eigvalsh(imq(6.0)(squared_distances(x, x))).min() > 0
    assert torch.linalg.eigvalsh(rbf(2.0)(squared_distances(x, x))).min() > 0


def test_rbf_is_the_gaussian_and_its_bandwidth_the_sum_of_the_medians():
    assert rbf(2.0)(torch.tensor(4.0)).item() == pytest.approx(math.exp(-1))
    q, p = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [0.0], [10.0]])
    # code distances 1, 4, 9: median 4; cross 0 0 100, 1 1 81, 9 9 49: median 9
    assert median_bandwidth(q, p).item() == 13


def test_gradients_are_right_and_finite_at_coincident_codes():
    p = randn(4, 2)
    assert gradcheck(lambda q: mmd(q, p, imq(4.0)), randn(3, 2, seed=1).requires_grad_())
    same = torch.zeros(3, 2, requires_grad=True)
    mmd(same, torch.zeros(3, 2), imq(4.0)).backward()
    assert torch.equal(same.grad, torch.zeros(3, 2))
    far = torch.full((3, 2), 1e4).requires_grad_()
    mmd(far + torch.tensor([[0.0], [1.0], [2.0]]), p.float(), imq(4.0)).backward()
    assert far.grad.abs().max() > 0  # heavy tails: a code far away still feels the prior


def test_distances_of_half_precision_codes_are_computed_in_single():
    x = randn(5, 3).to(torch.bfloat16)
    assert squared_distances(x, x).dtype == torch.float32
    assert squared_distances(x, x).diagonal().abs().max() < 1e-5


# The adversary


def test_the_log_density_is_that_of_torch():
    z = randn(6, 4)
    wanted = Independent(Normal(torch.zeros(4, dtype=D), 2**0.5), 1).log_prob(z)
    torch.testing.assert_close(normal_log_density(z, 2.0), wanted)


def test_the_trick_adds_exactly_log_p_to_each_logit_and_nothing_across_the_batch():
    z, T = randn(5, 3), randn(5, seed=1)
    logit = adversary_logit(T, z, prior_variance=1.0)
    assert logit.shape == (5,)
    torch.testing.assert_close(logit - T, normal_log_density(z, 1.0))
    assert adversary_logit(T, z, prior_variance=None) is T
    with pytest.raises(ValueError, match="one number per code"):
        adversary_logit(T[:, None], z, prior_variance=1.0)


def test_the_fooling_loss_does_not_saturate_and_has_the_gradient_of_the_card():
    T = randn(6).requires_grad_()
    fooling_loss(T).backward()
    torch.testing.assert_close(T.grad, -torch.sigmoid(-T.detach()) / 6)
    torch.testing.assert_close(fooling_loss(T), -torch.sigmoid(T).log().mean())
    q, p = randn(3, seed=1), randn(4, seed=2)
    torch.testing.assert_close(
        adversary_loss(p, q), -torch.sigmoid(p).log().mean() - (1 - torch.sigmoid(q)).log().mean()
    )


def test_with_minus_log_q_the_tricked_adversary_is_bayes_optimal():
    a, shift = 1.0, 2.0
    z, codes = randn(200_000, 1), randn(200_000, 1, seed=1) + shift
    logit = lambda x: adversary_logit(-Normal(shift, a).log_prob(x)[:, 0], x, prior_variance=1.0)
    right = 0.5 * ((logit(z) > 0).double().mean() + (logit(codes) < 0).double().mean())
    assert right.item() == pytest.approx(Normal(0, 1).cdf(torch.tensor(shift / 2)).item(), abs=0.004)
    least = adversary_loss(logit(z), logit(codes))
    for change in (0.3, -0.3):
        assert adversary_loss(logit(z) + change, logit(codes) + change) > least
    assert adversary_loss(1.2 * logit(z), 1.2 * logit(codes)) > least


def test_where_codes_follow_the_prior_the_best_loss_is_two_log_two():
    z, codes = randn(100, 2), randn(100, 2, seed=1)
    logit = lambda x: adversary_logit(-normal_log_density(x, 1.0), x, prior_variance=1.0)
    assert adversary_loss(logit(z), logit(codes)).item() == pytest.approx(2 * math.log(2))


# Pre-training, costs, the VAE


def test_the_moment_loss_is_zero_for_one_set_and_the_squared_shift_for_a_moved_one():
    z = randn(30, 3)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=D)
    assert moment_loss(z, z.flip(0)).item() == pytest.approx(0, abs=1e-20)
    assert moment_loss(z + shift, z).item() == pytest.approx(shift.square().sum().item())
    torch.testing.assert_close(algorithm.covariance(z), torch.cov(z.T))
    assert moment_loss(2 * (z - z.mean(0)), z - z.mean(0)).item() == pytest.approx(
        9 * torch.cov(z.T).square().sum().item()
    )


def test_costs_are_summed_over_pixels_not_averaged():
    x, x_hat = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)
    for kind, wanted in (("l2sq", 1.0), ("l2", 1.0), ("l1", 2.0), ("bernoulli", 4 * math.log(2))):
        torch.testing.assert_close(cost(kind, x, x_hat), torch.full((2,), wanted))
    same = torch.zeros(1, 3, requires_grad=True)
    cost("l2", torch.zeros(1, 3), same).sum().backward()
    assert same.grad.isfinite().all()
    with pytest.raises(ValueError, match="cost"):
        cost("ssim", x, x_hat)


def test_the_kl_of_the_elbo_is_that_of_torch_and_zero_at_the_prior():
    mean, log_variance = randn(6, 3), randn(6, 3, seed=1)
    prior = Independent(Normal(torch.zeros(6, 3, dtype=D), 3**0.5), 1)
    wanted = kl_divergence(Independent(Normal(mean, (0.5 * log_variance).exp()), 1), prior)
    torch.testing.assert_close(normal_divergence(mean, log_variance, prior_variance=3.0), wanted)
    at_prior = normal_divergence(torch.zeros(1, 2), torch.full((1, 2), math.log(3.0)), prior_variance=3.0)
    assert at_prior.item() == pytest.approx(0, abs=1e-6)


def test_the_gaussian_likelihood_is_the_density_up_to_its_constant():
    x, x_hat = randn(4, 3), randn(4, 3, seed=1)
    log_p = Independent(Normal(x_hat, 0.2**0.5), 1).log_prob(x)
    found = algorithm.negative_log_likelihood("l2sq", x, x_hat, decoder_variance=0.2)
    torch.testing.assert_close(found + log_p + found.new_zeros(4), torch.zeros(4, dtype=D) + (found + log_p)[0])
    assert algorithm.negative_log_likelihood("l2sq", x, x_hat, decoder_variance=10.0)[0] == pytest.approx(
        0.05 * cost("l2sq", x, x_hat)[0].item()
    )


# Priors


@pytest.mark.parametrize("kind", ["normal", "sphere", "uniform"])
def test_draws_lie_on_the_support_and_c_is_what_it_says(kind):
    prior = Prior(kind, 5, 1.5 if kind == "normal" else 1.0)
    generator = torch.Generator().manual_seed(0)
    z, other = prior.draw(20_000, generator).double(), prior.draw(20_000, generator).double()
    between = (z - other).square().sum(1).mean().item()
    torch.testing.assert_close(torch.cov(z.T), prior.covariance(), rtol=0.05, atol=0.03)
    placed = prior.place(10 * z)
    match kind:
        case "normal":
            assert prior.C == 15.0 == pytest.approx(between, rel=0.02)
            assert z.var().item() == pytest.approx(1.5, rel=0.02)
        case "sphere":
            assert prior.C == 2.0 == pytest.approx(between, rel=0.02)
            torch.testing.assert_close(placed.norm(dim=1), torch.ones(20_000, dtype=D))
        case "uniform":
            assert prior.C == 5.0
            assert z.abs().max() <= 1
            assert placed.abs().max() <= 1
            assert z.var().item() == pytest.approx(1 / 3, rel=0.02)
    with pytest.raises(ValueError, match="prior"):
        Prior("cauchy", 2)
