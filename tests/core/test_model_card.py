from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from iclr18cli.errors import ExitCode, UsageError, UserError
from iclr18cli.models import registry, weights
from iclr18cli.models.card import ModelCard, check_inputs, open_model, read_card, save_model
from iclr18cli.plugin import ModelSpec

SMALL = {"input_shape": [1, 8, 8], "classes": 10, "hidden": [5], "activation": "elu"}
CARD = ModelCard(model="mlp", kwargs=SMALL, shape=(1, 8, 8), range=(0.0, 1.0), classes=10, dataset="digits")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(1)
    module = registry.build("mlp", **SMALL)
    save_model(tmp_path, module, CARD)
    return tmp_path


def edit(directory, **changes):
    """Overwrite top-level keys of model.json."""
    path = directory / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(directory) -> UserError:
    with pytest.raises(UserError) as caught:
        open_model(directory)
    assert caught.value.code == ExitCode.USER
    return caught.value


@pytest.mark.parametrize(
    ("name", "kwargs", "shape"),
    [
        ("mlp", SMALL | {"hidden": (5, 4)}, (1, 8, 8)),
        ("small-cnn", {"mean": [0.3], "std": [0.7], "downsampling": "average"}, (1, 8, 8)),
        ("lenet5", {"activation": "tanh", "pooling": "average"}, (1, 28, 28)),
        ("resnet20", {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}, (3, 32, 32)),
    ],
)
def test_a_saved_model_opens_bit_for_bit(tmp_path, name, kwargs, shape):
    module = registry.build(name, **kwargs)
    x = torch.rand(3, *shape)
    module(x)  # moves batch normalisation's running statistics away from where a fresh net has them
    written = save_model(tmp_path, module, ModelCard(model=name, kwargs=kwargs, shape=shape, range=(0, 1), classes=10))
    opened, card = open_model(tmp_path)
    assert card == written
    assert not any(part.training for part in opened.modules())
    assert torch.equal(opened(x), module.eval()(x))
    for key, value in module.state_dict().items():
        assert torch.equal(opened.state_dict()[key], value), key


def test_model_json_has_the_documented_form(saved):
    document = json.loads((saved / "model.json").read_text())
    assert document == {
        "format": "iclr18.model/1",
        "model": "mlp",
        "kwargs": SMALL,
        "task": "classify",
        "input": {"shape": [1, 8, 8], "range": [0.0, 1.0], "dtype": "float32"},
        "output": {"classes": 10},
        "weights": "model.safetensors",
        "sha256": sha256((saved / "model.safetensors").read_bytes()).hexdigest(),
        "dataset": "digits",
        "plugin": document["plugin"],
        "transforms": [],
    }
    assert document["plugin"].startswith("iclr18 ")
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]


def test_a_range_of_null_means_all_inputs(tmp_path):
    module = registry.build("mlp", **SMALL)
    save_model(tmp_path, module, replace(CARD, range=None))
    card = read_card(tmp_path)
    assert card.range is None
    check_inputs(torch.full((1, 1, 8, 8), 1e9), card)


def test_saving_again_replaces_the_model_and_the_bytes_are_reproducible(saved):
    module, card = open_model(saved)
    before = (saved / "model.safetensors").read_bytes()
    assert save_model(saved, module, card).sha256 == card.sha256
    assert (saved / "model.safetensors").read_bytes() == before
    with torch.no_grad():
        module[1].weight.add_(1)
    save_model(saved, module, card)
    assert torch.equal(open_model(saved)[0][1].weight, module[1].weight)


def test_saving_and_opening_leave_the_random_state_alone(saved):
    state = torch.random.get_rng_state()
    module, card = open_model(saved)
    save_model(saved, module, card)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_double_precision_weights_keep_every_bit(tmp_path):
    module = registry.build("mlp", **SMALL).double()
    save_model(tmp_path, module, replace(CARD, dtype="float64"))
    opened, _ = open_model(tmp_path)
    assert opened[1].weight.dtype == torch.float64
    assert torch.equal(opened[1].weight, module[1].weight)


