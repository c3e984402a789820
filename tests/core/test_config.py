"""Options from dataclasses: precedence, checks, TOML, presets, help."""

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Literal, Optional

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from iclr18cli import config as configs
from iclr18cli import presets
from iclr18cli.call import Call, dry_run
from iclr18cli.errors import ExitCode, UsageError, UserError
from iclr18cli.manager import plugins
from iclr18cli.plugin import Option, resolve
from iclr18cli.settings import Settings, TrainSettings
from iclr18cli.testing import run_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """One option of every type."""

    gamma: Annotated[float, Option("Penalty.", above=0)] = 1.5
    steps: Annotated[int, Option("Steps.", min=1, max=50)] = 15
    norm: Annotated[Literal["l2", "linf"], Option("Norm.")] = "l2"
    title: Annotated[str, Option("Title.")] = "none"
    box: Annotated[bool, Option("Keep to the box.")] = False
    eps: Annotated[float | None, Option("Budget.", min=0)] = None
    rho: Annotated[tuple[float, ...], Option("Budgets.", min=0)] = (0.1, 0.2)
    layers: Annotated[tuple[int, ...], Option("Widths.", min=1)] = ()
    free: Annotated[float, Option("Any number.")] = 0.0


def build(**values):
    return configs.build(Config, values)


@pytest.fixture(scope="module")
def every_command():
    return [(t, word) for t in plugins().techniques() for word in t.commands]


# ---- precedence


def test_defaults_give_way_to_presets_to_files_to_flags_field_by_field():
    layers = [
        ("preset 'p'", {"gamma": 2.0, "steps": 2, "norm": "linf", "seed": 2}),
        ("f.toml", {"gamma": 3.0, "steps": 3, "seed": 3}),
        ("", {"gamma": 4.0}),
    ]
    config, settings = configs.layered((Config, Settings), layers=layers)
    assert (config.gamma, config.steps, config.norm, config.title) == (4.0, 3, "linf", "none")
    assert settings.seed == 3
    assert settings.device == "auto"


