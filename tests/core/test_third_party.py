"""A stranger's package adds a technique, a network and a data set; a broken one beside it costs one line."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib

import pytest

from iclr18cli.testing import Ended

HELLO = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling>=1.27"]
        build-backend = "hatchling.build"

        [project]
        name = "hello-iclr18"
        version = "1.0"
        dependencies = ["iclr18"]

        [project.entry-points.iclr18]
        hello = "hello_iclr18"
        """,
    "hello_iclr18/__init__.py": """
        from iclr18cli.plugin import Command, DatasetSpec, ModelSpec, Technique, hookimpl

        iclr18_api = 1


        @hookimpl
        def iclr18_techniques():
            at = "hello_iclr18.config", "hello_iclr18.code"
            return [Technique(name="hello", summary="Say hello to two half-planes", commands={
                "train": Command(config=f"{at[0]}:TrainConfig", run=f"{at[1]}:train", summary="Train a line"),
                "eval": Command(config=f"{at[0]}:EvalConfig", run=f"{at[1]}:evaluate", takes="run", gives="metrics",
                                summary="Measure accuracy"),
                "certify": Command(config=f"{at[0]}:EvalConfig", run=f"{at[1]}:certify", takes="run",
                                   gives="certificates", summary="Count the parameters"),
            })]


        @hookimpl
        def iclr18_datasets():
            return [DatasetSpec(name="halves", task="classify", summary="Two half-planes", offline=True,
                                load="hello_iclr18.code:load")]


        @hookimpl
        def iclr18_models():
            return [ModelSpec(name="hello/line", task="classify", summary="One dense layer",
                              build="hello_iclr18.code:line", input_shape=(2,))]
        """,
    "hello_iclr18/config.py": """
        from dataclasses import dataclass
        from typing import Annotated

        from iclr18cli.plugin import Option


        @dataclass(frozen=True, kw_only=True)
        class TrainConfig:
            '''A line through the plane.'''

            epochs: Annotated[int, Option("Passes.", min=1)] = 20
            learning_rate: Annotated[float, Option("Step size.", above=0)] = 0.1


        @dataclass(frozen=True, kw_only=True)
        class EvalConfig:
            '''Nothing surprising.'''

            limit: Annotated[int, Option("Points; 0: all.", min=0)] = 0
        """,
    "hello_iclr18/presets.toml": """
        [train.smoke]
        about = "seconds"
        epochs = 5
        """,
    "hello_iclr18/code.py": """
        import torch
        from torch.nn.functional import cross_entropy

        from iclr18cli.certify.result import Certificate
        from iclr18cli.data.registry import open_split
        from iclr18cli.data.tensors import Split
        from iclr18cli.models.registry import build


        def load(root, split, argument):
            generator = torch.Generator().manual_seed({"train": 0, "test": 1}[split])
            x = torch.rand(300, 2, generator=generator)
            return Split(x=x, y=(x.sum(1) > 1).long(), classes=("below", "above"), name="halves", split=split)


        def line(classes=2):
            return torch.nn.Linear(2, classes)


        def train(config, run):
            data = open_split("halves", "train")
            net = run.prepare(build("hello/line", classes=2))
            optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
            run.track(net=net, optimizer=optimizer)
            for x, y in run.epochs(data, config.epochs, batch_size=32):
                loss = cross_entropy(net(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.log(loss=loss)
            run.save_model(net, model="hello/line", kwargs={"classes": 2}, split=data)
            run.finish(accuracy=accuracy(net, open_split("halves", "test").to(run.device)))


        @torch.no_grad()
        def accuracy(net, data):
            return (net(data.inputs()).argmax(1) == data.y).float().mean().item()


        def evaluate(config, run):
            return {"accuracy": accuracy(run.model(), run.split("test", config.limit).to(run.device))}


        def certify(config, run):
            count = sum(p.numel() for p in run.model().parameters())
            return [Certificate(
                kind="technique", statement=f"The network has {count} parameters.", verdict="measured",
                quantity="parameters", value=count, bound="equal", holds=count == 6,
                not_claimed=["anything about its predictions"],
            )]
        """,
}

BROKEN = {
    "pyproject.toml": """
        [project]
        name = "broken-iclr18"
        version = "0.9"

        [project.entry-points.iclr18]
        broken = "broken_iclr18"
        """,
    "broken_iclr18/__init__.py": "print('noise on stdout')\nimport a_module_that_nobody_has\n",
}

