"""`iclr18 certify`: one option per name for all methods, what applies and what does not, summary, and exit codes."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import pytest

from iclr18cli import config as configs
from iclr18cli.certify.options import SEVERAL, belonging, merged
from iclr18cli.certify.registry import certifiers
from iclr18cli.errors import ExitCode, UsageError, UserError
from iclr18cli.plugin import CertifierSpec, Option, hookimpl
from iclr18cli.report.text import certificate_text, summary_row, summary_table

QUICK = ("--limit", "15", "--quiet", "--device", "cpu")


@dataclass(frozen=True, kw_only=True)
class One:
    under_all: ClassVar[Mapping[str, Any]] = MappingProxyType({"limit": 7})

    limit: Annotated[int, Option("Points.", min=0)] = 0
    eps: Annotated[tuple[float, ...], Option("Radii.", min=0)] = (0.1,)
    norm: Annotated[Literal["l2", "linf"], Option("Norm.")] = "l2"
    alone: Annotated[float, Option("Only here.", above=0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Two:
    limit: Annotated[int, Option("Points.", min=1)] = 100
    eps: Annotated[float, Option("Radius.", min=0, max=1)] = 0.3
    norm: Annotated[Literal["linf", "l1"], Option("Norm.")] = "linf"


# ---- options


def test_an_option_of_several_methods_exists_once_and_keeps_each_methods_default():
    panels = dict(merged({"one": One, "two": Two}))
    assert list(panels) == [SEVERAL, "--method one"]
    shared = {field.name: field for field in configs.options(panels[SEVERAL])}
    assert set(shared) == {"limit", "eps", "norm"}
    assert shared["limit"].default is None
    assert shared["limit"].option.min == 0
    assert shared["limit"].option.help == "Points. (one 0 (7 among several), two 100)"
    assert shared["eps"].option.help == "one 0.1: Radii. two 0.3: Radius."
    assert shared["eps"].many
    assert shared["eps"].option.max is None
    assert set(shared["norm"].choices) == {"l2", "linf", "l1"}
    assert [field.name for field in configs.options(panels["--method one"])] == ["alone"]


def test_an_option_on_whose_default_all_agree_shows_it():
    ((_, cls),) = merged({"one": One, "again": One})
    assert {f.name: f.default for f in configs.options(cls)}["alone"] == 1.0


def test_each_method_takes_its_own_form_of_a_shared_option():
    given = {"limit": 5, "eps": (0.25,), "norm": "linf", "other": 3}
    assert belonging(One, given) == {"limit": 5, "eps": (0.25,), "norm": "linf"}
    assert belonging(Two, given) == {"limit": 5, "eps": 0.25, "norm": "linf"}
    with pytest.raises(UsageError, match="one value"):
        belonging(Two, {"eps": (0.1, 0.2)})
    with pytest.raises(UserError, match="--norm l2") as caught:
        belonging(Two, {"norm": "l2"})
    assert caught.value.code == ExitCode.USER


def test_methods_that_take_one_name_as_different_things_are_named():
    @dataclass(frozen=True, kw_only=True)
    class Words:
        limit: Annotated[str, Option("A word.")] = "few"

    with pytest.raises(UserError, match="--limit"):
        merged({"one": One, "words": Words})


def test_help_names_the_methods_that_take_each_shared_option(cli):
    ended = cli("certify", "--help")
    assert ended.code == 0
    text = re.sub(r"[\s│]+", " ", ended.out)
    for name in certifiers():
        assert name in text
    assert "1000 among several" in text
    assert text.count("--limit <") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "lipschitz", "--sigma", "1"), "--method lipschitz takes no --sigma"),
        (("--method", "lipschitz", "--rho", "1", "--sigma", "1"), "--rho, --sigma"),
        (("--method", "lipschitz,wasserstein", "--sigma", "1"), "smoothing"),
        (("--method", "lipshitz"), "Did you mean 'lipschitz'?"),
        (("--method", "wasserstein,lipshitz"), "Did you mean 'lipschitz'?"),
        (("--method", ","), "names no method"),
        (("--method", "all", "--rho", "-1"), "rho must be at least 0"),
        (("--norm", "l7"), "--norm"),
        (("--method", "technique", "--sigma", "1"), "--sigma"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_computed(cli, smoke_run, options, said):
    run = smoke_run("wrm")
    before = sorted(run.rglob("*"))
    ended = cli("certify", run, *options, "--quiet")
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert said in ended.err
    assert sorted(run.rglob("*")) == before


# ---- several methods


def test_a_list_of_methods_gives_each_its_options_and_its_own_defaults(cli, smoke_run):
    line = ("--method", "lipschitz,wasserstein", "--rho", "0.001", "--radius", "0.1,0.2", *QUICK)
    ended = cli("certify", smoke_run("wrm"), *line, "--json")
    assert ended.code == 0, ended.err
    assert [c["kind"] for c in ended.json["certificates"]] == ["lipschitz", "lipschitz", "wasserstein"]
    assert ended.json["method"] == "lipschitz,wasserstein"
    options = {done["method"]: done["options"] for done in ended.json["done"]}
    assert options["lipschitz"]["radius"] == [0.1, 0.2]
    assert "rho" not in options["lipschitz"]
    assert options["wasserstein"]["rho"] == [0.001]
    assert options["wasserstein"]["limit"] == options["lipschitz"]["limit"] == 15


def test_slow_methods_look_at_fewer_points_among_several_only(cli, smoke_run):
    run = smoke_run("wrm")
    line = ("--rho", "0.001", "--radius", "0.1", "--json", "--quiet", "--device", "cpu")
    alone = cli("certify", run, "--method", "wasserstein", "--rho", "0.001", "--json", "--quiet").json
    among = cli("certify", run, "--method", "wasserstein,lipschitz", *line).json
    assert alone["options"]["limit"] == 0
    assert {done["method"]: done["options"]["limit"] for done in among["done"]} == {"wasserstein": 1000, "lipschitz": 0}


@pytest.fixture
def refusing(with_plugin, monkeypatch):
    """Two methods of a plugin that apply to nothing: one says so beforehand, one while it works."""

    def work(config, run):
        raise UserError("There is no second derivative.", why="the net is a step function", fix="train another")

    module = types.ModuleType("refusing_under_test")
    module.Config, module.work, module.reason = One, work, lambda run: "the task is too easy"
    monkeypatch.setitem(sys.modules, "refusing_under_test", module)
    spec = CertifierSpec(
        name="never", config="refusing_under_test:Config", run="refusing_under_test:work", summary="Never applies",
        refuses="refusing_under_test:reason",
    )  # fmt: skip

    class Plugin:
        @hookimpl
        def iclr18_certifiers(self):
            return [spec, replace(spec, name="hardly", refuses="")]

    assert with_plugin(Plugin(), name="refusing").state == "active"


def test_all_runs_what_applies_and_gives_every_refused_method_one_line(cli, smoke_run, refusing):
    ended = cli("certify", smoke_run("wrm"), "--n", "200", "--draws", "500", *QUICK)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    for name, reason in (("never", "too easy"), ("hardly", "second derivative")):
        (line,) = [line for line in lines if line.startswith(f"{name} does not apply")]
        assert reason in line
    summary = lines[lines.index("Summary") + 1 :]
    assert {row.split()[0] for row in summary[1:]} == set(certifiers())
    for name in ("never", "hardly"):
        assert sum(row.startswith(f"{name} ") and "does not apply" in row for row in summary) == 1
    document = cli("certify", smoke_run("wrm"), "--n", "200", "--draws", "500", *QUICK, "--json").json
    assert {r["method"]: r["why"] for r in document["refused"]} == {
        "never": "the task is too easy", "hardly": "the net is a step function",
    }  # fmt: skip
    assert {row["method"] for row in document["summary"]} == set(certifiers()) - {"never", "hardly"}
    assert {row["value"] for row in document["summary"]} == {c["value"] for c in document["certificates"]}


def test_when_none_applies_the_reasons_are_told_and_nothing_is_left(cli, smoke_run, refusing):
    run = smoke_run("wrm")
    before = sorted(run.rglob("*"))
    ended = cli("certify", run, "--method", "never,hardly", "--quiet")
    assert (ended.code, ended.out) == (ExitCode.USER, "")
    assert "never" in ended.err
    assert "There is no second derivative" in ended.err
    assert sorted(run.rglob("*")) == before


def test_an_option_whose_only_method_refuses_is_not_passed_over(cli, smoke_run, refusing):
    """`--alone` is for never and hardly; others apply, but they did not get what the user asked for."""
    run = smoke_run("wrm")
    before = sorted(run.rglob("*"))
    ended = cli("certify", run, "--alone", "2", "--method", "lipschitz,never,hardly", "--quiet")
    assert (ended.code, ended.out) == (ExitCode.USER, "")
    assert sorted(run.rglob("*")) == before


def test_the_technique_can_be_one_of_several(cli, smoke_run):
    line = ("--method", "lipschitz,technique", "--rho", "0.001", "--radius", "0.1", *QUICK)
    ended = cli("certify", smoke_run("wrm"), *line, "--json")
    assert ended.code == 0, ended.err
    assert [row["method"] for row in ended.json["summary"]] == ["lipschitz", "technique"]


# ---- contradictions


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run that knows rings, so that its classes change not far from the points."""
    from iclr18cli.testing import run_cli

    folder = tmp_path_factory.mktemp("runs") / "learnt"
    line = ("--preset", "smoke", "--method", "erm", "--epochs", "40", "--learning-rate", "0.02", "--quiet")
    assert run_cli("wrm", "train", *line, "--device", "cpu", "--out", folder).code == 0
    return folder