def test_the_command_line_sees_the_same_order_of_precedence(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('gamma = 3.0\nmethod = "erm"\n')
    line = ["wrm", "train", "--preset", "smoke", "--config", str(file), "--gamma", "4", "--dry-run"]
    values = tomllib.loads(run_cli(*line).out)
    assert values["gamma"] == 4.0  # flag over file over preset
    assert values["method"] == "erm"  # file over default
    assert values["epochs"] == 3  # preset over default
    assert values["inner_steps"] == 15  # default


def test_a_flag_given_with_its_default_value_still_wins(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text("inner_steps = 3\n")
    ended = run_cli("wrm", "train", "--config", file, "--inner-steps", "15", "--dry-run")
    assert tomllib.loads(ended.out)["inner_steps"] == 15


def test_dashes_and_underscores_are_the_same_name_in_toml():
    (settings,) = configs.layered((TrainSettings,), layers=[("f", {"log-every": 7})])
    assert settings.log_every == 7


# ---- wrong names


@pytest.mark.parametrize(
    ("wrong", "meant"), [("gama", "gamma"), ("step", "steps"), ("Norm", "norm"), ("tittle", "title")]
)
def test_an_unknown_key_is_answered_with_the_nearest_one(wrong, meant):
    with pytest.raises(UsageError) as caught:
        configs.layered((Config,), layers=[("my.toml", {wrong: 1})])
    assert f"'{wrong}' in my.toml" in caught.value.what
    assert caught.value.fix == f"Did you mean '{meant}'?"


def test_an_unknown_key_near_nothing_lists_all_options():
    with pytest.raises(UsageError) as caught:
        build(qqqqq=1)
    assert caught.value.fix.startswith("One of: box, eps, free, gamma")


def test_a_table_in_the_file_is_an_unknown_key_not_a_crash(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text("[train]\ngamma = 1.0\n")
    ended = run_cli("wrm", "train", "--config", file, "--dry-run")
    assert ended.code == ExitCode.USAGE
    assert "Unknown option 'train'" in ended.err
    assert ended.out == ""


# ---- types and ranges


@pytest.mark.parametrize(
    ("values", "noun"),
    [
        ({"steps": True}, "a whole number"),
        ({"steps": 2.0}, "a whole number"),
        ({"steps": "2"}, "a whole number"),
        ({"steps": None}, "a whole number"),
        ({"gamma": "1.0"}, "a number"),
        ({"gamma": True}, "a number"),
        ({"gamma": [1.0]}, "a number"),
        ({"gamma": {}}, "a number"),
        ({"box": 1}, "true or false"),
        ({"box": "yes"}, "true or false"),
        ({"title": 3}, "a text"),
        ({"rho": ["a"]}, "a number"),
        ({"rho": [0.1, False]}, "a number"),
        ({"eps": "0"}, "a number"),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_received(values, noun):
    with pytest.raises(UsageError) as caught:
        build(**values)
    (value,) = values.values()
    shown = value[-1] if isinstance(value, list) and noun == "a number" and "rho" in values else value
    assert noun in caught.value.what
    assert repr(shown) in caught.value.what


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gamma": 0.0}, "greater than 0"),
        ({"gamma": -1}, "greater than 0"),
        ({"gamma": math.nan}, "greater than 0"),
        ({"gamma": math.inf}, "greater than 0"),
        ({"free": math.nan}, "finite"),
        ({"free": -math.inf}, "finite"),
        ({"steps": 0}, "at least 1 and at most 50"),
        ({"steps": 51}, "at least 1 and at most 50"),
        ({"eps": -1e-9}, "at least 0"),
        ({"rho": [0.5, -0.5]}, "at least 0"),
        ({"rho": [math.nan]}, "at least 0"),
        ({"layers": [4, 0]}, "at least 1"),
    ],
)
def test_a_number_outside_its_range_is_refused_with_the_range(values, said):
    with pytest.raises(UsageError) as caught:
        build(**values)
    assert said in caught.value.what


@pytest.mark.parametrize("values", [{"gamma": 1e-31}, {"gamma": 1e300}])
def test_a_number_that_single_precision_cannot_compute_with_is_refused(values):
    with pytest.raises(UsageError, match="in size"):
        build(**values)


@pytest.mark.parametrize("values", [{"steps": 1}, {"steps": 50}, {"gamma": 1e-30}, {"eps": 0.0}, {"eps": None}])
def test_the_ends_of_a_closed_range_are_inside(values):
    ((name, value),) = values.items()
    assert getattr(build(**values), name) == value


def test_a_whole_number_is_taken_for_a_float_and_becomes_one():
    assert type(build(gamma=2).gamma) is float
    assert all(type(rho) is float for rho in build(rho=[1, 2]).rho)


def test_a_wrong_choice_is_answered_with_the_nearest_one():
    with pytest.raises(UsageError) as caught:
        build(norm="l_inf")
    assert "'l_inf' is not a choice" in caught.value.what
    assert caught.value.fix == "Did you mean 'linf'?"


def test_none_is_refused_where_there_is_no_none():
    with pytest.raises(UsageError):
        build(gamma=None)


def test_optional_and_optional_literals_accept_none():
    @dataclass(frozen=True, kw_only=True)
    class Old:
        eps: Annotated[Optional[float], Option("Budget.")] = 1.0  # noqa: UP045
        norm: Annotated[Literal["l2"] | None, Option("Norm.")] = "l2"

    made = configs.build(Old, {"eps": None, "norm": None})
    assert (made.eps, made.norm) == (None, None)
    assert configs.build(Old, {"eps": 2, "norm": "l2"}).eps == 2.0
    with pytest.raises(UsageError):
        configs.build(Old, {"norm": "l1"})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "abc"])
def test_the_command_line_refuses_what_is_no_finite_number_above_zero(value):
    ended = run_cli("wrm", "train", "--gamma", value, "--dry-run")
    assert ended.code == ExitCode.USAGE
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert "--gamma" in ended.err


# ---- lists


@pytest.mark.parametrize(
    "flags",
    [["--rho", "0.1,0.2,3"], ["--rho", "0.1", "--rho", "0.2", "--rho", "3"], ["--rho", "0.1, 0.2", "--rho", "3,"]],
)
def test_lists_are_given_by_commas_and_by_repetition(flags):
    ended = run_cli("wrm", "certify", "RUN", *flags, "--dry-run", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["config"]["rho"] == [0.1, 0.2, 3.0]


@pytest.mark.parametrize(("text", "said"), [("0.1,zero", "'zero'"), ("0.1,-1", "at least 0"), ("nan", "at least 0")])
def test_a_wrong_item_of_a_list_is_wrong_usage(text, said):
    ended = run_cli("wrm", "certify", "RUN", "--rho", text, "--dry-run")
    assert ended.code == ExitCode.USAGE
    assert said in ended.err
    assert "--rho" in ended.err


def test_one_value_stands_for_a_list_of_one():
    assert build(rho=0.5).rho == (0.5,)


# ---- fields that cannot be options


def bad(annotation, **default):
    namespace = {"__annotations__": {"x": annotation}, **({"x": default["default"]} if default else {})}
    return dataclass(frozen=True, kw_only=True)(type("Bad", (), namespace))


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (int, 1),
        (Annotated[int, "words"], 1),
        (Annotated[dict[str, int] | None, Option("")], None),
        (Annotated[list[int] | None, Option("")], None),
        (Annotated[int | str, Option("")], 1),
        (Annotated[tuple[int, int], Option("")], (1, 2)),
        (Annotated[tuple[tuple[int, ...], ...], Option("")], ()),
        (Annotated[tuple[int, ...] | None, Option("")], None),
        (Annotated[Literal[1, 2], Option("")], 1),
        (Annotated[complex, Option("")], 0j),
        (Annotated[object, Option("")], None),
    ],
)
def test_a_field_that_cannot_be_an_option_is_a_type_error_that_names_it(annotation, default):
    with pytest.raises(TypeError, match=r"Bad\.x"):
        configs.options(bad(annotation, default=default))


