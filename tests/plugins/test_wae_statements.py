"""Two-sample test, bound of the MMD, Lipschitz bound, attack: each against brute force or a known truth."""

import math
from itertools import combinations

import pytest
import torch
from iclr18_wae.algorithm import expected_imq, imq, mmd
from iclr18_wae.attack import ascend, damage
from iclr18_wae.lipschitz import chain_constant, reconstruction_constant
from iclr18_wae.model import AutoEncoder, adversary, conv, mlp
from iclr18_wae.prior import Prior
from iclr18_wae.two_sample import mmd_interval, normal_interval, permutation_test
from torch import nn

from iclr18cli.attack.threat import Threat
from iclr18cli.errors import UserError
from iclr18cli.models.modes import evaluating

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def test_the_p_value_of_a_tiny_sample_is_the_share_of_all_divisions():
    x, y = randn(4, 2), randn(3, 2, seed=1) + 1
    pooled, kernel = torch.cat([x, y]), imq(4.0)
    every = []
    for chosen in combinations(range(7), 4):
        rest = [i for i in range(7) if i not in chosen]
        every.append(mmd(pooled[list(chosen)], pooled[rest], kernel).item())
    found = permutation_test(x, y, kernel, permutations=35, generator=torch.Generator())
    assert found.exhaustive
    assert found.permutations == 35
    assert found.statistic == pytest.approx(every[0])
    assert found.p_value == sum(value >= every[0] - 1e-12 for value in every) / 35


def test_random_permutations_count_the_given_division_and_approach_the_full_share():
    x, y, kernel = randn(6, 1), randn(6, 1, seed=1) + 0.7, imq(2.0)
    full = permutation_test(x, y, kernel, permutations=924, generator=torch.Generator())
    some = permutation_test(x, y, kernel, permutations=800, generator=torch.Generator().manual_seed(1))
    assert full.exhaustive
    assert not some.exhaustive
    assert some.p_value == (1 + some.as_large) / 801
    assert some.p_value == pytest.approx(
        full.p_value, abs=4 * math.sqrt(full.p_value * (1 - full.p_value) / 800) + 2e-3
    )


def test_under_equal_laws_p_is_at_most_the_level_no_more_often_than_the_level():
    generator = torch.Generator().manual_seed(0)
    below = sum(
        permutation_test(
            randn(15, 2, seed=s), randn(15, 2, seed=5000 + s), imq(4.0), permutations=39, generator=generator
        ).p_value <= 0.1
        for s in range(300)
    )  # fmt: skip
    assert 10 < below < 30 + 4 * math.sqrt(27)


def test_a_shift_is_found():
    found = permutation_test(
        randn(100, 2), randn(100, 2, seed=1) + 1, imq(4.0), permutations=199, generator=torch.Generator()
    )
    assert found.p_value == 1 / 200


def test_the_interval_holds_the_true_mmd_and_shrinks():
    a, b, d, C = 1.0, 0.5, 3, 6.0
    true = math.sqrt(expected_imq(2 * a, d, C) + expected_imq(2 * b, d, C) - 2 * expected_imq(a + b, d, C))
    width = []
    for n in (100, 400):
        for seed in range(10):
            x, y = randn(n, d, seed=seed), b**0.5 * randn(n, d, seed=100 + seed)
            distance, low, high = mmd_interval(x, y, imq(C), bound=7.0, delta=0.05)
            assert low <= true <= high
            assert low <= distance <= high
        width.append(high - distance)
    assert width[0] == pytest.approx(2 * width[1])
    assert mmd_interval(x, x, imq(C), bound=7.0, delta=0.05)[0] == pytest.approx(0, abs=1e-6)


def test_the_interval_radius_is_the_written_formula():
    x, y = randn(25, 2), randn(100, 2, seed=1)
    distance, _, high = mmd_interval(x, y, imq(4.0), bound=7.0, delta=0.1)
    factor = 1 + math.sqrt(2 * math.log(20))  # delta / 2 for each sample
    assert high - distance == pytest.approx(factor * math.sqrt(7) * (1 / 5 + 1 / 10))
    with pytest.raises(ValueError, match="delta"):
        mmd_interval(x, y, imq(4.0), bound=7.0, delta=0.0)


def test_the_interval_to_a_known_normal_holds_the_true_mmd_and_has_one_radius():
    d, C = 3, 6.0
    true = math.sqrt(expected_imq(1.0, d, C) + expected_imq(2.0, d, C) - 2 * expected_imq(1.5, d, C))
    for seed in range(20):
        distance, low, high = normal_interval(0.5**0.5 * randn(200, d, seed=seed), C=C, variance=1.0, delta=0.05)
        assert low <= true <= high
    assert high - distance == pytest.approx(math.sqrt(7 / 200) * (1 + math.sqrt(2 * math.log(20))))


