"""Several processes for one command: how many, who talks, and the same points as one process sees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from iclr18cli import launch, spawn
from iclr18cli.errors import UsageError


def test_the_number_of_processes_is_a_whole_number_or_auto():
    assert spawn.wanted("3") == 3
    assert spawn.wanted("auto") >= 1
    for wrong in ("0", "-1", "two", "1.5", ""):
        with pytest.raises(UsageError, match="--nproc"):
            spawn.wanted(wrong)


def test_a_process_alone_is_the_first_of_one():
    assert not launch.started()
    assert launch.place() == 0
    assert launch.world().gather("x") == ["x"]
    with launch.joined() as world:
        assert (world.rank, world.size) == (0, 1)


def test_two_processes_share_the_points_and_one_talks(smoke_run, tmp_path):
    run = shutil.copytree(smoke_run("wrm"), tmp_path / "run", ignore=shutil.ignore_patterns("attack"))
    base = [sys.executable, "-m", "iclr18cli", "attack", str(run), "--device", "cpu", "--json", "--norm", "l2",
            "--eps", "0.3", "--steps", "5", "--no-diagnose", "--limit", "151", "--save-examples"]  # fmt: skip
    alone = json.loads(subprocess.run(base, capture_output=True, text=True, check=True).stdout)
    ended = subprocess.run([*base, "--nproc", "2"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    shared = json.loads(ended.stdout)  # one document: the second rank was silent
    assert shared["ranks"] == 2
    assert shared["clean"] == alone["clean"]
    assert shared["sample"] == alone["sample"]
    assert sum(stage["points"] for stage in shared["stages"]) == alone["stages"][0]["points"]
    # Random starts are drawn per batch, so a point or two may go the other way.
    assert abs(shared["robust"]["correct"] - alone["robust"]["correct"]) <= 2
    table = (run / "attack").glob("*-points.tsv")
    assert all(len(path.read_text().splitlines()) == 152 for path in table)


def test_a_rank_that_fails_ends_the_command_with_its_exit_code(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "iclr18cli", "attack", str(tmp_path / "none"), "--nproc", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode in (2, 3)
    assert "Traceback" not in ended.stderr