def test_a_field_without_a_default_is_a_type_error():
    with pytest.raises(TypeError, match=r"Bad\.x"):
        configs.options(bad(Annotated[int, Option("")]))

    @dataclass(frozen=True, kw_only=True)
    class Factory:
        x: Annotated[tuple[int, ...], Option("")] = field(default_factory=tuple)

    with pytest.raises(TypeError, match=r"Factory\.x"):
        configs.options(Factory)


@pytest.mark.parametrize("kind", [bool, int, float, str, Literal["a", "b"]])
def test_every_scalar_its_optional_and_its_list_is_an_option(kind):
    for annotation, default in ((kind, "a"), (kind | None, None), (tuple[kind, ...], ())):
        (made,) = configs.options(bad(Annotated[annotation, Option("")], default=default))
        assert made.item == kind
        assert made.many == (default == ())


# ---- files


@pytest.mark.parametrize("text", ["gamma = ", "gamma 1", "= 3", "gamma = 1\ngamma = 2", "gamma = nan0"])
def test_a_file_that_is_not_toml_is_named_with_its_line(tmp_path, text):
    file = tmp_path / "my.toml"
    file.write_text(text + "\n")
    with pytest.raises(UserError) as caught:
        configs.read_toml(file)
    assert caught.value.code == ExitCode.USER
    assert str(file) in caught.value.what
    assert "line" in caught.value.why


def test_a_missing_a_binary_and_a_directory_file_are_user_errors(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00gamma")
    for path in (tmp_path / "absent.toml", tmp_path / "binary.toml", tmp_path):
        with pytest.raises(UserError) as caught:
            configs.read_toml(path)
        assert caught.value.code == ExitCode.USER
        assert caught.value.why


def test_the_command_line_ends_with_3_where_the_file_is_missing(tmp_path):
    ended = run_cli("wrm", "train", "--config", tmp_path / "absent.toml", "--dry-run")
    assert (ended.code, ended.out) == (ExitCode.USER, "")
    assert "absent.toml" in ended.err


def test_dates_and_infinities_of_toml_are_refused(tmp_path):
    file = tmp_path / "my.toml"
    for text in ("gamma = 2026-01-01", "gamma = inf", "gamma = nan"):
        file.write_text(text)
        with pytest.raises(UsageError):
            configs.layered((Config,), layers=[(str(file), configs.read_toml(file))])


positive = st.floats(min_value=1e-30, max_value=1e30)
finite = st.one_of(st.just(0.0), positive, positive.map(float.__neg__))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "gamma": positive,
            "steps": st.integers(1, 50),
            "norm": st.sampled_from(["l2", "linf"]),
            "title": st.text(st.characters(codec="utf-8", exclude_characters="\r")),
            "box": st.booleans(),
            "eps": st.one_of(st.just(0.0), positive),
            "rho": st.lists(st.one_of(st.just(0.0), positive), min_size=1),
            "layers": st.lists(st.integers(1, 10**6)),
            "free": finite,
        },
    )
)
def test_any_config_written_as_toml_and_read_again_is_the_same_config(values):
    config = configs.build(Config, values)
    again = configs.build(Config, tomllib.loads(tomli_w.dumps(configs.to_dict(config))))
    assert again == config


def test_to_dict_leaves_none_out_and_makes_lists():
    assert configs.to_dict(build(rho=(1.0,))) == {
        "gamma": 1.5, "steps": 15, "norm": "l2", "title": "none", "box": False, "rho": [1.0], "layers": [], "free": 0.0,
    }  # fmt: skip


# ---- presets


