from __future__ import annotations

import errno
import os
import pickle

import numpy as np
import pytest
import torch

from iclr18cli.errors import UserError
from iclr18cli.run import atomic, checkpoint
from iclr18cli.run.checkpoint import Checkpoints


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", "abc")


def state(step):
    return {"position": {"step": step, "phase": 0}, "weight": torch.full((1000,), float(step))}


def step_of(loaded):
    return loaded["position"]["step"]


def test_the_newest_checkpoint_is_loaded_and_the_one_before_kept(store):
    assert store.load_last() == (None, "")
    for step in (1, 2, 3):
        store.save(state(step))
    loaded, warning = store.load_last()
    assert (step_of(loaded), warning) == (3, "")
    assert torch.equal(loaded["weight"], torch.full((1000,), 3.0))
    assert step_of(store.load("last-1.pt")) == 2
    assert sorted(os.listdir(store.folder)) == ["last-1.pt", "last.pt"]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_weight(path):
    content = bytearray(path.read_bytes())
    at = content.find(np.full(8, 3.0, dtype=np.float32).tobytes())
    content[at + 1] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_weight, lambda path: path.write_bytes(b""), lambda path: path.unlink()]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(store, damage):
    for step in (1, 2, 3):
        store.save(state(step))
    damage(store.folder / "last.pt")
    loaded, warning = store.load_last()
    assert step_of(loaded) == 2
    assert "last.pt" in warning
    assert "step 2" in warning
    store.save(state(4))  # must not push the damaged file over the whole one
    truncate(store.folder / "last.pt")
    assert step_of(store.load_last()[0]) == 2


def test_two_damaged_checkpoints_are_an_error_with_a_way_out(store):
    for step in (1, 2):
        store.save(state(step))
    truncate(store.folder / "last.pt")
    truncate(store.folder / "last-1.pt")
    with pytest.raises(UserError, match=r"last\.pt cannot be used") as caught:
        store.load_last()
    assert caught.value.why
    assert "--resume" in caught.value.fix


def test_a_checkpoint_of_another_configuration_is_refused(store):
    store.save(state(1))
    with pytest.raises(UserError, match="another configuration"):
        Checkpoints(store.folder, "xyz").load_last()


def no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_checkpoint(store, monkeypatch):
    store.save(state(1))
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(atomic.os, function, no_space)
            with pytest.raises(UserError) as caught:
                store.save(state(2))
        assert caught.value.why == "No space left on device"
        assert os.listdir(store.folder) == ["last.pt"]
        assert step_of(store.load_last()[0]) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_torch_reports_a_full_disk_as_one(store, monkeypatch):
    store.save(state(1))

    def fdopen(handle, mode):
        os.close(handle)
        return open("/dev/full", mode)

    monkeypatch.setattr(atomic.os, "fdopen", fdopen)
    with pytest.raises(UserError, match="Cannot write"):
        store.save({**state(2), "large": torch.zeros(1_000_000)})
    monkeypatch.undo()
    assert os.listdir(store.folder) == ["last.pt"]
    assert step_of(store.load_last()[0]) == 1


def test_the_best_checkpoint_stays_while_others_follow(store):
    store.save(state(1), best=True)
    store.save(state(2))
    assert step_of(store.load("best.pt")) == 1
    store.save(state(3), best=True)
    assert step_of(store.load("best.pt")) == 3


def test_the_end_of_a_phase_is_kept(store):
    store.save(state(1))
    store.keep_phase(0)
    for step in (2, 3):
        store.save(state(step))
    assert step_of(store.load("phase-0.pt")) == 1


def test_where_links_are_not_offered_files_are_copied(store, monkeypatch):
    def no_links(*arguments):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(checkpoint.os, "link", no_links)
    store.save(state(1), best=True)
    store.save(state(2))
    assert step_of(store.load("best.pt")) == 1


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_strangers_checkpoint_executes_nothing(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store.folder.mkdir()
    torch.save({"format": checkpoint.FORMAT, "config_sha256": "abc", "x": Evil()}, store.folder / "last.pt")
    (store.folder / "last-1.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        store.load_last()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("value", [np.float64(1.0), np.zeros(2), test_the_end_of_a_phase_is_kept, Evil()])
def test_what_could_not_be_read_back_is_refused_when_saved(store, value):
    with pytest.raises(TypeError, match=r"checkpoint\['objects'\]\['schedule'\]\[1\]"):
        store.save({"position": {"step": 1}, "objects": {"schedule": [0, value]}})
    assert not store.folder.exists()
