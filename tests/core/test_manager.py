"""The guarded loader: whatever one plugin does costs one warning line and its own commands, never the tool."""

import importlib.metadata
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from iclr18cli import manager
from iclr18cli.errors import Interrupted, UsageError
from iclr18cli.manager import CORE_COMMANDS, Plugins
from iclr18cli.plugin import (
    AttackSpec,
    CertifierSpec,
    Check,
    Command,
    DatasetSpec,
    ModelSpec,
    RunInfo,
    Technique,
    hookimpl,
    resolve,
)


class Distribution:
    def __init__(self, name, version="1.0"):
        self.name, self.version = name, version


class Entry:
    """What importlib.metadata gives for an entry point; `load` imports by calling `make`."""

    def __init__(self, name, make, distribution="third-party"):
        self.name, self.make = name, make
        self.dist = Distribution(distribution) if distribution else None

    def load(self):
        return self.make()


def technique(name="good", **changes):
    command = Command(config="good.config:Config", run="good.train:train")
    return Technique(**({"name": name, "summary": "Good", "commands": {"train": command}} | changes))


def dataset(name="moons"):
    return DatasetSpec(name=name, task="classify", summary="Moons", load="good.data:load")


def offering(**records):
    """A plugin module whose hooks return these records, each value what a hook returns or a function for it."""
    module = types.ModuleType("plugin_under_test")
    for kind, value in records.items():
        call = value if callable(value) else (lambda value=value: value)
        setattr(module, f"iclr18_{kind}", hookimpl(call))
    return module


class Loaded:
    """Plugins made from (name, make[, distribution]) triples, asked for everything, with the warnings they cost."""

    def __init__(self, *entries, **settings):
        self.warnings = []
        made = [Entry(*entry) for entry in entries]
        self.plugins = Plugins(made, warn=self.warnings.append, **({"seconds": 5} | settings))
        self.plugins.survey()
        self.techniques = [t.name for t in self.plugins.techniques()]

    def state(self, name):
        (health,) = [h for h in self.plugins.health if h.name == name]
        return health.state


GOOD = ("good", lambda: offering(techniques=[technique()], datasets=[dataset()]))


def raises(error):
    def make():
        raise error

    return make


def sleeps():
    time.sleep(60)


def sleeps_and_swallows():
    try:
        time.sleep(60)
    except Exception:
        time.sleep(60)


def wrong_signature():
    module = types.ModuleType("plugin_under_test")
    module.iclr18_techniques = hookimpl(lambda surprise: [])
    return module


def other_interface():
    module = offering(techniques=[technique("bad")])
    module.iclr18_api = 99
    return module


def half_built():
    """A first hook that pluggy accepts and a second one that it refuses."""
    module = offering(datasets=[dataset("half")])
    module.iclr18_techniques = hookimpl(lambda surprise: [])
    return module