def test_every_preset_of_every_technique_resolves_and_feeds_back(every_command):
    seen = 0
    for technique, word in every_command:
        for name in presets.presets(technique, word):
            outcome = dry_run(Call(technique, word, preset=name))
            call = Call(technique, word)
            classes = (configs.command_config(call.command), call.settings_class)
            fed, settings = configs.layered(classes, layers=[("", tomllib.loads(outcome.text))])
            again = configs.to_dict(fed) | configs.to_dict(settings)
            assert again.items() >= outcome.document["config"].items()
            seen += 1
    assert seen >= 5


def test_no_preset_repeats_a_default_or_sets_what_the_command_has_not(every_command):
    for technique, word in every_command:
        fields = {f.name: f for f in configs.options(configs.command_config(technique.commands[word]))}
        for preset in presets.presets(technique, word).values():
            assert preset.about, f"{technique.name} {word} --preset {preset.name} does not say what it is for"
            assert set(preset.values) <= set(fields) | {f.name for f in dataclasses.fields(TrainSettings)}


def test_a_preset_changes_something():
    (technique,) = [t for t in plugins().techniques() if t.name == "wrm"]
    default = dry_run(Call(technique, "train")).document["config"]
    for name in presets.presets(technique, "train"):
        assert dry_run(Call(technique, "train", preset=name)).document["config"] != default


def test_an_unknown_preset_is_answered_with_the_nearest_one():
    ended = run_cli("wrm", "train", "--preset", "smok", "--dry-run")
    assert ended.code == ExitCode.USAGE
    assert "Did you mean 'smoke'?" in ended.err


def test_a_command_without_presets_refuses_every_name():
    ended = run_cli("wrm", "eval", "RUN", "--preset", "smoke", "--dry-run")
    assert ended.code == ExitCode.USAGE
    assert "There is none." in ended.err


# ---- declarations of the installed techniques


def test_every_default_passes_its_own_check(every_command):
    classes = {configs.command_config(t.commands[word]) for t, word in every_command} | {Settings, TrainSettings}
    for config in classes:
        for made in configs.options(config):
            assert configs.check(made, made.default, source=made.name) == made.default, f"{config.__name__}.{made.name}"


def test_no_technique_declares_a_shared_option(every_command):
    shared = {f.name for f in configs.options(TrainSettings)} | {"config", "preset", "dry_run", "nproc", "verbose"}
    for technique, word in every_command:
        own = {f.name for f in configs.options(configs.command_config(technique.commands[word]))}
        assert not own & shared, f"{technique.name} {word}"


def test_configs_and_settings_are_frozen(every_command):
    for technique, word in every_command:
        config = configs.command_config(technique.commands[word])()
        name = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)


# ---- help


def help_text(monkeypatch, *line):
    monkeypatch.setenv("COLUMNS", "200")
    ended = run_cli(*line, "--help")
    assert ended.code == 0
    return ended.out


def entries(text):
    """The text of each option of a help page, by its flag."""
    found, flag = {}, ""
    for row in text.splitlines():
        named = re.match(r"│ (--[a-z0-9-]+)", row)
        if named:
            flag = named[1]
        if flag:
            found[flag] = found.get(flag, "") + " " + row
    return {flag: " ".join(words.split()) for flag, words in found.items()}


def test_help_shows_each_default_once(monkeypatch):
    pages = entries(help_text(monkeypatch, "wrm", "train"))
    config = resolve("iclr18_wrm.config:TrainConfig")
    for made in configs.options(config):
        shown = pages[made.flag].count("[default:")
        assert shown == (0 if made.default in (None, "", ()) else 1), made.flag
        if isinstance(made.default, str | int | float) and shown:
            assert f"[default: {made.default}]" in pages[made.flag]
    assert pages["--data-dir"].count("default") == 1
    assert "$ICLR18_DATA" in pages["--data-dir"]
    assert "$ICLR18_RUNS" in pages["--runs-dir"]


def test_help_shows_ranges_choices_and_presets(monkeypatch):
    pages = entries(help_text(monkeypatch, "wrm", "train"))
    assert "x>=1" in pages["--inner-steps"]
    assert "0<x" in pages["--gamma"]
    assert "x>=0" not in pages["--gamma"]  # gamma = 0 is refused: help must not promise it
    assert "wrm|erm|fgm|ifgm|pgm" in pages["--method"]
    assert "smoke" in pages["--preset"]
    assert "paper-mnist" in pages["--preset"]


def test_words_in_brackets_survive_in_help():
    assert configs.literal("radius in [a, b] of [0, 1]") == r"radius in \[a, b] of [0, 1]"
    from rich.text import Text

    for text in ("[default: $X]", "in [0, 1]", "[/b]", r"a \[b] c", "plain"):
        assert Text.from_markup(configs.literal(text)).plain == text
