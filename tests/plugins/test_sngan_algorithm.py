"""Spectral normalisation and its critics: closed forms, invariants, dense matrices, torch's own parametrisation."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from iclr18_sngan import algorithm
from iclr18_sngan.config import SETTINGS, TrainConfig
from iclr18_sngan.mechanism import effective_rank, gradient_norms, lipschitz_bound, observe, spectra
from iclr18_sngan.model import Critic, dcgan, halvings
from iclr18_sngan.normalization import Convolution, Reshaped, SpectralNorm, folded, spectral_norm
from iclr18_sngan.players import dequantized
from iclr18_sngan.residual import UpBlock, resnet
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from iclr18cli.errors import UserError
from iclr18cli.models.layers import Normalize


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def largest(matrix):
    return torch.linalg.matrix_norm(matrix, ord=2)


def dense(layer, input_shape):
    """Return the matrix of a layer's linear part, column by column."""
    bare = copy.deepcopy(layer).double()
    bare.bias = None
    eye = torch.eye(math.prod(input_shape), dtype=torch.float64)
    return bare(eye.unflatten(1, input_shape)).flatten(1).T


def converged(layer, **options):
    """Return a normalised copy in double precision whose power iteration has ended."""
    layer = spectral_norm(copy.deepcopy(layer).double(), n_power_iterations=1000, **options)
    _ = layer.weight
    return layer.eval()


def test_after_convergence_the_norm_is_one_and_the_spectrum_is_divided_by_the_largest():
    W = torch.randn(6, 9, dtype=torch.float64)
    layer = nn.Linear(9, 6)
    layer.weight.data = W.clone()
    values = torch.linalg.svdvals(converged(layer).weight)
    original = torch.linalg.svdvals(W)
    assert values[0].item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(values, original / original[0])


def test_on_a_diagonal_weight_sigma_has_its_closed_form_and_approaches_from_below():
    a, b, angle = 3.0, 2.0, 1.2
    W = torch.diag(torch.tensor([a, b], dtype=torch.float64))
    norm = SpectralNorm(W, Reshaped(W))
    u = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    found = [norm.iterated(W, u, k)[2].item() for k in range(1, 12)]
    for k, sigma in enumerate(found, 1):
        weights = [(a ** (4 * k), b ** (4 * k)), (a ** (4 * k - 2), b ** (4 * k - 2))]
        above, below = (x * math.cos(angle) ** 2 + y * math.sin(angle) ** 2 for x, y in weights)
        assert sigma == pytest.approx(math.sqrt(above / below), rel=1e-12)
    assert found == sorted(found)
    assert found[-1] <= a
    errors = [a - sigma for sigma in found]
    assert errors[-1] / errors[-2] == pytest.approx((b / a) ** 4, rel=1e-3)


def test_a_rank_one_weight_is_exact_after_one_step():
    W = torch.outer(torch.randn(5), torch.randn(7)).double()
    norm = SpectralNorm(W, Reshaped(W))
    _, _, sigma = norm.iterated(W, torch.randn(5, dtype=torch.float64), 1)
    assert sigma.item() == pytest.approx(largest(W).item(), rel=1e-12)


LAYERS = {
    "dense": (lambda: nn.Linear(7, 5), (7,)),
    "reshape": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5)),
    "reshape, transposed": (lambda: nn.ConvTranspose2d(2, 3, 3), (2, 5, 5)),
    "operator": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)),
    "operator, stride": (lambda: nn.Conv2d(2, 3, 4, 2, 1), (2, 6, 6)),
    "operator, groups": (lambda: nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=2), (4, 5, 5)),
    "operator, transposed": (lambda: nn.ConvTranspose2d(3, 2, 4, 2, 1), (3, 3, 3)),
}


def norm_of(layer, input_shape, options):
    """Return what sigma is the norm of, as a differentiable function of the weight."""
    if options:

        def operator(W):
            eye = torch.eye(math.prod(input_shape), dtype=torch.float64).unflatten(1, input_shape)
            places = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
            if isinstance(layer, nn.ConvTranspose2d):
                return largest(F.conv_transpose2d(eye, W, **places).flatten(1))
            return largest(F.conv2d(eye, W, dilation=layer.dilation, **places).flatten(1))

        return operator
    transposed = isinstance(layer, nn.ConvTranspose2d)
    return lambda W: largest((W.transpose(0, 1) if transposed else W).flatten(1))