COMMAND = Command(config="a:b", run="a:b")
BROKEN = {
    "raises at import": raises(ImportError("no module named 'left_pad'")),
    "raises a message of many lines": raises(RuntimeError("first\nsecond\nthird")),
    "raises without a message": raises(ValueError()),
    "has a syntax error": raises(SyntaxError("invalid syntax")),
    "exits at import": raises(SystemExit(0)),
    "exits with words": raises(SystemExit("bye")),
    "returns None": lambda: offering(techniques=None),
    "returns a number": lambda: offering(techniques=3),
    "returns a record instead of a list": lambda: offering(techniques=technique("bad")),
    "returns records of another kind": lambda: offering(techniques=[dataset("bad")]),
    "returns plain text": lambda: offering(techniques=["bad"]),
    "returns words without end": lambda: offering(techniques=lambda: itertools.count()),
    "raises in a hook": lambda: offering(techniques=raises(KeyError("x"))),
    "exits in a hook": lambda: offering(techniques=raises(SystemExit(3))),
    "raises while it is iterated": lambda: offering(techniques=lambda: (1 // 0 for _ in "x")),
    "raises StopIteration in a hook": lambda: offering(techniques=raises(StopIteration())),
    "has an unknown hook": lambda: offering(techniqes=[technique("bad")]),
    "has a hook with unknown arguments": wrong_signature,
    "has one good and one impossible hook": half_built,
    "has a fault in its second hook": lambda: offering(techniques=[], datasets=raises(OSError("disk"))),
    "offers a name twice": lambda: offering(techniques=[technique("bad"), technique("bad")]),
    "name with capitals": lambda: offering(techniques=[technique("Bad")]),
    "name that is an option": lambda: offering(techniques=[technique("--json")]),
    "name of two words": lambda: offering(techniques=[technique("two words")]),
    "name that is a path": lambda: offering(datasets=[dataset("../etc")]),
    "name that is no text": lambda: offering(techniques=[technique(7)]),
    "empty name": lambda: offering(techniques=[technique("")]),
    "no commands": lambda: offering(techniques=[technique("bad", commands={})]),
    "commands in a list": lambda: offering(techniques=[technique("bad", commands=["train"])]),
    "commands that are functions": lambda: offering(techniques=[technique("bad", commands={"train": print})]),
    "command named by a number": lambda: offering(techniques=[technique("bad", commands={1: COMMAND})]),
    "command named as an option": lambda: offering(techniques=[technique("bad", commands={"--help": COMMAND})]),
    "target without a colon": lambda: offering(
        techniques=[technique("bad", commands={"train": Command(config="a.b", run="a:b")})]
    ),
    "target that is a function": lambda: offering(
        techniques=[technique("bad", commands={"train": Command(config="a:b", run=print)})]
    ),
    "target with code in it": lambda: offering(
        datasets=[DatasetSpec(name="bad", task="classify", summary="", load="os:system('x')")]
    ),
    "takes a word of its own": lambda: offering(
        techniques=[technique("bad", commands={"train": Command(config="a:b", run="a:b", takes="everything")})]
    ),
    "gives a list": lambda: offering(
        techniques=[technique("bad", commands={"train": Command(config="a:b", run="a:b", gives=[])})]
    ),
    "summary that is no text": lambda: offering(techniques=[technique("bad", summary=123)]),
    "panel that is no text": lambda: offering(techniques=[technique("bad", panel=None)]),
    "model without a target": lambda: offering(
        models=[ModelSpec(name="bad/net", build="", task="classify", summary="")]
    ),
    "check without a target": lambda: offering(checks=[Check(name="bad", run=lambda: (True, ""))]),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_costs_one_line_and_its_own_commands_only(fault):
    loaded = Loaded(("bad", BROKEN[fault]), GOOD)
    assert len(loaded.warnings) == 1
    assert "\n" not in loaded.warnings[0]
    assert loaded.warnings[0].startswith("warning: plugin 'bad' (third-party 1.0) is left out: ")
    assert loaded.state("bad") == "broken"
    assert loaded.techniques == ["good"]
    assert [d.name for d in loaded.plugins.datasets()] == ["moons"]
    (health,) = [h for h in loaded.plugins.health if h.name == "bad"]
    assert "Traceback" in health.detail
    assert health.error in loaded.warnings[0]


@pytest.mark.parametrize("make", [sleeps, sleeps_and_swallows, lambda: offering(techniques=sleeps)])
def test_a_plugin_that_hangs_is_given_up_after_its_time(make):
    loaded = Loaded(("bad", make), GOOD, seconds=0.2)
    assert len(loaded.warnings) == 1
    assert "no answer within 0.2 s" in loaded.warnings[0]
    assert loaded.state("bad") == "broken"
    assert loaded.techniques == ["good"]


def test_the_alarm_is_off_and_its_handler_given_back_after_loading():
    before = signal.getsignal(signal.SIGALRM)
    Loaded(("bad", sleeps), GOOD, seconds=0.1)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_plugins_load_outside_the_main_thread_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(Loaded(("bad", raises(OSError())), GOOD)))
    thread.start()
    thread.join()
    assert found[0].techniques == ["good"]


def test_ctrl_c_while_a_plugin_loads_is_the_users_and_not_the_plugins():
    with pytest.raises(KeyboardInterrupt):
        Loaded(("bad", raises(KeyboardInterrupt())), GOOD)


def test_what_a_plugin_prints_does_not_get_into_results(capsys):
    def chatty():
        print("hello from import")
        return offering(techniques=lambda: print("hello from hook") or [technique("chatty")])

    assert Loaded(("chatty", chatty)).techniques == ["chatty"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello from import" in err
    assert "hello from hook" in err


# ---- interface number


def test_a_plugin_for_another_interface_is_listed_as_incompatible_and_not_asked():
    loaded = Loaded(("bad", other_interface), GOOD)
    assert loaded.state("bad") == "incompatible"
    assert len(loaded.warnings) == 1
    assert "made for interface 99, this is interface 1" in loaded.warnings[0]
    assert loaded.techniques == ["good"]


def test_a_plugin_that_states_the_current_interface_or_none_is_loaded():
    stating = offering(techniques=[technique("stating")])
    stating.iclr18_api = 1
    assert Loaded(("stating", lambda: stating), GOOD).techniques == ["good", "stating"]


# ---- names


def test_our_own_distribution_comes_first_whatever_the_alphabet_says():
    ours = ("zzz", lambda: offering(techniques=[technique("wrm", summary="ours")]), "iclr18")
    theirs = ("aaa", lambda: offering(techniques=[technique("wrm", summary="theirs"), technique("also")]), "thief")
    for order in ([ours, theirs], [theirs, ours]):
        loaded = Loaded(*order)
        assert [t.summary for t in loaded.plugins.techniques()] == ["ours"]
        assert loaded.state("aaa") == "clashing"
        assert len(loaded.warnings) == 1
        assert "the name 'wrm' is taken by 'zzz' (iclr18 1.0)" in loaded.warnings[0]
        assert loaded.plugins.owner("techniques", "wrm").distribution == "iclr18"


def test_between_third_parties_the_first_name_in_the_alphabet_wins():
    make = lambda: offering(techniques=[technique("same")])
    loaded = Loaded(("beta", make, "b"), ("alpha", make, "a"))
    assert (loaded.state("alpha"), loaded.state("beta")) == ("active", "clashing")
    assert loaded.plugins.owner("techniques", "same").name == "alpha"
    assert len(loaded.warnings) == 1


@pytest.mark.parametrize("name", CORE_COMMANDS)
def test_no_plugin_takes_a_command_of_the_core(name):
    loaded = Loaded(("bad", lambda: offering(techniques=[technique(name)])), GOOD)
    assert loaded.state("bad") == "clashing"
    assert f"the name '{name}' is taken by the core" in loaded.warnings[0]
    assert loaded.techniques == ["good"]


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("datasets", dataset("digits")),
        ("models", ModelSpec(name="mlp", build="a:b", task="classify", summary="")),
        ("attacks", AttackSpec(name="pgd", run="a:b", summary="", norms=("l2",))),
        ("certifiers", CertifierSpec(name="wasserstein", config="a:b", run="a:b", summary="")),
    ],
)
def test_no_plugin_takes_a_data_set_model_attack_or_certificate_of_the_core(kind, record):
    loaded = Loaded(("bad", lambda: offering(**{kind: [record]})), GOOD)
    assert loaded.state("bad") == "clashing"
    assert getattr(loaded.plugins, kind)() == ([dataset()] if kind == "datasets" else [])


def test_every_command_of_the_root_app_is_reserved():
    from iclr18cli.cli import CORE

    assert {name for name, *_ in CORE} <= set(CORE_COMMANDS)


def test_two_plugins_of_one_entry_point_name_do_not_knock_each_other_out():
    ours = ("wrm", lambda: offering(techniques=[technique("wrm")]), "iclr18")
    theirs = ("wrm", lambda: offering(techniques=[technique("other")]), "thief")
    loaded = Loaded(theirs, ours)
    assert loaded.techniques == ["wrm"]
    assert [h.state for h in loaded.plugins.health] == ["active", "clashing"]
    assert len(loaded.warnings) == 1
    assert "(thief 1.0)" in loaded.warnings[0]


def test_one_module_under_two_names_counts_once():
    module = offering(techniques=[technique()])
    loaded = Loaded(("one", lambda: module), ("two", lambda: module))
    assert loaded.techniques == ["good"]
    assert loaded.state("two") == "broken"
    assert len(loaded.warnings) == 1


def test_a_clash_in_one_kind_leaves_the_other_plugins_of_that_kind():
    clashing = ("b", lambda: offering(datasets=[dataset("moons"), dataset("suns")]))
    late = ("z", lambda: offering(datasets=[dataset("stars")]))
    loaded = Loaded(("a", lambda: offering(datasets=[dataset("moons")])), clashing, late)
    assert [d.name for d in loaded.plugins.datasets()] == ["moons", "stars"]


# ---- choosing plugins


def test_a_blocked_plugin_is_not_imported_and_costs_no_warning():
    imported = []
    loaded = Loaded(("bad", lambda: imported.append("bad")), GOOD, block=["bad"])
    assert loaded.state("bad") == "blocked"
    assert (imported, loaded.warnings, loaded.techniques) == ([], [], ["good"])


def test_only_the_named_plugins_are_loaded_and_none_for_an_empty_list():
    other = ("other", lambda: offering(techniques=[technique("other")]))
    assert Loaded(GOOD, other, only=["other"]).techniques == ["other"]
    assert Loaded(GOOD, other, only=[]).techniques == []
    assert Loaded(GOOD, other, only=None).techniques == ["good", "other"]
    assert Loaded(GOOD, other, only=["good", "other"], block=["good"]).techniques == ["other"]


@pytest.mark.parametrize("fault", ["raises at import", "exits at import", "raises in a hook", "has an unknown hook"])
def test_strict_re_raises_what_a_plugin_raises(fault):
    with pytest.raises((ImportError, SystemExit, KeyError, AttributeError)):
        Loaded(("bad", BROKEN[fault]), GOOD, strict=True)


def cli(*arguments, **environment):
    """Run `iclr18` in a fresh process: plugins are loaded once per process."""
    around = {k: v for k, v in os.environ.items() if not k.startswith("ICLR18_")} | environment
    program = [sys.executable, "-m", "iclr18cli", *arguments]
    return subprocess.run(program, capture_output=True, text=True, env=around, timeout=60)


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        (["--block", "wrm"], {}),
        (["--block", "x,wrm"], {}),
        ([], {"ICLR18_BLOCK": "x, wrm"}),
        ([], {"ICLR18_PLUGINS": ""}),
        ([], {"ICLR18_PLUGINS": "dgc"}),
    ],
)
def test_a_plugin_is_left_out_by_flag_and_by_environment(line, environment):
    ended = cli(*line, "wrm", "--help", **environment)
    assert ended.returncode == 2
    assert "No such command 'wrm'" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_all_plugins_are_loaded_where_nothing_is_said():
    assert cli("wrm", "--help", ICLR18_PLUGINS="wrm").returncode == 0


