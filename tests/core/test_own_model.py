"""One's own torch model and data: how they are named, what is refused, and what is said about a doubtful one."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from iclr18cli.attack.config import AttackConfig
from iclr18cli.data.registry import open_split
from iclr18cli.errors import UsageError, UserError
from iclr18cli.models import weights
from iclr18cli.models.layers import Normalize
from iclr18cli.models.own import OwnModel, subjects
from iclr18cli.models.registry import build
from iclr18cli.run.atomic import write_json
from iclr18cli.run.start import open_run
from iclr18cli.settings import Settings, TrainSettings
from iclr18cli.subject import OwnModelOptions
from iclr18cli.testing import run_cli

CPU = Settings(device="cpu")
MEAN, STD = 0.3, 0.4

NETS = '''
"""A user's own code."""
import torch
from torch import nn

from beside import WIDTH


def net(width=WIDTH, bias=True):
    print("chatter of the factory")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width, bias=bias), nn.ReLU(), nn.Linear(width, 10))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return self.body(x)


ready = net()
number = 3


def broken():
    raise RuntimeError("no such thing")


def quits():
    raise SystemExit(2)


def pair():
    return net(), "transform"


class Fails(Net):
    def forward(self, x):
        return self.body(x).view(3, 5, 7)
'''


@pytest.fixture(autouse=True)
def deterministic_off():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def folder(tmp_path, monkeypatch, digits):
    """A user's folder: code, a module beside it, and weights; it is the current one."""
    (tmp_path / "own_nets.py").write_text(NETS)
    (tmp_path / "beside.py").write_text("WIDTH = 32\n")
    torch.save(digits[0].state_dict(), tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    path, before = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name in ("own_nets", "beside") or name.startswith("iclr18_own_"):
            del sys.modules[name]


def own(**options):
    told = []
    given = {"model": "own_nets:net", "dataset": "digits"} | options
    model = OwnModel(OwnModelOptions(**given), CPU, tell=told.append)
    return model, told


def test_a_model_of_ones_own_is_built_read_and_normalised_once(folder, digits):
    net, x, _ = digits
    subject, told = own(weights="w.pt", normalize=f"{MEAN},{STD}")
    model = subject.model()
    assert [type(layer) for layer in model.children()] == [Normalize, nn.Sequential]
    assert torch.allclose(model(x), net((x - MEAN) / STD), atol=1e-6)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    card = subject.card
    assert (card.task, card.shape, card.range, card.classes, card.dataset, card.dtype) == (
        "classify", (1, 8, 8), (0.0, 1.0), 10, "digits", "float32",
    )  # fmt: skip
    assert len(card.sha256) == 64
    assert (subject.label, subject.technique, subject.directory, subject.path) == (
        "own_nets:net (w.pt)",
        "",
        None,
        None,
    )
    assert told == []
    assert subject.warnings == ()
    assert len(subject.split(limit=7)) == 7
    assert subject.keep("attack", "x.json") is None


@pytest.mark.parametrize("reference", ["own_nets.py:net", "own_nets:Net", "own_nets:ready", "{here}/own_nets.py:Net"])
def test_files_classes_and_ready_modules_serve_as_factories(folder, reference):
    subject, _ = own(model=reference.format(here=folder))
    assert subject.model()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_arguments_reach_the_factory_and_its_random_numbers_do_not_depend_on_what_was_drawn_before(folder):
    torch.manual_seed(1)
    first, _ = own(model_args='{"width": 5, "bias": false}')
    assert first.model()[1].weight.shape == (5, 64)
    assert first.model()[1].bias is None
    second, _ = own(model_args='{"width": 5, "bias": false}')
    torch.rand(7)
    assert torch.equal(first.model()[1].weight, second.model()[1].weight)
    assert first.card.sha256 == second.card.sha256
    assert own(model_args='{"width": 6}')[0].card.sha256 != first.card.sha256


def test_what_the_factory_prints_does_not_get_into_results(folder, capsys):
    own()[0].model()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "chatter" in captured.err


def test_a_file_in_the_current_folder_does_not_replace_pythons_own_modules_for_good(folder):
    (folder / "colorsys.py").write_text("MINE = True\n")
    own()[0].model()
    sys.modules.pop("colorsys", None)
    import colorsys

    assert not hasattr(colorsys, "MINE")


def test_a_network_of_the_registry_takes_its_shape_from_the_data(folder, digits):
    subject, _ = own(model="mlp", model_args='{"hidden": [32], "activation": "relu"}', weights="w.pt")
    assert torch.allclose(subject.model()(digits[1]), digits[0](digits[1]), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message", "advice"),
    [
        ({"model_args": "{width: 5}"}, UsageError, "must be a JSON object", "'{"),
        ({"model_args": "[1]"}, UsageError, "must be a JSON object", "'{"),
        ({"model_args": '{"depth": 5}'}, UsageError, "cannot be called with depth=5", "width"),
        ({"input_range": "1,0"}, UsageError, "LO < HI", "0,1"),
        ({"input_range": "0"}, UsageError, "LO < HI", "0,1"),
        ({"normalize": "0.5"}, UsageError, "MEAN,STD", "0.1307"),
        ({"normalize": "0.5,0"}, UsageError, "STD > 0", "0.1307"),
        ({"normalize": "0.5 0.5,1 1"}, UsageError, "2 means, the inputs have 1 channels", "one number"),
        ({"dataset": ""}, UsageError, "needs data", "--dataset"),
        ({"dataset": "digit"}, UsageError, "no data set", "digits"),
        ({"model": "own_nets"}, UsageError, "neither", "mynets:build"),
        ({"model": "smal-cnn"}, UsageError, "neither", "small-cnn"),
        ({"model": "own_netz:net"}, UserError, "cannot be imported", "FILE.py"),
        ({"model": "own nets:net"}, UsageError, "is no module", "PKG"),
        ({"model": "absent.py:net"}, UserError, "There is no file", "path"),
        ({"model": "own_nets:nett"}, UserError, "has no 'nett'", "'net'"),
        ({"model": "own_nets:number"}, UserError, "cannot be called", "function or class"),
        ({"model": "own_nets:broken"}, UserError, "fails when it is called", ""),
        ({"model": "own_nets:quits"}, UserError, "fails when it is called", ""),
        ({"model": "own_nets:pair"}, UserError, "no torch model", "module alone"),
        ({"model": "own_nets:Fails"}, UserError, "cannot take inputs of shape", ""),
        ({"weights": "absent.pt"}, UserError, "no file", "path"),
        ({"weights": "absent.safetensors"}, UserError, "cannot be read", ""),
        ({"classes": 7}, UserError, "10 classes, 7 are expected", "--classes 10"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_used_ends_with_one_error_and_its_remedy(folder, options, error, message, advice):
    with pytest.raises(UserError, match=message) as caught:
        own(**options)[0].model()
    assert type(caught.value) is error
    assert advice in caught.value.fix


def test_errors_show_the_last_line_of_the_users_traceback(folder):
    with pytest.raises(UserError) as caught:
        own(model="own_nets:broken")[0].model()
    assert caught.value.why.startswith("RuntimeError: no such thing (own_nets.py, line ")
    assert 'in broken: raise RuntimeError("no such thing")' in caught.value.why
    with pytest.raises(UserError) as caught:
        own(model="own_nets:Fails")[0].model()
    assert "in forward: return self.body(x).view(3, 5, 7)" in caught.value.why
    with pytest.raises(UserError) as caught:
        own(model="own_netz:net")[0].model()
    assert caught.value.why == "ModuleNotFoundError: No module named 'own_netz'"
    with pytest.raises(UserError, match="has no 'net'"):
        own(model="sys:net")[0].model()
    (folder / "own_bad.py").write_text("import nothing_of_this_name\n")
    for reference in ("own_bad:net", "own_bad.py:net"):
        with pytest.raises(UserError) as caught:
            own(model=reference)[0].model()
        assert "No module named 'nothing_of_this_name'" in caught.value.why
    (folder / "own_bad.py").write_text("def net(:\n")
    with pytest.raises(UserError, match="SyntaxError"):
        own(model="own_bad.py:net")[0].model()


@pytest.mark.parametrize("nest", ["", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_are_found_in_what_people_save(folder, digits, nest, prefix):
    state = {prefix + name: value for name, value in digits[0].state_dict().items()}
    torch.save({nest: state, "epoch": 3} if nest else state, "saved.pth")
    subject, _ = own(weights="saved.pth")
    assert torch.equal(subject.model()(digits[1]), digits[0](digits[1]))


def test_safetensors_and_half_precision_files_are_read(folder, digits):
    state = digits[0].state_dict()
    (folder / "w.safetensors").write_bytes(weights.dumps(state))
    assert torch.equal(own(weights="w.safetensors")[0].model()(digits[1]), digits[0](digits[1]))
    torch.save({name: value.half() for name, value in state.items()}, "half.pt")
    model = own(weights="half.pt")[0].model()
    assert next(model.parameters()).dtype == torch.float32
    assert torch.equal(model[1].weight, state["1.weight"].half().float())


def test_keys_that_do_not_fit_are_named(folder, digits):
    state = digits[0].state_dict()
    state["4.weight"], state["1.bias"] = torch.zeros(1), torch.zeros(5)
    del state["3.weight"]
    torch.save(state, "wrong.pt")
    with pytest.raises(UserError, match=r"do not fit") as caught:
        own(weights="wrong.pt")[0].model()
    assert "the file lacks 3.weight" in caught.value.why
    assert "the model has no 4.weight" in caught.value.why
    assert "1.bias has shape (5,) instead of (32,)" in caught.value.why


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(folder):
    torch.save({"state_dict": Evil()}, "evil.pt")
    (folder / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("evil.pt", "evil.pth"):
        with pytest.raises(UserError, match="would run code") as caught:
            own(weights=name)[0].model()
        assert "system" in caught.value.why
        assert "state_dict()" in caught.value.fix
    assert not (folder / "pwned").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert (folder / "pwned").exists()  # the trap works


def test_damaged_and_foreign_weights_are_refused(folder):
    (folder / "junk.pt").write_bytes(b"hello")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "cut.pt").write_bytes((folder / "w.pt").read_bytes()[:500])
    (folder / "junk.safetensors").write_bytes(b"hello")
    torch.save({"epoch": 3, "best": 0.5}, "nothing.pt")
    torch.save(torch.zeros(3), "tensor.pt")
    torch.save(nn.Linear(2, 2), "whole.pt")
    for name in ("junk.pt", "empty.pt", "cut.pt", "junk.safetensors", "nothing.pt", "tensor.pt", "whole.pt"):
        with pytest.raises(UserError) as caught:
            own(weights=name)[0].model()
        assert name in caught.value.what
        assert "unsafe" not in str(caught.value)
        assert "weights_only" not in caught.value.fix


def test_results_go_into_the_folder_that_is_named(folder):
    subject, _ = own(out="results")
    kept = subject.keep("attack", "x.json")
    assert kept.parent == subject.place / "attack"
    assert re.fullmatch(r"own-nets-net-[0-9a-f]{6}-x\.json", kept.name)
    assert subject.keep("attack", ".parts").name == ".parts"
    others = [own(out="results", **more)[0] for more in ({"normalize": "0,1"}, {"model_args": '{"width": 3}'})]
    assert len({kept, *(other.keep("attack", "x.json") for other in others)}) == 3
    assert not (folder / "results").exists()  # made with the first file
    (folder / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_json(own(out="file")[0].keep("plots", "x.json"), {})


def test_own_data_come_with_their_own_range_or_the_one_that_is_given(folder):
    x = np.linspace(-1, 1, 40 * 64, dtype=np.float32).reshape(40, 1, 8, 8)
    y = np.arange(40) % 10
    np.savez("data.npz", x_test=x, y_test=y, x_train=x, y_train=y, range=np.array([-1.0, 1.0]))
    assert own(dataset="npz:data.npz")[0].card.range == (-1.0, 1.0)
    assert own(dataset="npz:data.npz", input_range="-2,2")[0].card.range == (-2.0, 2.0)
    assert own(input_range="none")[0].card.range is None
    with pytest.raises(UserError, match="outside the model's range"):
        own(dataset="npz:data.npz", input_range="0,1")[0].split()
    with pytest.raises(UserError, match="cannot take inputs of shape"):
        own(dataset="rings")[0].model()


def test_runs_and_an_own_model_stand_side_by_side(folder):
    data = open_split("digits", "train")
    with open_run("wrm", {"dataset": "digits"}, TrainSettings(device="cpu"), root=folder / "runs") as run:
        run.save_model(build("mlp"), model="mlp", kwargs={}, split=data)

    class Talk:
        def hint(self, text):
            raise AssertionError(text)

        progress = None

    settings = Settings(device="cpu", runs_dir=str(folder / "runs"))
    mine = OwnModelOptions(model="own_nets:net", dataset="digits")
    found = subjects(["@last"], mine, settings, Talk())
    assert [subject.label for subject in found] == [run.path.name, "own_nets:net"]
    assert found[0].keep("attack", "x") == run.path / "attack" / "x"
    moved = subjects(["@last"], OwnModelOptions(dataset="rings"), settings, Talk())[0]
    assert moved.card.dataset == "digits"
    with pytest.raises(UserError, match="inputs have shape"):
        moved.split()
    with pytest.raises(UsageError, match="Nothing is named"):
        subjects([], OwnModelOptions(), settings, Talk())
    for stray in ({"weights": "w.pt"}, {"out": "x"}, {"normalize": "0,1"}, {"classes": 3}):
        with pytest.raises(UsageError, match="belongs to a model of your own"):
            subjects(["@last"], OwnModelOptions(**stray), settings, Talk())


def test_an_own_model_and_a_run_with_the_same_weights_get_the_same_report(folder, digits):
    pytest.importorskip("iclr18cli.attack.diagnosis")
    from iclr18cli.attack.runs import attack_run
    from iclr18cli.certify.config import WassersteinConfig
    from iclr18cli.certify.methods import wasserstein
    from iclr18cli.run.opened import OpenedRun

    kwargs = {"hidden": [32], "activation": "relu", "mean": [MEAN], "std": [STD]}
    net = build("mlp", **kwargs)
    for into, value in zip(net.parameters(), digits[0].parameters(), strict=True):
        into.data.copy_(value)
    with open_run("wrm", {"dataset": "digits"}, TrainSettings(device="cpu"), root=folder / "runs") as run:
        run.save_model(net, model="mlp", kwargs=kwargs, split=open_split("digits", "train"))
    mine = OwnModelOptions(model="own_nets:net", weights="w.pt", normalize=f"{MEAN},{STD}", dataset="digits")
    pair = OpenedRun(run.directory, CPU), OwnModel(mine, CPU)
    config = AttackConfig(attack="pgd,square", eps=0.1, steps=5, restarts=1, queries=20, limit=60, diagnose=False)
    one, two = (attack_run(subject, config).report for subject in pair)
    assert 0 < one.robust.correct < one.clean.correct
    assert (one.clean, one.robust, one.survivors) == (two.clean, two.robust, two.survivors)
    bounds = [wasserstein(WassersteinConfig(rho=(0.0001,), limit=20), subject) for subject in pair]
    assert bounds[0][0].value == pytest.approx(bounds[1][0].value, rel=1e-9)
    assert bounds[0][0].constants == pytest.approx(bounds[1][0].constants, rel=1e-9)


def test_naming_a_model_imports_no_torch():
    program = (
        "import sys\nfrom iclr18cli.subject import OwnModelOptions\n"
        "OwnModelOptions(model='a:b', dataset='digits', normalize='0,1', model_args='{}').check()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# The commands.


def test_commands_take_an_own_model_and_end_with_exit_codes_that_say_what_was_wrong(cli, folder):
    pytest.importorskip("iclr18cli.attack.diagnosis")
    named = ["--model", "own_nets:net", "--dataset", "digits", "--device", "cpu", "--quiet", "--json"]
    small = ["--steps", "3", "--restarts", "1", "--limit", "30"]
    ended = cli("attack", *named, "--weights", "w.pt", "--normalize", f"{MEAN},{STD}", *small, "--out", "results")
    assert ended.code == 0, ended.err
    assert ended.json["clean"]["accuracy"] > 0.8
    assert json.loads((folder / ended.json["file"]).read_text())["robust"] == ended.json["robust"]
    assert cli("attack", *named, "--normalize", "x").code == 2
    assert cli("attack", "--quiet").code == 2
    assert cli("attack", "--weights", "w.pt").code == 2
    ended = cli("attack", *named, "--weights", "absent.pt")
    assert ended.code == 3
    assert "Traceback" not in ended.err
    assert cli("attack", "--model", "own_nets:broken", "--dataset", "digits").code == 3


def test_certify_takes_an_own_model(cli, folder):
    if cli("certify", "--help").out.count("--model") == 0:
        pytest.skip("certify does not take --model yet")
    named = ["--model", "own_nets:net", "--dataset", "digits", "--device", "cpu", "--quiet", "--json"]
    ended = cli("certify", *named, "--weights", "w.pt", "--normalize", f"{MEAN},{STD}",
                "--method", "wasserstein", "--limit", "20")  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.json["certificates"][0]["verdict"] == "proven"
    assert cli("certify", *named, "--weights", "absent.pt").code == 3


def test_the_page_on_own_models_runs_as_it_stands(tmp_path):
    """Writes the files of docs/own-model.md, trains, and runs its command lines and its script."""
    pytest.importorskip("iclr18cli.attack.diagnosis")
    page = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text()
    found = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    scripts = {text.splitlines()[0].removeprefix("# "): text for language, text in found if language == "python"}
    assert set(scripts) == {"mynets.py", "train.py", "measure.py"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    lines = [line for language, text in found if language == "sh" for line in text.replace("\\\n", " ").splitlines()]
    assert len(lines) == 3
    certifies = "--model" in run_cli("certify", "--help").out
    lines = [[*shlex.split(line)[1:], "--device", "cpu"] for line in lines if certifies or "certify" not in line]
    program = f"import sys\nfrom iclr18cli.cli import run\nsys.exit(max(run(line) for line in {lines!r}))"
    outputs = []
    for command in (["train.py"], ["-c", program], ["measure.py"]):
        ended = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert "warning" not in ended.stderr.lower()
        outputs.append(ended.stdout)
    assert "at most" in outputs[1]
    assert list((tmp_path / "results" / "attack").glob("*.json"))
    assert "still right: [" in outputs[2]
    assert "proven" in outputs[2]