@pytest.mark.parametrize("case", LAYERS)
def test_weight_and_gradient_are_those_of_the_weight_over_its_exact_norm(case):
    build, input_shape = LAYERS[case]
    layer = build()
    options = {"mode": "operator", "input_size": input_shape[1:]} if case.startswith("operator") else {}
    made = converged(layer, **options)
    W = layer.weight.detach().double().requires_grad_()
    exact = W / norm_of(layer, input_shape, options)(W)
    torch.testing.assert_close(made.weight, exact, rtol=1e-7, atol=1e-9)
    direction = torch.randn_like(W)
    (expected,) = torch.autograd.grad((exact * direction).sum(), W)
    original = made.parametrizations.weight.original
    (found,) = torch.autograd.grad((made.weight * direction).sum(), original)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert (found * original).sum().item() == pytest.approx(0, abs=1e-10)


def test_the_gradient_is_the_difference_quotient_with_u_and_v_held():
    W = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    norm = SpectralNorm(W, Reshaped(W)).eval()
    assert torch.autograd.gradcheck(norm, (W,))


def test_a_factor_of_the_weight_changes_nothing():
    layer = spectral_norm(nn.Conv2d(2, 3, 3)).eval()
    x = torch.randn(1, 2, 5, 5)
    before = layer(x)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(7)
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding])
def test_it_is_torch_s_parametrisation_where_both_have_converged(kind):
    layer = kind(6, 4, *((3,) if kind in (nn.Conv2d, nn.ConvTranspose2d) else ())).double()
    ours, theirs = copy.deepcopy(layer), copy.deepcopy(layer)
    spectral_norm(ours, n_power_iterations=500)
    parametrizations.spectral_norm(theirs, n_power_iterations=500)
    direction = torch.randn_like(layer.weight)
    grads = []
    for one in (ours, theirs):
        (one.weight * direction).sum().backward()
        grads.append(one.parametrizations.weight.original.grad)
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(*grads)


def test_a_one_by_one_convolution_has_the_same_norm_in_both_modes():
    layer = nn.Conv2d(3, 4, 1)
    reshape, operator = converged(layer), converged(layer, mode="operator", input_size=(4, 4))
    torch.testing.assert_close(reshape.weight, operator.weight)


def test_an_all_ones_kernel_has_reshaped_norm_k_and_a_convolution_s_norm_near_k_squared():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    assert largest(layer.weight.detach().flatten(1)).item() == pytest.approx(3, rel=1e-6)
    made = converged(layer, mode="operator", input_size=(40, 40))
    assert 1 / made.weight.max().item() == pytest.approx(9, rel=0.02)


def test_power_iterations_per_access_in_training_and_none_in_evaluation():
    layer = spectral_norm(nn.Linear(8, 8), n_power_iterations=3)
    norm = layer.parametrizations.weight[0]
    W, u = layer.parametrizations.weight.original.detach(), norm.u.clone()
    layer.eval()
    _ = layer.weight
    assert torch.equal(norm.u, u)
    layer.train()
    _ = layer.weight
    torch.testing.assert_close(norm.u, norm.iterated(W, u, 3)[0])
    assert not torch.equal(norm.u, norm.iterated(W, u, 2)[0])


def test_two_passes_before_one_backward_keep_their_own_directions():
    layer = spectral_norm(nn.Linear(4, 3, bias=False).double())
    norm, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    with torch.no_grad():
        original.copy_(torch.randn(3, 4))  # far from what u and v were found for
    made, directions = [], []
    for _ in range(2):
        made.append(layer.weight)
        directions.append((norm.u.clone(), norm.v.clone()))
    one, two = torch.randn(2, 3, 4, dtype=torch.float64)
    ((made[0] * one).sum() + (made[1] * two).sum()).backward()
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for G, (u, v) in zip((one, two), directions, strict=True):
        W, sigma = original.detach(), u @ original.detach() @ v
        expected += (G - (G * W / sigma).sum() * torch.outer(u, v)) / sigma
    torch.testing.assert_close(original.grad, expected)
    assert not torch.allclose(directions[0][0], directions[1][0])


def test_an_assigned_weight_is_normalised_and_a_weight_of_zeros_can_recover():
    layer = spectral_norm(nn.Linear(6, 5)).eval()
    layer.weight = torch.randn(5, 6)
    assert largest(layer.weight).item() == pytest.approx(1, rel=0.05)
    layer.train()
    with torch.no_grad():
        layer.parametrizations.weight.original.zero_()
    assert layer.weight.abs().max() == 0
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    for _ in range(20):
        W = layer.weight
    assert largest(W).item() == pytest.approx(1, rel=0.05)


def test_u_and_v_survive_state_dict_and_deepcopy():
    layer = spectral_norm(nn.Linear(5, 4))
    for _ in range(3):
        _ = layer.weight
    other = spectral_norm(nn.Linear(5, 4))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5)
    layer.eval()
    for twin in (other.eval(), copy.deepcopy(layer)):
        torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)