STRANGE = {
    "pyproject.toml": """
        [project]
        name = "strange-iclr18"
        version = "0.1"

        [project.entry-points.iclr18]
        strange = "strange_iclr18"
        """,
    "strange_iclr18/__init__.py": """
        from iclr18cli.plugin import Command, Technique, hookimpl


        @hookimpl
        def iclr18_techniques():
            def command(name, **more):
                code = "strange_iclr18.code"
                return Command(config=f"{code}:{name}", run=f"{code}:crash", summary="x", **more)

            return [Technique(name="strange", summary="Every ending", commands={
                "crash": command("Config", gives="report"),
                "missing": command("NoSuchConfig", gives="report"),
                "undeclared": command("Undeclared", gives="report"), "broken-preset": command("Config", gives="report"),
                "train": command("Config"),
            }, presets="presets.toml")]
        """,
    "strange_iclr18/code.py": """
        import os, signal, sys
        from dataclasses import dataclass
        from typing import Annotated

        from iclr18cli.errors import ClaimError, Interrupted, UsageError, UserError
        from iclr18cli.plugin import Option


        @dataclass(frozen=True, kw_only=True)
        class Config:
            '''How to end.'''

            how: Annotated[str, Option("What to raise.")] = "bug"


        @dataclass(frozen=True, kw_only=True)
        class Undeclared:
            '''No Option.'''

            x: int = 1


        def crash(config, run):
            if config.how == "kill":
                os.kill(os.getpid(), signal.SIGINT)
                import time
                time.sleep(10)
            if config.how == "print":
                return {"value": float("nan"), "path": sys.path[0][:0]}
            raise {
                "bug": ZeroDivisionError("the author's fault"),
                "lines": RuntimeError("first\\nsecond"),
                "user": UserError("No data.", why="looked around", fix="bring some"),
                "usage": UsageError("Bad flag."),
                "claim": ClaimError("An attack beat the bound."),
                "ctrl-c": KeyboardInterrupt(),
                "sigterm": Interrupted(15, "iclr18 strange crash --resume x"),
                "sigint": Interrupted(2),
                "exit": SystemExit(7),
            }[config.how]
        """,
}


