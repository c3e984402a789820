"""Operator norms of convolutions by Fourier blocks and adjoints, against matrices built here one entry at a time."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import nn

from iclr18cli.certify.attained_norms import attained_norm
from iclr18cli.certify.convolution import fourier_bound, reshaped_bounds
from iclr18cli.certify.infinity_norms import infinity_norm
from iclr18cli.certify.lipschitz_margin import lipschitz
from iclr18cli.certify.norms import METHODS, circular_norm, operator_norm, reshaped_norm
from iclr18cli.certify.smoothness import chain_constant, layers_of

D = torch.float64
LITTLE = 1
"""Bytes of memory with which no Gram matrix is formed, so that the bounds from the kernel alone are what is tested."""


def largest(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix)[0])


def dense(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Build the matrix of a layer's linear part, column by column."""
    layer = layer.double().eval()
    eye = torch.eye(math.prod(shape), dtype=D).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(eye) - layer(torch.zeros(1, *shape, dtype=D))).flatten(1).T


def circulant(weight, grid, stride, dilation, groups):
    """Build the matrix of y[o, p, q] = sum K[o, i, a, b] x[i, (s p + d a) mod H, (s q + d b) mod W]."""
    outputs, inputs, rows, columns = weight.shape
    H, W = grid
    matrix = torch.zeros(outputs, H // stride[0], W // stride[1], inputs * groups, H, W, dtype=D)
    for p, q, a, b in itertools.product(range(H // stride[0]), range(W // stride[1]), range(rows), range(columns)):
        h, w = (stride[0] * p + dilation[0] * a) % H, (stride[1] * q + dilation[1] * b) % W
        for o in range(outputs):
            first = o // (outputs // groups) * inputs
            matrix[o, p, q, first : first + inputs, h, w] += weight[o, :, a, b]
    return matrix.flatten(0, 2).flatten(1)


# ---- on a circle


@pytest.mark.parametrize(
    ("weight", "grid", "stride", "dilation", "groups"),
    [
        ((3, 2, 3, 3), (5, 6), (1, 1), (1, 1), 1),
        ((2, 3, 2, 4), (7, 4), (1, 1), (1, 1), 1),
        ((2, 2, 5, 5), (3, 3), (1, 1), (1, 1), 1),  # the kernel overlaps itself
        ((3, 2, 3, 3), (6, 4), (2, 2), (1, 1), 1),
        ((5, 1, 3, 4), (6, 6), (3, 2), (1, 1), 1),
        ((2, 2, 3, 3), (4, 6), (4, 6), (1, 1), 1),  # a single output
        ((2, 2, 3, 2), (7, 6), (1, 1), (2, 3), 1),
        ((2, 2, 3, 3), (6, 8), (2, 4), (2, 3), 1),
        ((4, 2, 3, 3), (5, 4), (1, 1), (1, 1), 2),
        ((6, 1, 3, 3), (4, 6), (2, 2), (1, 1), 3),
        ((3, 2, 1, 1), (1, 1), (1, 1), (1, 1), 1),
    ],
)
def test_the_fourier_norm_is_the_largest_singular_value_of_the_circulant_matrix(weight, grid, stride, dilation, groups):
    torch.manual_seed(0)
    for kernel in (torch.randn(weight, dtype=D), torch.ones(weight, dtype=D)):
        truth = largest(circulant(kernel, grid, stride, dilation, groups))
        places = {"stride": stride, "dilation": dilation, "groups": groups}
        found = circular_norm(kernel, grid, **places)
        assert truth * (1 - 1e-14) <= found <= truth * (1 + 1e-7)
        assert circular_norm(kernel, grid, **places, memory=1) == pytest.approx(found, rel=1e-12), "in small parts"


def test_one_number_stands_for_both_axes_and_single_precision_weights_are_taken_exactly():
    torch.manual_seed(0)
    kernel = torch.randn(3, 2, 3, 3)
    found = circular_norm(kernel, 6, stride=2, dilation=2)
    assert found == circular_norm(kernel.double(), (6, 6), stride=(2, 2), dilation=(2, 2))


def test_a_stride_that_does_not_divide_the_grid_makes_no_circle():
    with pytest.raises(ValueError, match=r"grid=\(6, 5\), stride=\(2, 2\)"):
        circular_norm(torch.ones(1, 1, 3, 3), (6, 5), stride=2)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"kernel_size": 3, "padding": 1}, (2, 5, 6)),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, (2, 6, 4)),
        ({"kernel_size": 5, "padding": 2}, (2, 4, 5)),
        ({"kernel_size": 3, "padding": 2, "dilation": 2, "stride": (2, 1)}, (2, 6, 5)),
        ({"kernel_size": 3, "padding": 1, "groups": 2}, (2, 5, 5)),
        ({"kernel_size": (4, 2), "padding": "same"}, (2, 5, 4)),
        ({"kernel_size": 1}, (2, 4, 4)),
        ({"kernel_size": 3, "padding": (3, 1)}, (2, 4, 5)),  # each row of the circle comes out twice: exact too
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_convolution_with_circular_padding_is_exact_where_its_outputs_go_round(arguments, shape):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, padding_mode="circular", **arguments)
    truth = largest(dense(layer, shape))
    norm = operator_norm(layer, shape)
    assert norm.method == "circular"
    assert norm.output_shape == tuple(layer(torch.zeros(1, *shape, dtype=D)).shape[1:])
    assert truth * (1 - 1e-14) <= norm.value <= truth * (1 + 1e-7)


