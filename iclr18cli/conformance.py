"""What a technique is held to: the checks behind `iclr18cli.testing.conformance`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iclr18cli.testing import run_cli


def records_resolve(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """Every target of the technique's records can be imported, and every config is made of options."""
    from iclr18cli.call import find_technique
    from iclr18cli.config import options
    from iclr18cli.plugin import resolve

    record = find_technique(technique)
    assert {"train", "eval", "certify"} <= set(record.commands)
    assert len(record.summary) <= 60
    for command in record.commands.values():
        assert callable(resolve(command.run))
        assert options(resolve(command.config))
        assert command.summary


def help_is_light(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """Help of the technique and of all its commands imports no torch, scipy or matplotlib."""
    from iclr18cli.call import find_technique

    lines = [[technique, "--help"], *([technique, word, "--help"] for word in find_technique(technique).commands)]
    program = (
        "import sys, json\nfrom iclr18cli.cli import run\n"
        f"codes = [run(line) for line in {lines!r}]\n"
        "heavy = sorted({'torch', 'scipy', 'matplotlib', 'torchattacks', 'sklearn'} & set(sys.modules))\n"
        "print(json.dumps([codes, heavy]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout.splitlines()[-1]) == [[0] * len(lines), []]


def presets_parse(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """Every preset of every command is accepted by a dry run, and training has the preset `smoke`."""
    from iclr18cli.call import Call, dry_run, find_technique
    from iclr18cli.presets import presets

    record = find_technique(technique)
    assert "smoke" in presets(record, "train")
    for word in record.commands:
        for name in presets(record, word):
            assert dry_run(Call(record, word, preset=name)).document["command"] == word


def smoke_train_leaves_a_run(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """The smoke preset trains on a CPU and leaves all files of a run, its config ready to be fed back."""
    folder = smoke_run(technique)
    for name in ("run.json", "config.toml", "env.json", "metrics.jsonl", "log.txt", "model.safetensors", "model.json"):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    assert run_cli(technique, "train", "--config", folder / "config.toml", "--dry-run").code == 0


def same_seed_gives_the_same_weights(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """The config of a run, fed back, gives the same bits."""
    folder = smoke_run(technique)
    again = run_cli(
        technique,
        "train",
        "--config",
        folder / "config.toml",
        "--device",
        "cpu",
        "--out",
        tmp_path / "again",
        "--quiet",
    )
    assert again.code == 0, again.err
    assert _digest(tmp_path / "again") == _digest(folder)


def resume_gives_the_same_weights(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """A training that SIGTERM stops goes on with --resume to the same bits as one that was not stopped."""
    from iclr18cli.manager import plugins
    from iclr18cli.plugin import hookimpl

    class Stop:
        @hookimpl
        def iclr18_run_logged(self, run: Any, step: int, metrics: Any) -> None:
            if step >= 2 and not self.sent:
                self.sent = True
                os.kill(os.getpid(), signal.SIGTERM)

        sent = False

    folder = tmp_path / "stopped"
    plugins().register(Stop(), name="stop-for-conformance")
    try:
        ended = run_cli(
            technique, "train", "--preset", "smoke", "--device", "cpu", "--out", folder, "--log-every", "2", "--quiet"
        )
    finally:
        plugins().unregister("stop-for-conformance")
    assert ended.code == 143, ended.err
    assert not (folder / "model.safetensors").exists()
    resumed = run_cli(technique, "train", "--resume", folder, "--device", "cpu", "--log-every", "2", "--quiet")
    assert resumed.code == 0, resumed.err
    assert _digest(folder) == _digest(smoke_run(technique))


def reload_by_name_gives_the_same_outputs(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """The model is rebuilt from model.json and safetensors alone, twice with the same weights, in eval mode."""
    from iclr18cli.models.card import open_model

    first, card = open_model(smoke_run(technique))
    second, _ = open_model(smoke_run(technique))
    assert card.task in ("classify", "language", "translate", "generate", "embed")
    assert not first.training
    one, two = first.state_dict(), second.state_dict()
    assert all((one[name] == two[name]).all() for name in one)


def eval_prints_one_json_document(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """`eval RUN --json` prints metrics and keeps them under eval/."""
    ended = run_cli(technique, "eval", smoke_run(technique), "--device", "cpu", "--json", "--quiet")
    assert ended.code == 0, ended.err
    assert ended.json["metrics"]
    assert Path(ended.json["file"]).is_file()


def certify_prints_certificates(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """`certify RUN --json` prints certificates of the published schema and keeps them under certify/."""
    ended = run_cli(technique, "certify", smoke_run(technique), "--device", "cpu", "--json", "--quiet")
    assert ended.code in (0, 4), ended.err
    assert ended.json["certificates"]
    for certificate in ended.json["certificates"]:
        check_certificate(certificate)
    assert Path(ended.json["file"]).is_file()


def attack_reports_an_upper_bound(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """`attack RUN --json` on a classifier reports a robust accuracy that is at most the clean one."""
    from iclr18cli.models.card import read_card

    if read_card(smoke_run(technique)).task != "classify":
        pytest.skip("no classifier")
    ended = run_cli(
        "attack",
        smoke_run(technique),
        "--steps",
        "3",
        "--restarts",
        "1",
        "--limit",
        "50",
        "--device",
        "cpu",
        "--json",
        "--quiet",
    )
    assert ended.code == 0, ended.err
    assert ended.json["verdict"] == "attack"
    assert ended.json["robust"]["accuracy"] <= ended.json["clean"]["accuracy"]


def blocking_removes_only_its_commands(technique: str, smoke_run: Any, tmp_path: Path) -> None:
    """With the plugin blocked the technique is gone and the core still works."""
    from iclr18cli.manager import plugins

    owner = plugins().owner("techniques", technique)
    assert owner is not None
    program = "import sys\nfrom iclr18cli.cli import run\nsys.exit(run(sys.argv[1:]))"
    around = {**os.environ, "ICLR18_BLOCK": owner.name}

    def code(*arguments: str) -> int:
        return subprocess.run([sys.executable, "-c", program, *arguments], env=around, capture_output=True).returncode

    assert code(technique, "--help") == 2
    assert code("--help") == 0


def check_certificate(document: dict[str, Any]) -> None:
    """Raise AssertionError unless a JSON certificate is of the published schema and honest about itself."""
    from iclr18cli.certify.result import SCHEMA

    assert document["schema"] == SCHEMA
    assert document["verdict"] in ("proven", "proven-prob", "measured", "estimate", "attack")
    assert document["statement"].strip().endswith(".")
    assert document["not_claimed"]
    assert isinstance(document["vacuous"], bool)
    if document["verdict"] == "proven-prob":
        assert 0 < document["confidence"]["delta"] < 1
    if document["verdict"].startswith("proven") and document["empirical"] and document["holds"]:
        bound, attack = document["value"], document["empirical"]["value"]
        assert attack <= bound if document["bound"] == "upper" else attack >= bound


def _digest(folder: Path) -> str:
    import hashlib

    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


CHECKS = (
    records_resolve,
    help_is_light,
    presets_parse,
    smoke_train_leaves_a_run,
    same_seed_gives_the_same_weights,
    resume_gives_the_same_weights,
    reload_by_name_gives_the_same_outputs,
    eval_prints_one_json_document,
    certify_prints_certificates,
    attack_reports_an_upper_bound,
    blocking_removes_only_its_commands,
)
"""What a technique is held to, in this order."""