def install(site, package):
    """Lay out a package as pip does: the modules, and a dist-info made from its pyproject."""
    project = tomllib.loads(textwrap.dedent(package["pyproject.toml"]))["project"]
    for name, text in package.items():
        file = site / name
        if name != "pyproject.toml":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text).lstrip("\n"))
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["iclr18"]
    (info / "entry_points.txt").write_text("[iclr18]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two folders of installed packages, one of runs, and a function that runs `iclr18` in it."""
    root = tmp_path_factory.mktemp("third-party")
    for site, packages in (("hello", (HELLO, BROKEN)), ("strange", (STRANGE,))):
        (root / site).mkdir()
        for package in packages:
            install(root / site, package)

    def iclr18(*arguments, sites=("hello",), program=("-m", "iclr18cli"), **environment):
        around = {k: v for k, v in os.environ.items() if not k.startswith("ICLR18_")}
        around |= {"PYTHONPATH": os.pathsep.join(str(root / site) for site in sites), "ICLR18_RUNS": str(root / "runs")}
        line = [sys.executable, *program, *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, env=around | environment, cwd=root, timeout=120)

    def together(*lines, sites=("hello",)):
        """Run several command lines in one fresh process, which imports torch once, each with its own streams."""
        ended = iclr18(json.dumps([list(map(str, line)) for line in lines]), sites=sites, program=["-c", TOGETHER])
        assert ended.returncode == 0, ended.stderr
        return [Ended(*each) for each in json.loads(ended.stdout)]

    iclr18.root, iclr18.together = root, together
    return iclr18


TOGETHER = """
import contextlib, io, json, sys
from iclr18cli.cli import run
ended = []
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(line)
        except SystemExit as stop:
            code = stop.code
    ended.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def trained(world):
    """A run of the stranger's technique, and how its training ended."""
    ended = world("hello", "train", "--json", "--name", "first", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    return ended


def one_warning(stderr):
    lines = [line for line in stderr.splitlines() if "broken" in line]
    return len(lines) == 1 and lines[0].startswith(
        "warning: plugin 'broken' (broken-iclr18 0.9) is left out: ModuleNotFound"
    )


# ---- a technique of a stranger


def test_a_strangers_technique_trains_and_prints_one_json_document(world, trained):
    document = json.loads(trained.stdout)
    assert document["technique"] == "hello"
    assert document["status"] == "done"
    assert document["metrics"]["accuracy"] > 0.9
    assert document["run"] == str(world.root / "runs" / "first")
    info = json.loads((world.root / "runs" / "first" / "run.json").read_text())
    assert info["plugin"] == "hello-iclr18 1.0"


def test_the_broken_neighbour_costs_exactly_one_line_on_stderr(trained):
    assert one_warning(trained.stderr)
    assert "noise" not in trained.stdout


def test_help_lists_the_strangers_technique_beside_ours(world):
    ended = world("--help")
    assert ended.returncode == 0
    for word in ("hello", "wrm", "Say hello to two half-planes"):
        assert word in ended.stdout
    assert "broken" not in ended.stdout
    assert one_warning(ended.stderr)
    assert ended.stderr.count("warning") == 1


ATTACK = ("attack", "first", "--norm", "l2", "--eps", "0.1", "--steps", "3", "--restarts", "1", "--json", "--quiet")


@pytest.fixture(scope="module")
def measured(world, trained):
    """What the core's and the technique's commands say of the run, and whether the core knows its parts."""
    names = ("eval", "certify", "attack", "data", "models", "show", "wrm")
    lines = (
        ("hello", "eval", "first", "--json"), ("hello", "certify", "first", "--json"), ATTACK,
        ("data", "list", "--json"), ("models", "list", "--json"), ("data", "show", "halves", "--json"),
        ("wrm", "train", "--dataset", "halves", "--epochs", "1", "--json", "--quiet", "--device", "cpu"),
        ("certify", "first", "--rho", "-1"),
    )  # fmt: skip
    *ended, refused = world.together(*lines)
    assert (refused.code, refused.out) == (2, ""), "a wrong option is wrong usage with --method all too"
    ended = dict(zip(names, ended, strict=True))
    for name, each in ended.items():
        assert each.code == 0, f"{name}: {each.err}"
    return {name: each.json for name, each in ended.items()}


def test_its_run_is_evaluated_and_certified(trained, measured):
    assert measured["eval"]["metrics"]["accuracy"] == json.loads(trained.stdout)["metrics"]["accuracy"]
    assert measured["certify"]["certificates"][0]["statement"] == "The network has 6 parameters."


def test_its_run_is_attacked_by_the_core(measured):
    assert measured["attack"]["robust"]["accuracy"] <= measured["attack"]["clean"]["accuracy"]


def test_its_data_set_and_network_are_listed_by_name(measured):
    assert next(d for d in measured["data"]["datasets"] if d["name"] == "halves")["availability"] == "built in"
    network = next(m for m in measured["models"]["models"] if m["name"] == "hello/line")
    assert (network["plugin"], network["parameters"]) == ("hello-iclr18 1.0", 6)
    assert measured["show"]["splits"]["train"]["n"] == 300


def test_our_technique_trains_on_the_strangers_data(measured):
    assert measured["wrm"]["technique"] == "wrm"
    assert measured["wrm"]["metrics"]["accuracy"] >= 0


def test_plugins_list_tells_all_states(world):
    ended = world("--block", "hello", "plugins", "list", "--json")
    found = {plugin["name"]: plugin for plugin in json.loads(ended.stdout)["plugins"]}
    assert {name: found[name]["state"] for name in ("wrm", "hello", "broken")} == {
        "wrm": "active", "hello": "blocked", "broken": "broken",
    }  # fmt: skip
    assert "a_module_that_nobody_has" in found["broken"]["error"]


def test_plugins_show_gives_the_whole_error_and_doctor_ends_with_4(world):
    shown = world("plugins", "show", "broken")
    assert shown.returncode == 0
    assert "Traceback" in shown.stdout
    assert one_warning(shown.stderr)
    doctor = world("plugins", "doctor", "--json")
    assert doctor.returncode == 4
    faults = [c["name"] for c in json.loads(doctor.stdout)["checks"] if not c["ok"]]
    assert faults == ["plugin broken"]


def test_strict_shows_what_a_plugin_raises(world):
    ended = world("--help", ICLR18_STRICT="1")
    assert ended.returncode == 1
    assert "ModuleNotFoundError" in ended.stderr


# ---- a run whose plugin is missing


def test_a_run_whose_plugin_is_gone_ends_with_3_and_names_the_plugin(world, trained):
    folder = world.root / "runs" / "first"
    before = sorted(path.name for path in folder.rglob("*"))
    lines = (ATTACK, ("certify", "first"), ("certify", "first", "--method", "wasserstein"))
    for line, ended in zip(lines, world.together(*lines, sites=()), strict=True):
        assert ended.code == 3, (line, ended.err)
        assert ended.out == ""
        assert "hello-iclr18" in ended.err
        assert "Traceback" not in ended.err
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_run_whose_plugin_is_gone_is_still_listed_and_shown(world, trained):
    lines = (("runs", "list", "--json"), ("runs", "show", "first"), ("hello", "eval", "first"))
    listed, shown, measured = world.together(*lines, sites=())
    assert "first" in [run["run"] for run in listed.json["runs"]]
    assert shown.code == 0
    assert measured.code == 2
    assert "No such command 'hello'" in measured.err


# ---- every ending of a command


ENDINGS = {
    "bug": (1, "bug: ZeroDivisionError: the author's fault"), "lines": (1, "bug: RuntimeError: first"),
    "usage": (2, "error: Bad flag."), "user": (3, "error: No data.  (looked around)  fix: bring some"),
    "claim": (4, "error: An attack beat the bound."), "ctrl-c": (130, ""), "kill": (130, ""), "sigint": (130, ""),
    "sigterm": (143, "stopped; go on with  iclr18 strange crash --resume x"), "exit": (7, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def endings(world):
    lines = [("strange", "crash", "--how", how, "--json", "--device", "cpu") for how in (*ENDINGS, "print")]
    return dict(zip((*ENDINGS, "print"), world.together(*lines, sites=("strange",)), strict=True))


@pytest.mark.parametrize("how", ENDINGS)
def test_every_ending_has_its_exit_code_and_leaves_stdout_empty(endings, how):
    code, said = ENDINGS[how]
    assert endings[how].code == code, endings[how].err
    assert endings[how].out == ""
    assert said in endings[how].err
    assert ("Traceback" in endings[how].err) == (code == 1)


def test_numbers_that_are_not_finite_become_null_in_json(endings):
    assert json.loads(endings["print"].out, parse_constant=pytest.fail)["metrics"]["value"] is None


def test_a_bug_in_training_leaves_the_traceback_in_the_runs_log_and_one_line_on_stderr(world):
    ended = world("strange", "train", "--name", "crashed", "--json", "--quiet", "--device", "cpu", sites=("strange",))
    assert ended.returncode == 1
    assert ended.stdout == ""
    folder = world.root / "runs" / "crashed"
    assert str(folder / "log.txt") in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "Traceback" in (folder / "log.txt").read_text()
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(("word", "said"), [("missing", "NoSuchConfig"), ("undeclared", "Undeclared.x")])
def test_a_target_that_does_not_load_names_the_plugin_and_ends_with_3(world, word, said):
    for flag in ("--help", "--json"):
        ended = world("strange", word, flag, sites=("strange",))
        assert ended.returncode == 3
        assert ended.stdout == ""
        assert "plugin 'strange' (strange-iclr18 0.1)" in ended.stderr
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_broken_presets_name_the_plugin_and_end_with_3(world):
    file = world.root / "strange" / "strange_iclr18" / "presets.toml"
    for text in ("[crash.smoke\n", "[crash]\nsmoke = 1\n"):
        file.write_text(text)
        try:
            ended = world("strange", "crash", "--help", sites=("strange",))
            assert ended.returncode == 3, ended.stderr
            assert "strange-iclr18 0.1" in ended.stderr
        finally:
            file.unlink()


# ---- the conformance kit


def test_a_strangers_technique_passes_the_conformance_kit(world, tmp_path):
    (tmp_path / "test_hello.py").write_text(
        'from iclr18cli.testing import conformance\n\ntest_hello = conformance("hello")\n'
    )
    around = {k: v for k, v in os.environ.items() if not k.startswith(("ICLR18_", "PYTEST_"))}
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", str(tmp_path)]
    ended = subprocess.run(
        line, capture_output=True, text=True, cwd=tmp_path, env=around | {"PYTHONPATH": str(world.root / "hello")}
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "passed" in ended.stdout


def test_after_uninstalling_nothing_of_the_stranger_is_left_in_ours(world, tmp_path):
    copy = tmp_path / "site"
    shutil.copytree(world.root / "hello", copy)
    shutil.rmtree(copy / "hello_iclr18-1.0.dist-info")
    ended = world("plugins", "list", "--json", sites=(), PYTHONPATH=str(copy))
    assert {p["name"] for p in json.loads(ended.stdout)["plugins"]} >= {"wrm", "broken"}
    assert "hello" not in {p["name"] for p in json.loads(ended.stdout)["plugins"]}
