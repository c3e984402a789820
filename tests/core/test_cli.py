"""The command line: exit codes, streams, JSON, help without torch, dry runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import types

import pytest

from iclr18cli import __version__
from iclr18cli.cli import CORE
from iclr18cli.errors import ExitCode
from iclr18cli.manager import plugins
from iclr18cli.plugin import Command, Technique, hookimpl

ESCAPE = "\x1b["
HEAVY = ("torch", "scipy", "matplotlib", "torchattacks", "sklearn", "numpy", "PIL", "h5py")
GROUPS = ("runs", "data", "models", "plugins")


def process(*arguments, stdin=None, **environment):
    """Run `python -m iclr18cli` in a process of its own."""
    around = {k: v for k, v in os.environ.items() if not k.startswith("ICLR18_")} | environment
    line = [sys.executable, "-m", "iclr18cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=around, input=stdin, timeout=120)


def python(program, **environment):
    around = {k: v for k, v in os.environ.items() if not k.startswith("ICLR18_")} | environment
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=around, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def subcommands(group):
    from iclr18cli.plugin import resolve

    target = next(target for name, _, target in CORE if name == group)
    return [c.name or c.callback.__name__ for c in resolve(target).registered_commands]


# ---- help


def test_help_of_every_command_loads_nothing_heavy():
    lines = [["--help"], *([name, "--help"] for name, *_ in CORE)]
    lines += [[group, word, "--help"] for group in GROUPS for word in subcommands(group)]
    for technique in plugins().techniques():
        lines += [[technique.name, "--help"], *([technique.name, word, "--help"] for word in technique.commands)]
    assert len(lines) > 25
    found = python(
        "import sys, json, io, contextlib\nfrom iclr18cli.cli import run\nfound = []\n"
        f"for line in {lines!r}:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = run(line)\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    found.append([line, code, heavy, 'Usage: iclr18' in out.getvalue(), err.getvalue()])\n"
        "print(json.dumps(found))"
    )
    for line, code, heavy, usage, err in found:
        assert (code, heavy, usage, err) == (0, [], True, ""), line


@pytest.mark.parametrize(
    "line",
    [["--help"], ["--version"], ["wrm", "train", "--preset", "smoke", "--dry-run"], ["wrm", "train", "--gama", "1"],
     ["wrm", "train", "--gamma", "0"], ["runs", "list"], ["data", "list"], ["plugins", "list"],
     ["attack", "RUN", "--attack", "pdg"], ["certify", "RUN", "--method", "x"]],
    ids=" ".join,
)  # fmt: skip
def test_quick_answers_do_not_import_torch(line, tmp_path):
    program = (
        "import sys, json\nfrom iclr18cli.cli import run\n"
        f"run({line!r})\nprint()\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    assert python(program, ICLR18_RUNS=str(tmp_path)) == []


def test_help_of_one_technique_imports_only_its_records_and_configs():
    program = (
        "import sys, json, io, contextlib\nfrom iclr18cli.cli import run\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n    run(['wrm', 'train', '--help'])\n"
        "print(json.dumps(sorted(m for m in sys.modules if m.startswith('iclr18_'))))"
    )
    assert [name for name in python(program) if "." in name] == ["iclr18_wrm.config"]


def program(*arguments, **environment):
    """Run the installed program `iclr18`."""
    line = [os.path.join(os.path.dirname(sys.executable), "iclr18"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env=os.environ | environment)


def test_completion_offers_commands_and_techniques():
    ended = program(_ICLR18_COMPLETE="complete_bash", COMP_WORDS="iclr18 wr", COMP_CWORD="1")
    assert ended.stdout.split() == ["wrm"]


@pytest.mark.parametrize("line", [(), ("wrm",), ("runs",), ("data",), ("plugins",), ("models",)])
def test_a_group_without_a_command_shows_its_help_and_is_wrong_usage(cli, line):
    ended = cli(*line)
    assert ended.code == ExitCode.USAGE
    assert "Usage: iclr18" in ended.out + ended.err
    assert "error:   see" not in ended.err


# ---- version and module


def test_the_version_is_printed_by_the_program_and_by_the_module():
    ended = process("--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"iclr18 {__version__}\n", "")
    assert program("--version").stdout == ended.stdout


# ---- wrong usage


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("wrmm",), "Did you mean 'wrm'?"), (("wrm", "trian"), "Did you mean 'train'?"),
        (("runs", "lst"), "Did you mean 'list'?"), (("atack", "x"), "Did you mean 'attack'"),
        (("qqqq",), "No such command 'qqqq'"), (("wrm", "train", "--gama", "1"), "--gamma"),
        (("wrm", "train", "--inner-steps", "many"), "--inner-steps"),
        (("wrm", "train", "--inner-steps", "0"), "equal to 1"),
        (("wrm", "train", "--method", "wmr"), "wrm"), (("wrm", "train", "--seed", "-1"), "--seed"),
        (("wrm", "train", "surplus"), "surplus"), (("wrm", "eval"), "RUN"), (("attack",), "--model"),
        (("attack", "x", "--attack", "pdg"), "Did you mean 'pgd'?"), (("attack", "x", "--norm", "l7"), "l7"),
        (("certify", "x", "--method", "waserstein"), "Did you mean 'wasserstein'?"),
        (("data", "show", "mnst"), "Did you mean 'mnist'?"), (("models", "show", "lenet"), "Did you mean 'lenet5'?"),
        (("models", "show", "mlp", "--set", "hidden"), "NAME=VALUE"),
        (("plugins", "show", "wrn"), "Did you mean 'wrm'?"),
        (("wrm", "train", "--device", "gpu", "--preset", "smoke"), "There is no device 'gpu'"),
        (("wrm", "train", "--preset", "smoke", "--dataset", "ring"), "Did you mean 'rings'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_wrong_usage_is_one_line_on_stderr_with_a_suggestion_and_ends_with_2(cli, runs, line, said):
    ended = cli(*line)
    assert ended.code == ExitCode.USAGE, ended.err
    assert said in ended.err
    assert ended.out == ""
    assert len([row for row in ended.err.splitlines() if row.startswith("error:")]) == 1
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "line",
    [("runs", "show", "nothing"), ("attack", "@last"), ("wrm", "eval", "nothing"), ("runs", "rm", "@last", "--yes"),
     ("wrm", "train", "--resume", "nothing"), ("certify", "nothing")],
    ids=" ".join,
)  # fmt: skip
def test_a_run_that_is_not_there_ends_with_3_and_leaves_nothing(cli, runs, line):
    ended = cli(*line)
    assert (ended.code, ended.out) == (ExitCode.USER, "")
    assert ended.err.startswith("error: There is no run")
    assert ended.err.count("\n") == 1
    assert not runs.exists() or not list(runs.iterdir())


def test_cuda_without_a_gpu_ends_with_3_and_leaves_no_run(cli, runs):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    ended = cli("wrm", "train", "--preset", "smoke", "--device", "cuda")
    assert (ended.code, ended.out) == (ExitCode.USER, "")
    assert "--device cpu" in ended.err
    assert not runs.exists() or not list(runs.iterdir())


# ---- json


@pytest.mark.parametrize(
    "line",
    [("runs", "list"), ("data", "list"), ("models", "list"), ("models", "show", "mlp"), ("plugins", "list"),
     ("plugins", "show", "wrm"), ("plugins", "doctor"), ("data", "show", "rings"),
     ("wrm", "train", "--preset", "smoke", "--dry-run")],
    ids=" ".join,
)  # fmt: skip
def test_json_is_exactly_one_document_on_stdout(cli, line):
    ended = cli(*line, "--json")
    assert ended.code == 0, ended.err
    assert isinstance(json.loads(ended.out, parse_constant=pytest.fail), dict)


def test_without_json_the_same_commands_print_text(cli):
    for line in (("runs", "list"), ("models", "list"), ("plugins", "list"), ("plugins", "doctor")):
        ended = cli(*line)
        assert ended.code == 0
        assert ended.out.strip()
        with pytest.raises(ValueError):
            json.loads(ended.out)


def test_training_prints_one_document_to_stdout_and_talk_only_to_stderr(cli, runs):
    ended = cli("wrm", "train", "--preset", "smoke", "--json", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert {"run", "technique", "metrics", "seconds"} <= set(ended.json)
    assert ended.json["technique"] == "wrm"
    assert (runs / ended.json["run"].rpartition("/")[2] / "run.json").is_file()


def test_a_training_ends_by_saying_where_and_what_next(cli, runs):
    ended = cli("wrm", "train", "--preset", "smoke", "--name", "told", "--quiet", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert re.search(rf"^saved  {runs / 'told'}", ended.out, re.M)
    assert re.search(r"^next   iclr18 wrm certify ", ended.out, re.M)
    assert ended.err == ""


# ---- colour


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_escape_codes_where_nobody_asked_for_colour(environment):
    for line in (("--help",), ("wrm", "train", "--help"), ("plugins", "list"), ("wrmm",)):
        ended = process(*line, **environment)
        assert ESCAPE not in ended.stdout + ended.stderr, line


def test_no_colour_wins_on_a_terminal_too():
    pty = pytest.importorskip("pty")

    def on_terminal(**environment):
        main, other = pty.openpty()
        around = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color"} | environment
        line = [sys.executable, "-m", "iclr18cli", "plugins", "list"]
        with subprocess.Popen(line, stdout=other, stderr=other, env=around) as started:
            os.close(other)
            seen = b""
            try:
                while part := os.read(main, 4096):
                    seen += part
            except OSError:  # Linux ends a terminal without a writer like this
                pass
            started.wait(30)
        os.close(main)
        return seen.decode()

    assert ESCAPE in on_terminal()
    assert ESCAPE not in on_terminal(NO_COLOR="1")


# ---- dry runs


def test_a_dry_run_prints_toml_that_feeds_back_to_the_same_and_makes_nothing(cli, runs, tmp_path):
    first = cli("wrm", "train", "--preset", "smoke", "--gamma", "1.25", "--eps", "0.5", "--dry-run")
    assert first.code == 0
    file = tmp_path / "again.toml"
    file.write_text(first.out)
    again = cli("wrm", "train", "--config", file, "--dry-run")
    assert again.out == first.out
    assert tomllib.loads(first.out)["gamma"] == 1.25
    assert not runs.exists()


def test_a_dry_run_keeps_the_shared_settings_that_decide_the_result(cli):
    values = tomllib.loads(cli("wrm", "train", "--seed", "7", "--precision", "bf16", "--dry-run").out)
    assert (values["seed"], values["precision"]) == (7, "bf16")


def test_every_command_of_every_technique_has_a_dry_run_that_feeds_back(cli, tmp_path):
    for technique in plugins().techniques():
        for word, command in technique.commands.items():
            subject = [] if command.takes == "nothing" else ["RUN"]
            first = cli(technique.name, word, *subject, "--dry-run")
            assert first.code == 0, first.err
            (tmp_path / "x.toml").write_text(first.out)
            again = cli(technique.name, word, *subject, "--config", tmp_path / "x.toml", "--dry-run")
            assert (again.code, again.out) == (0, first.out), again.err


# ---- endings that come from outside (all others: test_third_party.py)


def with_ending(error):
    """A plugin whose technique raises where its data sets are asked for: in this process, without torch."""
    module = types.ModuleType("ending_under_test")

    def run(config, workbench):
        raise error

    module.run = run
    command = Command(
        config="iclr18cli.attack.config:AttackConfig", run="ending_under_test:run", summary="x", gives="report"
    )
    module.iclr18_techniques = hookimpl(lambda: [Technique(name="ending", summary="Ends", commands={"now": command})])
    return module


def test_a_bug_of_a_technique_ends_with_1_and_one_pointer_line(cli, with_plugin, monkeypatch):
    module = with_ending(ZeroDivisionError("oh"))
    monkeypatch.setitem(sys.modules, "ending_under_test", module)
    assert with_plugin(module, name="ending").state == "active"
    ended = cli("ending", "now", "--json", "--device", "cpu")
    assert (ended.code, ended.out) == (ExitCode.BUG, "")
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("bug: ZeroDivisionError: oh")


@pytest.mark.parametrize(
    "environment", [{"PYTHONUNBUFFERED": "1"}, {"PYTHONUNBUFFERED": ""}], ids=["unbuffered", "buffered"]
)
@pytest.mark.parametrize("line", [("plugins", "list", "--json"), ("--version",)], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(line, environment):
    command = [sys.executable, "-m", "iclr18cli", *line]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment
    ) as started:
        started.stdout.close()
        assert started.stderr.read() == b""
        assert started.wait(60) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_ends_with_its_code_and_says_how_to_go_on(tmp_path, number, code):
    line = [sys.executable, "-m", "iclr18cli", "wrm", "train", "--preset", "smoke", "--epochs", "100000",
            "--log-every", "1", "--name", "stopped", "--device", "cpu"]  # fmt: skip
    around = {**os.environ, "ICLR18_RUNS": str(tmp_path)}
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around, cwd=tmp_path
    ) as started:
        metrics = tmp_path / "stopped" / "metrics.jsonl"
        while started.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
            time.sleep(0.02)
        started.send_signal(number)
        out, err = started.communicate(timeout=60)
    assert started.returncode == code, err
    assert out == ""
    assert "iclr18 wrm train --resume stopped" in err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"


# ---- removing


def test_rm_asks_and_no_answer_removes_nothing(cli, runs, tmp_path):
    assert cli("wrm", "train", "--preset", "smoke", "--name", "kept", "--quiet", "--device", "cpu").code == 0
    ended = process("runs", "rm", "kept", stdin="n\n", ICLR18_RUNS=str(runs))
    assert ended.returncode != 0
    assert (runs / "kept" / "run.json").exists()
    assert ended.stdout.strip() == ""
    removed = cli("runs", "rm", "kept", "--yes", "--json")
    assert removed.json == {"removed": [str(runs / "kept")]}
    assert not (runs / "kept").exists()
