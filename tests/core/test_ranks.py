"""Training in several processes: the same result as one, and nothing lost when one of them is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iclr18cli import api
from iclr18cli.errors import UsageError
from iclr18cli.launch import World, _adopt_slurm, first_host
from iclr18cli.run.checkpoint import Checkpoints
from iclr18cli.run.memory import Memory

PROGRAM = [sys.executable, "-m", "iclr18cli"]
TRAIN = ["wrm", "train", "--dataset", "digits", "--inner-steps", "2", "--batch-size", "100", "--device", "cpu",
         "--log-every", "4"]  # fmt: skip


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run(*arguments, **more):
    line = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment(**more))


def weights(path):
    return load_file(Path(path) / "model.safetensors")


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def distance(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


def lines(path):
    return [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    ended = run(*TRAIN, "--epochs", 2, "--out", folder, "--quiet")
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("ranks", [3])
def test_ranks_that_share_batches_learn_what_one_process_learns(alone, ranks, tmp_path):
    # 1,437 examples in batches of 100, the last one of 37: 3 divides neither.
    ended = run(*TRAIN, "--epochs", 2, "--out", tmp_path / "run", "--nproc", ranks, "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)  # one document: the other ranks are silent
    assert distance(weights(alone), weights(tmp_path / "run")) < 2e-4
    for one, many in zip(lines(alone), lines(tmp_path / "run"), strict=True):
        assert (one["step"], one["epoch"]) == (many["step"], many["epoch"])
        if one["split"] == "train":
            assert many["loss"] == pytest.approx(one["loss"], rel=1e-4)
            assert many["rho"] == pytest.approx(one["rho"], rel=1e-2)
    assert json.loads((tmp_path / "run" / "env.json").read_text())["ranks"] == ranks
    assert document["metrics"]["accuracy"] == pytest.approx(
        json.loads((alone / "run.json").read_text())["metrics"]["accuracy"], abs=0.01
    )


def begun(folder, *arguments, at_least=1):
    """Start a training of two ranks and return it with its ranks' process numbers, when it has a checkpoint."""
    line = [*PROGRAM, *TRAIN, "--epochs", "6", "--out", str(folder), "--nproc", "2", "--checkpoint-every", "0.2",
            *arguments]  # fmt: skip
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    last = folder / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 100
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    ranks = {}
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for child in children.read_text().split():
        for entry in Path(f"/proc/{child}/environ").read_text().split("\0"):
            if entry.startswith("RANK="):
                ranks[int(entry.removeprefix("RANK="))] = int(child)
    assert sorted(ranks) == [0, 1]
    return process, ranks


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two ranks end with when nothing disturbs them."""
    folder = tmp_path_factory.mktemp("both") / "run"
    ended = run(*TRAIN, "--epochs", 6, "--out", folder, "--nproc", 2, "--quiet")
    assert ended.returncode == 0, ended.stderr
    return weights(folder)


linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks through /proc")


@linux
def test_a_killed_rank_ends_the_run_with_one_line_and_the_run_can_be_resumed_to_the_same_bits(both, tmp_path):
    folder = tmp_path / "run"
    process, ranks = begun(folder)
    os.kill(ranks[1], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 137
    assert told.count("\n") == 1, told
    assert "rank 1 of 2 was killed by SIGKILL" in told
    assert "--resume auto" in told
    log = Path(told.split("log: ")[1].split("  fix:")[0])
    assert log.is_file()
    assert not (folder / "model.safetensors").exists()
    resumed = run("wrm", "train", "--resume", folder, "--nproc", 2, "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert same(weights(folder), both)
    steps = [line["step"] for line in lines(folder) if line["split"] == "train"]
    assert steps == sorted(set(steps))  # nothing lost, nothing twice


@linux
def test_with_max_restarts_a_killed_rank_costs_only_the_way_back_to_the_checkpoint(both, tmp_path):
    folder = tmp_path / "run"
    process, ranks = begun(folder, "--max-restarts", "1")
    os.kill(ranks[1], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert told.startswith("warning: a process was lost; starting again from")
    assert same(weights(folder), both)
    info = json.loads((folder / "run.json").read_text())
    assert info["status"] == "done"
    assert len(info["resumed"]) == 1


@linux
def test_a_signal_ends_all_ranks_at_one_step_after_a_checkpoint(both, tmp_path):
    number = signal.SIGINT
    folder = tmp_path / "run"
    process, ranks = begun(folder)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert told == f"stopped; go on with  iclr18 wrm train --resume {folder} --nproc 2\n"
    for rank in ranks.values():
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)
    parts = [torch.load(folder / "checkpoints" / name) for name in ("last.pt", "last.rank-1.pt")]
    assert parts[0]["position"] == parts[1]["position"]
    assert not parts[1]["memory"]["objects"]  # what all ranks share is kept once
    resumed = run("wrm", "train", "--resume", folder, "--nproc", 2, "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert same(weights(folder), both)


@linux
def test_ranks_end_with_a_launcher_that_is_killed(tmp_path):
    process, ranks = begun(tmp_path / "run")
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{rank}/stat").exists() for rank in ranks.values()):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{rank}/stat").exists() for rank in ranks.values())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


@linux
def test_a_run_of_two_ranks_goes_on_with_one_and_says_that_the_bits_differ(both, tmp_path):
    folder = tmp_path / "run"
    process, _ = begun(folder)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    resumed = run("wrm", "train", "--resume", folder, "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on with 1 process instead of 2" in resumed.stderr
    assert distance(weights(folder), both) < 5e-3


def test_the_same_command_joins_the_group_that_torchrun_made(alone, tmp_path):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "iclr18cli",
            *TRAIN, "--epochs", "2", "--out", str(tmp_path / "run"), "--json"]  # fmt: skip
    ended = subprocess.run(line, capture_output=True, text=True, check=False, env=environment())
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["run"] == str(tmp_path / "run")
    assert distance(weights(alone), weights(tmp_path / "run")) < 2e-4


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_machines_meet_at_an_endpoint(alone, tmp_path):
    meeting = ["--nnodes", "2", "--rdzv-endpoint", f"localhost:{free_port()}"]
    line = [*PROGRAM, *TRAIN, "--epochs", "2", "--out", str(tmp_path / "run"), *meeting, "--quiet"]
    nodes = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True)
             for _ in range(2)]  # fmt: skip
    told = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert sorted(bool(out) for out, _ in told) == [False, True]
    assert distance(weights(alone), weights(tmp_path / "run")) < 2e-4


def test_tasks_of_a_slurm_step_are_ranks(alone, tmp_path):
    line = [*PROGRAM, *TRAIN, "--epochs", "2", "--out", str(tmp_path / "run"), "--quiet"]
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0",
            "SLURM_STEP_TASKS_PER_NODE": "2", "MASTER_PORT": str(free_port())}  # fmt: skip
    tasks = [
        subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env=environment(**step, SLURM_PROCID=str(task), SLURM_LOCALID=str(task)))
        for task in range(2)
    ]  # fmt: skip
    told = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], told
    assert distance(weights(alone), weights(tmp_path / "run")) < 2e-4


def test_a_shell_of_a_slurm_job_is_no_rank():
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    _adopt_slurm(batch_script)
    assert "RANK" not in batch_script
    step = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_ID": "123",
            "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu[07-08]",
            "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}  # fmt: skip
    _adopt_slurm(step)
    assert (step["RANK"], step["WORLD_SIZE"], step["LOCAL_RANK"], step["LOCAL_WORLD_SIZE"]) == ("5", "8", "1", "4")
    assert step["MASTER_ADDR"] == "gpu07"
    assert 20000 <= int(step["MASTER_PORT"]) < 40000
    assert first_host("a[1,3-4]b,c") == "a1b"


def test_options_that_contradict_each_other_are_wrong_usage(cli):
    for wrong in (["--nnodes", "2"], ["--rdzv-endpoint", "localhost:1"], ["--nproc", "zero"]):
        ended = cli("wrm", "train", "--preset", "smoke", *wrong)
        assert ended.code == 2
        assert "--nproc" in ended.err or "--nnodes" in ended.err or "--rdzv-endpoint" in ended.err


def test_from_python_ranks_come_from_torchrun(runs):
    with pytest.raises(UsageError, match="under torchrun"):
        api.train("wrm", preset="smoke", nproc="2")
    assert not runs.exists()


def test_a_run_that_cannot_be_made_is_told_once_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    ended = run(*TRAIN, "--epochs", 1, "--out", tmp_path / "taken", "--nproc", 2)
    assert ended.returncode == 3
    assert ended.stderr.count("error:") == 1
    assert "not empty" in ended.stderr
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


def test_parts_cover_everything_once():
    for size in (1, 2, 3, 7):
        for count in (0, 1, 5, 8, 100):
            parts = [range(count)[World(rank, size).part(count)] for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


class Pending:
    """What a rank has of its own: numbers of which the mean over the ranks must survive."""

    def __init__(self):
        self.value = torch.zeros(2)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]

    def merge(self, states):
        return {"value": torch.stack([state["value"] for state in states]).mean(0)}


class Silent(World):
    """A rank whose neighbours say nothing: enough to write its files."""

    def wait(self):
        pass

    def broadcast(self, own):
        return own


def saved_by(folder, ranks, step):
    for rank in reversed(range(ranks)):
        memory, pending = Memory(3, torch.device("cpu"), rank), Pending()
        pending.value = torch.tensor([float(rank), 1.0 + step])
        memory.track_own("pending", pending)
        memory.generator("noise", torch.device("cpu"), per_rank=True)
        memory.generator("order", torch.device("cpu"))
        state = {"position": {"step": step}, "memory": memory.capture()}
        Checkpoints(folder, "x", Silent(rank, ranks)).save(state)


@pytest.mark.parametrize(("rank", "ranks", "value"), [(0, 3, 0.0), (2, 3, 2.0), (0, 1, 1.0), (1, 2, 1.0), (4, 5, 1.0)])
def test_what_a_rank_owns_comes_back_and_is_merged_for_another_number_of_ranks(rank, ranks, value, tmp_path):
    saved_by(tmp_path, 3, step=7)
    checkpoints = Checkpoints(tmp_path, "x", Silent(rank, ranks))
    state = checkpoints._with_parts(checkpoints.shared("last.pt"), ("last.pt", "last-1.pt"))
    memory, pending = Memory(3, torch.device("cpu"), rank), Pending()
    memory.track_own("pending", pending)
    memory.restore(state["memory"])
    assert pending.value.tolist() == [value, 8.0]


def test_a_rank_takes_the_part_of_the_step_that_the_first_one_finished(tmp_path):
    saved_by(tmp_path, 2, step=1)
    kept = (tmp_path / "last.pt").read_bytes()
    saved_by(tmp_path, 2, step=2)
    (tmp_path / "last.pt").write_bytes(kept)  # the first rank was killed before it wrote step 2
    checkpoints = Checkpoints(tmp_path, "x", Silent(1, 2))
    state = checkpoints._with_parts(checkpoints.shared("last.pt"), ("last.pt", "last-1.pt"))
    assert state["memory"]["own"]["pending"]["value"].tolist() == [1.0, 2.0]
    # The next save must not push the part that is valid out of the way.
    assert torch.load(tmp_path / "last.rank-1.pt")["position"]["step"] == 1


def test_ranks_draw_different_numbers_only_where_they_ask_for_it():
    drawn = {}
    for rank in range(3):
        memory = Memory(0, torch.device("cpu"), rank)
        own = memory.generator("own", torch.device("cpu"), per_rank=True)
        shared = memory.generator("shared", torch.device("cpu"))
        drawn[rank] = [torch.rand(3, generator=generator).tolist() for generator in (own, shared)]
    assert drawn[0][1] == drawn[1][1] == drawn[2][1]
    assert len({tuple(own) for own, _ in drawn.values()}) == 3
