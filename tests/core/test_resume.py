from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iclr18cli.data.tensors import Split
from iclr18cli.errors import Interrupted, UserError
from iclr18cli.run import atomic
from iclr18cli.run.directory import RunDirectory
from iclr18cli.run.start import open_run, resumable, resume_run
from iclr18cli.settings import TrainSettings

CONFIG = {"dataset": "noise", "seed": 3}
PRETRAINING, EPOCHS, BATCH, N, PER_EPOCH = 5, 3, 8, 34, 5
TOTAL = PRETRAINING + EPOCHS * PER_EPOCH


def settings(**given):
    return TrainSettings(**{"seed": 3, "device": "cpu", "checkpoint_every": 0, "log_every": 4, **given})


def noise() -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (N, 5), generator=generator, dtype=torch.uint8)
    return Split(x, torch.randint(3, (N,), generator=generator), ("a", "b", "c"), "noise", "train")


def tremble(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def training(run, after_step=lambda run: None):
    """Two phases that use everything a run must remember: dropout, all global generators, Adam, a schedule, values."""
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.97**step)
    run.track(net=net, optimizer=optimizer, schedule=schedule)
    data, own = noise(), run.generator("own")

    def update(x, y):
        loss = F.cross_entropy(net(x) * (1 + random.random() + np.random.rand()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss

    for number in run.steps(PRETRAINING):
        index = torch.randint(N, (BATCH,), generator=own)
        run.log(loss=update(data.inputs(index), data.y[index]), number=number)
        after_step(run)
    run.record("between", weight=net[0].weight.sum())
    assert run.best(torch.rand(()) + 100)
    teacher = net[0].weight.detach().clone() + torch.randn(16, 5)  # from this moment's weights and random numbers
    optimizer.param_groups[0]["weight_decay"] = 0.01
    for x, y in run.epochs(data, EPOCHS, batch_size=BATCH, augment=tremble):
        loss = update(x, y)
        with torch.no_grad():
            net[0].weight.lerp_(teacher, 0.01)
        run.values["sum"] = run.values.get("sum", 0.0) + float(loss.detach())
        run.log(loss=loss, accuracy=(net(x).argmax(1) == y).float().mean())
        if run.epoch_ends:
            run.record("test", sum=run.values["sum"])
            run.best(loss)
        after_step(run)
    run.record("final", weight=net[0].weight.sum())
    return digest(net)


def digest(net) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in net.state_dict().values())).hexdigest()


def lines(directory: RunDirectory) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "time"} for line in directory.metrics()]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, one_thread):
    with open_run("tiny", CONFIG, settings(), root=tmp_path_factory.mktemp("whole")) as run:
        weights = training(run)
    assert run.directory.status == "done"
    return weights, lines(run.directory)


def wait_for_the_signal(run):
    if run.step == STOP_AT:
        print("ready", flush=True)
        sys.stdin.readline()


