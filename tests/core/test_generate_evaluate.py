"""Feature classifiers, pictures, and the ladder of worse and worse samplers."""

import pytest
import torch

from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError
from iclr18cli.generate import inception, pictures
from iclr18cli.generate.evaluate import sample_quality
from iclr18cli.generate.features import extractor, pixel_features


@pytest.fixture(scope="module")
def digits():
    return open_split("digits", "train"), open_split("digits", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def found(digits, folder):
    return extractor(*digits, steps=250, filters=16, cache=folder)


def from_train(train, change=lambda x: x):
    x = train.inputs()
    return lambda n, generator: change(x[torch.randint(len(x), (n,), generator=generator)])


def test_a_kept_extractor_is_the_trained_one_and_a_damaged_one_is_trained_again(digits, found, folder):
    again = extractor(*digits, steps=250, filters=16, cache=folder)
    x = digits[1].inputs()
    assert again.digest == found.digest
    assert torch.equal(again.features(x), found.features(x))
    kept = next(folder.glob("*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-3])
    repaired = extractor(*digits, steps=250, filters=16, cache=folder)
    assert repaired.digest == found.digest


def test_the_extractor_reports_an_accuracy_that_its_logits_have_and_features_of_unit_scale(digits, found):
    train, test = digits
    features = found.features(test.inputs())
    assert features.shape == (360, 64)
    assert (found.logits(features).argmax(1) == test.y).float().mean().item() == pytest.approx(found.accuracy)
    assert found.accuracy > 0.94
    assert found.features(train.inputs()).square().mean().sqrt().item() == pytest.approx(1, rel=0.01)
    assert found.name == "feature-cnn on digits"


def test_training_an_extractor_leaves_the_global_generator_alone(digits, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    extractor(*digits, steps=2, filters=2, cache=tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_data_without_classes_have_no_classifier_features(tmp_path):
    rings = open_split("rings:50", "train")
    with pytest.raises(UserError, match="No classifier features"):
        extractor(rings, rings, cache=tmp_path)


def test_worse_samplers_measure_worse_and_the_training_data_are_at_the_floor(digits, found):
    train, test = digits
    measure = lambda change: sample_quality(from_train(train, change), test, train=train, extractor=found)
    noise = torch.Generator().manual_seed(1)
    data = measure(lambda x: x)
    little = measure(lambda x: (x + 0.1 * torch.randn(x.shape, generator=noise)).clamp(0, 1))
    much = measure(lambda x: (x + 0.5 * torch.randn(x.shape, generator=noise)).clamp(0, 1))
    one_class = sample_quality(
        from_train(train.take((train.y == 3).nonzero()[:, 0])), test, train=train, extractor=found
    )
    for name in ("feature_frechet_distance", "pixel_frechet_distance"):
        assert data[name] < little[name] < much[name]
        assert data[name] < 3 * data[f"floor_{name}"] < one_class[name]
    assert data["copy_ratio"] == 0 < 1 < much["copy_ratio"]
    assert data["class_covered"] == 1
    assert one_class["class_covered"] <= 0.5 < 0.8 < one_class["class_total_variation"]
    assert one_class["feature_recall"] < 0.3 < data["feature_recall"]
    assert much["sharpness"] > data["sharpness"]
    assert data["n"] == 360


def test_data_that_are_no_images_are_measured_in_principal_components():
    train, test = open_split("rings:500", "train"), open_split("rings", "test").take(300)
    found = sample_quality(from_train(train), test, train=train)
    assert "sharpness" not in found
    assert found["pixel_frechet_distance"] < 0.2


def test_samples_of_another_shape_or_not_finite_are_refused(digits):
    train, test = digits
    with pytest.raises(ValueError, match="shape"):
        sample_quality(lambda n, g: torch.zeros(n, 3), test, train=train)
    with pytest.raises(ValueError, match="finite"):
        sample_quality(lambda n, g: torch.full((n, 1, 8, 8), float("nan")), test, train=train)


def test_pixel_features_are_orthonormal_and_those_of_the_larger_gram_matrix_agree():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 4, 5, generator=generator)
    wide = Split(x, torch.zeros(40, dtype=torch.int64), ("a",), "x", "train")
    few = wide.take(15)
    for split in (wide, few):
        found = pixel_features(split, dimension=6)
        flat = split.inputs().flatten(1).double()
        torch.testing.assert_close(found.axes.T @ found.axes, torch.eye(6, dtype=torch.float64))
        singular = torch.linalg.svdvals(flat - flat.mean(0))[:6]
        torch.testing.assert_close(found.features(split.inputs()).norm(dim=0), singular)


def test_a_grid_puts_every_image_at_its_place_and_clips_the_range():
    x = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 2) - 1
    mosaic = pictures.tiled(x, (0.0, 2.0), columns=3)
    assert mosaic.shape == (7, 10, 3)
    assert [mosaic[1 + 3 * (i // 3), 1 + 3 * (i % 3), 0].item() for i in range(6)] == [0, 0, 0.5, 1, 1, 1]
    assert mosaic[0].min() == 1
    with pytest.raises(ValueError, match="images"):
        pictures.tiled(torch.zeros(2, 4, 2, 2))


def test_reconstructions_stand_below_their_images():
    x = torch.zeros(3, 1, 4, 4)
    mosaic = pictures.reconstructions(x, x + 1, columns=2).axes[0].images[0].get_array()
    assert mosaic.shape == (21, 11, 3)
    assert [float(mosaic[1 + 5 * row, 1, 0]) for row in range(4)] == [0, 1, 0, 1]


def test_interpolations_end_where_they_should_and_the_arc_keeps_the_norm():
    a, b = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    for path in ("linear", "spherical"):
        way = pictures.interpolate(a, b, 5, path=path)
        torch.testing.assert_close(way[:, 0], a)
        torch.testing.assert_close(way[:, -1], b)
    arc = pictures.interpolate(a, b, 5, path="spherical")
    torch.testing.assert_close(arc[0].norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(arc[1], a[1].expand(5, 2))
    assert pictures.interpolate(a, b, 3)[0, 1].tolist() == [1.5, 1.5]


def test_fid_without_its_weights_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("ICLR18_INCEPTION", raising=False)
    assert not inception.available()
    with pytest.raises(UserError, match="FID needs"):
        inception.inception_metrics(
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        )
