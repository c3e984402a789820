"""What went wrong, in the user's words, and the codes it ends with."""

import pytest

from iclr18cli.console import complain
from iclr18cli.errors import ClaimError, ExitCode, Interrupted, UsageError, UserError, did_you_mean


def test_the_exit_codes_are_those_users_may_rely_on():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0, "BUG": 1, "USAGE": 2, "USER": 3, "CLAIM": 4, "LOST": 75, "SIGINT": 130, "SIGTERM": 143,
    }  # fmt: skip


def test_each_error_knows_its_exit_code_and_all_are_user_errors():
    assert [int(kind("x").code) for kind in (UserError, UsageError, ClaimError)] == [3, 2, 4]
    assert issubclass(UsageError, UserError)
    assert issubclass(ClaimError, UserError)


def test_an_interruption_is_no_user_error_and_keeps_signal_and_hint():
    stop = Interrupted(15, "iclr18 wrm train --resume x")
    assert not isinstance(stop, UserError)
    assert (stop.signal, stop.hint) == (15, "iclr18 wrm train --resume x")


def test_an_error_reads_what_why_fix_and_leaves_out_what_is_empty():
    assert str(UserError("What.", why="because", fix="do")) == "What.  why: because  fix: do"
    assert str(UserError("What.", fix="do")) == "What.  fix: do"
    assert str(UserError("What.")) == "What."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("What.", why="because", fix="do"), "error: What.  (because)  fix: do\n"),
        (UserError("What.", why="because"), "error: What.  (because)\n"),
        (UsageError("What.", fix="do"), "error: What.  fix: do\n"),
        (ClaimError("What."), "error: What.\n"),
        (UserError("Two\nlines.", why="a\nb", fix="c\nd"), "error: Two lines.  (a b)  fix: c d\n"),
    ],
)
def test_an_error_is_one_line_on_stderr(capsys, error, line):
    complain(error)
    assert capsys.readouterr() == ("", line)


def test_a_near_word_is_suggested_and_otherwise_all_are_listed():
    assert did_you_mean("epoch", ["gamma", "epochs"]) == "Did you mean 'epochs'?"
    assert did_you_mean("qqq", ["gamma", "epochs"]) == "One of: epochs, gamma."
    assert did_you_mean("qqq", []) == "There is none."
    assert did_you_mean("gamma", iter(["gamma"])) == "Did you mean 'gamma'?"
