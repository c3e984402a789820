"""For authors of plugins: pytest fixtures and the conformance kit that our own techniques have to pass.

    from iclr18cli.testing import conformance
    test_my_method = conformance("my-method")

Loaded by pytest through the entry point `pytest11`; the core is imported when a fixture is used.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Ended:
    """How a command line ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def run_cli(*arguments: str | Path) -> Ended:
    """Run one command line in this process and return how it ended."""
    from iclr18cli.cli import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs of its own."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("ICLR18_RUNS", str(folder))
    return folder


@pytest.fixture
def cli(runs: Path) -> Callable[..., Ended]:
    """`cli("wrm", "train", "--preset", "smoke")` -> Ended, with a folder of runs of its own."""
    return run_cli


@pytest.fixture
def with_plugin() -> Iterator[Callable[..., Any]]:
    """`with_plugin(obj, name="x")` registers a plugin object until the test ends and returns its health."""
    from iclr18cli.manager import plugins

    added: list[str] = []

    def add(plugin: Any, name: str = "under-test") -> Any:
        added.append(name)
        return plugins().register(plugin, name=name)

    yield add
    for name in added:
        plugins().unregister(name)


_trained: dict[str, Path] = {}


@pytest.fixture
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`smoke_run("wrm")` -> directory of a run of the technique's smoke preset, trained once per session."""

    def train(technique: str) -> Path:
        if technique not in _trained:
            folder = tmp_path_factory.mktemp("smoke") / technique
            ended = run_cli(
                technique, "train", "--preset", "smoke", "--device", "cpu", "--out", folder, "--json", "--quiet"
            )
            assert ended.code == 0, ended.err
            assert Path(ended.json["run"]) == folder
            _trained[technique] = folder
        return _trained[technique]

    return train


def conformance(technique: str) -> Callable[..., None]:
    """Return one parametrised test that holds a technique to the contract."""

    from iclr18cli.conformance import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test(check: Callable[..., None], smoke_run: Callable[[str], Path], tmp_path: Path) -> None:
        check(technique, smoke_run, tmp_path)

    return test
