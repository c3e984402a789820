from __future__ import annotations

import math

import pytest
import torch
from iclr18_wrm.model import elu_cnn, two_four_two
from torch import nn

from iclr18cli.errors import UsageError
from iclr18cli.models.activations import ACTIVATIONS, activation
from iclr18cli.models.layers import Normalize


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def by_hand(f: int, channels: int = 1, classes: int = 10) -> int:
    convolutions = (channels * 64 * f + f) + (f * 36 * 2 * f + 2 * f) + (2 * f * 25 * 2 * f + 2 * f)
    return convolutions + 2 * f * classes + classes


def test_the_elu_cnn_has_exactly_the_authors_number_of_parameters():
    assert count(elu_cnn()) == by_hand(64) == 710_218


def test_a_quarter_of_the_filters_gives_the_quarter_size_net():
    net = elu_cnn(filters=16)
    assert count(net) == by_hand(16) == 45_466
    assert [layer.out_channels for layer in net if isinstance(layer, nn.Conv2d)] == [16, 32, 32]


def test_the_elu_cnn_shrinks_28_pixels_to_14_5_and_1():
    net, x = elu_cnn(filters=2), torch.rand(3, 1, 28, 28)
    sizes = []
    for layer in net:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            sizes.append(x.shape[-1])
    assert sizes == [14, 5, 1]
    assert x.shape == (3, 10)


def test_an_activation_follows_each_convolution_and_nothing_follows_the_dense_layer():
    kinds = [type(layer) for layer in elu_cnn()]
    assert kinds == [nn.Conv2d, nn.ELU] * 3 + [nn.Flatten, nn.Linear]


def test_the_cnn_starts_glorot_uniform_with_zero_biases_as_keras_does():
    torch.manual_seed(0)
    fans = {(8, 8): 64 * (1 + 64), (6, 6): 36 * (64 + 128), (5, 5): 25 * (128 + 128)}
    for layer in elu_cnn():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_sum = fans[layer.kernel_size] if isinstance(layer, nn.Conv2d) else 128 + 10
            limit = math.sqrt(6 / fan_sum)
            assert not layer.bias.any()
            assert layer.weight.abs().max() <= limit
            assert layer.weight.abs().max() > 0.97 * limit
            assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)


def test_torch_s_own_initialisation_can_be_asked_for():
    assert elu_cnn(filters=2, init="torch")[0].bias.any()
    with pytest.raises(ValueError, match="init='keras'"):
        elu_cnn(init="keras")


def test_the_cnn_takes_larger_colour_images_and_refuses_small_ones():
    assert elu_cnn(input_shape=(3, 32, 32), classes=4, filters=2)(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(ValueError, match="at least 28x28"):
        elu_cnn(input_shape=(1, 8, 8))


def test_two_four_two_has_28_parameters_and_two_hidden_layers():
    net = two_four_two()
    assert count(net) == 2 * 4 + 4 + 4 * 2 + 2 + 2 * 2 + 2 == 28
    assert [type(layer) for layer in net] == [nn.Linear, nn.ELU, nn.Linear, nn.ELU, nn.Linear]
    assert net(torch.randn(5, 2)).shape == (5, 2)


@pytest.mark.parametrize("make", [elu_cnn, two_four_two])
@pytest.mark.parametrize("word", ACTIVATIONS)
def test_the_activation_is_selectable(make, word):
    assert sum(isinstance(layer, type(activation(word))) for layer in make(activation=word)) in (2, 3)


def test_an_unknown_activation_is_refused():
    with pytest.raises(UsageError, match="'swish'"):
        two_four_two(activation="swish")


@pytest.mark.parametrize(("make", "shape"), [(elu_cnn, (1, 28, 28)), (two_four_two, (2,))])
def test_normalisation_is_the_first_layer(make, shape):
    torch.manual_seed(0)
    inside = make(mean=[0.25], std=[0.5])
    torch.manual_seed(0)
    outside = make()
    x = torch.rand(3, *shape)
    assert isinstance(inside[0], Normalize)
    assert torch.equal(inside(x), outside((x - 0.25) / 0.5))
