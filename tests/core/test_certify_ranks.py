"""Certificates and measurements in several processes: the same statements as one, each file written once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import ClassVar

import pytest
import torch

from iclr18cli.certify import shared_points
from iclr18cli.errors import UserError
from iclr18cli.launch import World

PROGRAM = [sys.executable, "-m", "iclr18cli"]
SMOOTHING = ["--sigma", "0.3", "--n", "400", "--limit", "60", "--device", "cpu"]


def around():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*arguments):
    ended = subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=around(), timeout=120)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)  # one document, from the first rank


@pytest.fixture
def copies(smoke_run, tmp_path):
    """Two copies of a run, for one process and for several."""
    ignored = shutil.ignore_patterns("attack", "certify", "eval")
    return [shutil.copytree(smoke_run("wrm"), tmp_path / name / "run", ignore=ignored) for name in ("one", "many")]


def compared(one, many, tolerance):
    assert len(one) == len(many) > 0
    for a, b in zip(one, many, strict=True):
        assert (a["kind"], a["verdict"], a["holds"]) == (b["kind"], b["verdict"], b["holds"])
        assert b["value"] == pytest.approx(a["value"], abs=tolerance)
        if a["empirical"]:
            assert b["empirical"]["value"] == pytest.approx(a["empirical"]["value"], abs=0.02)


def test_every_method_says_the_same_with_several_ranks(copies):
    line = ["--method", "all", *SMOOTHING, "--eps", "0.02", "--json", "--quiet"]
    one = run("certify", copies[0], *line)
    many = run("certify", copies[1], *line, "--nproc", 3)
    assert {row["method"] for row in one["summary"]} == {
        "wasserstein", "wasserstein-smoothing", "smoothing", "lipschitz", "ibp", "crown",
    }  # fmt: skip
    compared(one["certificates"], many["certificates"], 1e-6)
    for folder in ("certify", "attack"):
        names = [sorted(path.name for path in (copy / folder).glob("*")) for copy in copies]
        assert names[0] == names[1]
    tables = [next((copy / "certify").glob("smoothing-*.tsv")).read_text().splitlines() for copy in copies]
    assert [line.split("\t")[:6] for line in tables[0]] == [line.split("\t")[:6] for line in tables[1]]


def test_the_techniques_own_measurements_are_the_same(copies):
    one = run("wrm", "eval", copies[0], "--device", "cpu", "--json", "--quiet")["metrics"]
    many = run("wrm", "eval", copies[1], "--device", "cpu", "--json", "--quiet", "--nproc", 2)["metrics"]
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert many[name] == (pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value), name
    line = ["--device", "cpu", "--limit", "100", "--json", "--quiet"]
    compared(
        run("wrm", "certify", copies[0], *line)["certificates"],
        run("certify", copies[1], "--method", "technique", *line, "--nproc", 2)["certificates"],
        1e-5,
    )
    assert len(list((copies[1] / "eval").glob("*.json"))) == 1


def test_a_method_that_one_rank_alone_refuses_leaves_the_next_ones_as_they_are(tmp_path):
    own = tmp_path / "own_net.py"
    own.write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU())\n"
    )
    line = ["--model", f"{own}:net", "--dataset", "digits", "--method", "ibp,crown", "--limit", "40", "--eps", "0.02",
            "--eps", "0.04", "--device", "cpu", "--json", "--quiet"]  # fmt: skip
    one = run("certify", *line, "--out", tmp_path / "one")
    (blocked,) = (tmp_path / "one" / "certify").glob("*-ibp-linf-0.02-*.tsv")
    (tmp_path / "many" / "certify" / blocked.name).mkdir(parents=True)  # only the first rank writes it, and cannot
    many = run("certify", *line, "--out", tmp_path / "many", "--nproc", 4)
    assert [(row["method"], row["refused"].split()[:2]) for row in many["refused"]] == [("ibp", ["Cannot", "write"])]
    compared([c for c in one["certificates"] if c["kind"] == "crown"], many["certificates"], 1e-6)


def test_smoothing_that_was_stopped_goes_on_with_the_points_of_every_rank(copies):
    line = ["--method", "smoothing", "--sigma", "0.3", "--n", "4000", "--limit", "120", "--device", "cpu", "--json",
            "--quiet", "--nproc", "2"]  # fmt: skip
    process = subprocess.Popen([*PROGRAM, "certify", str(copies[1]), *line], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=around(), text=True)  # fmt: skip

    def lines():
        files = sorted((copies[1] / "certify").glob("*.rank-*-of-2.tsv"))
        return [len(path.read_text().splitlines()) - 2 for path in files]

    while process.poll() is None and (len(lines()) < 2 or min(lines()) < 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was over before the signal came")
    kept = sum(lines())
    assert kept >= 4
    shutil.copytree(copies[1], copies[0], dirs_exist_ok=True)
    resumed = run("certify", copies[1], *line)
    assert resumed["certificates"][0]["solver"]["resumed_points"] == kept
    whole = run("certify", copies[0], *line[:-2])
    compared(whole["certificates"], resumed["certificates"], 0)
    for copy in copies:  # one process begins anew, and leaves nothing that a later call of two would stumble over
        assert not list((copy / "certify").glob("*.rank-*"))


class Heard(World):
    """One of three ranks that is told what the others found."""

    everyone: ClassVar[dict] = {}

    def gather(self, own):
        self.everyone[self.rank] = own
        if len(self.everyone) < self.size:
            raise LookupError("the others have not spoken yet")
        return [self.everyone[rank] for rank in range(self.size)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_results_come_back_in_the_order_of_the_parts(count, monkeypatch):
    Heard.everyone = {}
    found = None
    for rank in (0, 1, 2):
        monkeypatch.setattr(shared_points.launch, "world", lambda rank=rank: Heard(rank, 3))
        with suppress(LookupError):
            found = shared_points.in_parts(list(range(count)), lambda part: torch.tensor([10 * part]))
    assert [int(result) for result in found] == [10 * part for part in range(count)]


@pytest.mark.parametrize("shared", [
    lambda refuse: shared_points.in_parts([0, 1, 2], refuse),
    lambda refuse: shared_points.alike(lambda: refuse(shared_points.launch.world().rank)),
])  # fmt: skip
def test_what_one_rank_refuses_all_refuse(shared, monkeypatch):
    def refuse(part):
        if part == 1:
            raise UserError("part 1 is refused")

    Heard.everyone = {}
    for rank in (0, 1, 2, 0, 1):  # those that spoke first hear the others the second time
        monkeypatch.setattr(shared_points.launch, "world", lambda rank=rank: Heard(rank, 3))
        if len(Heard.everyone | {rank: None}) < 3:
            with suppress(LookupError):
                shared(refuse)
        else:
            with pytest.raises(UserError, match="part 1"):
                shared(refuse)


def test_slices_leave_something_for_every_rank(monkeypatch):
    monkeypatch.setattr(shared_points.launch, "world", lambda: World(0, 4))
    assert len(shared_points.slices(10, 100)) == 4
    assert sum(part.stop - part.start for part in shared_points.slices(10, 100)) == 10