@pytest.mark.parametrize(("kernel", "outer"), [(3, 1), (4, 0), (5, 1)])
def test_the_norm_of_a_deconvolution_is_that_of_its_matrix(kernel, outer):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(2, 3, kernel, 2, (kernel - 1) // 2, output_padding=outer).double()
    basis = torch.eye(2 * 4 * 4, dtype=D).view(32, 2, 4, 4)
    with torch.no_grad():
        matrix = (layer(basis) - layer(torch.zeros(1, 2, 4, 4, dtype=D))).flatten(1)
    layer_float = nn.ConvTranspose2d(2, 3, kernel, 2, (kernel - 1) // 2, output_padding=outer)
    layer_float.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    constant, _ = chain_constant(nn.Sequential(layer_float), (2, 4, 4))
    assert constant == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-5)


@pytest.mark.parametrize("build", [conv, mlp])
def test_the_reconstruction_constant_bounds_every_quotient(build):
    torch.manual_seed(0)
    net = build(input_shape=(1, 8, 8), latent=3, widths=(4, 8)).eval()
    encoder, decoder = reconstruction_constant(net, (1, 8, 8))
    x, y = torch.rand(50, 1, 8, 8), torch.rand(50, 1, 8, 8)
    far = lambda a, b: (a - b).flatten(1).norm(dim=1)
    with torch.no_grad():
        assert (far(net.encode(x), net.encode(y)) <= encoder * far(x, y)).all()
        assert (far(net(x), net(y)) <= encoder * decoder * far(x, y)).all()


def test_a_random_encoder_or_normalised_codes_have_no_constant():
    for options in ({"encoder": "gaussian"}, {"prior": "sphere"}):
        with pytest.raises(UserError):
            reconstruction_constant(mlp(input_shape=(4,), latent=2, widths=(4,), **options), (4,))


def test_the_attack_reaches_the_optimum_of_a_linear_auto_encoder():
    torch.manual_seed(0)
    net = mlp(input_shape=(5,), latent=2, widths=(), bounded=False)
    threat = Threat("l2", 0.3, None)
    x = torch.randn(4, 5)
    W = net.encoder[1].weight.detach()
    with evaluating(net):
        goal = damage(net, x, "code", torch.empty(0))
        found = ascend(
            goal, x, threat, start=x + 0.01, steps=60, restarts=2, generator=torch.Generator().manual_seed(0)
        )
    largest = torch.linalg.matrix_norm(W, 2) * 0.3  # |W delta| <= |W| |delta|, reached at the top singular vector
    torch.testing.assert_close(goal(found), largest.expand(4), rtol=1e-3, atol=1e-4)
    assert (threat.check(found, x) <= 0.3 * (1 + 1e-6)).all()


@pytest.mark.parametrize("goal", ["reconstruction", "code", "target"])
@pytest.mark.parametrize("encoder", ["deterministic", "gaussian", "implicit"])
def test_the_attack_never_ends_worse_than_it_began_and_stays_in_the_box(goal, encoder):
    torch.manual_seed(0)
    net = conv(input_shape=(1, 8, 8), latent=2, widths=(4, 4), encoder=encoder).eval()
    x, noise = torch.rand(6, 1, 8, 8), torch.randn(3, 6, 2)
    threat = Threat("linf", 0.1, (0.0, 1.0))
    with evaluating(net):
        raised = damage(net, x, goal, noise)
        found = ascend(raised, x, threat, start=x, steps=5, restarts=2, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert (raised(found) >= raised(x)).all()
            assert (raised(found) > raised(x)).any()
    threat.check(found, x)


# Networks


def test_the_implicit_encoder_has_covariance_a_transposed_a():
    torch.manual_seed(0)
    net = mlp(input_shape=(3,), latent=2, widths=(4,), encoder="implicit")
    x = torch.randn(1, 3)
    with torch.no_grad():
        A = net.mixing(net.posterior(x)[0])[0]
        codes = net.encode(x.expand(200_000, 3), torch.randn(200_000, 2))
    torch.testing.assert_close(torch.cov(codes.T), A.T @ A, rtol=0.03, atol=0.003)
    torch.testing.assert_close(codes.mean(0), net.encode(x)[0].detach(), rtol=0, atol=0.01)


def test_the_gaussian_encoder_has_its_mean_and_variance():
    torch.manual_seed(0)
    net = mlp(input_shape=(3,), latent=2, widths=(4,), encoder="gaussian")
    x = torch.randn(1, 3)
    with torch.no_grad():
        mean, log_variance = net.posterior(x)
        codes = net.encode(x.expand(100_000, 3), torch.randn(100_000, 2))
    torch.testing.assert_close(codes.mean(0), mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(codes.var(0), log_variance[0].exp(), rtol=0.03, atol=0)
    assert torch.equal(net.encode(x), mean)


@pytest.mark.parametrize(("shape", "kernel"), [((1, 8, 8), 4), ((1, 28, 28), 4), ((3, 64, 64), 5), ((1, 16, 12), 3)])
def test_the_decoder_gives_images_of_the_data_s_shape_and_range(shape, kernel):
    net = conv(input_shape=shape, latent=3, widths=(4, 4, 8), kernel_size=kernel).eval()
    out = net(torch.rand(2, *shape))
    assert out.shape == (2, *shape)
    assert 0 <= out.min() <= out.max() <= 1


def test_the_paper_s_networks_have_the_parameters_counted_in_the_card():
    with torch.device("meta"):
        net = conv(input_shape=(3, 64, 64), latent=64, widths=(128, 256, 512, 1024), kernel_size=5)
    count = lambda part: sum(p.numel() for p in part.parameters()) / 1e6
    assert count(net.encoder) == pytest.approx(18.2, abs=0.6)
    assert count(net.decoder) == pytest.approx(21.4, abs=0.6)


def test_authors_init_draws_small_weights_and_zero_biases():
    net = mlp(input_shape=(64,), latent=8, widths=(64,), authors_init=True)
    assert net.encoder[1].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert net.encoder[1].bias.abs().max() == 0


def test_the_adversary_gives_one_number_per_code():
    assert adversary(3, 8)(torch.randn(5, 3)).shape == (5,)


def test_a_gaussian_encoder_on_the_sphere_is_refused():
    with pytest.raises(ValueError, match="normal prior"):
        AutoEncoder(nn.Sequential(), nn.Sequential(), Prior("sphere", 2), "gaussian")
