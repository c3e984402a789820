"""STL-10 in tiny files of the official layout: column-major images, labels from 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iclr18cli.data.registry import find, open_split
from iclr18cli.errors import UserError

SHAPE = (3, 96, 96)


def write(root, counts):
    """Write images with their columns one after the other, as MATLAB does, and return them row by row."""
    folder = root / "stl10_binary"
    folder.mkdir()
    written = {}
    for seed, (name, n) in enumerate(counts.items()):
        x_NCHW = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
        content = b"".join(channel.tobytes(order="F") for image in x_NCHW for channel in image)
        (folder / f"{name}_X.bin").write_bytes(content)
        y_N = (np.arange(n) % 10 + 1).astype(np.uint8)
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(y_N.tobytes())
        written[name] = x_NCHW
    return written


def test_labelled_images_come_back_as_they_were_written(tmp_path):
    written = write(tmp_path, {"train": 12, "test": 3})
    for split, x in written.items():
        data = open_split("stl10", split, data_dir=tmp_path)
        assert data.shape == SHAPE
        assert data.x.dtype == torch.uint8
        assert data.x.is_contiguous()
        assert np.array_equal(data.x.numpy(), x)
        assert data.y.tolist() == [label % 10 for label in range(len(x))]
    assert data.classes[0] == "airplane"
    assert data.classes[9] == "truck"


def test_the_first_bytes_of_a_file_are_the_left_edge_of_the_red_channel_from_top_to_bottom(tmp_path):
    write(tmp_path, {"train": 1, "test": 1})
    content = np.zeros(3 * 96 * 96, dtype=np.uint8)
    content[:96] = 200  # one column
    content[96 * 96 + 1 :: 96][:96] = 100  # the second row of green, one pixel of each column
    (tmp_path / "stl10_binary/train_X.bin").write_bytes(content.tobytes())
    (image,) = open_split("stl10", "train", data_dir=tmp_path).x
    assert (image[0, :, 0] == 200).all()
    assert image[0, :, 1:].sum() == 0
    assert (image[1, 1, :] == 100).all()
    assert image[1].sum() == 96 * 100


def test_images_without_labels_are_a_set_of_their_own_with_the_test_images(tmp_path):
    written = write(tmp_path, {"train": 1, "test": 2, "unlabeled": 4})
    train, test = (open_split("stl10-unlabeled", split, data_dir=tmp_path) for split in ("train", "test"))
    assert np.array_equal(train.x.numpy(), written["unlabeled"])
    assert np.array_equal(test.x.numpy(), written["test"])
    assert train.classes == test.classes == ("image",)
    assert train.y.tolist() == [0] * 4


@pytest.mark.parametrize("name", ["stl10", "stl10-unlabeled"])
def test_a_size_after_the_name_scales_every_image(tmp_path, name):
    written = write(tmp_path, {"train": 1, "test": 300, "unlabeled": 1})
    data = open_split(f"{name}:48", "test", data_dir=tmp_path)
    assert data.shape == (3, 48, 48)
    assert data.name == f"{name}:48"
    # A filter of width 2 around each new pixel: the weights 1, 3, 3, 1 over 8 along each axis, away from the edge.
    weights = np.array([1, 3, 3, 1]) / 8
    for image in (0, 257, 299):
        around = written["test"][image][:, 9:13, 19:23].astype(float)
        expected = np.einsum("chw,h,w->c", around, weights, weights)
        assert np.abs(data.x[image, :, 5, 10].numpy() - expected).max() <= 1


@pytest.mark.parametrize("argument", ["0", "-1", "x", "4.5", "1000"])
def test_what_is_no_size_is_refused(tmp_path, argument):
    write(tmp_path, {"train": 1, "test": 1})
    with pytest.raises(UserError, match="names no size") as caught:
        open_split(f"stl10:{argument}", "train", data_dir=tmp_path)
    assert caught.value.fix == "stl10:48"


@pytest.mark.parametrize("change", ["a byte less", "a byte more", "empty"])
def test_images_of_another_length_are_refused(tmp_path, change):
    write(tmp_path, {"train": 2, "test": 1})
    path = tmp_path / "stl10_binary/train_X.bin"
    whole = path.read_bytes()
    path.write_bytes({"a byte less": whole[:-1], "a byte more": whole + b"\0", "empty": b""}[change])
    with pytest.raises(UserError, match="damaged") as caught:
        open_split("stl10", "train", data_dir=tmp_path)
    assert str(path) in caught.value.what
    assert "27648" in caught.value.why
    assert "iclr18 data verify stl10" in caught.value.fix


@pytest.mark.parametrize(
    ("labels", "why"), [(bytes([1]), "2 images but 1 labels"), (bytes([0, 1]), "0 .. 1"), (bytes([11, 1]), "1 .. 11")]
)
def test_labels_that_are_too_few_or_outside_one_to_ten_are_refused(tmp_path, labels, why):
    write(tmp_path, {"train": 2, "test": 1})
    (tmp_path / "stl10_binary/train_y.bin").write_bytes(labels)
    with pytest.raises(UserError, match="damaged") as caught:
        open_split("stl10", "train", data_dir=tmp_path)
    assert why in caught.value.why


def test_the_official_files_are_described_and_a_missing_set_says_how_to_get_it(tmp_path):
    sizes = {
        file.path.split("/")[1]: file.bytes for name in ("stl10", "stl10-unlabeled") for file in find(name)[0].files
    }
    assert sizes == {
        "train_X.bin": 138_240_000, "train_y.bin": 5_000, "test_X.bin": 221_184_000, "test_y.bin": 8_000,
        "unlabeled_X.bin": 2_764_800_000,
    }  # fmt: skip
    with pytest.raises(UserError, match="not on this machine") as caught:
        open_split("stl10", "train", data_dir=tmp_path)
    assert "iclr18 data fetch stl10" in caught.value.fix
    assert "2.64 GB" in caught.value.fix
