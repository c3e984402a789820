"""The `wae` commands from end to end on digits, and CelebA's layout on made-up files."""

import json

import pytest
import torch
from iclr18_wae.config import TrainConfig
from iclr18_wae.preparation import check, schedule
from iclr18_wae.train import reconstruction, weight

from iclr18cli import api
from iclr18cli.data.registry import open_split
from iclr18cli.errors import UsageError, UserError
from iclr18cli.models.card import open_model

TINY = {"preset": "smoke", "epochs": 1, "limit": 300}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return api.train(
        "wae", widths=(8, 16), epochs=20, schedule="constant", seed=0, out=str(tmp_path_factory.mktemp("wae") / "run")
    )


def test_training_brings_codes_near_the_prior_and_draws_its_grids(trained):
    lines = [line for line in trained.metrics() if line.get("split", "train") == "train"]
    assert lines[-1]["reconstruction"] < 0.5 * lines[0]["reconstruction"]
    metrics = trained.info["metrics"]
    assert metrics["code_mmd2"] < 0.05
    assert metrics["reconstruction_mse"] < 0.04
    assert metrics["penalty_against_squared_error"] == 200
    for name in ("samples", "reconstructions", "interpolations"):
        assert (trained.path / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_eval_measures_samples_and_names_their_features(trained):
    found = api.evaluate("wae", trained.path, feature_steps=150)
    assert found["features"] == "feature-cnn on digits"
    assert found["feature_frechet_distance"] > found["floor_feature_frechet_distance"] > 0
    assert found["class_covered"] >= 0.8
    assert not any("fid" in name for name in found)
    assert found["reconstruction_mse"] == pytest.approx(trained.info["metrics"]["reconstruction_mse"])


def test_certify_bounds_tests_and_attacks_its_own_bound(trained):
    bound, test, lipschitz = api.certify("wae", trained.path, permutations=99)
    assert (bound.verdict, test.verdict, lipschitz.verdict) == ("proven-prob", "measured", "proven")
    assert bound.constants["low"] <= bound.constants["distance_of_samples"] <= bound.value
    assert 0.01 <= test.value <= 1
    assert test.constants["p_interval_low"] <= test.value + 0.01
    assert lipschitz.empirical["value"] <= lipschitz.value
    assert lipschitz.holds


def test_capped_layers_give_a_lipschitz_statement_that_is_not_vacuous(tmp_path):
    run = api.train("wae", preset="lipschitz", widths=(32,), epochs=2, out=str(tmp_path / "capped"))
    *_, found = api.certify("wae", run.path, permutations=19)
    assert found.constants["L_Q"] <= 1.5**2 * 1.001
    assert found.constants["L_G"] <= 1.5**2 / 4 * 1.001
    assert not found.vacuous
    assert found.empirical["value"] <= found.value


def test_damage_grows_with_the_radius(trained):
    found = api.call("wae", "attack", trained.path, limit=20, steps=10, eps=(0.5, 0.1, 1.0)).document["metrics"]
    damages = [point["damage"] for point in found["curve"]]
    assert [point["eps"] for point in found["curve"]] == [0.1, 0.5, 1.0]
    assert found["undisturbed"] < damages[0] < damages[1] < damages[2]
    assert found["verdict"] == "attack"


def test_sample_and_interpolate_draw_grids(trained):
    for word, options in (("sample", {"count": 9}), ("interpolate", {"pairs": 2, "path": "spherical"})):
        found = api.call("wae", word, trained.path, **options).document["metrics"]
        with open(found["figure"], "rb") as file:
            assert file.read(4) == b"\x89PNG"


@pytest.mark.parametrize(
    "options",
    [
        {"method": "wae-gan", "adversary_width": 16, "p_trick": True, "encoder": "gaussian"},
        {"method": "ae", "cost": "l1"},
        {"method": "vae"},
        {"method": "aae", "adversary_width": 16, "cost": "bernoulli"},
        {"encoder": "implicit", "input_noise": 0.01, "pretrain_steps": 40, "kernel": "rbf"},
        {"prior": "sphere", "model": "wae/mlp"},
        {"prior": "uniform", "cost": "l2"},
        {"precision": "bf16"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_method_trains_and_reloads(options, tmp_path):
    run = api.train("wae", **TINY, **options, out=str(tmp_path / "run"))
    assert run.info["metrics"]["reconstruction_mse"] < 0.5
    net, card = open_model(run.path)
    assert card.task == "generate"
    assert net.sample(3, torch.Generator().manual_seed(0)).shape == (3, 1, 8, 8)


def test_vectors_without_a_range_are_auto_encoded_too(tmp_path):
    run = api.train("wae", dataset="rings:400", latent=2, widths=(16,), epochs=1, out=str(tmp_path / "run"))
    found = api.evaluate("wae", run.path, limit=200)
    assert "pixel_frechet_distance" in found
    assert "features" not in found
    with pytest.raises(UserError, match="no images"):
        api.call("wae", "sample", run.path)


def test_pretraining_gives_codes_the_prior_s_moments(tmp_path):
    run = api.train("wae", **TINY, pretrain_steps=300, learning_rate=3e-3, out=str(tmp_path / "run"))
    losses = [line["moment_loss"] for line in run.metrics() if "moment_loss" in line]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "vae", "encoder": "deterministic"}, "gaussian encoder"),
        ({"method": "vae", "prior": "sphere"}, "needs --prior normal"),
        ({"p_trick": True, "prior": "uniform"}, "needs --prior normal"),
        ({"spectral_cap": 1.0}, "dense layers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        check(TrainConfig(**options))


def test_a_batch_that_leaves_a_rank_one_code_is_refused():
    check(TrainConfig(batch_size=4), ranks=2)
    with pytest.raises(UsageError, match="two codes"):
        check(TrainConfig(batch_size=4), ranks=3)


def test_schedules_fall_as_the_card_says():
    manual = TrainConfig(schedule="manual", epochs=100)
    assert [schedule(manual, epoch) for epoch in (1, 29, 30, 50, 100)] == [1, 1, 0.5, 0.1, 0.01]
    smooth = TrainConfig(schedule="smooth", epochs=50)
    assert schedule(smooth, 1) == 1
    assert schedule(smooth, 26) == pytest.approx(0.1)
    assert schedule(TrainConfig(schedule="constant"), 90) == 1


def test_the_paper_s_cost_is_a_twentieth_of_the_squared_error_and_likelihoods_have_weight_one():
    x, x_hat = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert reconstruction(TrainConfig(), x, x_hat).item() == pytest.approx(0.2)
    assert reconstruction(TrainConfig(method="vae", decoder_variance=10.0), x, x_hat).item() == pytest.approx(0.2)
    assert [weight(TrainConfig(method=m)) for m in ("wae-mmd", "wae-gan", "ae", "vae", "aae")] == [10, 10, 0, 1, 1]


def _faces(root, numbers, size=(178, 218)):
    from PIL import Image

    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image = Image.new("RGB", size, (255, 0, 0))
        left, top = (size[0] - 140) // 2, (size[1] - 140) // 2
        image.paste((0, 0, number % 256), (left, top, left + 140, top + 140))
        image.save(folder / f"{number:06d}.jpg", quality=100, subsampling=0)
    return folder


def test_celeba_is_read_from_its_official_layout_by_number_or_by_partition(tmp_path):
    folder = _faces(tmp_path, [1, 2, 100, 162_771, 182_638, 200_000])
    read = lambda split, name="celeba": open_split(name, split, data_dir=tmp_path)
    assert [len(read(split)) for split in ("train", "valid", "test")] == [3, 1, 2]
    x = read("train").inputs()
    assert x.shape == (3, 3, 64, 64)
    # the red border is cut off, whatever JPEG does to the colours
    assert x[:, 0].max() < 0.06
    assert x[2, 2].mean().item() == pytest.approx(100 / 255, abs=0.02)
    assert read("test", "celeba:32").shape == (3, 32, 32)
    (folder.parent / "list_eval_partition.txt").write_text("000001.jpg 2\n000002.jpg 0\n000100.jpg 1\n162771.jpg 2\n")
    assert [len(read(split)) for split in ("train", "valid", "test")] == [1, 1, 2]


def test_a_damaged_or_missing_face_is_told(tmp_path):
    folder = _faces(tmp_path, [1, 182_638])
    (folder / "182638.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="182638"):
        open_split("celeba", "test", data_dir=tmp_path)
    with pytest.raises(UserError, match="no CelebA images"):
        open_split("celeba", "valid", data_dir=tmp_path)
    with pytest.raises(UserError, match="names no size"):
        open_split("celeba:200", "train", data_dir=tmp_path)


def test_the_celeba_preset_trains_on_faces(tmp_path):
    _faces(tmp_path, [*range(1, 9), 182_638, 182_639])
    run = api.train(
        "wae", preset="paper-celeba", data_dir=str(tmp_path), widths=(4, 4), epochs=1, batch_size=4, latent=4,
        pretrain_steps=2, out=str(tmp_path / "run"),
    )  # fmt: skip
    card = json.loads((run.path / "model.json").read_text())
    assert card["kwargs"]["prior_variance"] == 2.0
    found = api.evaluate("wae", run.path, data_dir=str(tmp_path))
    assert "sharpness" in found
    assert "features" not in found
