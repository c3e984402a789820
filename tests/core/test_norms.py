"""Operator norms: every bound is above the norm of the layer's whole matrix, which is built here by brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from iclr18cli.certify.capping import cap_, cap_layers_, capped_layers, fast_bound
from iclr18cli.certify.convolution import fourier_bound, multiplicity, reshaped_bounds
from iclr18cli.certify.gram import gram_iteration, matrix_norm
from iclr18cli.certify.norms import operator_norm
from iclr18cli.errors import UserError
from iclr18cli.models.layers import Normalize, PadShortcut
from iclr18cli.models.registry import build


def dense(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Build the matrix of a layer's linear part, column by column."""
    layer = layer.double().eval()
    eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(eye) - layer(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T


def largest(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix)[0])


CONVOLUTIONS = [
    ({"in_channels": 1, "out_channels": 4, "kernel_size": 3}, (1, 6, 6)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1}, (2, 5, 7)),
    ({"in_channels": 3, "out_channels": 2, "kernel_size": 5, "padding": 2, "stride": 2}, (3, 8, 7)),
    ({"in_channels": 1, "out_channels": 4, "kernel_size": 8, "stride": 2, "padding": 3}, (1, 12, 12)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": (2, 4), "stride": (3, 1), "padding": (1, 0)}, (2, 8, 6)),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 3, "dilation": 2, "padding": 2}, (2, 7, 7)),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 3, "dilation": 2, "padding": 3, "stride": 2}, (2, 8, 9)),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "dilation": 3, "padding": 1, "stride": 2}, (2, 9, 9)),
    ({"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 2}, (4, 5, 5)),
    ({"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1, "stride": 2, "groups": 4}, (4, 6, 6)),
    ({"in_channels": 2, "out_channels": 5, "kernel_size": 4}, (2, 4, 4)),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 4, "padding": "same"}, (2, 6, 5)),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 1, "padding": 2}, (2, 3, 3)),
    ({"in_channels": 3, "out_channels": 8, "kernel_size": 1, "stride": 2}, (3, 5, 5)),
]


@pytest.mark.parametrize(("arguments", "shape"), CONVOLUTIONS)
def test_every_bound_of_a_convolution_is_above_its_matrix_norm_and_the_exact_one_equals_it(arguments, shape):
    torch.manual_seed(0)
    layer = nn.Conv2d(**arguments)
    matrix = dense(layer, shape)
    truth = largest(matrix)
    norm = operator_norm(layer, shape)
    assert norm.output_shape == tuple(layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    assert truth <= norm.value <= truth * (1 + 1e-7)

    weight = layer.weight.detach()
    windows = multiplicity(layer.kernel_size, layer.stride, layer.dilation, norm.output_shape[1:])
    for bound in reshaped_bounds(weight, windows, layer.groups):
        assert bound >= truth * (1 - 1e-12)
    fourier = fourier_bound(weight, shape[1:], stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
    assert truth * (1 - 1e-12) <= fourier
    assert float(fast_bound(layer, shape)) >= truth * (1 - 1e-12)
    assert float(fast_bound(layer, shape)) >= norm.value * (1 - 1e-7)


@pytest.mark.parametrize(("arguments", "shape"), CONVOLUTIONS)
def test_a_nonnegative_kernel_the_worst_case_for_overlap_stays_below_every_bound(arguments, shape):
    layer = nn.Conv2d(**arguments)
    nn.init.ones_(layer.weight)
    truth = largest(dense(layer, shape))
    weight = layer.weight.detach().double()
    norm = operator_norm(layer, shape)
    assert truth <= norm.value <= truth * (1 + 1e-7)
    windows = multiplicity(layer.kernel_size, layer.stride, layer.dilation, norm.output_shape[1:])
    assert min(reshaped_bounds(weight, windows, layer.groups)) >= truth * (1 - 1e-12)


def test_a_convolution_too_large_for_its_matrix_gets_a_bound_close_to_the_norm():
    torch.manual_seed(1)
    layer, shape = nn.Conv2d(2, 3, 3, padding=1), (2, 20, 20)
    truth = largest(dense(layer, shape))
    bound = operator_norm(layer, shape, memory=2**20)
    assert bound.method in ("fourier", "reshaped")
    assert truth <= bound.value <= 1.05 * truth


def test_the_all_ones_kernel_shows_why_the_reshaped_norm_alone_is_no_bound():
    weight = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    assert matrix_norm(weight.flatten(1)) == pytest.approx(3.0)
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    assert 8.5 < operator_norm(layer, (1, 20, 20)).value <= 9.0


def test_the_papers_first_and_last_convolution_are_exact_and_their_shapes_are_right():
    torch.manual_seed(0)
    net = build("wrm/elu-cnn", filters=8)
    shape, shapes = (1, 28, 28), []
    for layer in net:
        if not isinstance(layer, nn.ELU):
            norm = operator_norm(layer, shape)
            assert norm.method in ("exact", "reshaped", "scale")
            shape = norm.output_shape
            shapes.append(shape)
    assert shapes == [(8, 14, 14), (16, 5, 5), (16, 1, 1), (16,), (10,)]


def test_gram_iteration_falls_towards_the_norm_and_never_below_it():
    torch.manual_seed(0)
    matrix = torch.randn(30, 70, dtype=torch.float64)
    truth = largest(matrix)
    bounds = [gram_iteration(matrix, steps=t) for t in range(1, 25)]
    assert bounds[0] == pytest.approx(float((matrix @ matrix.T).norm()) ** 0.5)
    for before, after in itertools.pairwise(bounds):
        assert truth <= after <= before * (1 + 1e-12)
    assert bounds[-1] == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-140, 1e140])