def unsound(monkeypatch):
    from iclr18cli.certify import lipschitz_margin
    from iclr18cli.certify.pair_constants import pair_constants

    def far_too_small(*arguments, **options):
        known = pair_constants(*arguments, **options)
        return replace(known, between=known.between / 100)

    monkeypatch.setattr(lipschitz_margin, "pair_constants", far_too_small)


@pytest.mark.parametrize("method", ["lipschitz", "wasserstein,lipschitz"])
def test_a_planted_wrong_constant_ends_with_4_and_a_line_that_names_the_certificate(cli, learnt, monkeypatch, method):
    assert cli("certify", learnt, "--method", method, *QUICK).code == 0
    unsound(monkeypatch)
    ended = cli("certify", learnt, "--method", method, *QUICK)
    assert ended.code == ExitCode.CLAIM == 4
    assert "contradicted: lipschitz certificate, certified accuracy at l2 0.1412" in ended.err
    assert "CONTRADICTED" in ended.out
    assert "Traceback" not in ended.err
    asjson = cli("certify", learnt, "--method", method, *QUICK, "--json")
    assert asjson.code == 4
    assert [c["holds"] for c in asjson.json["certificates"] if c["kind"] == "lipschitz"] == [False] * 3
    assert all(c["holds"] for c in asjson.json["certificates"] if c["kind"] == "wasserstein")


