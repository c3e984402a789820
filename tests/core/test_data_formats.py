"""Readers of official formats: tiny files in the official layouts, broken files, and the real files where they are."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from iclr18cli.data import usps
from iclr18cli.data.checking import verify
from iclr18cli.data.importing import import_files
from iclr18cli.data.registry import find, open_split
from iclr18cli.errors import UserError

REAL = Path(os.environ.get("ICLR18_DATA", ""))


MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


USPS_TRAIN = [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]


USPS_TEST = [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]


def real(path):
    return pytest.mark.skipif(
        not os.environ.get("ICLR18_DATA") or not (REAL / path).exists(), reason=f"needs {path} in $ICLR18_DATA"
    )


def idx_bytes(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(root, pack=True, count=7):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    written = {}
    for stem, n in (("train", count), ("t10k", 3)):
        x, y = random.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        written[stem] = (x, y)
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            content = idx_bytes(array)
            path = folder / f"{stem}-{kind}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(content) if pack else content)
    return written


@pytest.mark.parametrize("pack", [True, False])
def test_idx_files_come_back_as_they_were_written(tmp_path, pack):
    written = write_mnist(tmp_path, pack)
    for split, stem in (("train", "train"), ("test", "t10k")):
        data = open_split("mnist", split, data_dir=tmp_path)
        x, y = written[stem]
        assert data.shape == (1, 28, 28)
        assert data.x.dtype == torch.uint8
        assert torch.equal(data.x[:, 0], torch.from_numpy(x))
        assert data.y.tolist() == y.tolist()


def broken_idx(kind):
    x = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    content = idx_bytes(x)
    packed = gzip.compress(content)
    return {
        "truncated gz": packed[:-20],
        "cut in the header": gzip.compress(content[:10]),
        "corrupted gz": packed[:40] + bytes(b ^ 255 for b in packed[40:60]) + packed[60:],
        "no gz": b"<html>404</html>",
        "empty": b"",
        "values missing": gzip.compress(content[:-5]),
        "values too many": gzip.compress(content + b"!"),
        "wrong magic": gzip.compress(b"\0\0\x0d" + content[3:]),
        "wrong dimensions": gzip.compress(idx_bytes(x.reshape(2, -1))),
        "huge header": gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "truncated gz",
        "cut in the header",
        "corrupted gz",
        "no gz",
        "empty",
        "values missing",
        "values too many",
        "wrong magic",
        "wrong dimensions",
        "huge header",
    ],
)
def test_a_broken_idx_file_is_named_with_the_command_that_checks_it(tmp_path, kind):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    path.write_bytes(broken_idx(kind))
    with pytest.raises(UserError) as caught:
        open_split("mnist", "test", data_dir=tmp_path)
    assert str(path) in caught.value.what
    assert caught.value.why
    assert "iclr18 data verify mnist" in caught.value.fix


def test_images_and_labels_must_be_as_many(tmp_path):
    write_mnist(tmp_path)
    labels = idx_bytes(np.zeros(2, dtype=np.uint8))
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(UserError, match="damaged") as caught:
        open_split("mnist", "test", data_dir=tmp_path)
    assert "3 images but 2 labels" in caught.value.why


def test_labels_outside_the_classes_are_refused(tmp_path):
    write_mnist(tmp_path)
    labels = idx_bytes(np.array([0, 10, 1], dtype=np.uint8))
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(UserError, match="outside its classes") as caught:
        open_split("mnist", "test", data_dir=tmp_path)
    assert "0 .. 10" in caught.value.why


def usps_table(n=5):
    random = np.random.default_rng(1)
    values = np.round(random.uniform(-1, 1, (n, 256)), 3)
    values[0, :3] = (-1, 0, 1)
    return values, np.arange(n) % 10


def libsvm_bytes(values, digits, leave_out_zeros=False):
    lines = []
    for row, digit in zip(values, digits, strict=True):
        pairs = (f"{i}:{v:g}" for i, v in enumerate(row, 1) if not (leave_out_zeros and v == 0))
        lines.append(f"{digit + 1} {' '.join(pairs)} \n")
    return bz2.compress("".join(lines).encode())


@pytest.mark.parametrize("leave_out_zeros", [False, True])
def test_usps_text_is_mapped_to_the_unit_interval_and_labels_to_digits(tmp_path, leave_out_zeros):
    values, digits = usps_table()
    (tmp_path / "usps.bz2").write_bytes(libsvm_bytes(values, digits, leave_out_zeros))
    x, y = usps.read_libsvm(tmp_path / "usps.bz2")
    assert y.tolist() == digits.tolist()
    assert x[0, :3].tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(x, (values + 1) / 2, atol=1e-7)


def test_all_forms_of_usps_hold_the_same_numbers(tmp_path):
    h5py = pytest.importorskip("h5py")
    values, digits = usps_table()
    (tmp_path / "a.bz2").write_bytes(libsvm_bytes(values, digits))
    rows = [" ".join(f"{v:.4f}" for v in (d, *row)) for d, row in zip(digits, values, strict=True)]
    (tmp_path / "a.gz").write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    with h5py.File(tmp_path / "a.h5", "w") as store:
        group = store.create_group("train")
        group["data"], group["target"] = ((values + 1) / 2).astype(np.float32), digits
    forms = (
        usps.read_libsvm(tmp_path / "a.bz2"),
        usps.read_table(tmp_path / "a.gz"),
        usps.read_hdf5(tmp_path / "a.h5", "train"),
    )
    for x, y in forms:
        np.testing.assert_allclose(x, forms[0][0], atol=1e-6)
        assert y.tolist() == digits.tolist()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1 1:0.5\n2 x:1\n",
        b"1 257:0.5\n",
        b"1 0:0.5\n",
        b"12 1:0.5\n",
        b"1.5 1:0.5\n",
        b"1 1:3.0\n",
        b"1 1:0.5 2\n",
        b"1 1:nan\n",
    ],
)
def test_malformed_usps_text_is_refused(tmp_path, text):
    path = tmp_path / "usps.bz2"
    path.write_bytes(bz2.compress(text))
    with pytest.raises(UserError, match="damaged"):
        usps.read_libsvm(path)


def test_truncated_usps_text_is_refused(tmp_path):
    values, digits = usps_table()
    path = tmp_path / "usps.bz2"
    path.write_bytes(libsvm_bytes(values, digits)[:-30])
    with pytest.raises(UserError, match="damaged"):
        usps.read_libsvm(path)


def test_without_h5py_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "usps").mkdir()
    (tmp_path / "usps/usps.h5").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        open_split("usps", "train", data_dir=tmp_path)
    assert caught.value.fix == "pip install 'iclr18[hdf5]'"


@real("MNIST/raw")
def test_real_mnist_has_its_known_counts_and_moments():
    train = open_split("mnist", "train")
    assert train.y.bincount().tolist() == MNIST_COUNTS
    pixels = train.x.double() / 255
    assert round(float(pixels.mean()), 4) == 0.1307
    assert round(float(pixels.std()), 4) == 0.3081
    assert len(open_split("mnist", "test")) == 10_000


@real("FashionMNIST/raw")
def test_real_fashion_mnist_has_its_known_counts_and_mean():
    train = open_split("fashion-mnist", "train")
    assert train.y.bincount().tolist() == [6000] * 10
    assert round(float(train.x.double().mean() / 255), 4) == 0.2860


@real("usps/usps.h5")
@real("usps/usps.bz2")
def test_real_usps_forms_hold_the_same_images_in_the_same_order():
    pytest.importorskip("h5py")
    for split, counts in (("train", USPS_TRAIN), ("test", USPS_TEST)):
        data = open_split("usps", split)
        x, y = usps.read_hdf5(REAL / "usps/usps.h5", split)
        assert data.y.bincount().tolist() == counts
        assert data.y.tolist() == y.tolist()
        assert np.abs(data.x.numpy().reshape(len(x), -1) - x).max() <= 1e-6
        assert data.shape == (1, 16, 16)


@real("MNIST/raw")
@real("FashionMNIST/raw")
def test_real_mnist_is_verified_and_told_from_fashion_mnist_by_import(tmp_path):
    mnist = find("mnist")[0]
    assert all(check.ok for check in verify(mnist, (REAL,)))
    paths = import_files(mnist, REAL, tmp_path)
    assert all(check.ok for check in verify(mnist, (tmp_path,)))
    assert paths[0] == tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
