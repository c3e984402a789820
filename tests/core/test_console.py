"""Tables, numbers, progress, and what may go to which stream."""

import io
import json
import math
import re
import sys
from decimal import Decimal
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch

from iclr18cli import console as consoles
from iclr18cli.console import Console, bold, duration, plain, show, show_metrics, table


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(consoles, "time", clock)
    return clock


# ---- tables


def test_a_table_puts_numbers_right_and_words_left():
    text = table(["name", "loss", "n"], [["a", 0.123456, 1], ["longer", 12.0, 20], ["c", None, 300]], title="T")
    assert text == (
        "T\n"
        "name      loss    n\n"
        "a       0.1235    1\n"
        "longer      12   20\n"
        "c               300"
    )  # fmt: skip


def test_a_column_with_one_word_in_it_is_put_left():
    assert table(["x"], [[1], ["abc"]]).splitlines()[1] == "1"


def test_an_empty_table_is_its_heading():
    assert table(["name", "n"], []) == "name  n"


def test_headings_are_bold_only_on_a_terminal_that_wants_colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert bold("x") == "x"
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert bold("x") == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "")
    assert bold("x") == "x"


# ---- values


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""), (True, "yes"), (False, "no"), (3, "3"), (1_000_000, "1000000"), (0.5, "0.5"), (1e-9, "1e-09"),
        (math.nan, "nan"), ([1, 0.25], "1, 0.25"), ((), ""), ({"a": 1, "b": None}, "a 1  b "), ("word", "word"),
        (np.float64(0.123456), "0.1235"),
    ],
)  # fmt: skip
def test_values_are_shown_for_a_person(value, shown):
    assert show(value) == shown


def test_metrics_are_one_line():
    assert show_metrics({"loss": 0.25118, "rho": 7e-2, "n": 3}) == "loss 0.2512  rho 0.07  n 3"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"), (0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (119.6, "2 min 0 s"),
        (3599.4, "59 min 59 s"), (3599.6, "1 h 0 min"), (7300, "2 h 1 min"), (math.inf, "?"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_durations_are_told_for_a_person(seconds, said):
    assert duration(seconds) == said


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (torch.tensor(0.25), 0.25), (torch.tensor([1, 2]), [1, 2]), (torch.tensor([math.inf, 1.0]), [None, 1.0]),
        (torch.tensor(1.0, requires_grad=True), 1.0), (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (math.nan, None), (-math.inf, None), (Path("a/b"), "a/b"), ((1, [2.0, None]), [1, [2.0, None]]), ({3}, [3]),
        ({1: {"x": np.float64(math.nan)}}, {"1": {"x": None}}), (True, True), (10**30, 10**30),
        (Colour.RED, "Colour.RED"), (Decimal("1.5"), "1.5"), (torch.float32, "torch.float32"),
    ],
)  # fmt: skip
def test_plain_makes_any_value_ready_for_json(value, expected):
    made = plain(value)
    assert made == expected
    assert type(made) is type(expected)
    json.dumps(made, allow_nan=False)


# ---- streams


def test_results_go_to_stdout_and_talk_to_stderr(capsys):
    console = Console()
    console.hint("hint")
    console.warn("careful")
    console.result({"a": 1}, "text")
    assert capsys.readouterr() == ("text\n", "hint\nwarning: careful\n")


def test_json_is_one_document_without_nan(capsys):
    Console(as_json=True).result({"a": np.float64(math.nan), "b": torch.tensor([1.0])}, "text")
    out, err = capsys.readouterr()
    assert json.loads(out, parse_constant=pytest.fail) == {"a": None, "b": [1.0]}
    assert err == ""


def test_quiet_drops_hints_and_progress_but_no_warning_and_no_result(capsys, clock):
    console = Console(quiet=True)
    console.hint("hint")
    console.warn("careful")
    with console.progress(10, "train") as bar:
        clock.now += 1000
        bar.advance(5, loss=1.0)
    console.result({}, "text")
    assert capsys.readouterr() == ("text\n", "warning: careful\n")


def test_an_empty_text_prints_nothing(capsys):
    Console().result({"a": 1}, "")
    assert capsys.readouterr() == ("", "")


# ---- progress


def test_without_a_terminal_progress_is_one_line_each_half_minute(capsys, clock):
    with Console().progress(100, "train") as bar:
        for _ in range(100):
            clock.now += 1.0
            bar.advance(1, loss=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "train  30/100  1/s, 1 min 10 s left  loss 0.5"
    assert lines[2].startswith("train  90/100  1/s, 10.0 s left")


def test_a_heartbeat_without_a_total_tells_no_remaining_time(capsys, clock):
    with Console().progress(None, "certify") as bar:
        clock.now += 31
        bar.advance(62)
    assert capsys.readouterr().err.strip() == "certify  62/?  2/s"


def test_a_heartbeat_keeps_the_last_metrics_it_was_told(capsys, clock):
    with Console().progress(10, "train") as bar:
        bar.advance(1, loss=0.25)
        clock.now += 31
        bar.advance(1)
    assert "loss 0.25" in capsys.readouterr().err


def test_a_heartbeat_that_has_done_nothing_yet_does_not_divide_by_it(capsys, clock):
    with Console().progress(10, "train") as bar:
        clock.now += 31
        bar.advance(0)
    assert "0/10" in capsys.readouterr().err


def test_a_short_job_says_nothing_without_a_terminal(capsys):
    with Console().progress(3, "train") as bar:
        bar.advance(3)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_shows_count_rate_and_metrics_and_leaves_stdout_alone(monkeypatch):
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with Console().progress(10, "train") as bar:
        for _ in range(10):
            bar.advance(1, loss=0.25)
    seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err.getvalue())
    assert "train" in seen
    assert "10/10" in seen
    assert "loss 0.25" in seen
    assert out.getvalue() == ""


def test_an_error_inside_progress_is_passed_on(monkeypatch):
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(KeyError), Console().progress(10, "train"):
            raise KeyError("x")
