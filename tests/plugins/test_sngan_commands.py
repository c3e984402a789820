"""The `sngan` commands from end to end on digits, and the presets' data sets on made-up files."""

import json

import numpy as np
import pytest
import torch
from iclr18_sngan.model import GAN
from iclr18_sngan.players import Players

from iclr18cli import api
from iclr18cli.errors import UsageError, UserError
from iclr18cli.models.card import open_model
from iclr18cli.run.loop import Run

TINY = {"preset": "smoke", "iterations": 2, "width": 2, "latent": 3, "limit": 64}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return api.train("sngan", iterations=150, width=8, seed=0, out=str(tmp_path_factory.mktemp("sngan") / "run"))


def test_training_makes_digits_and_keeps_the_critic_s_norms_at_one(trained):
    critic = [line for line in trained.metrics() if line.get("split") == "critic"]
    assert len(critic) == 23
    assert all(abs(line["log10_norms"]) < 0.2 for line in critic)
    for name in ("samples", "spectra"):
        assert (trained.path / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    found = api.evaluate("sngan", trained.path, feature_steps=150)
    assert found["features"] == "feature-cnn on digits"
    assert found["class_entropy"] > 1.5
    assert found["collapsed"] is False
    assert found["feature_frechet_distance"] < 28  # 35 after one step
    assert not any("fid" in name for name in found)


def test_certify_proves_a_bound_and_measures_the_gap(trained):
    bound, gap = api.certify("sngan", trained.path, points=16, steps=5, eps=0.2)
    assert (bound.verdict, gap.verdict) == ("proven", "measured")
    assert bound.value == pytest.approx(0.2 * bound.constants["L"])
    assert 0 < bound.empirical["value"] <= 0.2 * bound.constants["largest_gradient"] * 1.5
    assert bound.empirical["value"] <= bound.value
    assert bound.holds
    assert gap.value > 1.2
    assert gap.constants["reshaped_product"] == pytest.approx(1, abs=0.2)
    assert gap.constants["operator_product"] / gap.constants["reshaped_product"] == pytest.approx(gap.value)
    assert (trained.path / "plots" / "norms.png").is_file()


def test_sample_draws_a_grid(trained):
    found = api.call("sngan", "sample", trained.path, count=7).document["metrics"]
    with open(found["figure"], "rb") as file:
        assert file.read(4) == b"\x89PNG"


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "none", "loss": "wasserstein", "schedule": "linear"},
        {"norm": "bn", "loss": "softplus"},
        {"norm": "ln", "setting": "B"},
        {"norm": "wn", "conditional": True},
        {"norm": "clip"},
        {"norm": "gp", "precision": "bf16"},
        {"norm": "orthonormal", "conditional": True, "model": "sngan/resnet"},
        {"mode": "operator", "conditional": True, "generator_batch": 8},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_critic_trains_and_reloads(options, tmp_path):
    run = api.train("sngan", **TINY, **options, out=str(tmp_path / "run"))
    net, card = open_model(run.path)
    assert card.task == "generate"
    x = net.sample(3, torch.Generator().manual_seed(0))
    assert x.shape == (3, 1, 8, 8)
    if options.get("norm") == "clip":
        assert max(p.abs().max().item() for p in net.critic.parameters()) <= 0.01 + 1e-9
    if options.get("norm") == "ln":
        with pytest.raises(UserError, match="GroupNorm"):
            api.certify("sngan", run.path, points=2, steps=0)
    if options.get("conditional"):
        api.call("sngan", "sample", run.path, count=12, columns=3)
        bound, gap = api.certify("sngan", run.path, points=2, steps=1)
        assert bound.holds
        assert gap.constants["would_claim"] <= bound.constants["L"] * (1 + 1e-6)
    if options.get("norm") == "bn":
        bound, _ = api.certify("sngan", run.path, points=2, steps=1)
        assert bound.statement.startswith("In evaluation mode")
        assert bound.assumptions
    if options.get("norm") == "gp":
        assert all("penalty" in line for line in run.metrics() if line.get("split") == "train")


def test_the_generator_is_updated_first_and_the_critic_n_dis_times(tmp_path, monkeypatch):
    taken = []
    for name in ("generator_step", "critic_step"):
        step = getattr(Players, name)

        def noted(self, *given, step=step, name=name):
            taken.append(name[0])
            return step(self, *given)

        monkeypatch.setattr(Players, name, noted)
    api.train("sngan", **TINY, n_dis=3, out=str(tmp_path / "run"))
    assert "".join(taken) == "gccc" * 2