def test_a_time_that_is_no_number_is_wrong_usage(monkeypatch):
    for text in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("ICLR18_PLUGIN_SECONDS", text)
        with pytest.raises(UsageError, match="ICLR18_PLUGIN_SECONDS"):
            manager._seconds("ICLR18_PLUGIN_SECONDS", 20.0)
    monkeypatch.delenv("ICLR18_PLUGIN_SECONDS")
    assert manager._seconds("ICLR18_PLUGIN_SECONDS", 20.0) == 20.0


# ---- health


def test_health_says_where_a_plugin_comes_from_and_what_it_offers():
    loaded = Loaded(GOOD)
    (health,) = loaded.plugins.health
    assert (health.distribution, health.version, health.state, health.error) == ("third-party", "1.0", "active", "")
    assert health.offers["techniques"] == ["good"]
    assert health.offers["datasets"] == ["moons"]
    assert set(health.hooks) == {"iclr18_techniques", "iclr18_datasets"}
    assert health.import_ms > 0


def test_an_entry_point_without_a_distribution_is_loaded():
    loaded = Loaded(("good", GOOD[1], None))
    assert loaded.techniques == ["good"]
    assert loaded.plugins.health[0].distribution == "unknown distribution"


def test_what_is_left_of_a_distribution_removed_by_hand_is_only_a_warning(tmp_path, monkeypatch):
    ruin = tmp_path / "ruin-1.0.dist-info"
    ruin.mkdir()
    (ruin / "entry_points.txt").write_text("[iclr18]\nruin = ruin_that_is_gone\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [e for e in importlib.metadata.entry_points(group="iclr18") if e.name == "ruin"]
    assert len(found) == 1
    warnings = []
    loaded = Plugins(found, warn=warnings.append)
    assert loaded.health[0].state == "broken"
    assert len(warnings) == 1


def test_each_plugin_is_asked_once_per_kind():
    asked = []
    loaded = Loaded(("good", lambda: offering(techniques=lambda: asked.append(1) or [technique()])))
    for _ in range(3):
        loaded.plugins.techniques()
        loaded.plugins.survey()
    assert asked == [1]


# ---- by hand


def test_a_plugin_added_by_hand_is_there_until_it_is_taken_out():
    loaded = Loaded(GOOD)
    assert loaded.plugins.register(offering(techniques=[technique("extra")]), name="extra").state == "active"
    assert [t.name for t in loaded.plugins.techniques()] == ["good", "extra"]
    loaded.plugins.unregister("extra")
    assert [t.name for t in loaded.plugins.techniques()] == ["good"]
    assert [h.name for h in loaded.plugins.health] == ["good"]


def test_adding_and_taking_out_by_hand_leaves_an_installed_plugin_of_that_name_alone():
    loaded = Loaded(GOOD)
    assert loaded.plugins.register(offering(techniques=[technique("extra")]), name="good").state == "clashing"
    loaded.plugins.unregister("good")
    assert [t.name for t in loaded.plugins.techniques()] == ["good"]


# ---- observers

INFO = RunInfo(id="r", path="/r", technique="good")


class Observer:
    def __init__(self, error=None):
        self.error, self.seen = error, []

    @hookimpl
    def iclr18_models(self):
        return [ModelSpec(name="observer/net", build="a:b", task="classify", summary="")]

    @hookimpl
    def iclr18_run_logged(self, run, step, metrics):
        self.seen.append((step, metrics["loss"]))
        if self.error:
            raise self.error


def test_observers_see_every_line():
    observer = Observer()
    loaded = Loaded(("watch", lambda: observer))
    for step in (50, 100):
        loaded.plugins.observe("run_logged", run=INFO, step=step, metrics={"loss": 1.0})
    assert observer.seen == [(50, 1.0), (100, 1.0)]
    assert loaded.warnings == []


@pytest.mark.parametrize("error", [RuntimeError("tracker is down"), SystemExit(1)])
def test_an_observer_that_raises_is_reported_once_and_then_left_out_of_events_only(error):
    bad, good = Observer(error), types.SimpleNamespace()
    good.seen = []
    good.iclr18_run_logged = hookimpl(lambda step: good.seen.append(step))
    warnings = []
    loaded = Plugins([Entry("bad", lambda: bad), Entry("good", lambda: good)], warn=warnings.append)
    for step in (1, 2, 3):
        loaded.observe("run_logged", run=INFO, step=step, metrics={"loss": 1.0})
    assert [step for step, _ in bad.seen] == [1]
    assert good.seen == [1, 2, 3]
    assert len(warnings) == 1
    assert "plugin 'bad' (third-party 1.0) observes no more" in warnings[0]
    # its network is still there: the run that it watched may be made of it
    assert [m.name for m in loaded.models()] == ["observer/net"]


def test_a_hanging_observer_is_given_up_and_the_run_goes_on():
    slow = types.SimpleNamespace(iclr18_run_finished=hookimpl(lambda: time.sleep(60)))
    warnings = []
    loaded = Plugins([Entry("slow", lambda: slow)], warn=warnings.append, seconds=0.1)
    loaded.observe("run_finished", run=INFO, status="done")
    loaded.observe("run_finished", run=INFO, status="done")
    assert len(warnings) == 1


def test_a_signal_that_arrives_in_an_observer_stops_the_run_and_not_the_observer():
    loaded = Loaded(("watch", lambda: Observer(Interrupted(signal.SIGTERM))))
    with pytest.raises(Interrupted):
        loaded.plugins.observe("run_logged", run=INFO, step=1, metrics={"loss": 1.0})
    assert loaded.warnings == []


def test_a_strict_observer_raises():
    loaded = Loaded(("watch", lambda: Observer(RuntimeError("x"))), strict=True)
    with pytest.raises(RuntimeError):
        loaded.plugins.observe("run_logged", run=INFO, step=1, metrics={"loss": 1.0})


# ---- targets


@pytest.mark.parametrize("target", ["", "math", ":pi", "math:", "math.pi"])
def test_a_target_that_is_not_module_colon_attribute_is_refused(target):
    with pytest.raises(ValueError, match="module:attribute"):
        resolve(target)


def test_a_target_that_is_not_there_raises_as_the_import_does():
    with pytest.raises(ImportError):
        resolve("no_such_module_anywhere:x")
    with pytest.raises(AttributeError):
        resolve("math:tau_and_a_half")
