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
from iclr18cli.launch import World

PROGRAM = [sys.executable, "-m", "iclr18cli"]
SMOOTHING = ["--sigma", "0.3", "--n", "400", "--limit", "60", "--device", "cpu"]


def around():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*arguments):
    ended = subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=around())
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
        run("wrm", "certify", copies[1], *line, "--nproc", 2)["certificates"],
        1e-5,
    )
    assert len(list((copies[1] / "eval").glob("*.json"))) == 1


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
    resumed = run("certify", copies[1], *line)
    assert resumed["certificates"][0]["solver"]["resumed_points"] == kept
    whole = run("certify", copies[0], *line[:-2])
    compared(whole["certificates"], resumed["certificates"], 0)
    assert not list((copies[1] / "certify").glob("*.rank-*"))


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


def test_slices_leave_something_for_every_rank(monkeypatch):
    monkeypatch.setattr(shared_points.launch, "world", lambda: World(0, 4))
    assert len(shared_points.slices(10, 100)) == 4
    assert sum(part.stop - part.start for part in shared_points.slices(10, 100)) == 10
