"""The `adaptive-dropout` commands from end to end, offline; the two blocks of the descent on a real run."""

from __future__ import annotations

import csv
import math
import subprocess
from types import SimpleNamespace

import pytest
import torch
from iclr18_adaptive_dropout.config import TrainConfig
from iclr18_adaptive_dropout.evaluate import with_rates
from iclr18_adaptive_dropout.rates import border_and_centre, cut_, rates_of
from iclr18_adaptive_dropout.steps import Blocks
from iclr18_adaptive_dropout.train import network, training_part

from iclr18cli import api
from iclr18cli.config import to_dict
from iclr18cli.data.registry import open_split
from iclr18cli.errors import UsageError, UserError
from iclr18cli.models.card import open_model
from iclr18cli.run.start import open_run
from iclr18cli.settings import TrainSettings

QUICK = {"hidden": (8,), "epochs": 1, "limit": 300}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return api.train("adaptive-dropout", preset="smoke", seed=0, out=str(tmp_path_factory.mktemp("ad") / "smoke"))


def weights(path):
    return open_model(path)[0].state_dict()


def test_eval_measures_with_rates_and_with_masks(smoke):
    found = api.evaluate("adaptive-dropout", smoke.path, draws=5)
    assert found["accuracy"] == pytest.approx(smoke.info["metrics"]["accuracy"])
    assert found["accuracy_of_a_mask"] <= found["accuracy_of_masks_together"] <= 1
    assert "accuracy_of_a_mask" not in api.evaluate("adaptive-dropout", smoke.path, draws=0)


def test_the_bound_is_honest_about_itself(smoke):
    gap, accuracy = api.certify("adaptive-dropout", smoke.path)
    assert gap.verdict == "estimate"
    assert gap.vacuous
    assert gap.value > gap.vacuous_above
    assert gap.holds
    measured = gap.constants["test_loss"] - gap.constants["train_loss"]
    assert gap.empirical["value"] == pytest.approx(measured)
    n, M, R = gap.constants["n"], gap.constants["largest_loss"], gap.constants["rademacher"]
    assert gap.value == pytest.approx(2 * R + 3 * M * math.sqrt(math.log(2000) / (2 * n)))
    assert gap.constants["rademacher_all_rates_1"] > R
    assert gap.constants["test_loss"] < M
    assert accuracy.verdict == "proven-prob"
    assert accuracy.value < accuracy.constants["accuracy"]
    constants = gap.constants
    product = math.prod(constants[f"factor_{number}"] for number in (1, 2))
    root = math.sqrt(2 * math.log(2 * constants["d"]) / n)
    assert constants["classes"] * root * constants["x_max"] * product == pytest.approx(R)
    other = api.certify("adaptive-dropout", smoke.path, bound="submission")[0]
    assert any("replaced" in said for said in other.warnings)
    assert R / other.constants["rademacher"] == pytest.approx(4)  # 2^L, q = 1


def test_rates_are_drawn_listed_and_cut(smoke):
    found = api.call("adaptive-dropout", "rates", smoke.path, below=0.81).document["metrics"]
    with open(found["picture"], "rb") as file:
        assert file.read(6) == b"\x89PNG\r\n"
    with open(found["table"]) as file:
        rows = list(csv.reader(file))
    net, _ = open_model(smoke.path)
    inputs, hidden = rates_of(net)
    assert len(rows) == 1 + 64 + 32
    assert float(rows[1][2]) == pytest.approx(inputs[0].item(), rel=1e-4)
    assert found["layers"][1]["mean"] == pytest.approx(hidden.mean().item(), rel=1e-6)
    assert found["layers"][0]["below"] == pytest.approx((inputs < 0.81).float().mean().item())
    assert found["border"] == pytest.approx(border_and_centre(inputs.view(1, 8, 8))["border"])
    cut_(net, 2.0)
    assert all(not theta.any() for theta in rates_of(net))
    net = open_model(smoke.path)[0]
    before = rates_of(net)
    cut_(net, 0.5)
    for theta, was in zip(rates_of(net), before, strict=True):
        assert torch.equal(theta, torch.where(was < 0.5, 0.0, was))