@pytest.mark.parametrize(
    ("arguments", "shape", "worst"),
    [
        ({"kernel_size": 3, "padding": 1, "stride": 2}, (2, 5, 7), 1.6),  # the stride does not divide the side
        ({"kernel_size": 3, "padding": 1, "stride": 3}, (2, 8, 9), 1.8),
        ({"kernel_size": 3, "padding": 2}, (2, 5, 6), 2.0),  # windows that come twice
        ({"kernel_size": 3, "padding": 4, "stride": 2}, (2, 6, 4), 2.0),
        ({"kernel_size": 3}, (2, 6, 6), 1.3),  # and that are missing
        ({"kernel_size": 3, "padding": "valid"}, (2, 6, 6), 1.3),
        ({"kernel_size": 4, "padding": 1, "stride": 2}, (2, 8, 8), 1.3),
        ({"kernel_size": 2, "padding": 1, "stride": 4, "dilation": 2, "groups": 2}, (2, 6, 6), 2.0),
    ],
)
def test_other_circular_paddings_are_bounded_from_above(arguments, shape, worst):
    for seed in range(5):
        torch.manual_seed(seed)
        layer = nn.Conv2d(2, 4, padding_mode="circular", **arguments)
        if seed == 4:
            nn.init.ones_(layer.weight)
        truth = largest(dense(layer, shape))
        norm = operator_norm(layer, shape)
        assert norm.output_shape == tuple(layer(torch.zeros(1, *shape, dtype=D)).shape[1:])
        assert truth <= norm.value <= worst * truth


# ---- padded by zeros


def cases(count):
    """Draw convolutions of all kinds with images that they fit on."""
    draw = random.Random(0)
    for seed in range(count):
        groups = draw.choice((1, 1, 2))
        arguments = {
            "in_channels": groups * draw.randint(1, 2), "out_channels": groups * draw.randint(1, 3),
            "kernel_size": (draw.randint(1, 4), draw.randint(1, 4)), "stride": (draw.randint(1, 3), draw.randint(1, 3)),
            "dilation": (draw.randint(1, 2), draw.randint(1, 2)), "padding": (draw.randint(0, 3), draw.randint(0, 3)),
            "groups": groups,
        }  # fmt: skip
        image = [max(draw.randint(3, 8), d * (k - 1) + 1) for k, d in zip(
            arguments["kernel_size"], arguments["dilation"], strict=True
        )]  # fmt: skip
        yield seed, arguments, (arguments["in_channels"], *image)


def test_no_zero_padded_convolution_of_thirty_exceeds_any_of_its_bounds():
    for seed, arguments, shape in cases(30):
        torch.manual_seed(seed)
        layer = nn.Conv2d(**arguments)
        truth = largest(dense(layer, shape))
        weight = layer.weight.detach()
        places = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        assert truth * (1 - 1e-13) <= fourier_bound(weight, shape[1:], **places)
        bound, norm = operator_norm(layer, shape, memory=LITTLE), operator_norm(layer, shape)
        assert bound.method in ("fourier", "reshaped")
        assert truth * (1 - 1e-13) <= norm.value <= bound.value
        assert norm.value <= truth * (1 + 1e-7)
        assert math.sqrt(math.prod(layer.kernel_size)) * reshaped_norm(weight) >= truth * (1 - 1e-13)


def test_the_fourier_bound_of_a_3x3_kernel_on_8x8_pixels_is_not_far_above_the_norm():
    for seed, (inputs, outputs) in enumerate([(1, 1), (3, 4), (8, 8), (4, 16)]):
        torch.manual_seed(seed)
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        ratio = fourier_bound(layer.weight.detach().double(), (8, 8)) / largest(dense(layer, (inputs, 8, 8)))
        assert 1 <= ratio <= 1.15
        strided = nn.Conv2d(inputs, outputs, 3, padding=1, stride=2, bias=False)
        bound = operator_norm(strided, (inputs, 8, 8), memory=LITTLE).value
        assert 1 <= bound / largest(dense(strided, (inputs, 8, 8))) <= 1.15


