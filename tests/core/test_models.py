from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from iclr18cli.errors import UsageError
from iclr18cli.models import registry
from iclr18cli.models.activations import ACTIVATIONS, activation
from iclr18cli.models.layers import Normalize, PadShortcut, Residual
from iclr18cli.models.protocols import PROTOCOLS, Classify, Generate
from iclr18cli.plugin import ModelSpec

NETS = {"small-cnn": (1, 8, 8), "mlp": (1, 8, 8), "lenet5": (1, 28, 28), "resnet20": (3, 32, 32)}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def conv(fan_in: int, fan_out: int, kernel: int, *, bias: bool = True) -> int:
    return fan_in * fan_out * kernel**2 + (fan_out if bias else 0)


def dense(fan_in: int, fan_out: int) -> int:
    return (fan_in + 1) * fan_out


def test_parameter_counts_follow_from_the_layer_sizes():
    assert count(registry.build("mlp")) == dense(64, 64) + dense(64, 64) + dense(64, 10) == 8_970
    small = conv(1, 16, 3) + conv(16, 32, 3) + conv(32, 64, 3) + dense(64 * 2 * 2, 10)
    assert count(registry.build("small-cnn")) == small == 25_866
    lenet = conv(1, 6, 5) + conv(6, 16, 5) + dense(400, 120) + dense(120, 84) + dense(84, 10)
    assert count(registry.build("lenet5")) == lenet == 61_706


def test_resnet20_has_the_paper_s_270_thousand_parameters():
    total = conv(3, 16, 3, bias=False) + 2 * 16
    for fan_in, fan_out in ((16, 16), (16, 32), (32, 64)):
        total += conv(fan_in, fan_out, 3, bias=False) + 5 * conv(fan_out, fan_out, 3, bias=False) + 6 * 2 * fan_out
    total += dense(64, 10)
    net = registry.build("resnet20")
    assert count(net) == total == 269_722
    weighted = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 20
    assert sum(isinstance(m, Residual) for m in net) == 9


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("word", ACTIVATIONS)
def test_every_activation_can_be_chosen_in_every_net(name, word):
    net = registry.build(name, activation=word)
    kind = type(activation(word))
    others = {type(activation(other)) for other in ACTIVATIONS} - {kind}
    assert any(isinstance(layer, kind) for layer in net.modules())
    assert not any(type(layer) in others for layer in net.modules())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mlp", (2,)), ("mlp", (3, 5, 7)), ("small-cnn", (1, 4, 4)), ("small-cnn", (3, 9, 13)), ("small-cnn", (1, 16, 16)),
     ("lenet5", (3, 32, 32)), ("lenet5", (1, 13, 17)), ("resnet20", (1, 28, 28)), ("resnet20", (3, 9, 14))],
)  # fmt: skip
def test_nets_take_inputs_of_many_shapes(name, shape):
    net = registry.build(name, input_shape=list(shape), classes=3).eval()
    assert net(torch.rand(4, *shape)).shape == (4, 3)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 9, 14)])
def test_resnet20_averages_over_the_whole_image(shape):
    net = registry.build("resnet20", input_shape=shape).eval()
    features = net[:-3](torch.rand(2, *shape))
    assert torch.allclose(net[-3:-1](features), features.mean(dim=(2, 3)), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 7, 9)])
def test_small_cnn_downsamples_by_stride_or_by_averaging(shape):
    net = registry.build("small-cnn", input_shape=shape, downsampling="average")
    assert net(torch.rand(2, *shape)).shape == (2, 10)
    assert sum(isinstance(layer, nn.AvgPool2d) for layer in net) == 2
    assert all(layer.stride == (1, 1) for layer in net if isinstance(layer, nn.Conv2d))
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in net)


def test_lenet5_can_be_made_smooth():
    net = registry.build("lenet5", activation="tanh", pooling="average")
    kinds = {type(layer) for layer in net}
    assert kinds == {nn.Conv2d, nn.Tanh, nn.AvgPool2d, nn.Flatten, nn.Linear}
    assert count(net) == 61_706


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_a_chain_of_modules_that_gives_its_output(name):
    net = registry.build(name).eval()
    assert type(net) is nn.Sequential
    x = torch.rand(2, *NETS[name])
    out = x
    for layer in net:
        out = layer.block(out) + layer.shortcut(out) if isinstance(layer, Residual) else layer(out)
    assert torch.equal(out, net(x))


@pytest.mark.parametrize("name", NETS)
def test_nets_do_not_change_their_input(name):
    x = torch.rand(2, *NETS[name])
    before = x.clone()
    registry.build(name, activation="relu", mean=[0.5], std=[0.25]).eval()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NETS)
def test_normalisation_inside_equals_normalisation_outside(name):
    shape = NETS[name]
    mean, std = [0.1 * (c + 1) for c in range(shape[0])], [0.2 + 0.1 * c for c in range(shape[0])]
    torch.manual_seed(0)
    inside = registry.build(name, mean=mean, std=std).eval()
    torch.manual_seed(0)
    outside = registry.build(name).eval()
    x = torch.rand(3, *shape)
    column = (1, -1, 1, 1)
    normalised = (x - torch.tensor(mean).view(column)) / torch.tensor(std).view(column)
    assert torch.equal(inside(x), outside(normalised))
    assert isinstance(inside[0], Normalize)
    assert list(inside.state_dict()) != []
    assert not any(key.endswith(("mean", "std")) for key in inside.state_dict() if key.startswith("0."))


