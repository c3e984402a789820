from __future__ import annotations

import contextlib
import math
import os
import signal
import threading

import pytest
import torch
from torch import nn

from iclr18cli.data.tensors import Split, order
from iclr18cli.errors import Interrupted, UserError
from iclr18cli.run.checkpoint import Checkpoints
from iclr18cli.run.interval import Interval
from iclr18cli.run.start import open_run
from iclr18cli.settings import TrainSettings

N, BATCH = 34, 8
PER_EPOCH = math.ceil(N / BATCH)


@pytest.fixture(autouse=True)
def deterministic_off():
    yield
    torch.use_deterministic_algorithms(False)


def settings(**given):
    return TrainSettings(**{"seed": 3, "device": "cpu", "checkpoint_every": 0, "log_every": 4, **given})


def noise() -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (N, 5), generator=generator, dtype=torch.uint8)
    return Split(x, torch.randint(3, (N,), generator=generator), ("a", "b", "c"), "noise", "train")


def test_the_second_signal_stops_at_once_and_handlers_come_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def two_signals(run):
        for _ in run.steps(5):
            if run.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("the step went on")

    with pytest.raises(Interrupted), open_run("tiny", {}, settings(), root=tmp_path) as run:
        two_signals(run)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert run.directory.status == "interrupted"
    saved, _ = Checkpoints(run.path / "checkpoints", run.directory.info["config_sha256"]).load_last()
    assert saved["position"]["step"] == 1


def test_signals_are_watched_only_while_iterating_and_only_in_the_main_thread(tmp_path):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work(root):
        with open_run("tiny", {}, settings(), root=root) as run:
            for _ in run.steps(1):
                seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work, args=(tmp_path,))
    thread.start()
    thread.join()
    work(tmp_path)
    assert seen[0] == before != seen[1]
    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        for _ in run.steps(5):
            break
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
@pytest.mark.parametrize("checkpoint_every", [0, 1e9])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_steps(tmp_path, value, word, checkpoint_every):
    last_finite = 0.1 + 0.2
    given = settings(checkpoint_every=checkpoint_every, log_every=20)
    weight = nn.Linear(1, 1)

    def diverge(run):
        run.track(weight=weight)
        for number in run.steps(90):
            loss = torch.tensor(last_finite if number == 36 else 1.0, dtype=torch.float64)
            nn.init.constant_(weight.weight, value if number >= 37 else 1.0)
            run.log(loss=torch.tensor(value) if number >= 37 else loss)

    with pytest.raises(UserError) as caught, open_run("tiny", {}, given, root=tmp_path) as run:
        diverge(run)
    assert caught.value.what == f"The loss became {word} at step 38."
    assert f"{last_finite!r} at step 37" in caught.value.why
    assert caught.value.fix
    assert run.directory.status == "failed"
    assert "step 38" in run.directory.info["reason"]
    assert all(line["step"] <= 20 for line in run.directory.metrics())
    if checkpoint_every == 0:
        saved, _ = Checkpoints(run.path / "checkpoints", run.directory.info["config_sha256"]).load_last()
        assert saved["position"]["step"] == 37
        assert saved["memory"]["objects"]["weight"]["weight"].isfinite().all()


def one_step(run, **metrics):
    for _ in run.steps(1):
        run.log(**metrics)


def test_the_first_loss_may_be_the_bad_one_and_other_metrics_may_not_be_finite(tmp_path):
    with pytest.raises(UserError, match="at step 1") as caught, open_run("a", {}, settings(), root=tmp_path) as run:
        one_step(run, loss=math.nan)
    assert "no step before" in caught.value.why
    with open_run("b", {}, settings(), root=tmp_path) as run:
        one_step(run, radius=torch.tensor(math.inf))
    assert run.directory.metrics()[0]["radius"] is None