def test_a_folded_copy_is_plain_and_leaves_the_original_parametrised():
    critic = dcgan(width=4, input_shape=(1, 8, 8)).critic.eval()
    x = torch.rand(2, 1, 8, 8)
    state = copy.deepcopy(critic.state_dict())
    plain = folded(critic)
    assert not any(parametrize.is_parametrized(part) for part in plain.modules())
    torch.testing.assert_close(plain(x), critic(x), rtol=0, atol=0)
    assert all(torch.equal(state[name], value) for name, value in critic.state_dict().items())
    assert critic.head.weight.shape == plain.head.weight.shape


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(ValueError, match="mode"):
        spectral_norm(nn.Linear(2, 2), mode="fourier")
    with pytest.raises(ValueError, match="two dimensions"):
        spectral_norm(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="Conv1d"):
        spectral_norm(nn.Conv1d(1, 1, 3), mode="operator")
    with pytest.raises(ValueError, match="input_size"):
        spectral_norm(nn.Conv2d(1, 1, 3), mode="operator")
    with pytest.raises(ValueError, match="zero padding"):
        Convolution(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), (4, 4))
    with pytest.raises(ValueError, match="n_power_iterations"):
        spectral_norm(nn.Linear(2, 2), n_power_iterations=0)


def test_hinge_leaves_a_satisfied_margin_alone_and_gives_the_generator_a_constant_gradient():
    real = torch.tensor([1.5, 0.2], requires_grad=True)
    fake = torch.tensor([-2.0, 0.5], requires_grad=True)
    loss = algorithm.critic_loss("hinge", real, fake)
    assert loss.item() == pytest.approx(0.8 / 2 + 1.5 / 2)
    loss.backward()
    assert real.grad.tolist() == [0, -0.5]
    assert fake.grad.tolist() == [0, 0.5]
    score = torch.tensor([-3.0, 4.0], requires_grad=True)
    algorithm.generator_loss("hinge", score).backward()
    assert score.grad.tolist() == [-0.5, -0.5]


def test_softplus_is_cross_entropy_of_the_logit_and_wasserstein_a_difference_of_means():
    real, fake = torch.randn(9), torch.randn(9)
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(9)) + bce(fake, torch.zeros(9))
    torch.testing.assert_close(algorithm.critic_loss("softplus", real, fake), expected)
    torch.testing.assert_close(algorithm.generator_loss("softplus", fake), bce(fake, torch.ones(9)))
    torch.testing.assert_close(algorithm.critic_loss("wasserstein", real, fake), fake.mean() - real.mean())


def test_the_gradient_penalty_of_a_linear_critic_is_that_of_its_weight():
    w = torch.randn(6, requires_grad=True)
    x, z = torch.randn(4, 6), torch.randn(4, 6)
    value = algorithm.gradient_penalty(lambda t: t @ w, x, z, torch.rand(4))
    assert value.item() == pytest.approx((w.norm().item() - 1) ** 2, rel=1e-5)
    value.backward()
    torch.testing.assert_close(w.grad, (2 * (w.norm() - 1) * w / w.norm()).detach())


def test_the_gradient_penalty_looks_between_real_and_fake():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.square().sum(1)

    algorithm.gradient_penalty(critic, torch.ones(3, 2), torch.zeros(3, 2), torch.tensor([0.0, 0.25, 1.0]))
    assert seen[0][:, 0].tolist() == [0, 0.25, 1]


def test_the_orthonormal_penalty_vanishes_on_orthonormal_rows_or_columns():
    tall = torch.linalg.qr(torch.randn(6, 4)).Q
    assert algorithm.orthonormal_penalty([tall, tall.T]).item() == pytest.approx(0, abs=1e-5)
    W = torch.randn(3, 5)
    wide = (W.T @ W - torch.eye(5)).square().sum()
    assert wide.item() - algorithm.orthonormal_penalty([W]).item() == pytest.approx(2, rel=1e-4)


def test_clipping_bounds_every_number():
    layer = nn.Linear(4, 4)
    algorithm.clip_(layer, 0.01)
    assert max(p.abs().max().item() for p in layer.parameters()) == pytest.approx(0.01)


def test_table_1_and_what_overrides_it():
    assert SETTINGS["A"] == (1e-4, 0.5, 0.9, 5)
    assert SETTINGS["F"] == (1e-3, 0.9, 0.999, 5)
    config = TrainConfig(setting="E", beta1=0.0)
    assert config.adam == (1e-3, 0.0, 0.999)
    assert config.rounds == 5
    assert TrainConfig(setting="E", n_dis=2).rounds == 2


