"""The `adr` commands from end to end, offline, and the two data sets they brought."""

from __future__ import annotations

import json

import pytest
import torch
from iclr18_adr.figures import principal_components
from iclr18_adr.model import residual, svhn, usps

from iclr18cli import api
from iclr18cli.data.fonts import FACES
from iclr18cli.data.registry import open_split
from iclr18cli.data.svhn import read
from iclr18cli.errors import UsageError, UserError
from iclr18cli.testing import run_cli

QUICK = {"iterations": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return api.train("adr", preset="smoke", seed=0, out=str(tmp_path_factory.mktemp("adr") / "smoke"))


def test_eval_measures_both_classifiers_on_both_domains(smoke):
    found = api.evaluate("adr", smoke.path)
    assert found["target_c"] == pytest.approx(smoke.info["metrics"]["target_c"])
    assert found["accuracy"] == found["target_c"]
    confusion = torch.tensor(found["confusion_cprime"])
    assert confusion.sum() == found["target_n"] == 360
    assert confusion.diagonal().sum().item() / 360 == pytest.approx(found["target_cprime"])
    assert set(found["by_class_c"]) == set("0123456789")
    assert 0 < found["source_sensitivity"] < found["target_sensitivity"]
    alone = api.evaluate("adr", smoke.path, classifier="cprime", limit=50)
    assert "target_c" not in alone
    assert alone["source_n"] == 50


def test_certify_bounds_accuracy_from_below_and_counts_critics(smoke):
    accuracy, agreement, still, moved = api.certify("adr", smoke.path, smoothing_limit=5, draws=100)
    assert accuracy.verdict == "proven-prob"
    assert accuracy.confidence["delta"] == 0.001
    assert 0.5 < accuracy.value < accuracy.constants["accuracy"]
    assert agreement.verdict == "measured"
    assert 0 < agreement.value < 1
    assert agreement.constants["accuracy_where_agreed"] > accuracy.constants["accuracy"]
    assert still.subject == moved.subject == "smoothed-model"
    assert still.value >= moved.value
    seen, _ = api.certify("adr", smoke.path, split="train", smoothing_limit=0)
    assert seen.verdict == "estimate"
    more = api.certify("adr", smoke.path, critics=64, smoothing_limit=0)[1]
    assert more.value <= agreement.value + 0.02


def test_features_of_two_runs_are_drawn_side_by_side(smoke):
    found = api.call("adr", "features", smoke.path, smoke.path, limit=60).document["metrics"]
    assert len(found["runs"]) == 2
    with open(found["picture"], "rb") as file:
        assert file.read(6) == b"\x89PNG\r\n"


def test_principal_components_keep_the_largest_variance():
    f = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 5.0, 0.1, 2.0, 0.1])
    variance = principal_components(f).var(0)
    exact = torch.linalg.eigvalsh(torch.cov(f.double().T)).flip(0)[:2]
    torch.testing.assert_close(variance, exact)