def test_a_circle_as_small_as_the_image_is_no_bound_for_zero_padding():
    # [1 -2 1] is largest at frequency pi, which a circle of 3 pixels lacks: 3 there, 2 + sqrt 2 padded by zeros.
    layer = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    layer.weight.data = torch.tensor([[[[1.0, -2.0, 1.0]]]])
    truth = largest(dense(layer, (1, 1, 3)))
    assert truth == pytest.approx(2 + math.sqrt(2))
    assert circular_norm(layer.weight, (1, 3)) == pytest.approx(3.0)
    assert circular_norm(layer.weight, (1, 5)) > truth
    assert operator_norm(layer, (1, 1, 3), memory=1).value >= truth
    assert operator_norm(layer, (1, 1, 3)).value == pytest.approx(truth, rel=1e-7)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_an_all_ones_kernel_has_the_reshaped_norm_k_and_the_norm_k_squared_in_the_limit(k):
    kernel = torch.ones(1, 1, k, k)
    assert reshaped_norm(kernel) == pytest.approx(k, rel=1e-7)
    assert circular_norm(kernel, 16) == pytest.approx(k**2, rel=1e-7)
    layer = nn.Conv2d(1, 1, k, padding=k // 2, bias=False)
    layer.weight.data = kernel
    norms = [operator_norm(layer, (1, n, n)).value for n in (4, 8, 16, 32)]
    assert norms == sorted(norms)
    assert k < norms[0]
    assert 0.97 * k**2 < norms[-1] < k**2


def test_a_1x1_kernel_has_its_reshaped_norm():
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 3, 1)
    truth = largest(layer.weight.detach().double().flatten(1))
    for found in (reshaped_norm(layer.weight), circular_norm(layer.weight, 7), operator_norm(layer, (5, 4, 4)).value):
        assert found == pytest.approx(truth, rel=1e-7)
        assert found >= truth
    assert operator_norm(layer, (5, 64, 64), memory=LITTLE).value == pytest.approx(truth, rel=1e-7)


def test_gaussian_kernels_exceed_their_reshaped_norm_so_dividing_by_it_leaves_more_than_one():
    torch.manual_seed(0)
    for channels in (8, 16):
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(layer.weight)
        layer.weight.data /= reshaped_norm(layer.weight)
        assert reshaped_norm(layer.weight) == pytest.approx(1, rel=1e-5)
        assert 1.4 < attained_norm(layer, (channels, 8, 8)) <= operator_norm(layer, (channels, 8, 8)).value < 2.6


# ---- deconvolutions


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"in_channels": 2, "out_channels": 3, "kernel_size": 3}, (2, 4, 5)),
        ({"in_channels": 3, "out_channels": 2, "kernel_size": 4, "stride": 2, "padding": 1}, (3, 4, 4)),
        ({"in_channels": 2, "out_channels": 2, "kernel_size": 3, "stride": 2, "output_padding": 1}, (2, 3, 4)),
        (
            {"in_channels": 2, "out_channels": 1, "kernel_size": (3, 4), "stride": (2, 3), "padding": (1, 0),
             "output_padding": (1, 2)}, (2, 3, 3)
        ),
        ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "dilation": 2, "padding": 2}, (2, 4, 4)),
        # So much output padding that the adjoint has room for one more window.
        ({"in_channels": 1, "out_channels": 2, "kernel_size": 3, "dilation": 3, "output_padding": 2}, (1, 4, 3)),
        ({"in_channels": 2, "out_channels": 2, "kernel_size": 2, "stride": 2, "dilation": 4, "padding": 2,
          "output_padding": 3}, (2, 4, 4)),
        ({"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "stride": 2, "padding": 1}, (4, 4, 3)),
        ({"in_channels": 3, "out_channels": 3, "kernel_size": 3, "groups": 3, "padding": 1}, (3, 4, 4)),
        ({"in_channels": 2, "out_channels": 2, "kernel_size": 1, "stride": 2}, (2, 3, 3)),
        ({"in_channels": 2, "out_channels": 2, "kernel_size": 1, "padding": 1}, (2, 4, 4)),
    ],
)  # fmt: skip
def test_a_deconvolution_has_the_norm_of_its_matrix_and_every_other_bound_is_above(arguments, shape):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(**arguments)
    for fill in (nn.init.normal_, nn.init.ones_):
        fill(layer.weight)
        truth = largest(dense(layer, shape))
        norm = operator_norm(layer, shape)
        assert norm.output_shape == tuple(layer(torch.zeros(1, *shape, dtype=D)).shape[1:])
        assert truth * (1 - 1e-13) <= norm.value <= truth * (1 + 1e-7)
        assert truth * (1 - 1e-13) <= operator_norm(layer, shape, memory=LITTLE).value