def test_means_are_written_once_per_interval_and_at_the_end(tmp_path):
    with open_run("tiny", {}, settings(log_every=4), root=tmp_path) as run:
        for number in run.steps(10):
            run.log(
                loss=torch.tensor(float(number)), count=number, half=torch.tensor([number / 2], dtype=torch.float64)
            )
            if number % 2:
                run.log(odd=torch.tensor(number))
    written = run.directory.metrics()
    assert all(line.pop("time") >= 0 for line in written)
    assert written == [
        {"step": 4, "epoch": 0, "split": "train", "loss": 1.5, "count": 1.5, "half": 0.75, "odd": 2.0},
        {"step": 8, "epoch": 0, "split": "train", "loss": 5.5, "count": 5.5, "half": 2.75, "odd": 6.0},
        {"step": 10, "epoch": 0, "split": "train", "loss": 8.5, "count": 8.5, "half": 4.25, "odd": 9.0},
    ]


def test_a_metric_is_one_number_and_has_a_name_of_its_own(tmp_path):
    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        with pytest.raises(ValueError, match=r"'loss' must be one number; received shape \(2,\)"):
            run.log(loss=torch.ones(2))
        with pytest.raises(ValueError, match="received 'epoch'"):
            run.record("test", epoch=3)


def test_values_leave_the_device_once_per_interval(monkeypatch):
    interval, transfers = Interval(), []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: transfers.append(self.shape) or tolist(self))
    for step in range(50):
        interval.add(step, {"loss": torch.tensor(1.0), "rho": torch.tensor(2.0)})
    assert transfers == []
    assert interval.means() == {"loss": 1.0, "rho": 2.0}
    assert transfers == [(100,)]


def test_each_epoch_visits_every_example_once_in_the_order_of_seed_and_epoch(tmp_path):
    data = Split(torch.arange(N, dtype=torch.float32)[:, None], torch.arange(N), ("x",), "count", "train", range=None)
    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        seen = [y for _, y in run.epochs(data, 2, batch_size=BATCH)]
        seen += [y for _, y in run.epochs(data, 1, batch_size=BATCH, drop_last=True)]
        assert (run.step, run.epoch) == (3 * PER_EPOCH - 1, 3)
    assert [len(y) for y in seen] == 2 * [8, 8, 8, 8, 2] + [8, 8, 8, 8]
    orders = [order(N, seed=3, epoch=epoch) for epoch in range(3)]
    assert torch.equal(torch.cat(seen), torch.cat([orders[0], orders[1], orders[2][:32]]))


def test_batches_are_the_stored_bytes_over_255(tmp_path):
    data = noise()
    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        x, y = next(iter(run.epochs(data, 1, batch_size=BATCH)))
    index = order(N, seed=3, epoch=0)[:BATCH]
    assert torch.equal(x, data.x[index].float() / 255)
    assert torch.equal(y, data.y[index])


def test_impossible_batches_are_refused(tmp_path):
    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        with pytest.raises(UserError, match="no batch of 64"):
            run.epochs(noise(), 1, batch_size=64, drop_last=True)
        with pytest.raises(ValueError, match="received 1 and 0"):
            run.epochs(noise(), 1, batch_size=0)


def test_phases_follow_one_another(tmp_path):
    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        both = zip(run.steps(3), run.steps(3), strict=True)
        with pytest.raises(RuntimeError, match="inside the first"):
            next(both)
    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        for _ in run.steps(3):
            break
        with pytest.raises(RuntimeError, match=r"run\.stop"):
            next(run.steps(3))


def test_the_best_checkpoint_is_the_one_of_the_best_value(tmp_path):
    net = nn.Linear(1, 1, bias=False)
    with open_run("tiny", {}, settings(checkpoint_every=1e9), root=tmp_path) as run:
        run.track(net=net)
        marks = []
        for number in run.steps(4):
            nn.init.constant_(net.weight, number)
            marks.append(run.best([0.5, 0.3, math.nan, 0.4][number]))
        run.restore_best()
    assert marks == [True, True, False, False]
    assert net.weight.item() == 1.0