def test_the_step_size_falls_and_the_generator_s_batch_is_as_large_as_asked(tmp_path, monkeypatch):
    seen = []
    descend, latent = Run.descend, Players.latent
    monkeypatch.setattr(
        Run, "descend", lambda self, loss, opt: seen.append(opt.param_groups[0]["lr"]) or descend(self, loss, opt)
    )
    monkeypatch.setattr(Players, "latent", lambda self, count: seen.append(count) or latent(self, count))
    api.train("sngan", **TINY | {"iterations": 4}, schedule="linear", generator_batch=5, out=str(tmp_path / "run"))
    assert seen[0::4] == [5] * 4
    assert seen[2::4] == [16] * 4
    assert seen[1::4] == seen[3::4] == pytest.approx([2e-4, 1.5e-4, 1e-4, 0.5e-4])


def test_every_update_normalises_each_weight_once(tmp_path, monkeypatch):
    from iclr18_sngan.normalization import SpectralNorm

    counted = {"accesses": 0}
    iterated = SpectralNorm.iterated

    def count(self, *given):
        counted["accesses"] += 1
        return iterated(self, *given)

    seen = []
    for name in ("generator_step", "critic_step"):
        step = getattr(Players, name)

        def watched(self, *given, step=step):
            monkeypatch.setattr(SpectralNorm, "iterated", count)
            counted["accesses"] = 0
            found = step(self, *given)
            seen.append(counted["accesses"])
            return found

        monkeypatch.setattr(Players, name, watched)
    run = api.train("sngan", **TINY, n_dis=2, out=str(tmp_path / "run"))
    layers = sum(name.endswith(".u") for name in open_model(run.path)[0].state_dict())
    assert seen == [layers] * 6


def test_the_generator_s_step_leaves_the_critic_s_weights_and_the_critic_s_step_the_generator_s(tmp_path, monkeypatch):
    same = []
    for name, other in (("generator_step", "critic"), ("critic_step", "generator")):
        step = getattr(Players, name)

        def watched(self, *given, step=step, other=other):
            still = [p.clone() for p in getattr(self.net, other).parameters()]
            moving = "generator" if other == "critic" else "critic"
            before = [p.clone() for p in getattr(self.net, moving).parameters()]
            found = step(self, *given)
            same.append(
                all(torch.equal(a, b) for a, b in zip(still, getattr(self.net, other).parameters(), strict=True))
            )
            same.append(
                any(not torch.equal(a, b) for a, b in zip(before, getattr(self.net, moving).parameters(), strict=True))
            )
            return found

        monkeypatch.setattr(Players, name, watched)
    api.train("sngan", **TINY, out=str(tmp_path / "run"))
    assert same == [True] * 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "rings:100"}, "no images"),
        ({"dataset": "npz:FOUR"}, "no images"),
        ({"dataset": "npz:ODD"}, "cannot be halved"),
        ({"batch_size": 100, "limit": 50}, "fewer than a batch"),
        ({"model": "mlp"}, "cannot be built"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_no_run(options, said, tmp_path):
    shape = {"npz:FOUR": (64, 4, 8, 8), "npz:ODD": (64, 1, 9, 9)}.get(options.get("dataset", ""))
    if shape:
        x, y = np.random.default_rng(0).random(shape, dtype=np.float32), np.arange(64) % 2
        np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y, layout="NCHW")
        options = {"dataset": f"npz:{tmp_path / 'own.npz'}"}
    with pytest.raises((UserError, UsageError), match=said):
        api.train("sngan", **({"preset": "smoke"} | options), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def _cifar10(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = torch.randint(256, (4, 3073), dtype=torch.uint8, generator=random)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.numpy().tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")


def test_the_cifar_preset_trains_on_the_official_layout(tmp_path):
    _cifar10(tmp_path)
    run = api.train(
        "sngan", preset="paper-cifar10", data_dir=str(tmp_path), width=2, latent=4, iterations=1, batch_size=4,
        generator_batch=4, out=str(tmp_path / "run"),
    )  # fmt: skip
    card = json.loads((run.path / "model.json").read_text())
    assert card["kwargs"]["input_shape"] == [3, 32, 32]
    assert isinstance(open_model(run.path)[0], GAN)


def test_the_stl_preset_trains_on_the_official_layout(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    for name in ("unlabeled_X", "test_X"):
        images = torch.randint(256, (4, 3, 96, 96), dtype=torch.uint8, generator=random)
        (folder / f"{name}.bin").write_bytes(images.numpy().tobytes())
    run = api.train(
        "sngan", preset="paper-stl10", data_dir=str(tmp_path), width=2, latent=4, iterations=1, n_dis=1, batch_size=4,
        generator_batch=4, out=str(tmp_path / "run"),
    )  # fmt: skip
    assert open_model(run.path)[0].sample(2, random).shape == (2, 3, 48, 48)