def test_a_deconvolution_is_reshaped_along_its_output_channels_as_torch_does_it():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 5, 2)
    truth = largest(layer.weight.detach().double().transpose(0, 1).flatten(1))
    assert reshaped_norm(layer.weight, transposed=True) == pytest.approx(truth, rel=1e-9)
    assert reshaped_norm(layer.weight) != pytest.approx(truth, rel=1e-3)
    before = layer.weight.detach().clone()
    normed = nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=200)
    assert torch.allclose(normed.weight, before / truth, atol=1e-5)


def test_the_four_reshapes_are_not_ordered_each_is_the_least_for_some_kernel():
    least = set()
    for seed in range(40):
        torch.manual_seed(seed)
        outputs, inputs = ((1, 8), (8, 1), (4, 4))[seed % 3]
        kernel = torch.randn(outputs, inputs, 3, 3, dtype=D)
        if seed % 2:  # rank one along one pair of axes
            kernel = torch.einsum(
                "oa,ib->oiab" if seed % 4 == 1 else "ob,ia->oiab", kernel[:, 0, :, 0], kernel[0, :, 0]
            )
        bounds = reshaped_bounds(kernel, (3, 3))
        truth = circular_norm(kernel, 9)
        assert min(bounds) >= truth * (1 - 1e-13)
        least.add(bounds.index(min(bounds)))
    assert len(least) >= 3


# ---- from below


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 3, 3, padding=1), (2, 6, 6)),
        (nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="circular"), (2, 6, 6)),
        (nn.ConvTranspose2d(3, 2, 4, 2, 1), (3, 4, 4)),
        (nn.Linear(7, 4), (7,)),
        (nn.AvgPool2d(2), (1, 4, 4)),
    ],
)
def test_power_iteration_rises_to_the_norm_and_stays_below_the_proven_bound(layer, shape):
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    values = [attained_norm(layer, shape, steps=steps) for steps in (1, 4, 16, 300)]
    assert all(torch.equal(value, weights[name]) for name, value in layer.state_dict().items())
    bound = operator_norm(layer, shape).value
    assert all(before <= after * (1 + 1e-12) for before, after in itertools.pairwise(values))
    truth = largest(dense(layer, shape))
    assert truth * (1 - 1e-3) <= values[-1] <= truth * (1 + 1e-12)
    assert values[-1] <= bound


def test_power_iteration_knows_the_zero_map_and_refuses_no_steps():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert attained_norm(layer, (3,)) == 0
    with pytest.raises(ValueError, match="steps=0"):
        attained_norm(layer, (3,), steps=0)


# ---- what walks a network


def walked() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2, padding_mode="circular"), nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(2, 2, 3, padding=1, groups=2),
        nn.Flatten(), nn.Linear(2 * 36, 8), nn.ReLU(), nn.Unflatten(1, (2, 2, 2)), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def test_a_chain_with_circular_and_transposed_convolutions_has_a_constant_above_every_quotient():
    net = walked().double().eval()
    chain = chain_constant(layers_of(net), (1, 6, 6))
    assert chain.shape == (3,)
    assert {norm.method for _, norm in chain.norms} <= METHODS.keys()
    x, step = torch.rand(200, 1, 6, 6, dtype=D), 1e-2 * torch.randn(200, 1, 6, 6, dtype=D)
    with torch.no_grad():
        quotient = (net(x + step) - net(x)).norm(dim=1) / step.flatten(1).norm(dim=1)
    assert 0 < quotient.max() <= chain.constant


def test_the_lipschitz_certificate_accepts_them_and_its_attack_does_not_break_it():
    net = walked()
    x = torch.rand(20, 1, 6, 6)
    (found,) = lipschitz(net, x, net(x).argmax(1), radii=(1e-3,))
    assert found.verdict == "proven"
    assert found.holds
    assert found.value > 0


@pytest.mark.parametrize("stride", [1, 2])
def test_the_infinity_norm_of_a_deconvolution_is_the_largest_row_sum_of_its_matrix(stride):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, stride, 1, output_padding=stride - 1, groups=2)
    norm = infinity_norm(layer, (4, 4, 5))
    assert norm.value == pytest.approx(float(dense(layer, (4, 4, 5)).abs().sum(1).max()), rel=1e-12)
    assert norm.output_shape == operator_norm(layer, (4, 4, 5)).output_shape