def test_gram_iteration_neither_overflows_nor_underflows(scale):
    torch.manual_seed(0)
    matrix = torch.randn(8, 8, dtype=torch.float64)
    assert gram_iteration(matrix * scale, steps=12) == pytest.approx(gram_iteration(matrix, steps=12) * scale)


def test_gram_iteration_refuses_no_steps_and_knows_the_zero_matrix():
    with pytest.raises(ValueError, match="steps=0"):
        gram_iteration(torch.eye(2, dtype=torch.float64), steps=0)
    assert gram_iteration(torch.zeros(2, 3, dtype=torch.float64), steps=3) < 1e-300


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.AvgPool2d(2), (2, 6, 6)),
        (nn.AvgPool2d(2), (1, 5, 7)),
        (nn.AvgPool2d(3, stride=1), (1, 6, 6)),
        (nn.AvgPool2d(3, stride=2, padding=1), (1, 7, 8)),
        (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (1, 7, 8)),
        (nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), (1, 8, 8)),
        (nn.AvgPool2d((2, 3), stride=(1, 2), padding=(1, 0)), (2, 5, 8)),
        (nn.AvgPool2d(2, divisor_override=3), (1, 6, 6)),
        (nn.AvgPool2d(3, padding=1, stride=1, count_include_pad=False, divisor_override=2), (1, 5, 5)),
        (nn.AdaptiveAvgPool2d(1), (2, 5, 4)),
        (nn.AdaptiveAvgPool2d((3, 2)), (1, 7, 5)),
        (nn.AdaptiveAvgPool2d((None, 2)), (1, 3, 5)),
        (PadShortcut(2, 3), (2, 5, 6)),
        (nn.Flatten(), (2, 3, 4)),
        (Normalize([0.1, 0.2], [0.5, 0.25]), (2, 3, 3)),
        (nn.Linear(5, 3), (5,)),
        (nn.Linear(3, 5), (2, 3)),
    ],
)
def test_pooling_and_the_other_affine_layers_are_exact(layer, shape):
    truth = largest(dense(layer, shape))
    norm = operator_norm(layer, shape)
    assert truth * (1 - 1e-12) <= norm.value <= truth * (1 + 1e-9)
    assert norm.output_shape == tuple(layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])


def test_batch_normalisation_counts_with_its_largest_scale():
    layer = nn.BatchNorm2d(3)
    layer.running_var.copy_(torch.tensor([0.25, 4.0, 1.0]))
    layer.weight.data.copy_(torch.tensor([1.0, -6.0, 0.5]))
    assert operator_norm(layer, (3, 2, 2)).value == pytest.approx(largest(dense(layer, (3, 2, 2))), rel=1e-9)
    with pytest.raises(UserError, match="running statistics"):
        operator_norm(nn.BatchNorm2d(3, track_running_stats=False), (3, 2, 2))


def test_layers_without_a_known_bound_are_refused():
    with pytest.raises(UserError, match="MultiheadAttention"):
        operator_norm(nn.MultiheadAttention(4, 1), (3, 4))
    with pytest.raises(UserError, match="padding_mode='reflect'"):
        operator_norm(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 5))

    class Rounded(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.round())

    with pytest.raises(UserError, match="Rounded"):
        operator_norm(Rounded(2, 2), (2,))
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(UserError, match="Linear"):
        operator_norm(hooked, (2,))


def test_weights_that_are_not_finite_are_refused():
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match="not finite"):
        operator_norm(layer, (2,))


@pytest.mark.parametrize("method", ["fast", "exact"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(40, 30), (40,)),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 6)),
        (nn.Conv2d(4, 8, 5, stride=2), (4, 9, 9)),
        (nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
    ],
)
def test_after_capping_the_proven_norm_is_at_most_the_cap(layer, shape, method):
    torch.manual_seed(0)
    for cap in (0.01, 0.3, 1.7):
        with torch.no_grad():
            layer.weight.normal_()
        cap_(layer, shape, cap, method=method)
        value = operator_norm(layer, shape).value
        assert value <= cap
        if method == "exact":
            assert value >= cap * (1 - 1e-4)
        before = layer.weight.clone()
        cap_(layer, shape, 2 * cap, method=method)
        if method == "exact" or isinstance(layer, nn.Linear):
            assert torch.equal(layer.weight, before), "below the cap nothing changes"


def test_capping_a_network_finds_its_layers_and_leaves_modes_alone():
    net = build("small-cnn", input_shape=(1, 8, 8), filters=4).train()
    layers = capped_layers(net, (1, 8, 8))
    assert [shape for _, shape in layers] == [(1, 8, 8), (4, 8, 8), (8, 4, 4), (64,)]
    assert net.training
    cap_layers_(layers, 0.5)
    assert all(operator_norm(layer, shape).value <= 0.5 for layer, shape in layers)


def test_capping_refuses_other_layers_and_senseless_caps():
    with pytest.raises(TypeError, match="ReLU"):
        cap_(nn.ReLU(), (2,), 1.0)
    with pytest.raises(ValueError, match="cap=0"):
        cap_(nn.Linear(2, 2), (2,), 0)
    with pytest.raises(ValueError, match="slow"):
        cap_(nn.Linear(2, 2), (2,), 1.0, method="slow")
