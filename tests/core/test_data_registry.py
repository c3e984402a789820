"""Names of data sets, where their files are looked for, the offline sets, splits, batches and order."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from iclr18cli.data import registry
from iclr18cli.data.builtin import ALTERNATIVES, ARCHIVES, BUILTIN
from iclr18cli.data.checking import verify
from iclr18cli.data.places import archive_of, download_bytes, groups, size_text
from iclr18cli.data.registry import availability, datasets, find, open_split
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError, UserError
from iclr18cli.plugin import DatasetSpec, File, resolve


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """A machine without data: no $ICLR18_DATA, an empty cache."""
    monkeypatch.delenv("ICLR18_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def small(N=10, dtype=torch.uint8, **changes):
    x = torch.arange(N * 4).view(N, 1, 2, 2).to(dtype)
    fields = {"x": x, "y": torch.arange(N) % 2, "classes": ("a", "b"), "name": "small", "split": "train"}
    return Split(**{**fields, **changes})


def test_every_record_resolves_and_names_files_consistently():
    assert len({spec.name for spec in BUILTIN}) == len(BUILTIN)
    for spec in BUILTIN:
        assert callable(resolve(spec.load))
        assert spec.summary
        for group in groups(spec):
            for file in group:
                assert not file.path.startswith("/")
                assert ".." not in file.path
                assert len(file.sha256) in (0, 64)
            assert all(groups(spec, split) for split in spec.splits)
    assert set(ALTERNATIVES) <= {spec.name for spec in BUILTIN}
    member = next(spec for spec in BUILTIN if spec.name == "cifar10").files[0]
    assert archive_of(member)[0] in ARCHIVES.values()


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mnits", "Did you mean 'mnist'?"),
        ("mnist:3", "Write 'mnist'."),
        ("npz", "Write 'npz:PATH'."),
        ("npz:", "Write 'npz:PATH'."),
        ("rings:", "Write 'rings:N'."),
        ("", "One of:"),
    ],
)
def test_a_wrong_reference_is_a_usage_error_with_the_way_out(reference, words):
    with pytest.raises(UsageError) as caught:
        find(reference)
    assert words in caught.value.fix


def test_a_reference_is_split_at_its_first_colon():
    spec, argument = find("npz:C:/data/a.npz")
    assert (spec.name, argument) == ("npz", "C:/data/a.npz")


def test_an_unknown_split_lists_the_splits():
    with pytest.raises(UsageError) as caught:
        open_split("digits", "tset")
    assert caught.value.why == "its splits are train, test"
    assert caught.value.fix == "Did you mean 'test'?"


def test_absent_files_end_with_where_we_looked_and_the_command_that_fetches(tmp_path):
    with pytest.raises(UserError) as caught:
        open_split("mnist", "train", data_dir=tmp_path / "mine")
    assert caught.value.what == "Data set 'mnist' is not on this machine."
    assert str(tmp_path / "mine") in caught.value.why
    assert str(tmp_path / "cache") in caught.value.why
    assert "iclr18 data fetch mnist" in caught.value.fix
    assert "11.6 MB" in caught.value.fix
    assert not isinstance(caught.value, UsageError)


def test_a_set_without_public_address_is_to_be_imported():
    with pytest.raises(UserError) as caught:
        open_split("cifar10-jpeg", "train")
    assert "iclr18 data import cifar10-jpeg" in caught.value.fix


def test_nothing_is_downloaded_unless_asked(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("urllib.request.urlopen", forbidden)
    with pytest.raises(UserError, match="not on this machine"):
        open_split("usps", "train")


def test_folders_are_looked_in_in_order(tmp_path, monkeypatch):
    spec = DatasetSpec(
        name="toy", task="classify", summary="", load="math:pi", files=(File(path="toy/a", splits=("train",)),)
    )
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        (place / "toy").mkdir(parents=True)
    (second / "toy/a").touch()
    assert registry.locate(spec, (first, second))[0] == second
    (first / "toy/a").touch()
    assert registry.locate(spec, (first, second))[0] == first
    assert availability(spec, (first,)) == "here"
    assert availability(spec, ()) == "import"


def test_a_data_set_of_a_plugin_is_opened_like_ours(tmp_path, monkeypatch):
    spec = DatasetSpec(
        name="toy", task="classify", summary="", load=f"{__name__}:load_toy", files=(File(path="toy/a"),)
    )
    monkeypatch.setattr(registry, "datasets", lambda: {"toy": spec})
    monkeypatch.setattr(registry, "resolve", lambda _: load_toy)
    with pytest.raises(UserError, match="not on this machine"):
        open_split("toy", "train", data_dir=tmp_path)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/a").touch()
    assert open_split("toy", "train", data_dir=tmp_path).name == "toy"


def load_toy(root, split, argument):
    assert (root / "toy/a").is_file()
    return small(name="whatever")


def test_names_of_the_core_stay_with_the_core(monkeypatch):
    class Plugins:
        def datasets(self):
            return [dataclasses.replace(BUILTIN[0], load="evil:load"), dataclasses.replace(BUILTIN[0], name="new")]

    monkeypatch.setattr("iclr18cli.manager.plugins", Plugins)
    assert datasets()["digits"] is BUILTIN[0]
    assert "new" in datasets()


def test_availability_tells_offline_own_and_official_sets_apart():
    states = {spec.name: availability(spec, ()) for spec in BUILTIN}
    assert states["digits"] == states["rings"] == "built in"
    assert states["npz"] == states["folder"] == "yours"
    assert states["mnist"] == states["cifar10"] == "fetchable"
    assert states["cifar10-jpeg"] == "import"


def test_the_size_of_a_download_counts_an_archive_once():
    specs = {spec.name: spec for spec in BUILTIN}
    assert size_text(download_bytes(specs["cifar10"])) == "170 MB"
    assert download_bytes(specs["usps"]) == 0
    assert size_text(0) == "size unknown"
    assert size_text(999) == "999 B"


def test_records_are_listed_without_torch():
    code = (
        "import sys; from iclr18cli.data import registry, fetch; registry.find('digits'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_digits_are_all_there_once_with_exact_grey_levels():
    from sklearn.datasets import load_digits

    train, test = (open_split("digits", split) for split in ("train", "test"))
    assert (len(train), len(test), train.shape) == (1437, 360, (1, 8, 8))
    images = load_digits()["images"]
    levels = {round(float(v)): round(float(v) * 255 / 16) for v in np.unique(images)}
    whole = sorted(bytes(image) for image in np.vectorize(levels.get)(images).astype(np.uint8))
    assert sorted(bytes(x) for part in (train, test) for x in part.x.numpy()) == whole
    shares = test.y.bincount() / (train.y.bincount() + test.y.bincount())
    assert float((shares - 0.2).abs().max()) < 0.005
    assert train.digest() == open_split("digits", "train").digest() != test.digest()


def test_the_division_of_digits_never_changes():
    assert open_split("digits", "test").y[:12].tolist() == GOLDEN_DIGITS


def test_rings_keep_the_margin_and_the_label_rule():
    for split in ("train", "test"):
        data = open_split("rings", split)
        assert (len(data), data.shape, data.range) == (4000, (2,), None)
        radius = data.x.double().norm(dim=1)
        outside = radius > math.sqrt(2)
        assert torch.equal(outside.long(), data.y)
        assert float(radius[~outside].max()) <= math.sqrt(2) / 1.3 + 1e-6
        assert float(radius[outside].min()) >= 1.3 * math.sqrt(2) - 1e-6
        # P(|x| < r) = 1 - exp(-r^2 / 2): 0.446 inside, 0.184 outside, so 70.8 % of the kept points are inside.
        inside, beyond = 1 - math.exp(-1 / 1.69), math.exp(-1.69)
        assert abs(float((~outside).double().mean()) - inside / (inside + beyond)) < 0.02
        assert float(data.x.mean(0).abs().max()) < 0.08


def test_rings_differ_by_split_and_grow_by_number():
    train, test = (open_split("rings", split) for split in ("train", "test"))
    large = open_split("rings:10000", "train")
    assert len(large) == 10_000
    assert torch.equal(large.x[:4000], train.x)
    assert len(open_split("rings:10", "test")) == 4000
    assert not set(map(tuple, train.x.tolist())) & set(map(tuple, test.x.tolist()))


@pytest.mark.parametrize("argument", ["0", "-5", "many", "1e4", "999999999999"])
def test_a_wrong_number_of_rings_is_a_usage_error(argument):
    with pytest.raises(UsageError, match="number of training points"):
        open_split(f"rings:{argument}", "train")


def test_verify_reads_offline_sets_and_reports_absent_files(tmp_path):
    assert [check.detail for check in verify(find("digits")[0], (tmp_path,))] == ["1437 examples", "360 examples"]
    checks = verify(find("mnist")[0], (tmp_path,))
    assert [check.state for check in checks] == ["missing"] * 4


def test_verify_names_size_checksum_and_unreadable_content(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    files = find("mnist")[0].files
    for file in files:
        (tmp_path / file.path).write_bytes(bytes(file.bytes))
    (tmp_path / files[0].path).write_bytes(b"short")
    checks = verify(find("mnist")[0], (tmp_path,))
    assert [check.state for check in checks] == ["wrong size", *["wrong sha256"] * 3]
    (tmp_path / "usps").mkdir()
    for file in find("usps")[0].files:
        (tmp_path / file.path).write_bytes(b"rubbish")
    states = [check.state for check in verify(find("usps")[0], (tmp_path,))]
    assert states == ["ok", "ok", "unreadable", "unreadable"]


GOLDEN_DIGITS = [1, 5, 2, 7, 0, 1, 6, 7, 8, 5, 7, 5]
