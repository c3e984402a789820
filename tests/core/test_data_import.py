"""Official files that are already on this machine: found, checked, copied."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile

import pytest

from iclr18cli.data.fetch import fetch
from iclr18cli.data.importing import import_files
from iclr18cli.errors import UsageError, UserError
from iclr18cli.plugin import DatasetSpec, File


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def everything(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def tar_of(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def pair(root):
    names = {"a": b"first", "b": b"second"}
    files = tuple(File(path=f"toy/raw/{name}", bytes=len(c), sha256=sha256(c)) for name, c in names.items())
    return DatasetSpec(name="toy", task="classify", summary="", load="m:f", files=files)


def test_import_finds_the_right_files_anywhere_below(tmp_path):
    source, root = tmp_path / "disk", tmp_path / "data"
    for folder, content in (("other/raw", b"wrong"), ("deep/er/toy", b"first")):
        (source / folder).mkdir(parents=True)
        (source / folder / "a").write_bytes(content)
    (source / "b").write_bytes(b"second")
    assert import_files(pair(root), source, root) == [root / "toy/raw/a", root / "toy/raw/b"]
    assert (root / "toy/raw/a").read_bytes() == b"first"
    assert everything(root) == ["toy/raw/a", "toy/raw/b"]
    assert fetch(pair(root), tmp_path / "second", source=source)[1].read_bytes() == b"second"


def test_import_of_an_incomplete_or_wrong_folder_copies_nothing(tmp_path):
    source, root = tmp_path / "disk", tmp_path / "data"
    source.mkdir()
    (source / "a").write_bytes(b"first")
    with pytest.raises(UserError) as caught:
        import_files(pair(root), source, root)
    assert caught.value.why == "missing: b"
    (source / "b").write_bytes(b"forged")
    with pytest.raises(UserError, match="official b"):
        import_files(pair(root), source, root)
    with pytest.raises(UserError, match="no file or folder"):
        import_files(pair(root), tmp_path / "none", root)
    assert everything(root) == []


@pytest.mark.parametrize("kind", ["toy.tar.gz", "toy.zip"])
def test_import_reads_a_whole_archive(tmp_path, kind):
    path = tmp_path / kind
    members = {"x/a": b"first", "x/b": b"second", "../c": b"evil"}
    if kind.endswith("zip"):
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
    else:
        path.write_bytes(tar_of(members))
    root = tmp_path / "data"
    import_files(pair(root), path, root)
    assert everything(root) == ["toy/raw/a", "toy/raw/b"]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError):
        import_files(pair(root), path, tmp_path / "other")


def test_import_tells_mnist_from_fashion_mnist_and_takes_unpacked_files(tmp_path, monkeypatch):
    from iclr18cli.data import places

    content = {"MNIST": b"digits", "FashionMNIST": b"shirts"}
    for folder, value in content.items():
        (tmp_path / "disk" / folder).mkdir(parents=True)
        (tmp_path / "disk" / folder / "images").write_bytes(value)
    spec = DatasetSpec(
        name="toy",
        task="classify",
        summary="",
        load="m:f",
        files=(File(path="MNIST/images.gz", sha256=sha256(b"packed")),),
    )
    unpacked = (File(path="MNIST/images", sha256=sha256(b"digits")),)
    monkeypatch.setattr(places, "ALTERNATIVES", {"toy": (unpacked,)})
    root = tmp_path / "data"
    assert import_files(spec, tmp_path / "disk", root) == [root / "MNIST/images"]
    assert (root / "MNIST/images").read_bytes() == b"digits"


def test_sets_without_files_have_nothing_to_fetch_or_import(tmp_path):
    spec = DatasetSpec(name="toy", task="classify", summary="", load="m:f", offline=True)
    with pytest.raises(UsageError, match="no files to fetch"):
        fetch(spec, tmp_path)
    with pytest.raises(UsageError, match="no files to import"):
        import_files(spec, tmp_path, tmp_path)


def test_a_set_without_address_says_how_to_import(tmp_path):
    with pytest.raises(UserError, match="no public address") as caught:
        fetch(pair(tmp_path), tmp_path)
    assert "iclr18 data import toy" in caught.value.fix


def test_without_a_checksum_the_folder_that_agrees_best_is_taken(tmp_path):
    for folder, content in (("a/raw", b"other"), ("b/toy/raw", b"ours"), ("c", b"other")):
        (tmp_path / "disk" / folder).mkdir(parents=True)
        (tmp_path / "disk" / folder / "images").write_bytes(content)
    spec = DatasetSpec(name="toy", task="classify", summary="", load="m:f", files=(File(path="toy/raw/images"),))
    (path,) = import_files(spec, tmp_path / "disk", tmp_path / "data")
    assert path.read_bytes() == b"ours"