# ---- what is kept


def test_the_radius_of_every_point_is_kept_and_told(cli, learnt):
    ended = cli("certify", learnt, "--method", "lipschitz", "--radius", "0.1", *QUICK)
    (path,) = re.findall(r"^saved  (.*points|.*\.tsv)$", ended.out, re.M)
    rows = Path(path).read_text().splitlines()
    assert len(rows) == 16
    assert Path(path).parent == learnt / "certify"


def test_a_refused_certificate_leaves_no_folder(cli, smoke_run, tmp_path, monkeypatch):
    from iclr18cli.certify import lipschitz_margin

    run = tmp_path / "copy"
    shutil.copytree(smoke_run("wrm"), run, ignore=shutil.ignore_patterns("certify"))

    def none(*arguments, **options):
        raise UserError("No Lipschitz constant is known for layer '1' (Attention).")

    monkeypatch.setattr(lipschitz_margin, "pair_constants", none)
    assert cli("certify", run, "--method", "lipschitz", *QUICK).code == ExitCode.USER
    assert not (run / "certify").exists()


# ---- the subject


class Subject:
    """A model that is no run: it has no directory, and nothing is kept."""

    path = directory = None
    seed = 0

    def __init__(self, run):
        self.card, self.device = run.card, run.device
        self.model, self.split, self.progress = run.model, run.split, run.progress

    def keep(self, kind, name):
        return None