def test_non_contiguous_weights_are_saved(tmp_path):
    module = registry.build("mlp", **SMALL)
    module[1].weight = nn.Parameter(torch.randn(64, 5).t())
    assert not module[1].weight.is_contiguous()
    save_model(tmp_path, module, CARD)
    assert torch.equal(open_model(tmp_path)[0][1].weight, module[1].weight)


class Tied(nn.Module):
    def __init__(self, *, tie: bool = True):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6)
        if tie:
            self.decoder.weight = self.encoder.weight


@pytest.fixture
def offered(monkeypatch):
    """Offer networks of this file by name: offered(name=builder)."""

    def offer(**builders):
        specs = [ModelSpec(name=name, build=f"{name}:build", task="classify", summary="") for name in builders]
        monkeypatch.setattr(registry, "BUILTIN", (*registry.BUILTIN, *specs))
        original = registry.resolve
        named = {f"{name}:build": builder for name, builder in builders.items()}
        monkeypatch.setattr(registry, "resolve", lambda target: named.get(target) or original(target))

    return offer


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_are_stored_once_and_come_back(tmp_path, offered, tie):
    offered(tied=lambda: Tied(tie=tie))
    module = Tied()
    save_model(tmp_path, module, ModelCard(model="tied"))
    assert "decoder.weight" not in load_file(tmp_path / "model.safetensors")
    opened, _ = open_model(tmp_path)
    assert torch.equal(opened.decoder.weight, module.encoder.weight)
    assert (opened.decoder.weight is opened.encoder.weight) is tie


def test_overlapping_views_of_one_storage_are_stored_apart():
    storage = torch.arange(6.0)
    payload = weights.dumps({"a": storage[:4], "b": storage[2:], "c": torch.empty(0), "d": torch.empty(0)})
    back = weights.loads(payload, "here")
    assert back["a"].tolist() == [0, 1, 2, 3]
    assert back["b"].tolist() == [2, 3, 4, 5]
    assert set(back) == {"a", "b", "c", "d"}


def test_a_matrix_and_its_transposed_view_are_not_taken_for_one():
    square = torch.arange(4.0).view(2, 2)
    back = weights.loads(weights.dumps({"a": square, "b": square.t()}), "here")
    assert back["a"].tolist() == [[0, 1], [2, 3]]
    assert back["b"].tolist() == [[0, 2], [1, 3]]


def test_a_module_that_the_card_does_not_rebuild_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"1.weight has shape \(5, 64\) instead of \(7, 64\)"):
        save_model(tmp_path / "run", registry.build("mlp", **SMALL), replace(CARD, kwargs=SMALL | {"hidden": [7]}))
    with pytest.raises(ValueError, match="float64 instead of float32"):
        save_model(tmp_path / "run", registry.build("mlp", **SMALL).double(), CARD)
    with pytest.raises(UsageError, match="'mpl'"):
        save_model(tmp_path / "run", registry.build("mlp", **SMALL), replace(CARD, model="mpl"))
    assert not (tmp_path / "run").exists()


def test_state_that_is_not_a_tensor_is_not_saved(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"step": 1}

    with pytest.raises(TypeError, match="_extra_state"):
        save_model(tmp_path, Extra(2, 2), CARD)


def test_a_failing_disk_leaves_the_old_model_whole(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"Cannot write .*model\.safetensors.*No space left"):
        save_model(saved, registry.build("mlp", **SMALL), CARD)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_run_without_a_model_says_so(tmp_path):
    assert "model.json is missing" in refused(tmp_path).why


