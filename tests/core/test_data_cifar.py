"""CIFAR-10 in its official batches and as npz; pickles that mean harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from iclr18cli.data import cifar
from iclr18cli.data.registry import open_split
from iclr18cli.errors import UserError

REAL = Path(os.environ.get("ICLR18_DATA", ""))


def real(path):
    return pytest.mark.skipif(
        not os.environ.get("ICLR18_DATA") or not (REAL / path).exists(), reason=f"needs {path} in $ICLR18_DATA"
    )


def cifar_batch(n, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (n, 3072), dtype=np.uint8), random.integers(0, 10, n)


def write_cifar(root, form):
    folder = root / f"cifar-10-batches-{form}"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        x, y = cifar_batch(4, number)
        if form == "bin":
            (folder / f"{name}.bin").write_bytes(np.column_stack((y.astype(np.uint8), x)).tobytes())
        else:
            batch = {b"batch_label": b"x", b"labels": y.tolist(), b"data": x, b"filenames": [b"a.png"] * 4}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


@pytest.mark.parametrize("form", ["bin", "py"])
def test_cifar_batches_are_joined_in_order(tmp_path, form):
    write_cifar(tmp_path, form)
    train, test = (open_split("cifar10", split, data_dir=tmp_path) for split in ("train", "test"))
    assert train.shape == test.shape == (3, 32, 32)
    assert len(train) == 20
    assert train.classes[0] == "airplane"
    for number in range(5):
        x, y = cifar_batch(4, number)
        assert np.array_equal(train.x[4 * number : 4 * number + 4].numpy().reshape(4, -1), x)
        assert train.y[4 * number : 4 * number + 4].tolist() == y.tolist()
    assert np.array_equal(test.x.numpy().reshape(4, -1), cifar_batch(4, 5)[0])


def test_a_pickle_as_python_2_wrote_it_is_read(tmp_path):
    # The official batches: str keys of Python 2, data through numpy.core.multiarray, raw bytes as a Python 2 string.
    raw = bytes(range(256)) * 12
    state = pickle.dumps(0)[:0]
    program = (
        b"\x80\x02}q\x00(U\x06labelsq\x01]q\x02K\x07aU\x04dataq\x03"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\x09"
        b"(K\x01K\x01M\x00\x0c\x86q\x0acnumpy\ndtype\nq\x0bU\x02u1q\x0cK\x00K\x01\x87q\x0dRq\x0e"
        b"(K\x03U\x01|q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89"
        b"T" + struct.pack("<i", len(raw)) + raw + b"q\x11tq\x12bu." + state
    )
    path = tmp_path / "data_batch_1"
    path.write_bytes(program)
    x, y = cifar.read_pickle(path)
    assert y.tolist() == [7]
    assert x.tobytes() == raw


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {b"data": m, b"labels": [1]}])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, wrap):
    trace = tmp_path / "executed"
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(wrap(Malice(trace)), protocol=2))
    with pytest.raises(UserError, match="damaged") as caught:
        cifar.read_pickle(path)
    assert "mkdir" in caught.value.why
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the pickle was harmless and the test proves nothing"


@pytest.mark.parametrize(
    "code", [b"cbuiltins\neval\n(S'1'\ntR.", b"c__builtin__\ngetattr\n.", b"cnumpy\nload\n.", b"", b"K\x01."]
)
def test_pickles_of_anything_else_are_refused(tmp_path, code):
    path = tmp_path / "data_batch_1"
    path.write_bytes(code)
    with pytest.raises(UserError, match="damaged"):
        cifar.read_pickle(path)


def test_a_truncated_binary_batch_is_refused(tmp_path):
    write_cifar(tmp_path, "bin")
    path = tmp_path / "cifar-10-batches-bin/test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged") as caught:
        open_split("cifar10", "test", data_dir=tmp_path)
    assert "3073" in caught.value.why


def test_jpeg_archive_is_decoded_in_order(tmp_path):
    from PIL import Image

    shades, parts = [10, 100, 200], []
    for shade in shades:
        stream = io.BytesIO()
        Image.new("RGB", (32, 32), (shade, shade, shade)).save(stream, "JPEG")
        parts.append(np.frombuffer(stream.getvalue(), dtype=np.uint8))
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    (tmp_path / "cifar10-subset").mkdir()
    path = tmp_path / "cifar10-subset" / "jpeg_test_5000.npz"
    np.savez(path, jpeg=np.concatenate(parts), offsets=offsets, labels=np.array([3, 1, 2], dtype=np.uint8))
    test = open_split("cifar10-jpeg", "test", data_dir=tmp_path)
    assert test.y.tolist() == [3, 1, 2]
    assert (test.x.float().mean((1, 2, 3)) - torch.tensor(shades)).abs().max() <= 2
    offsets[1] += 5
    np.savez(path, jpeg=np.concatenate(parts), offsets=offsets, labels=np.array([3, 1, 2], dtype=np.uint8))
    with pytest.raises(UserError, match="damaged") as caught:
        open_split("cifar10-jpeg", "test", data_dir=tmp_path)
    assert "image 1" in caught.value.why


@real("cifar10-subset")
def test_real_cifar_images_have_their_known_moments():
    train = open_split("cifar10-lossless", "train")
    assert len(train) == 4000
    pixels = train.x.double() / 255
    # The README's moments are of all 50,000 images; 4,000 agree within sampling error.
    torch.testing.assert_close(
        pixels.mean((0, 2, 3)), torch.tensor([0.4916, 0.4818, 0.4447]).double(), atol=5e-3, rtol=0
    )
    torch.testing.assert_close(
        pixels.std((0, 2, 3)), torch.tensor([0.2471, 0.2440, 0.2625]).double(), atol=5e-3, rtol=0
    )
    assert len(open_split("cifar10-lossless", "test")) == 1000


@real("cifar10-subset")
def test_real_compressed_cifar_test_images_are_complete():
    test = open_split("cifar10-jpeg", "test")
    assert test.y.bincount().tolist() == [500] * 10
    assert test.shape == (3, 32, 32)