def test_dequantised_bytes_stay_in_their_grey_level():
    x = torch.arange(256) / 255
    low, high = dequantized(x, torch.zeros(256)), dequantized(x, torch.ones(256))
    torch.testing.assert_close(low[1:], high[:-1])
    assert low[0] == 0
    assert high[-1] == 1


@pytest.mark.parametrize(
    ("build", "shape"), [(dcgan, (1, 28, 28)), (dcgan, (3, 32, 16)), (resnet, (1, 8, 8)), (resnet, (3, 48, 48))]
)
def test_networks_make_and_judge_images_of_the_data_s_shape(build, shape):
    net = build(input_shape=shape, width=2, latent=5, limits=(-1.0, 3.0))
    x = net.sample(3, torch.Generator().manual_seed(0))
    assert x.shape == (3, *shape)
    assert x.min() >= -1
    assert x.max() <= 3
    assert net(x).shape == (3, 1)
    torch.testing.assert_close(net.eval()(x)[:, 0], net.critic(x))


def test_the_authors_networks_have_their_sizes():
    count = lambda net: sum(p.numel() for p in net.parameters())
    with torch.device("meta"):
        residual, cnn = resnet(width=128, norm="none"), dcgan(input_shape=(3, 32, 32), width=64, norm="none")
    assert count(residual.generator) == pytest.approx(4.28e6, rel=0.005)
    assert count(residual.critic) == pytest.approx(1.05e6, rel=0.005)
    filters = [part.out_channels for part in cnn.critic.modules() if isinstance(part, nn.Conv2d)]
    assert filters == [64, 128, 128, 256, 256, 512, 512]
    assert cnn.critic.head.in_features == 4 * 4 * 512
    ups = [part.out_channels for part in cnn.generator.modules() if isinstance(part, nn.ConvTranspose2d)]
    assert ups == [256, 128, 64]


def test_sides_are_halved_while_they_are_even():
    assert [halvings(side, floor=4, at_most=3) for side in (32, 28, 8, 96, 27)] == [3, 2, 1, 3, 0]
    with pytest.raises(ValueError, match="even"):
        dcgan(input_shape=(1, 27, 27))
    with pytest.raises(ValueError, match="norm"):
        dcgan(norm="layer")


def test_the_projection_critic_scores_every_class_as_it_does_one():
    net = dcgan(input_shape=(1, 8, 8), width=3, latent=4, classes=5).eval()
    x = torch.rand(4, 1, 8, 8)
    for k in range(5):
        torch.testing.assert_close(net(x)[:, k], net.critic(x, torch.full((4,), k)))
    phi = net.critic.features(x)
    expected = net.critic.head(phi)[:, 0] + phi @ net.critic.embedding.weight[2]
    torch.testing.assert_close(net.critic(x, torch.full((4,), 2)), expected)


def test_a_class_has_its_own_scale_and_shift_in_the_generator():
    net = dcgan(input_shape=(1, 8, 8), width=3, latent=4, classes=2).eval()
    z = torch.randn(1, 4)
    one, two = (net.generator(z, torch.tensor([k])) for k in (0, 1))
    torch.testing.assert_close(one, two)  # all start alike
    with torch.no_grad():
        for name, p in net.generator.named_parameters():
            if name.endswith("shift.weight"):
                p[1] += 1
    assert not torch.allclose(net.generator(z, torch.tensor([1])), two)
    torch.testing.assert_close(net.generator(z, torch.tensor([0])), one)


def test_the_shortcut_may_be_convolved_before_it_is_enlarged():
    block = UpBlock(3, 2, 0).eval()
    h = torch.randn(1, 3, 4, 4)
    shortcut = block.shortcut(block.larger(h))
    torch.testing.assert_close(block(h, None) - block.larger(block.shortcut(h)) + shortcut, block(h, None))


@pytest.mark.parametrize("mode", ["reshape", "operator"])
@pytest.mark.parametrize(("build", "shape"), [(dcgan, (1, 8, 8)), (resnet, (1, 8, 8)), (resnet, (1, 20, 20))])
def test_no_two_images_refute_the_bound(build, shape, mode):
    net = build(input_shape=shape, width=2, latent=4, mode=mode).eval()
    bound = lipschitz_bound(net.critic, shape)
    x = torch.rand(64, *shape)
    z = x + 1e-3 * torch.randn_like(x)
    moved = (net.critic(x) - net.critic(z)).abs() / (x - z).flatten(1).norm(dim=1)
    assert moved.max().item() <= bound.value * (1 + 1e-3)
    assert gradient_norms(net.critic, x).max().item() <= bound.value * (1 + 1e-4)


