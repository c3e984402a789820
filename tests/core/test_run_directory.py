from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from iclr18cli.errors import UsageError, UserError
from iclr18cli.run import atomic, process
from iclr18cli.run.directory import RunDirectory, find_run, list_runs
from iclr18cli.run.environment import commit, environment
from iclr18cli.run.find import resumable
from iclr18cli.run.metrics import MetricsFile

CONFIG = {"dataset": "digits", "gamma": 1.3, "rho": (0.001, 1), "eps": None, "seed": 0}


def create(root, technique="wrm", **given) -> RunDirectory:
    return RunDirectory.create(root, technique=technique, **{"config": CONFIG, "seed": 0, **given})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def no_space(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_twenty(root, barrier, names):
    barrier.wait()
    names.put([create(root).path.name for _ in range(20)])


def test_two_processes_that_start_runs_at_once_never_share_a_directory(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, names = context.Barrier(2), context.Queue()
    workers = [context.Process(target=make_twenty, args=(tmp_path, barrier, names)) for _ in range(2)]
    for worker in workers:
        worker.start()
    made = names.get(timeout=60) + names.get(timeout=60)
    for worker in workers:
        worker.join()
    assert len(set(made)) == 40
    assert sorted(int(name.rsplit("-", 1)[1]) for name in made) == list(range(1, 41))
    assert len(list_runs(tmp_path)) == 40


def test_the_directory_module_imports_no_torch():
    code = "import sys, iclr18cli.run.directory, iclr18cli.run.find, iclr18cli.run.metrics, iclr18cli.run.environment\n"
    code += "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_run_json_and_config_hold_what_the_run_was_made_with(tmp_path):
    run = create(tmp_path, argv=["wrm", "train"], plugin="iclr18 0.1.0", seed=7)
    info = run.info
    assert info["schema"] == "iclr18.run/1"
    assert (info["technique"], info["seed"], info["argv"]) == ("wrm", 7, ["wrm", "train"])
    assert (info["pid"], info["host"]) == (os.getpid(), socket.gethostname())
    assert run.status == "running"
    assert run.config == {"dataset": "digits", "gamma": 1.3, "rho": [0.001, 1], "seed": 0}
    assert atomic.digest(CONFIG) == atomic.digest(run.config) == info["config_sha256"]
    assert atomic.digest({**CONFIG, "gamma": 1.4}) != info["config_sha256"]


def test_out_takes_a_missing_or_empty_directory_and_no_other(tmp_path):
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "thesis.tex").touch()
    assert create(tmp_path, out=str(tmp_path / "a" / "b")).path == tmp_path / "a" / "b"
    assert create(tmp_path, out=str(empty)).path == empty
    for taken in (empty, full):
        with pytest.raises(UserError, match="not empty") as caught:
            create(tmp_path, out=str(taken))
        assert caught.value.code == 3
        assert caught.value.fix
    assert files(full) == ["thesis.tex"]


def test_a_name_is_taken_once_and_must_be_a_plain_word(tmp_path):
    assert create(tmp_path, name="baseline").path == tmp_path / "baseline"
    with pytest.raises(UserError, match="there already"):
        create(tmp_path, name="baseline")
    for bad in ("a/b", "..", "@last", "-x", "auto"):
        with pytest.raises(UsageError):
            create(tmp_path, name=bad)
    with pytest.raises(UsageError):
        create(tmp_path, name="a", out="b")


def test_a_file_where_the_folder_of_runs_should_be_is_a_clear_error(tmp_path):
    (tmp_path / "runs").touch()
    for given in ({}, {"name": "x"}, {"out": str(tmp_path / "runs" / "x")}):
        with pytest.raises(UserError, match="Cannot write") as caught:
            create(tmp_path / "runs", **given)
        assert caught.value.why


def test_a_full_disk_leaves_no_run_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "replace", no_space)
    for given in ({}, {"name": "x"}, {"out": str(tmp_path / "y")}):
        with pytest.raises(UserError, match="Cannot write") as caught:
            create(tmp_path / "runs", **given)
        assert caught.value.why == "No space left on device"
    assert files(tmp_path) == ["runs"]


def test_a_failed_write_keeps_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": 1})
    monkeypatch.setattr(atomic.os, "fsync", no_space)
    with pytest.raises(UserError):
        atomic.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert files(tmp_path) == ["a.json"]


def test_json_holds_null_for_numbers_that_are_not_finite(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize(
    "content", ["", '{"schema": "iclr18.run/1", "id"', "[]", '{"schema": "iclr18.run/2"}', '{"schema": "iclr18.run/1"}']
)
def test_a_damaged_run_json_is_listed_as_broken_and_named_when_read(tmp_path, content):
    run, other = create(tmp_path), create(tmp_path)
    (run.path / "run.json").write_text(content)
    assert {run.path.name: run.status for run in list_runs(tmp_path)} == {
        run.path.name: "broken",
        other.path.name: "running",
    }
    with pytest.raises(UserError, match=r"run\.json cannot be read") as caught:
        _ = find_run(run.path, tmp_path).info
    assert caught.value.why
    assert "runs rm" in caught.value.fix
    assert find_run("@last", tmp_path) == other


def test_a_damaged_config_is_named(tmp_path):
    run = create(tmp_path)
    (run.path / "config.toml").write_text("gamma = ")
    with pytest.raises(UserError, match=r"config\.toml cannot be read"):
        _ = run.config


def test_a_run_is_found_by_path_name_prefix_and_last(tmp_path):
    a, b = create(tmp_path, name="alpha-1"), create(tmp_path, name="alpha")
    c = create(tmp_path, name="beta")
    elsewhere = create(tmp_path / "elsewhere", out=str(tmp_path / "elsewhere" / "x"))
    assert find_run("alpha-1", tmp_path) == find_run(str(a.path), "nowhere") == a
    assert find_run("alpha", tmp_path) == b  # the whole name wins over being a prefix
    assert find_run("be", tmp_path) == find_run("@last", tmp_path) == c
    assert find_run(str(elsewhere.path), tmp_path) == elsewhere
    with pytest.raises(UsageError, match="alpha, alpha-1") as ambiguous:
        find_run("al", tmp_path)
    assert ambiguous.value.code == 2


def test_an_unknown_run_says_where_it_looked_and_what_may_be_meant(tmp_path):
    with pytest.raises(UserError, match="no run yet"):
        find_run("@last", tmp_path / "none")
    create(tmp_path, name="baseline")
    with pytest.raises(UserError) as caught:
        find_run("baselin3", tmp_path)
    assert caught.value.code == 3
    assert str(tmp_path) in caught.value.why
    assert caught.value.fix == "Did you mean 'baseline'?"
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="is not a run"):
        find_run(tmp_path / "folder", tmp_path)