def test_a_subject_without_a_directory_is_certified_and_nothing_is_kept(smoke_run):
    from iclr18cli.commands.certify_subject import certify_subject
    from iclr18cli.console import Console
    from iclr18cli.execute import open_runs
    from iclr18cli.settings import Settings

    console = Console(quiet=True)
    run = open_runs([str(smoke_run("wrm"))], Settings(device="cpu"), console)[0]
    before = sorted(run.path.rglob("*"))
    ended = certify_subject(Subject(run), ["lipschitz", "wasserstein"], {"limit": 10}, console)
    assert ended.code == 0
    assert ended.document["run"] is None
    assert {c.kind for c in ended.value} == {"lipschitz", "wasserstein"}
    assert sorted(run.path.rglob("*")) == before
    with pytest.raises(UserError, match="technique"):
        certify_subject(Subject(run), ["technique"], {}, console)


def test_a_subject_with_a_folder_of_its_own_gets_its_file_and_its_warnings_there(smoke_run, tmp_path):
    from iclr18cli.commands.certify_subject import certify_subject
    from iclr18cli.console import Console
    from iclr18cli.execute import open_runs
    from iclr18cli.settings import Settings

    console = Console(quiet=True)
    subject = Subject(open_runs([str(smoke_run("wrm"))], Settings(device="cpu"), console)[0])
    subject.keep, subject.warnings = lambda kind, name: tmp_path / name, ("its outputs are probabilities",)
    ended = certify_subject(subject, ["lipschitz"], {"limit": 10}, console)
    kept = json.loads(Path(ended.document["file"]).read_text())
    assert kept["certificates"] == ended.document["certificates"]
    assert "its outputs are probabilities" in kept["certificates"][0]["warnings"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".tsv"}
    assert all(str(path) in ended.text for path in tmp_path.iterdir())


# ---- text


DOCUMENT = {
    "kind": "lipschitz", "statement": "It holds.", "not_claimed": ["more"], "assumptions": ["none"], "bound": "lower",
    "verdict": "proven", "quantity": "certified accuracy", "value": 0.05, "vacuous": True, "vacuous_above": 0.1,
    "empirical": {"attack": "pgd", "value": 0.9}, "holds": True, "warnings": [],
    "threat": {"norm": "l2", "radius": 0.5},
}  # fmt: skip


def test_the_sentence_comes_first_then_what_is_not_claimed_then_the_number():
    text = certificate_text(DOCUMENT)
    places = [text.index(part) for part in ("It holds.", "not claimed", "certified accuracy >= 0.05", "attack")]
    assert places == sorted(places)
    assert "VACUOUS" in text


def test_the_summary_shows_budget_bound_attack_vacuity_and_contradiction():
    average = {**DOCUMENT, "threat": {"norm": "l2", "radius": 0.01, "average": True}, "vacuous": False, "holds": False}
    text = summary_table([summary_row("a", DOCUMENT), summary_row("b", average)], ["c"])
    a, b, c = text.splitlines()[-3:]
    assert re.search(r"^a +proven +certified accuracy +l2 0.5 +>= 0.05 +0.9 +VACUOUS$", a)
    assert "rho 0.01" in b
    assert b.endswith("CONTRADICTED")
    assert re.search(r"^c +does not apply$", c)