STOP_AT = PRETRAINING + PER_EPOCH + 3  # in the middle of the second epoch
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """One training for each signal, started together, for they spend their time importing torch."""
    environment, started = {**os.environ, "OMP_NUM_THREADS": "1"}, {}
    for number in STOPS:
        root = tmp_path_factory.mktemp(number.name)
        command = [sys.executable, __file__, str(root)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started[number] = root, subprocess.Popen(command, env=environment, **pipes)
    yield started
    for _, process in started.values():
        process.kill()


@pytest.mark.parametrize("number", STOPS)
def test_a_stopped_process_resumes_to_the_same_bits(processes, uninterrupted, number):
    root, process = processes[number]
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(None if number == signal.SIGKILL else "go on\n", timeout=60)
    directory = resumable(root, "tiny", CONFIG, seed=3)
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert directory.status == "lost"
    else:
        assert process.returncode == 128 + number
        assert directory.status == "interrupted"
        assert errors.strip() == f"iclr18 tiny train --resume {directory.path}"
    with resume_run(directory, settings(seed=0)) as run:  # the run keeps its own seed
        assert run.resumed
        weights = training(run)
    assert (weights, lines(directory)) == uninterrupted
    trained = [line["step"] for line in directory.metrics() if line["split"] == "train"]
    assert trained == sorted(set(trained))
    assert trained[-1] == TOTAL > STOP_AT
    assert directory.status == "done"


def test_stopping_after_any_step_changes_no_bit(tmp_path, uninterrupted):
    for step in range(1, TOTAL + 1):

        def interrupt(run, step=step):
            if run.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        with (
            pytest.raises(Interrupted) as stopped,
            open_run("tiny", CONFIG, settings(checkpoint_every=1e9), root=tmp_path) as run,
        ):
            training(run, interrupt)
        assert stopped.value.signal == signal.SIGTERM
        assert run.step == step  # the step was finished and no other begun
        with resume_run(run.directory, settings(checkpoint_every=1e9)) as resumed:
            assert (training(resumed), lines(run.directory)) == uninterrupted


def test_a_crash_between_checkpoints_repeats_no_line(tmp_path, uninterrupted):
    """What kill -9 leaves: lines behind the last checkpoint; a second crash, in another phase, and a damaged file."""

    def crash_at(step):
        def crash(run):
            if run.step == step:
                raise OSError("power cut")

        return crash

    sparse = settings(checkpoint_every=1e9)
    with pytest.raises(OSError), open_run("tiny", CONFIG, sparse, root=tmp_path) as run:
        training(run, crash_at(PRETRAINING - 1))
    assert (run.directory.status, run.directory.info["reason"]) == ("failed", "OSError: power cut")
    assert "Traceback" in (run.path / "log.txt").read_text()
    assert not (run.path / "checkpoints").exists()
    for step in (PRETRAINING + 2, PRETRAINING + PER_EPOCH + 2, TOTAL - 1):
        with pytest.raises(OSError), resume_run(run.directory, sparse) as run:
            training(run, crash_at(step))
    last = run.path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    (run.path / "checkpoints" / ".last.pt.abc.tmp").touch()
    with resume_run(run.directory, sparse) as run:
        assert (training(run), lines(run.directory)) == uninterrupted
    assert "cannot be used" in (run.path / "log.txt").read_text()
    assert not list(run.path.rglob("*.tmp"))


def test_early_stopping_resumes_exactly(tmp_path):
    def work(run, last):
        net = nn.Linear(1, 1)
        run.track(net=net)
        for phase in (1, 2):
            for number in run.steps(10):
                nn.init.normal_(net.weight)
                run.log(loss=net.weight.detach().abs().sum())
                if number == 3 + phase:
                    run.stop()
                if run.step == last:
                    raise OSError
        return digest(net)

    with open_run("tiny", {}, settings(), root=tmp_path) as run:
        whole = work(run, None)
    assert run.step == 5 + 6
    for last in (3, 5, 7, 11):
        with contextlib.suppress(OSError), open_run("tiny", {}, settings(), root=tmp_path) as stopped:
            work(stopped, last)
        with resume_run(stopped.directory, settings()) as resumed:
            assert work(resumed, None) == whole
        assert lines(resumed.directory) == lines(run.directory)


def interrupted(root, **given):
    with pytest.raises(Interrupted), open_run("tiny", CONFIG, settings(**given), root=root) as run:
        training(run, lambda run: run.step == 3 and os.kill(os.getpid(), signal.SIGTERM))
    return run.directory


def test_what_cannot_be_resumed_is_refused_with_the_reason(tmp_path):
    run = open_run("tiny", CONFIG, settings(), root=tmp_path)
    with pytest.raises(UserError, match=f"by process {os.getpid()}"):
        resume_run(run.directory, settings())
    with run:
        run.finish()
    with pytest.raises(UserError, match="is done"):
        resume_run(run.directory, settings())
    directory = interrupted(tmp_path)
    with (directory.path / "config.toml").open("a") as file:
        file.write("epochs = 9\n")
    with pytest.raises(UserError, match=r"config\.toml was changed"):
        resume_run(directory, settings())
    assert directory.status == "interrupted"


def test_two_processes_never_resume_one_run(tmp_path):
    directory = interrupted(tmp_path)
    first = resume_run(directory, settings())
    directory.update(status="interrupted")  # as the second one saw it a moment ago
    with pytest.raises(UserError, match="by another process"):
        resume_run(directory, settings())
    first.close()


def test_a_checkpoint_of_other_code_is_refused(tmp_path):
    def go_on(run, **objects):
        run.track(**objects)
        next(run.steps(3))

    directory = interrupted(tmp_path)
    with pytest.raises(UserError, match="does not fit 'net'"), resume_run(directory, settings()) as run:
        go_on(run, net=nn.Linear(2, 2))
    with pytest.raises(UserError, match="does not hold 'critic'"), resume_run(directory, settings()) as run:
        go_on(run, critic=nn.Linear(2, 2))


def test_a_resumed_run_keeps_precision_and_interval(tmp_path):
    directory = interrupted(tmp_path, precision="bf16", log_every=2)
    with resume_run(directory, settings(device="auto", seed=9)) as run:
        assert (run.settings.precision, run.settings.log_every, run.seed) == ("bf16", 2, 3)
        assert run.device == torch.device("cpu")
        with run.autocast():
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
        training(run)


def test_a_full_disk_in_the_middle_is_one_clear_error_and_resumes(tmp_path, monkeypatch, uninterrupted):
    def full(handle):
        raise OSError(28, os.strerror(28))

    with pytest.raises(UserError) as caught, open_run("tiny", CONFIG, settings(), root=tmp_path) as run:
        training(run, lambda run: run.step == 9 and monkeypatch.setattr(atomic.os, "fsync", full))
    assert caught.value.why == "No space left on device"
    monkeypatch.undo()
    run.directory.update(pid=2**22 + 1)  # the status could not be written either; its process is gone
    with resume_run(run.directory, settings()) as resumed:
        assert (training(resumed), lines(run.directory)) == uninterrupted


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    try:
        with open_run("tiny", CONFIG, settings(), root=sys.argv[1]) as process_run:
            training(process_run, wait_for_the_signal)
    except Interrupted as stopped:
        print(stopped.hint, file=sys.stderr)
        sys.exit(128 + stopped.signal)