def test_border_and_centre_are_the_frame_and_the_middle():
    theta = torch.zeros(1, 28, 28)
    theta[:, 3:25, 3:25] = 0.5
    theta[:, 10:18, 10:18] = 1.0
    assert border_and_centre(theta) == {"border": 0.0, "centre": 1.0}


def test_learnt_rates_have_moved_apart_inside_the_unit_interval(smoke):
    inputs, hidden = rates_of(open_model(smoke.path)[0])
    for theta in (inputs, hidden):
        assert 0 <= theta.min() < theta.max() <= 1
        assert theta.std() > 1e-4


def test_rates_that_do_not_move_and_no_regulariser_are_fixed_dropout_bit_for_bit(tmp_path):
    same = {"mode": "adaptive", "lambda_reg": 0.0, "theta_lr": 0.0, "every": 1}
    one = api.train("adaptive-dropout", seed=3, out=str(tmp_path / "a"), **QUICK, **same)
    two = api.train("adaptive-dropout", seed=3, out=str(tmp_path / "b"), **QUICK, mode="fixed")
    first, second = weights(one.path), weights(two.path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(
        (theta == start).all() for theta, start in zip(rates_of(open_model(two.path)[0]), (0.8, 0.5), strict=True)
    )


@pytest.fixture
def blocks(tmp_path):
    """Returns Blocks of a fresh network, with a batch."""
    data = open_split("digits", "train").take(100)
    runs = []

    def make(**options):
        config = TrainConfig(hidden=(8,), **options)
        settings = TrainSettings(runs_dir=str(tmp_path), device="cpu")
        run = open_run("adaptive-dropout", to_dict(config), settings, plugin="iclr18").__enter__()
        runs.append(run)
        net = run.prepare(network(config, data)[0]).train()
        return Blocks.of(net, config, run, len(data)), data.inputs(), data.y

    yield make
    for run in runs:
        run.close()


def test_a_step_of_one_block_leaves_the_other_bit_for_bit(blocks):
    made, x, y = blocks()
    net = made.net

    def state(rates):
        return {name: v.clone() for name, v in net.state_dict().items() if name.endswith("theta") == rates}

    before = state(True), state(False)
    made.weight_step(x, y, lr=0.1, strength=0.1)
    assert all(torch.equal(v, before[0][name]) for name, v in state(True).items())
    assert not any(torch.equal(v, before[1][name]) for name, v in state(False).items())
    between = state(False)
    generator = torch.get_rng_state()
    made.rate_step(x, y, strength=0.1)
    assert all(torch.equal(v, between[name]) for name, v in state(False).items())
    assert not any(torch.equal(v, before[0][name]) for name, v in state(True).items())
    assert torch.equal(torch.get_rng_state(), generator)  # no mask is drawn


def test_a_step_of_the_rates_is_projected_gradient_descent_on_the_deterministic_objective(blocks):
    made, x, y = blocks(theta_lr=50.0, lambda_reg=0.0)
    twin = network(made.config, open_split("digits", "train"))[0]
    twin.load_state_dict(made.net.state_dict())
    twin.eval()
    strength = 0.01
    loss = torch.nn.functional.cross_entropy(twin(x), y)
    reg = 10 * math.sqrt(math.log(64) / 100) * x.max()
    for drop, layer, fan_in, fan_out in ((twin[1], twin[2], 64, 8), (twin[4], twin[5], 8, 10)):
        reg = reg * 2 * layer.weight.abs().max() * drop.theta.sum() * math.sqrt(fan_in + fan_out) / fan_in
    (loss + strength * reg).backward()
    expected = [(part.theta - 50.0 * part.theta.grad).clamp(0, 1) for part in (twin[1], twin[4])]
    made.rate_step(x, y, strength=strength)
    for drop, theta in zip(made.drops, expected, strict=True):
        torch.testing.assert_close(drop.theta, theta)
    assert any(((theta == 0) | (theta == 1)).any() for theta in expected)


def test_the_regulariser_counts_the_batch_or_the_data_set(blocks):
    batch, x, _ = blocks()
    whole, _, _ = blocks(reg_n="dataset")
    whole.net.load_state_dict(batch.net.state_dict())
    ratio = batch.regulariser(x[:25]) / whole.regulariser(x[:25])
    assert ratio.item() == pytest.approx(2)  # sqrt(100 / 25)


def test_momentum_of_the_rates_does_not_push_against_the_wall(blocks):
    made, x, y = blocks(theta_momentum=0.9, theta_lr=100.0)
    for _ in range(3):
        made.rate_step(x, y, strength=0.0)
    for drop in made.drops:
        clipped = (drop.theta == 0) | (drop.theta == 1)
        momentum = made.rate_optimizer.state[drop.theta]["momentum_buffer"]
        assert clipped.any()
        assert not momentum[clipped].any()


def test_text_convolutions_one_rate_per_layer_and_a_held_out_part_train(tmp_path):
    own = tmp_path / "own.tsv"
    own.write_text("".join(f"up\tfine film {i}\ndown\tdull plot {i}\n" for i in range(60)))
    text = api.train(
        "adaptive-dropout", seed=0, out=str(tmp_path / "text"), dataset=f"sentences:{own}", hidden=(16,), epochs=20,
        batch_size=24, learning_rate=0.5, p="2", bound="submission", hold_out=0.25,
    )  # fmt: skip
    assert text.info["metrics"]["measured_on"] == "held-out training examples"
    assert text.info["metrics"]["n"] == 24
    assert text.info["metrics"]["accuracy"] == 1.0
    told = api.call("adaptive-dropout", "rates", text.path, words=4).document["metrics"]
    assert set(told["highest"]) == {"fine", "film", "dull", "plot"}
    gap = api.certify("adaptive-dropout", text.path)[0]
    assert gap.constants["x_max"] <= 1
    assert gap.sample["n"] == 72
    changed = tmp_path / "changed.txt"
    own.rename(changed)
    own.write_text(changed.read_text().replace("dull", "grey"))
    with pytest.raises(UserError, match="no longer"):
        api.evaluate("adaptive-dropout", text.path)
    images = api.train(
        "adaptive-dropout", seed=0, out=str(tmp_path / "conv"), **QUICK, model="conv", filters=(2, 3), per="layer",
        init=(0.9, 0.75, 0.5), lambda_warmup=0.5, delay=0, every=1, scale="paper",
    )  # fmt: skip
    assert [theta.unique().numel() for theta in rates_of(open_model(images.path)[0])] == [1, 1, 1, 1]
    assert len(api.certify("adaptive-dropout", images.path)) == 1  # the accuracy alone: no bound for convolutions


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    wrong = (
        {"init": (0.8, 0.5, 0.5)},
        {"dataset": "rings:100", "model": "conv"},
        {"rows": "sum"},
    )
    for number, options in enumerate(wrong):
        with pytest.raises(UsageError):
            api.train("adaptive-dropout", seed=0, out=str(tmp_path / str(number)), **QUICK | options)
        assert not (tmp_path / str(number)).exists()
    other = SimpleNamespace(model=lambda: torch.nn.Linear(2, 2), path="runs/wrm-1", technique="wrm")
    with pytest.raises(UserError, match="no retain rates"):
        with_rates(other)


def test_a_held_out_part_is_no_part_of_what_is_trained_on_and_examples_are_drawn_by_the_seed():
    data = open_split("digits", "train")
    train, valid = training_part(data, 500, False, 0.2, 0)
    assert (len(train), len(valid)) == (400, 100)
    seen = {bytes(x) for x in train.x.numpy()}
    assert not any(bytes(x) in seen for x in valid.x.numpy())
    first, _ = training_part(data, 500, False, 0.0, 1)
    one, again, other = (training_part(data, 500, True, 0.0, seed)[0].digest() for seed in (1, 1, 2))
    assert one == again != other
    assert first.digest() not in (one, other)


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(tmp_path):
    """One epoch, its last step followed by one of the rates; rates of 1 until then, so that no mask is random."""
    found = []
    for ranks in ("1", "2"):
        folder = tmp_path / ranks
        line = ["--hidden", "32", "--epochs", "1", "--init", "1,1", "--every", "15", "--nproc", ranks, "--out", folder]
        ended = subprocess.run(
            ["iclr18", "adaptive-dropout", "train", *map(str, line), "--device", "cpu", "--quiet"], capture_output=True
        )
        assert ended.returncode == 0, ended.stderr
        found.append(weights(folder))
    assert all((found[0][name] - found[1][name]).abs().max() < 1e-6 for name in found[0])
    assert any((theta < 1).any() for name, theta in found[0].items() if name.endswith("theta"))
