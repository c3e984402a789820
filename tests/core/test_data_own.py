"""The user's own arrays and images: every rule, every refusal."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from iclr18cli.data import archives
from iclr18cli.data.holdout import stratified
from iclr18cli.data.registry import open_split
from iclr18cli.errors import UsageError, UserError


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_npz_with_one_table_is_divided_80_to_20_each_class_alike(tmp_path):
    y = np.repeat([0, 1], [50, 25])
    x = np.random.default_rng(0).integers(0, 256, (75, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=y, classes=np.array(["cat", "dog"]))
    train, test = (open_split(f"npz:{tmp_path}/a.npz", split) for split in ("train", "test"))
    assert (train.y.bincount().tolist(), test.y.bincount().tolist()) == ([40, 20], [10, 5])
    assert train.classes == ("cat", "dog")
    assert train.shape == (3, 8, 8)
    seen = {bytes(row) for part in (train, test) for row in part.x.permute(0, 2, 3, 1).contiguous().numpy()}
    assert seen == {bytes(row) for row in x}


def test_npz_with_four_arrays_keeps_its_splits(tmp_path):
    x = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 1, 4, 4)
    np.savez(tmp_path / "a.npz", x_train=x[:4], y_train=[0, 1, 2, 0], x_test=x[4:], y_test=[2, 1])
    test = open_split(f"npz:{tmp_path}/a.npz", "test")
    assert np.array_equal(test.x.numpy(), x[4:])
    assert test.y.tolist() == [2, 1]
    assert test.classes == ("0", "1", "2")


def test_npz_floats_keep_their_declared_range(tmp_path):
    y = np.arange(20) % 2
    images = np.random.default_rng(0).uniform(-1, 1, (20, 4, 4)).astype(np.float64)
    np.savez(tmp_path / "range.npz", x=images, y=y, range=[-1, 1])
    np.savez(tmp_path / "features.npz", x=100 * images.reshape(20, -1), y=y)
    np.savez(tmp_path / "outside.npz", x=images, y=y)
    ranged = open_split(f"npz:{tmp_path}/range.npz", "train")
    assert (ranged.range, ranged.shape, ranged.x.dtype) == ((-1.0, 1.0), (1, 4, 4), torch.float32)
    assert open_split(f"npz:{tmp_path}/features.npz", "train").range is None
    with pytest.raises(UserError, match="outside the declared range") as caught:
        open_split(f"npz:{tmp_path}/outside.npz", "train")
    assert "0 .. 1" in caught.value.why


IMAGES = np.zeros((10, 4, 4), dtype=np.uint8)
LABELS = np.arange(10) % 2


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": IMAGES}, "it needs x and y"),
        ({"x": IMAGES, "y": LABELS[:9]}, "labels must be"),
        ({"x": IMAGES, "y": LABELS.astype(float)}, "labels must be"),
        ({"x": IMAGES, "y": LABELS * 1000}, "label 1000"),
        ({"x": IMAGES.astype(np.int32), "y": LABELS}, "int32"),
        ({"x": IMAGES[:, 0, 0], "y": LABELS}, "x must be"),
        ({"x": IMAGES.reshape(10, 4, 2, 2), "y": LABELS}, "first or last"),
        ({"x": np.zeros((10, 3, 5, 3), dtype=np.uint8), "y": LABELS}, "first or last"),
        ({"x": IMAGES, "y": LABELS, "range": [-1.0, 1.0]}, "uint8"),
        ({"x": IMAGES / 255, "y": LABELS, "range": [1.0, 0.0]}, "low < high"),
        ({"x": IMAGES, "y": LABELS, "classes": np.array([1, 2])}, "names"),
        ({"x": IMAGES, "y": LABELS - 1}, "-1 .. 0"),
        ({"x": IMAGES, "y": LABELS, "classes": np.array(["only"])}, "0 .. 1"),
    ],
)
def test_npz_that_breaks_a_rule_is_refused_with_the_rule(tmp_path, arrays, why):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError) as caught:
        open_split(f"npz:{tmp_path}/a.npz", "train")
    assert why in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_npz_with_nan_or_infinity_is_refused(tmp_path, bad):
    x = np.zeros((10, 3))
    x[:, 1] = bad
    np.savez(tmp_path / "a.npz", x=x, y=LABELS)
    with pytest.raises(UserError, match="NaN or infinite"):
        open_split(f"npz:{tmp_path}/a.npz", "test")


def test_npz_layout_settles_what_shapes_leave_open(tmp_path):
    x = np.arange(10 * 3 * 5 * 3, dtype=np.uint32).astype(np.uint8).reshape(10, 3, 5, 3)
    np.savez(tmp_path / "a.npz", x=x, y=LABELS, layout="NCHW")
    np.savez(tmp_path / "b.npz", x=x, y=LABELS, layout="NHWC")
    first, last = (open_split(f"npz:{tmp_path}/{name}.npz", "train") for name in "ab")
    assert first.shape == (3, 5, 3)
    assert last.shape == (3, 3, 5)
    assert {bytes(row) for row in first.x.numpy()} < {bytes(row) for row in x}
    assert {bytes(row) for row in last.x.permute(0, 2, 3, 1).contiguous().numpy()} < {bytes(row) for row in x}


def test_npz_with_objects_is_refused_and_not_unpickled(tmp_path):
    trace = tmp_path / "executed"
    np.savez(tmp_path / "a.npz", x=np.array([Malice(trace)] * 3, dtype=object), y=np.zeros(3, dtype=int))
    with pytest.raises(UserError, match="damaged") as caught:
        open_split(f"npz:{tmp_path}/a.npz", "train")
    assert "allow_pickle=False" in caught.value.why
    assert not trace.exists()


def test_npz_that_is_truncated_corrupted_or_absent_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path, x=np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8), y=np.arange(50) % 2
    )
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:200] + bytes(99) + whole[299:], b"", b"PK"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="damaged"):
            open_split(f"npz:{path}", "train")
    path.unlink()
    with pytest.raises(UserError, match="no file"):
        open_split(f"npz:{path}", "train")


def test_a_single_array_under_an_npz_name_is_refused(tmp_path):
    with (tmp_path / "a.npz").open("wb") as handle:
        np.save(handle, IMAGES)
    with pytest.raises(UserError, match="damaged"):
        archives.read_arrays(tmp_path / "a.npz", ["x"])


def write_images(place, classes=("ant", "bee"), count=5, size=(6, 4), mode="RGB"):
    from PIL import Image

    for number, name in enumerate(classes):
        (place / name).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, size, 40 * number + i if mode == "L" else (40 * number + i, 0, 9)).save(
                place / name / f"{i}.png"
            )


def test_folder_with_train_and_test_keeps_them(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", count=2)
    train, test = (open_split(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (10, 4)
    assert train.classes == ("ant", "bee")
    assert train.shape == (3, 4, 6)
    for value, label in zip(train.x[:, 0, 0, 0].tolist(), train.y.tolist(), strict=True):
        assert value // 40 == label
    assert set(train.take(5).y.tolist()) == {0, 1}, "the first images must be a sample of the classes"


def test_folder_without_splits_is_divided_for_good(tmp_path):
    write_images(tmp_path, mode="L")
    train, test = (open_split(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert (train.y.bincount().tolist(), test.y.bincount().tolist()) == ([4, 4], [1, 1])
    assert train.shape == (1, 4, 6)
    assert test.digest() == open_split(f"folder:{tmp_path}", "test").digest()
    assert not set(train.x[:, 0, 0, 0].tolist()) & set(test.x[:, 0, 0, 0].tolist())


def test_folder_names_the_image_that_differs_and_scales_on_request(tmp_path):
    from PIL import Image

    write_images(tmp_path / "train")
    write_images(tmp_path / "test")
    odd = tmp_path / "train" / "bee" / "3.png"
    Image.new("RGB", (9, 9)).save(odd)
    with pytest.raises(UserError, match="another size") as caught:
        open_split(f"folder:{tmp_path}", "train")
    assert str(odd) in str(caught.value)
    assert "?size=32" in caught.value.fix
    assert open_split(f"folder:{tmp_path}?size=8", "train").shape == (3, 8, 8)
    with pytest.raises(UsageError, match="size=0"):
        open_split(f"folder:{tmp_path}?size=0", "train")


def test_folder_faults_are_named(tmp_path):
    from PIL import Image

    with pytest.raises(UserError, match="no folder"):
        open_split(f"folder:{tmp_path}/none", "train")
    with pytest.raises(UserError, match="no sub-folder per class"):
        open_split(f"folder:{tmp_path}", "train")
    write_images(tmp_path)
    (tmp_path / "cow").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        open_split(f"folder:{tmp_path}", "train")
    for i in range(5):
        Image.new("RGB", (6, 4)).save(tmp_path / "cow" / f"{i}.png")
    broken = tmp_path / "cow" / "2.png"
    broken.write_bytes(broken.read_bytes()[:45])
    with pytest.raises(UserError, match="damaged") as caught:
        [open_split(f"folder:{tmp_path}", split) for split in ("train", "test")]
    assert str(broken) in caught.value.what
    Image.new("I;16", (6, 4)).save(broken)
    with pytest.raises(UserError, match="deeper than 8 bits"):
        [open_split(f"folder:{tmp_path}", split) for split in ("train", "test")]


def test_folder_with_different_classes_in_train_and_test_is_refused(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", classes=("ant", "wasp"))
    with pytest.raises(UserError) as caught:
        open_split(f"folder:{tmp_path}", "train")
    assert caught.value.why == "only in one of them: bee, wasp"


def test_every_class_is_in_both_parts_of_a_division():
    labels = np.array([0] * 100 + [1] * 2 + [2])
    parts = stratified(labels)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(103))
    assert np.bincount(labels[parts["test"]], minlength=3).tolist() == [20, 1, 0]