def test_missing_weights_are_named(saved):
    (saved / "model.safetensors").unlink()
    assert "model.safetensors cannot be read" in refused(saved).what


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_weights_are_refused(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    error = refused(saved)
    assert str(path) in error.what
    assert "sha256" in error.why


@pytest.mark.parametrize("payload", [b"", b"\x05", b"\xff" * 64, b"\x80\x04N.", pickle.dumps({"1.weight": 1})])
def test_weights_that_are_not_safetensors_are_refused_even_with_a_matching_digest(saved, payload):
    (saved / "model.safetensors").write_bytes(payload)
    edit(saved, sha256=sha256(payload).hexdigest())
    error = refused(saved)
    assert "damaged" in error.what
    assert str(saved / "model.safetensors") in error.what


@pytest.mark.parametrize("tied", ["[]", "3", "{", '{"a": "absent"}', '{"a": []}'])
def test_a_rubbish_table_of_tied_weights_is_refused(saved, tied):
    payload = save({"1.weight": torch.zeros(5, 64)}, {weights.TIED: tied})
    (saved / "model.safetensors").write_bytes(payload)
    edit(saved, sha256=sha256(payload).hexdigest())
    assert "damaged" in refused(saved).what


def test_one_flipped_bit_in_the_weights_is_refused(saved):
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "not those of the model card" in refused(saved).what


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"1.weight": None}, "1.weight is missing"),
        ({"9.weight": torch.zeros(1)}, "9.weight is too much"),
        ({"1.weight": torch.zeros(64, 5)}, "1.weight has shape (64, 5) instead of (5, 64)"),
        ({"1.weight": torch.zeros(5, 64, dtype=torch.float16)}, "1.weight is float16 instead of float32"),
    ],
)
def test_weights_of_another_network_are_refused(saved, change, said):
    tensors = {k: v for k, v in (load_file(saved / "model.safetensors") | change).items() if v is not None}
    payload = save(tensors)
    (saved / "model.safetensors").write_bytes(payload)
    edit(saved, sha256=sha256(payload).hexdigest())
    assert said in refused(saved).why


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"format": "iclr18.model/1"}', b'{"format": NaN}'],
)
def test_a_damaged_card_is_refused_by_its_name(saved, text):
    (saved / "model.json").write_bytes(text)
    assert str(saved / "model.json") in refused(saved).what


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "iclr18.model/2"}, "iclr18.model/2"),
        ({"model": 3}, "model must be a string"),
        ({"task": "steal"}, "task must be one of"),
        ({"kwargs": {"classes": {"deep": 1}}}, "kwargs must be"),
        ({"kwargs": [1]}, "kwargs must be"),
        ({"weights": "../../other.safetensors"}, "plain file name"),
        ({"weights": "/etc/passwd"}, "plain file name"),
        ({"weights": ".."}, "plain file name"),
        ({"input": [1, 8, 8]}, "JSON objects"),
        ({"input": {"shape": [1, -8, 8], "range": None, "dtype": "float32"}}, "input.shape"),
        ({"input": {"shape": "188", "range": None, "dtype": "float32"}}, "input.shape"),
        ({"input": {"shape": [1, 8, 8], "range": [1, 0], "dtype": "float32"}}, "input.range"),
        ({"input": {"shape": [1, 8, 8], "range": [0, "1"], "dtype": "float32"}}, "input.range"),
        ({"input": {"shape": [1, 8, 8], "range": None, "dtype": "load"}}, "input.dtype"),
        ({"output": {"classes": 2.5}}, "output.classes"),
        ({"transforms": [{"name": "x"}]}, "transforms"),
        ({"transforms": {"name": "x", "kwargs": {}}}, "transforms"),
    ],
)
def test_a_card_with_a_wrong_field_is_refused_and_the_field_named(saved, changes, said):
    edit(saved, **changes)
    assert said in refused(saved).why


@pytest.mark.parametrize(
    "kwargs", [{"target": "os:system"}, {"classes": -1}, {"activation": "os:system"}, {"input_shape": [10**9, 10**9]}]
)
def test_hostile_arguments_of_a_known_model_are_refused(saved, kwargs):
    edit(saved, kwargs=kwargs)
    assert "cannot be built" in refused(saved).what