def test_a_running_run_whose_process_is_gone_is_lost(tmp_path):
    run = create(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run.update(pid=gone.pid)
    assert run.status == "lost"
    run.update(host="elsewhere")  # nothing is known of another machine's processes
    assert run.status == "running"


@pytest.mark.skipif(process.start_time(os.getpid()) is None, reason="the system does not tell start times")
def test_a_later_process_with_the_same_number_is_not_the_runs(tmp_path):
    run = create(tmp_path)
    assert run.status == "running"
    run.update(pid_started=process.start_time(os.getpid()) - 1)
    assert run.status == "lost"


def test_a_lock_has_one_holder(tmp_path):
    first = process.lock(tmp_path / ".lock")
    assert process.lock(tmp_path / ".lock") is None
    first.close()
    process.lock(tmp_path / ".lock").close()


def test_resumable_is_the_newest_unfinished_run_with_these_settings(tmp_path):
    runs = [create(tmp_path) for _ in range(4)]
    for run, status in zip(runs, ["interrupted", "failed", "done", "running"], strict=True):
        run.update(status=status)
    other = create(tmp_path, config={**CONFIG, "gamma": 9.0})
    other.update(status="interrupted")
    (create(tmp_path).path / "run.json").write_text("")
    assert resumable(tmp_path, "wrm", CONFIG, 0) == runs[1]  # done and running ones do not count
    assert resumable(tmp_path, "wrm", CONFIG, 1) is None
    assert resumable(tmp_path, "dgc", CONFIG, 0) is None
    assert resumable(tmp_path, "wrm", CONFIG, 0, name=runs[0].path.name) == runs[0]
    assert resumable(tmp_path, "wrm", CONFIG, 0, out=str(tmp_path / "new")) is None


def test_a_result_is_replaced_by_the_same_call_and_by_no_other(tmp_path):
    run = create(tmp_path)
    first = run.write_result("attack", {"accuracy": 0.5}, {"eps": 0.1, "norm": "linf"}, label="pgd")
    again = run.write_result("attack", {"accuracy": 0.4}, {"norm": "linf", "eps": 0.1}, label="pgd")
    other = run.write_result("attack", {"accuracy": 0.3}, {"eps": 0.2, "norm": "linf"}, label="pgd")
    assert first == again != other
    assert first.parent == run.path / "attack"
    assert [result["accuracy"] for result in run.results("attack")] == [0.4, 0.3]
    assert run.results("attack")[0]["options"] == {"eps": 0.1, "norm": "linf"}


def test_a_cut_last_line_of_the_metrics_is_left_out_and_overwritten(tmp_path):
    run = create(tmp_path)
    path = run.path / "metrics.jsonl"
    assert run.metrics() == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert run.metrics() == [{"step": 1}, {"step": 2}]
    file = MetricsFile(path)
    file.append({"step": 3, "loss": float("nan")})
    file.close()
    assert run.metrics() == [{"step": 1}, {"step": 2}, {"step": 3, "loss": None}]


def test_metrics_are_cut_back_to_the_size_a_checkpoint_noted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"step": 1})
    size = file.sync()
    file.append({"step": 2})
    file.close()
    resumed = MetricsFile(path, size)
    resumed.append({"step": 2, "again": True})
    resumed.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2, "again": true}\n'


def test_a_damaged_line_in_the_middle_of_the_metrics_is_named(tmp_path):
    run = create(tmp_path)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        run.metrics()


def test_a_figure_is_written_whole_or_not(tmp_path):
    class Figure:
        def savefig(self, file, **options):
            file.write(b"png")
            if broken:
                raise RuntimeError

    run, broken = create(tmp_path), False
    assert run.figure("bound", Figure()).read_bytes() == b"png"
    broken = True
    with pytest.raises(RuntimeError):
        run.figure("curve", Figure())
    assert files(run.path / "plots") == ["bound.png"]
    with pytest.raises(ValueError, match="figure's name"):
        run.figure("../x", Figure())


def test_the_environment_names_software_machine_and_commit(tmp_path):
    seen = environment("cpu")
    assert seen["host"] == socket.gethostname()
    assert {"iclr18", "torch", "typer"} <= set(seen["packages"])
    assert "pytest" not in seen["packages"]
    assert commit(tmp_path) is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@e", "-C", str(tmp_path)]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "m"]):
        subprocess.run([*git, *command], check=True)
    assert commit(tmp_path)["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path)["dirty"] is True