def test_without_activations_the_bound_is_the_gradient():
    features = nn.Sequential(Normalize([0.5], [0.5]), nn.Flatten(), nn.Linear(16, 1))
    critic = Critic(features, nn.Linear(1, 1), None)
    bound = lipschitz_bound(critic, (1, 4, 4))
    assert bound.value == pytest.approx(gradient_norms(critic, torch.rand(1, 1, 4, 4)).item(), rel=1e-5)
    assert bound.claimed == pytest.approx(bound.value, rel=1e-9)


def test_on_a_chain_the_reshaped_claim_is_the_bound_times_the_ratio_of_the_products():
    bound = lipschitz_bound(dcgan(input_shape=(1, 8, 8), width=3, latent=4).critic, (1, 8, 8))
    assert bound.claimed == pytest.approx(bound.value * bound.reshaped / bound.operator, rel=1e-5)
    assert bound.claimed < 0.8 * bound.value


def test_on_sums_the_reshaped_claim_walks_the_sums():
    critic = resnet(input_shape=(1, 8, 8), width=2, latent=4, norm="none").critic
    with torch.no_grad():
        for part in critic.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.fill_(1.0 if part.kernel_size == (1, 1) else 1e-3)
        critic.head.weight.fill_(1.0)
    claimed = lipschitz_bound(critic, (1, 8, 8)).claimed
    # 2 (Normalize), sqrt 2 / 2 (1x1 on one channel, pooled), the identity of two blocks, 4 (sum of 16), sqrt 2 (head).
    assert claimed == pytest.approx(8, rel=1e-2)
    assert gradient_norms(critic, torch.ones(1, 1, 8, 8)).item() == pytest.approx(8, rel=1e-2)


def test_a_critic_of_all_ones_kernels_refutes_the_product_of_reshaped_norms():
    one, two = nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 1, 3, bias=False)
    features = nn.Sequential(Normalize([0.0], [1.0]), one, nn.ReLU(), two, nn.Flatten())
    critic = Critic(features, nn.Linear(64, 1, bias=False), None)
    for part in (one, two):
        nn.init.ones_(part.weight)
        spectral_norm(part, n_power_iterations=3)
    nn.init.ones_(critic.head.weight)
    spectral_norm(critic.head)
    bound = lipschitz_bound(critic.eval(), (1, 12, 12))
    steepest = gradient_norms(critic, torch.ones(1, 1, 12, 12)).item()
    assert bound.reshaped == pytest.approx(1, rel=1e-5)
    assert 3 < steepest <= bound.value


def test_the_bound_of_a_projection_critic_is_that_of_its_worst_class():
    net = dcgan(input_shape=(1, 8, 8), width=2, latent=3, classes=3, norm="none").eval()
    bound = lipschitz_bound(net.critic, (1, 8, 8))
    rows = (net.critic.head.weight + net.critic.embedding.weight).detach()
    assert bound.head == pytest.approx(rows.norm(dim=1).max().item(), rel=1e-6)
    assert bound.value == pytest.approx(bound.chain.constant * bound.head, rel=1e-6)


def test_operator_normalisation_brings_every_bound_to_about_one():
    net = dcgan(input_shape=(1, 8, 8), width=3, latent=4, mode="operator", power_iterations=50)
    for _ in range(20):
        net(torch.rand(1, 1, 8, 8))
    bound = lipschitz_bound(net.critic, (1, 8, 8))
    assert all(operator == pytest.approx(1, abs=0.01) for _, operator, _, _ in bound.layers)
    assert any(reshaped < 0.7 for _, _, reshaped, _ in bound.layers)


def test_layer_normalisation_has_no_constant():
    with pytest.raises(UserError, match="GroupNorm"):
        lipschitz_bound(dcgan(input_shape=(1, 8, 8), width=2, norm="ln").critic, (1, 8, 8))


def test_observing_a_critic_changes_nothing_in_it():
    net = dcgan(input_shape=(1, 8, 8), width=3, latent=4).train()
    state = copy.deepcopy(net.state_dict())
    x, t = torch.rand(5, 1, 8, 8), torch.rand(5)
    found = observe(net.critic, x, torch.rand(5, 1, 8, 8), None, t)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert net.training
    expected = sum(math.log10(values[0]) for values in spectra(net.critic).values())
    assert found["log10_norms"] == pytest.approx(expected)
    assert found["gradient_real"] == pytest.approx(gradient_norms(net.critic, x).mean().item())


def test_the_effective_rank_counts_the_directions_that_are_used():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
