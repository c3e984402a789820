from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from iclr18cli.data.tensors import Split
from iclr18cli.errors import Interrupted, UserError
from iclr18cli.models.registry import build
from iclr18cli.run.opened import OpenedRun, Workbench
from iclr18cli.run.start import open_run
from iclr18cli.settings import Settings, TrainSettings

CPU = Settings(device="cpu")


@pytest.fixture(autouse=True)
def deterministic_off():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def trained(tmp_path):
    """A run on digits with an untrained network in it."""
    from iclr18cli.data.registry import open_split

    data = open_split("digits", "train")
    with open_run("wrm", {"dataset": "digits"}, TrainSettings(device="cpu"), root=tmp_path / "runs") as run:
        net = build("mlp")
        run.save_model(net, model="mlp", kwargs={}, split=data)
    return run.directory, net


def test_an_opened_run_gives_the_network_frozen_in_evaluation_mode(trained):
    directory, net = trained
    opened = OpenedRun(directory, CPU)
    model = opened.model()
    assert (opened.technique, opened.config) == ("wrm", {"dataset": "digits"})
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x = opened.split("test", 5).inputs()
    assert torch.equal(model(x), net.eval()(x))
    assert opened.model() is not model


def test_a_split_is_the_first_examples_of_the_runs_data(trained):
    opened = OpenedRun(trained[0], CPU)
    whole, part = opened.split(), opened.split(limit=7)
    assert len(part) == 7 < len(whole)
    assert torch.equal(part.x, whole.x[:7])
    assert (whole.name, whole.split) == ("digits", "test")
    assert opened.split("train").split == "train"


def npz(tmp_path, x, y, name="data.npz"):
    path = tmp_path / name
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("shape", "top", "labels", "message"),
    [
        ((1, 9, 9), 1.0, range(2), "inputs have shape"),
        ((1, 8, 8), 1.5, range(2), "outside"),
        ((1, 8, 8), 1.0, range(11), "labels .* reach from 0 to 10, the model has 10 classes"),
    ],
)
def test_data_that_the_model_does_not_take_is_refused(trained, tmp_path, shape, top, labels, message):
    x = np.full((len(labels), *shape), top, dtype=np.float32)
    with pytest.raises(UserError, match=message) as caught:
        OpenedRun(trained[0], CPU).split(dataset=npz(tmp_path, x, np.array(labels)))
    assert caught.value.code == 3
    assert caught.value.fix


def test_a_run_without_a_model_says_how_to_get_one(tmp_path):
    with pytest.raises(Interrupted), open_run("wrm", {}, TrainSettings(device="cpu"), root=tmp_path) as run:
        raise Interrupted(15)
    opened = OpenedRun(run.directory, CPU)
    with pytest.raises(UserError, match="has no model yet") as caught:
        opened.model()
    assert caught.value.code == 3
    assert "interrupted" in caught.value.why
    assert caught.value.fix == f"iclr18 wrm train --resume {run.path}"
    with open_run("wrm", {}, TrainSettings(device="cpu"), root=tmp_path) as run:
        opened = OpenedRun(run.directory, CPU)
        with pytest.raises(UserError, match="has no model yet") as caught:
            _ = opened.card
        assert "wait" in caught.value.fix


def test_the_saved_card_says_what_the_model_takes(tmp_path):
    data = Split(torch.zeros(3, 2), torch.tensor([0, 1, 0]), ("in", "out"), "rings", "train", range=None)
    with open_run("wrm", {}, TrainSettings(device="cpu"), root=tmp_path) as run:
        run.save_model(build("wrm/2-4-2"), model="wrm/2-4-2", kwargs={}, split=data)
    card = OpenedRun(run.directory, CPU).card
    assert (card.shape, card.range, card.classes, card.dataset) == ((2,), None, 2, "rings")


def test_a_workbench_seeds_everything_and_shows_progress(tmp_path):
    def draw(seed):
        Workbench(Settings(device="cpu", seed=seed))
        return nn.Linear(1, 1).weight.item(), np.random.rand()

    assert draw(1) == draw(1) != draw(2)
    bench = Workbench(CPU)
    assert list(bench.progress([1, 2, 3], "numbers")) == [1, 2, 3]
    with bench.progress(3, "steps") as bar:
        bar.advance(1, loss=0.5)
    assert len(bench.open_split("digits", "train", limit=4)) == 4