@pytest.mark.parametrize("name", ["os:system", "iclr18cli.models.vision:mlp", "../mlp", "__import__('os')"])
def test_a_card_can_only_name_registered_models(saved, name, monkeypatch):
    monkeypatch.setattr(registry, "resolve", lambda target: pytest.fail(f"resolved {target}"))
    edit(saved, model=name)
    error = refused(saved)
    assert name in error.what or repr(name) in error.what


def test_a_missing_plugin_is_named_with_the_line_that_installs_it(saved):
    edit(saved, model="foo/net", plugin="iclr18-foo 1.2")
    error = refused(saved)
    assert "'foo/net' comes from plugin iclr18-foo" in error.what
    assert error.fix == "pip install iclr18-foo"


@pytest.mark.parametrize("plugin", ["x; rm -rf ~", "--index-url=evil", "$(id) 1.0", "a b c", "x\n1"])
def test_a_strange_plugin_name_never_becomes_a_command_to_copy(saved, plugin):
    edit(saved, model="foo/net", plugin=plugin)
    assert "pip install" not in refused(saved).fix


def scaled(module: nn.Module, *, factor: float) -> nn.Module:
    """Stand for a plugin's re-parametrisation: weights are kept divided by a factor."""
    return nn.Sequential(module, Scale(factor))


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


def test_transforms_are_applied_in_order_before_the_weights_are_read(tmp_path, monkeypatch):
    spec = registry.TransformSpec(name="scaled", apply="torch:nn", summary="")
    monkeypatch.setattr(registry, "TRANSFORMS", (spec,))
    monkeypatch.setattr("iclr18cli.models.card.resolve", lambda target: {"torch:nn": scaled}[target])
    module = scaled(scaled(registry.build("mlp", **SMALL), factor=2.0), factor=3.0)
    transforms = [{"name": "scaled", "kwargs": {"factor": 2.0}}, {"name": "scaled", "kwargs": {"factor": 3.0}}]
    save_model(tmp_path, module, replace(CARD, transforms=transforms))
    opened, card = open_model(tmp_path)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(opened(x), module.eval()(x))
    assert [t["kwargs"]["factor"] for t in card.transforms] == [2.0, 3.0]
    edit(tmp_path, transforms=[{"name": "scaled", "kwargs": {"faktor": 2.0}}])
    assert "faktor" in refused(tmp_path).why


def test_an_unknown_transform_is_refused(saved):
    edit(saved, transforms=[{"name": "os:system", "kwargs": {}}])
    assert "'os:system'" in refused(saved).what
    with pytest.raises(UsageError, match="'os:system'"):
        save_model(saved, registry.build("mlp", **SMALL), read_card(saved))


def test_inputs_inside_the_declared_range_pass():
    check_inputs(torch.tensor([0.0, 1.0]).repeat(32).view(1, 1, 8, 8), CARD)
    check_inputs(torch.empty(0, 1, 8, 8), CARD)
    check_inputs(torch.zeros(4, 9, dtype=torch.int64), replace(CARD, shape=(None,), dtype="int64", range=None))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(1, 8, 8), "shape (8, 8)"),
        (torch.zeros(2, 1, 8, 9), "shape (1, 8, 9)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.float64), "float64"),
        (torch.full((2, 1, 8, 8), 255.0), "from 255 to 255"),
        (torch.full((2, 1, 8, 8), -0.25), "from -0.25 to -0.25"),
        (torch.full((2, 1, 8, 8), float("nan")), "NaN"),
        (torch.full((2, 1, 8, 8), float("inf")), "infinite"),
    ],
)
def test_inputs_that_do_not_fit_the_card_are_refused_with_what_was_seen(x, said):
    with pytest.raises(UserError) as caught:
        check_inputs(x, CARD)
    assert said in caught.value.what
    assert caught.value.code == ExitCode.USER