def test_checkpoints_are_not_written_at_every_epoch(tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, state, best=False: saves.append(state["position"]["step"]))
    with open_run("tiny", {}, settings(checkpoint_every=3600), root=tmp_path) as run:
        for _ in run.epochs(noise(), 5, batch_size=BATCH):
            pass
    assert saves == [5 * PER_EPOCH]


def test_generators_are_functions_of_seed_and_name(tmp_path):
    def draw(seed, name):
        with open_run("tiny", {}, settings(seed=seed), root=tmp_path) as run:
            assert run.generator(name) is run.generator(name)
            return torch.rand(3, generator=run.generator(name)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(seed, name)) for seed in (0, 1) for name in ("a", "b")}) == 4


def test_a_run_that_cannot_start_leaves_nothing(tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device") as caught:
            open_run("tiny", {}, settings(device="cuda"), root=tmp_path / "a")
        assert caught.value.code == 3
        assert "--device cpu" in caught.value.fix
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        open_run("tiny", {}, settings(precision="fp16"), root=tmp_path / "a")
    for name in ("gpu", "cuda:x", "cpu:1", "cud"):
        with pytest.raises(UserError, match=f"no device '{name}'") as caught:
            open_run("tiny", {}, settings(device=name), root=tmp_path / "a")
        assert caught.value.code == 2
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr("iclr18cli.run.start.environment", lambda device: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_run("tiny", {}, settings(), root=tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_observers_and_progress_see_the_whole_run(tmp_path):
    events, bars = [], []

    @contextlib.contextmanager
    def progress(total, label):
        class Bar:
            done, shown = 0, None

            def advance(self, n=1, **metrics):
                self.done += n
                self.shown = metrics or self.shown

        bar = Bar()
        bars.append((total, bar))
        yield bar

    def observer(event, *, run, **arguments):
        events.append((event, arguments.get("step"), arguments.get("status")))

    def two_phases(run):
        one_step(run, loss=1.0)
        for _ in run.steps(25):
            run.log(loss=1.0)
        raise OSError

    given = {"root": tmp_path, "progress": progress, "observer": observer}
    with pytest.raises(OSError), open_run("tiny", {}, settings(log_every=10), **given) as run:
        two_phases(run)
    assert [(total, bar.done) for total, bar in bars] == [(1, 1), (25, 25)]
    assert bars[1][1].shown == {"loss": 1.0}
    logged = [("run_logged", step, None) for step in (1, 10, 20, 26)]
    assert events == [("run_started", None, None), *logged, ("run_finished", None, "failed")]


def test_final_metrics_and_files_of_a_run(tmp_path):
    with open_run("tiny", {"gamma": 2.0}, settings(), root=tmp_path, argv=["tiny", "train"]) as run:
        one_step(run, loss=1.0)
        one_step(run, loss=2.0)
        run.best(0.1)
        run.finish(accuracy=0.9, error=torch.tensor(0.1, dtype=torch.float64))
    info = run.directory.info
    assert info["metrics"] == {"accuracy": 0.9, "error": 0.1}
    assert info["ended"] > info["started"]
    assert info["seconds"] > 0
    names = {path.name for path in run.path.iterdir()} - {".lock"}
    assert names == {"run.json", "config.toml", "env.json", "metrics.jsonl", "log.txt", "checkpoints"}
    kept = {path.name for path in (run.path / "checkpoints").iterdir()}
    assert kept == {"last.pt", "last-1.pt", "best.pt", "phase-0.pt"}


def test_passes_count_epochs_whose_steps_differ_in_number(tmp_path):
    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        seen = [(place, run.epoch, run.epoch_ends) for place in run.passes([2, 1, 3])]
        assert [place for place, _, _ in seen] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
        assert [epoch for _, epoch, _ in seen] == [1, 1, 2, 3, 3, 3]
        assert [ends for _, _, ends in seen] == [False, True, True, False, False, True]
        with pytest.raises(ValueError, match="every epoch"):
            next(iter(run.passes([2, 0])))