def test_normalize_works_per_feature_of_a_vector_and_in_double_precision():
    layer = Normalize([1.0, 2.0], [2.0, 4.0])
    assert torch.equal(layer(torch.tensor([[3.0, 10.0]])), torch.tensor([[1.0, 2.0]]))
    assert layer.double()(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_pad_shortcut_keeps_every_second_pixel_and_appends_zero_channels():
    x = torch.arange(1.0, 26.0).view(1, 1, 5, 5)
    out = PadShortcut(2, 2)(x)
    assert out.shape == (1, 3, 3, 3)
    assert out[0, 0].tolist() == [[1, 3, 5], [11, 13, 15], [21, 23, 25]]
    assert not out[:, 1:].any()


def test_softplus_has_no_jump_above_its_threshold_in_double_precision():
    x = torch.tensor([19.999, 20.001, 39.999, 40.001], dtype=torch.float64)
    exact = x + torch.log1p(torch.exp(-x))
    assert torch.allclose(activation("softplus")(x), exact, rtol=4e-16, atol=0)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("mlp", {"hiden": [3]}, "hiden"),
        ("mlp", {"classes": 0}, "classes=0"),
        ("mlp", {"classes": "ten"}, "classes='ten'"),
        ("mlp", {"classes": True}, "classes=True"),
        ("mlp", {"hidden": [4, 0]}, "hidden[1]=0"),
        ("mlp", {"hidden": 4}, "int"),
        ("mlp", {"input_shape": [1, 8.5]}, "8.5"),
        ("mlp", {"mean": [0.5]}, "go together"),
        ("mlp", {"mean": [0.5], "std": [0.0]}, "std must be > 0"),
        ("mlp", {"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "1 or 1 numbers"),
        ("small-cnn", {"input_shape": [2]}, "(channels, height, width)"),
        ("small-cnn", {"input_shape": [1, 3, 8]}, "at least 4x4"),
        ("small-cnn", {"downsampling": "max"}, "'stride' or 'average'"),
        ("lenet5", {"pooling": "min"}, "'max' or 'average'"),
        ("lenet5", {"input_shape": [1, 8, 8]}, "at least 12x12"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_was_received_and_what_is_accepted(name, kwargs, said):
    with pytest.raises(UsageError) as caught:
        registry.build(name, **kwargs)
    assert said in caught.value.why
    assert "input_shape=" in caught.value.fix
    assert "classes=10" in caught.value.fix


def test_a_wrong_activation_names_the_near_one():
    with pytest.raises(UsageError, match=r"'eluu'.*Did you mean 'elu'"):
        registry.build("mlp", activation="eluu")


def test_an_unknown_model_names_the_near_one():
    with pytest.raises(UsageError, match=r"'resnet2'.*Did you mean 'resnet20'"):
        registry.build("resnet2")
    with pytest.raises(UsageError, match=r"os:system"):
        registry.build("os:system")


def test_a_required_argument_is_asked_for(monkeypatch):
    spec = ModelSpec(name="needy", build=f"{__name__}:needy", task="classify", summary="")
    monkeypatch.setattr(registry, "BUILTIN", (*registry.BUILTIN, spec))
    monkeypatch.setattr(registry, "resolve", lambda target: needy)
    with pytest.raises(UsageError, match="needs the argument 'width'"):
        registry.build("needy")
    assert registry.build("needy", width=3, anything=1).out_features == 3


def needy(width, **rest):
    return nn.Linear(2, width)


@pytest.mark.parametrize("name", NETS)
def test_describe_sums_up_to_the_parameter_count_and_ends_at_the_logits(name):
    state = torch.random.get_rng_state()
    told = registry.describe(name)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert told["parameters"] == sum(layer["parameters"] for layer in told["layers"]) == count(registry.build(name))
    assert told["layers"][-1]["output_shape"] == [None, 10]
    assert told["input_shape"] == list(NETS[name])
    assert told["arguments"]["classes"] == 10
    assert told["plugin"].startswith("iclr18 ")


def test_describe_takes_arguments():
    told = registry.describe("mlp", input_shape=[2], hidden=[4, 2], classes=3)
    assert [layer["parameters"] for layer in told["layers"]] == [12, 0, 10, 0, 9]
    assert told["input_shape"] == [2]
    assert told["arguments"]["hidden"] == [4, 2]


def test_the_suggested_model_fits_the_shape():
    for shape, preferred in (((1, 8, 8), "small-cnn"), ((3, 32, 32), "resnet20"), ((5,), "mlp"), ((1, 16, 16), "mlp")):
        assert registry.suggest(shape) == preferred
    for shape in ((2,), (1, 28, 28), [1, 8, 8], (3, 32, 32), (7,)):
        net = registry.build(registry.suggest(shape), input_shape=list(shape)).eval()
        assert net(torch.rand(2, *shape)).shape[0] == 2


def test_a_suggestion_falls_back_when_the_plugin_is_absent(monkeypatch):
    monkeypatch.setattr(registry, "models", lambda: {spec.name: spec for spec in registry.BUILTIN})
    assert registry.suggest((2,)) == "mlp"
    assert registry.suggest((1, 28, 28)) == "lenet5"


def test_a_classifier_speaks_the_protocol_of_its_task():
    net = registry.build("mlp")
    assert isinstance(net, Classify)
    assert not isinstance(net, Generate)
    assert set(PROTOCOLS) == {"classify", "language", "translate", "generate", "embed"}


def test_names_and_cards_are_read_without_torch():
    code = (
        "import sys, iclr18cli.models.registry as r, iclr18cli.models.format; r.models(); r.suggest((1, 8, 8));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