@pytest.mark.parametrize(
    "options",
    [
        {"critic": "l1"},
        {"critic": "ent"},
        {"critic": "ent", "variant": "authors"},
        {"critic": "mcd", "classifier": "cprime"},
        {"critic": "dann"},
        {"critic": "none", "target_statistics": "after"},
        {"variant": "authors", "class_balance": 0.01},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_every_critic_trains_and_its_run_reloads(tmp_path, options):
    run = api.train("adr", out=str(tmp_path / "run"), **QUICK, **options)
    found = api.evaluate("adr", run.path)
    assert found["accuracy"] == pytest.approx(run.info["metrics"]["accuracy"])
    assert found["predicts_with"] == options.get("classifier", "c")


def test_folders_of_images_of_two_sizes_and_colours_adapt_and_the_saved_model_takes_the_targets(tmp_path):
    from PIL import Image

    random = torch.Generator().manual_seed(0)
    for domain, mode, size in (("s", "RGB", 20), ("t", "L", 12)):
        for split in ("train", "test"):
            for label in ("cat", "dog"):
                folder = tmp_path / domain / split / label
                folder.mkdir(parents=True)
                for number in range(8):
                    pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=random).numpy()
                    Image.fromarray(pixels).convert(mode).save(folder / f"{number}.png")
    pair = {"source": f"folder:{tmp_path}/s", "target": f"folder:{tmp_path}/t"}
    run = api.train("adr", out=str(tmp_path / "run"), iterations=2, batch_size=8, model="adr/small", **pair)
    card = json.loads((run.path / "model.json").read_text())
    assert card["kwargs"]["input_shape"] == [1, 12, 12]
    assert card["kwargs"]["shape"] == [3, 20, 20]
    assert (
        run_cli(
            "attack",
            run.path,
            "--steps",
            "2",
            "--restarts",
            "1",
            "--limit",
            "4",
            "--device",
            "cpu",
            "--quiet",
            "--json",
        ).code
        == 0
    )


def test_the_authors_networks_have_the_widths_of_the_card():
    linear = lambda net: [layer for layer in net.classifier if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear(usps())] == [(800, 500), (500, 10)]
    widths = [(8192, 3072), (3072, 2048), (2048, 10)]
    with torch.device("meta"):
        assert [(layer.in_features, layer.out_features) for layer in linear(svhn())] == widths
    assert residual()(torch.zeros(2, 3, 64, 64)).shape == (2, 12)


@pytest.mark.slow
def test_adr_beats_source_only_by_five_points_on_digits_from_fonts_at_the_default_seed(tmp_path):
    accuracy = {
        critic: api.train("adr", preset="cpu", critic=critic, out=str(tmp_path / critic)).info["metrics"]["accuracy"]
        for critic in ("adr", "none")
    }
    bare = api.train("adr", preset="cpu", critic="none", target_statistics="none", out=str(tmp_path / "bare"))
    assert accuracy["adr"] >= max(accuracy["none"], bare.info["metrics"]["accuracy"]) + 0.05


# Data sets


def test_fonts_are_drawn_alike_every_time_in_fonts_of_their_own_per_split():
    train, test = open_split("fonts", "train"), open_split("fonts", "test")
    assert (len(train), len(test), train.shape) == (1800, 400, (1, 8, 8))
    assert torch.bincount(train.y).tolist() == [180] * 10
    assert train.digest() == open_split("fonts", "train").digest()
    assert not set(FACES["train"]) & set(FACES["test"])
    filled = train.x.amax((2, 3)).float().mean()
    assert filled > 200
    assert (train.x[:, 0].amax(2) > 0).float().mean() > 0.99  # every row of the image is reached


def test_fonts_come_in_other_sizes_and_refuse_what_is_none():
    assert open_split("fonts:28", "test").shape == (1, 28, 28)
    for argument in ("4", "x", "1000", "²"):
        with pytest.raises(UsageError, match="image size"):
            open_split(f"fonts:{argument}", "test")


def test_svhn_is_read_from_its_mat_file_with_ten_as_zero(tmp_path):
    from scipy.io import savemat

    folder = tmp_path / "svhn"
    folder.mkdir()
    x = torch.randint(256, (32, 32, 3, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    labels = [[1], [10], [9], [10], [2], [5]]
    savemat(folder / "test_32x32.mat", {"X": x, "y": labels}, do_compression=True)
    split = open_split("svhn", "test", data_dir=str(tmp_path))
    assert split.shape == (3, 32, 32)
    assert split.y.tolist() == [1, 0, 9, 0, 2, 5]
    assert (split.x[4, 2, 7].numpy() == x[7, :, 2, 4]).all()


@pytest.mark.parametrize("content", ["text", "shape", "labels", "cell", "short"])
def test_a_damaged_svhn_file_is_refused(tmp_path, content):
    import numpy as np
    from scipy.io import savemat

    path, x = tmp_path / "train_32x32.mat", np.zeros((32, 32, 3, 2), dtype=np.uint8)
    cells = np.empty((2, 1), dtype=object)
    cells[:] = "a"
    match content:
        case "text":
            path.write_bytes(b"not a matrix" * 40)
        case "shape":
            savemat(path, {"X": x[:16], "y": [[1], [2]]})
        case "labels":
            savemat(path, {"X": x, "y": [[0], [11]]})
        case "cell":
            savemat(path, {"X": x, "y": cells})
        case "short":
            savemat(path, {"X": x, "y": [[1], [2]]})
            path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match="damaged"):
        read(path)
