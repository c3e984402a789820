"""Whatever is put in: one line that says what, why and what to do, the right exit code, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from iclr18cli.errors import ExitCode
from iclr18cli.plugin import hookimpl
from iclr18cli.run.directory import owner
from iclr18cli.testing import Ended, run_cli

SMALL = ("--preset", "smoke", "--dataset", "rings:200", "--epochs", "1", "--device", "cpu", "--quiet")


def refused(ended: Ended, code: ExitCode, *said: str) -> None:
    """Hold an ending to the contract: its code, one line on stderr that says all of `said`, nothing on stdout."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert ended.err.startswith("error: "), ended.err
    assert ended.err.count("\n") == 1, ended.err
    for words in said:
        assert words in ended.err, ended.err


def empty(folder: Path) -> bool:
    return not folder.exists() or not list(folder.rglob("*"))


def train(*arguments: object) -> Ended:
    return run_cli("wrm", "train", *SMALL, *map(str, arguments))


# ---- names, types and ranges


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--dataset mnits", "Did you mean 'mnist'?"),
        ("--dataset digits:5", "takes nothing after its name"),
        ("--dataset npz", "Write 'npz:PATH'"),
        ("--dataset rings:x", "whole number"),
        ("--dataset rings:0", "whole number"),
        ("--model wrm/elu-cn", "Did you mean 'wrm/elu-cnn'?"),
        ("--model wrm/elu-cnn", "input_shape"),
        ("--preset smok", "Did you mean 'smoke'?"),
        ("--gama 1", "--gamma"),
        ("--gamma 0", "greater than 0"),
        ("--gamma nan", "finite"),
        ("--gamma inf", "finite"),
        ("--gamma 1e300", "1e-30 .. 1e+30"),
        ("--gamma 1e-300", "1e-30 .. 1e+30"),
        ("--gamma much", "--gamma"),
        ("--method wmr", "'wrm'"),
        ("--method fgm", "--eps"),
        ("--epochs 0", "--epochs"),
        ("--epochs 1.5", "--epochs"),
        ("--batch-size 0", "--batch-size"),
        ("--limit -1", "--limit"),
        ("--seed -1", "--seed"),
        (f"--seed {2**63}", "--seed"),
        ("--device tpu", "Did you mean 'cpu'?"),
        ("--device cuda:x", "There is no device"),
        ("--precision fp17", "--precision"),
        ("--name ../up", "cannot be called"),
        ("--name auto", "cannot be called"),
        ("--name a --out b", "exclude each other"),
        ("--config nowhere.toml --epochs 0", "--epochs"),
    ],
)
def test_wrong_usage_of_train_ends_with_2_and_leaves_no_run(cli, runs, options, said):
    refused(cli("wrm", "train", *SMALL, *options.split()), ExitCode.USAGE, said)
    assert empty(runs)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("gama = 1.0", ExitCode.USAGE, "Did you mean 'gamma'?"),
        ("gamma = 'x'", ExitCode.USAGE, "must be a number; received 'x'"),
        ("gamma = true", ExitCode.USAGE, "must be a number; received True"),
        ("gamma = -1.0", ExitCode.USAGE, "greater than 0; received -1.0"),
        ("gamma = nan", ExitCode.USAGE, "finite"),
        ("gamma = [1.0]", ExitCode.USAGE, "must be a number"),
        ("epochs = 1.5", ExitCode.USAGE, "must be a whole number"),
        ("method = 'wmr'", ExitCode.USAGE, "Did you mean 'wrm'?"),
        ("[train]\ngamma = 1.0", ExitCode.USAGE, "Unknown option 'train'"),
        ("device = 'tpu'", ExitCode.USAGE, "There is no device 'tpu'"),
        ("seed = -3", ExitCode.USAGE, "at least 0"),
        ("gamma =", ExitCode.USER, "not valid TOML"),
        ("gamma = 1\ngamma = 2", ExitCode.USER, "not valid TOML"),
        (b"\xff\xfe\x00", ExitCode.USER, "Cannot read"),
        (None, ExitCode.USER, "No such file"),
    ],
)
def test_a_bad_toml_file_is_named_and_leaves_no_run(cli, runs, tmp_path, text, code, said):
    file = tmp_path / "my.toml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    named = () if "tpu" in str(text) else (str(file),)
    refused(cli("wrm", "train", "--config", file), code, said, *named)
    assert empty(runs)


def test_a_list_without_a_value_is_wrong_usage(cli, smoke_run, tmp_path):
    (tmp_path / "my.toml").write_text("rho = []")
    for options in (("--rho", ","), ("--config", tmp_path / "my.toml")):
        refused(cli("wrm", "certify", smoke_run("wrm"), *options), ExitCode.USAGE, "rho", "at least one value")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("models show mlpp", ExitCode.USAGE, "Did you mean 'mlp'?"),
        ("models show mlp --set classe=3", ExitCode.USAGE, "no argument 'classe'"),
        ("models show mlp --set classes", ExitCode.USAGE, "NAME=VALUE"),
        ("models show mlp --set classes=-3", ExitCode.USAGE, "classes=-3"),
        ("models show mlp --set input_shape={}", ExitCode.USAGE, "at least one size"),
        ("models show mlp --set hidden=[1000000000,1000000000]", ExitCode.USAGE, "cannot be built"),
        ("models show mlp --set activation=relo", ExitCode.USAGE, "Did you mean 'relu'?"),
        ("data show mnits", ExitCode.USAGE, "Did you mean 'mnist'?"),
        ("data show npz:/nowhere.npz", ExitCode.USER, "There is no file"),
        ("data show folder:/nowhere", ExitCode.USER, "There is no folder"),
        ("data fetch digits", ExitCode.USAGE, "no files to fetch"),
        ("data fetch cifar10-jpeg", ExitCode.USER, "data import"),
        ("data fetch usps --from /nowhere", ExitCode.USER, "no file or folder"),
        ("data verify mnits", ExitCode.USAGE, "Did you mean 'mnist'?"),
        ("data import digits /tmp", ExitCode.USAGE, "no files to import"),
        ("data import mnist /nowhere", ExitCode.USER, "no file or folder"),
        ("data import mnist /dev/null", ExitCode.USER, "mnist"),
        ("runs list --runs-dir /dev/null", ExitCode.USER, "cannot be read"),
        ("runs show /dev", ExitCode.USER, "is not a run"),
        ("runs show", ExitCode.USAGE, "RUN"),
        ("plugins show nothing", ExitCode.USAGE, "There is no plugin"),
    ],
)
def test_wrong_names_of_the_core_commands(cli, runs, tmp_path, line, code, said):
    place = ("--data-dir", tmp_path / "data") if line.startswith("data") else ()
    refused(cli(*line.split(), *place), code, said)
    assert empty(runs)
    assert empty(tmp_path / "data")


# ---- data


def arrays(tmp_path: Path, **named: np.ndarray) -> str:
    x = np.random.default_rng(0).random((40, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "own.npz", **({"x": x, "y": np.arange(40) % 4} | named))
    return f"npz:{tmp_path / 'own.npz'}"


BRIGHT = np.full((40, 8, 8), 3, dtype=np.float32)
BAD_ARRAYS = {
    "values above 1": ({"x": BRIGHT}, "3 .. 3, the range is 0 .. 1"),
    "values below 0": ({"x": -BRIGHT}, "the range is 0 .. 1"),
    "not a number": ({"x": BRIGHT * np.nan}, "NaN"),
    "negative labels": ({"y": np.arange(40) % 4 - 1}, "labels span -1 .. 2"),
    "labels above the classes": ({"classes": np.array(["a", "b"])}, "labels span 0 .. 3, the 2 classes are 0 .. 1"),
    "labels that are no whole numbers": ({"y": np.zeros(40)}, "whole numbers"),
    "fewer labels than inputs": ({"y": np.zeros(39, dtype=int)}, "(39,)"),
    "no example": ({"x": BRIGHT[:0], "y": np.zeros(0, dtype=int)}, "is empty"),
    "an empty split": (
        {"x_train": BRIGHT / 4, "y_train": np.zeros(40, dtype=int), "x_test": BRIGHT[:0], "y_test": np.zeros(0, int)},
        "The test split",
    ),
    "objects": ({"x": np.array([{}] * 40, dtype=object)}, "allow_pickle=False"),
    "integers": ({"x": BRIGHT.astype(np.int32)}, "x is int32"),
    "a range upside down": ({"range": np.array([1.0, 0.0])}, "low < high"),
}


@pytest.mark.parametrize("fault", BAD_ARRAYS)
def test_arrays_that_break_a_rule_are_refused(cli, runs, tmp_path, fault):
    named, said = BAD_ARRAYS[fault]
    refused(train("--dataset", arrays(tmp_path, **named)), ExitCode.USER, said, "fix:")
    assert empty(runs)


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "text", "one array"])
def test_a_damaged_npz_is_refused(cli, runs, tmp_path, damage):
    reference = arrays(tmp_path)
    path = tmp_path / "own.npz"
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[600] ^= 1
    elif damage == "one array":
        with path.open("wb") as file:
            np.save(file, BRIGHT)
        content = bytearray(path.read_bytes())
    path.write_bytes({"cut": content[:-200], "empty": b"", "text": b"x,y\n"}.get(damage, bytes(content)))
    refused(train("--dataset", reference), ExitCode.USER, str(path), "fix:")
    assert empty(runs)


def idx(*shape: int, values: bytes) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + values


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MNIST's four files with 20 black images each, in its layout; the folder of the raw files."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        images, labels = idx(20, 28, 28, values=bytes(20 * 784)), idx(20, values=bytes(i % 10 for i in range(20)))
        (raw / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (raw / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    monkeypatch.setenv("ICLR18_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return raw


def corrupted(packed: bytes) -> bytes:
    """Flip a bit of the checksum at the end."""
    return packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda packed: packed[:-20], "EOFError"),
    "corrupted": (corrupted, "CRC"),
    "empty": (lambda packed: b"", "begins with nothing"),
    "not packed": (lambda packed: b"<html>", "Not a gzipped file"),
    "too few values": (lambda packed: gzip.compress(gzip.decompress(packed)[:-5]), "values are there"),
    "too many values": (lambda packed: gzip.compress(gzip.decompress(packed) + b"0"), "more than"),
    "a huge header": (lambda packed: gzip.compress(idx(2**31, 28, 28, values=b"")), "announces"),
    "another length": (lambda packed: gzip.compress(idx(19, 28, 28, values=bytes(19 * 784))), "19 images but 20"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_damaged_gz_is_refused_with_the_command_that_checks_it(cli, runs, mnist, fault):
    damage, said = BAD_FILES[fault]
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    refused(train("--dataset", "mnist"), ExitCode.USER, str(mnist), said, "iclr18 data verify mnist")
    assert empty(runs)


def test_official_labels_outside_the_classes_are_refused(cli, runs, mnist):
    (mnist / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(20, values=bytes([77] * 20))))
    refused(train("--dataset", "mnist"), ExitCode.USER, "labels span 77 .. 77", "0 .. 9")
    assert empty(runs)


def test_a_data_set_that_is_not_here_says_how_to_get_it(cli, runs, mnist):
    (mnist / "t10k-images-idx3-ubyte.gz").unlink()
    refused(train("--dataset", "mnist"), ExitCode.USER, "looked in", "iclr18 data fetch mnist")
    assert empty(runs)
    ended = cli("data", "verify", "mnist", "--json")
    assert (ended.code, ended.json["ok"]) == (ExitCode.USER, False)


# ---- runs with damaged files


def changed(name: str, **entries: object) -> Callable[[Path], None]:
    """Return a fault: other entries in a JSON file."""

    def damage(run: Path) -> None:
        document = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(document | entries))

    return damage


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(content) and None


def cut(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2])

    return damage


def flipped(run: Path) -> None:
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (run / "model.safetensors").write_bytes(content)


def other_gamma(run: Path) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("gamma = 2.0", "gamma = 'two'"))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "run.json cut": (cut("run.json"), "run.json cannot be read"),
    "run.json a list": (written("run.json", b"[]"), "schema"),
    "run.json binary": (written("run.json", b"\xff\xfe"), "not JSON"),
    "run.json of the future": (changed("run.json", schema="iclr18.run/9"), "iclr18.run/9"),
    "run.json without a technique": (changed("run.json", technique=5), "'technique'"),
    "run.json with metrics of a wrong type": (changed("run.json", metrics=[1]), "'metrics'"),
    "run.json with seconds of a wrong type": (changed("run.json", seconds="long"), "'seconds'"),
    "config.toml cut": (lambda run: (run / "config.toml").write_text("gamma = ") and None, "not TOML"),
    "config.toml gone": (lambda run: (run / "config.toml").unlink(), "No such file"),
    "config.toml changed": (other_gamma, "was changed after the run began"),
    "model.json cut": (cut("model.json"), "model.json"),
    "model.json a list": (written("model.json", b"[]"), "JSON object"),
    "model.json with a path": (changed("model.json", weights="../../etc/passwd"), "plain file name"),
    "model.json with other arguments": (changed("model.json", kwargs={"classes": 2, "hidden": [9]}), "hidden"),
    "model.json with a huge network": (
        changed("model.json", model="mlp", kwargs={"classes": 2, "input_shape": [2], "hidden": [10**9, 10**9]}),
        "do not fit the model 'mlp'",
    ),
    "a model of a missing plugin": (changed("model.json", model="zz/top", plugin="zz-top 1.0"), "pip install zz-top"),
    "weights cut": (cut("model.safetensors"), "sha256"),
    "weights with one bit flipped": (flipped, "sha256"),
    "weights gone": (lambda run: (run / "model.safetensors").unlink(), "No such file"),
}


@pytest.fixture
def damaged(smoke_run: Callable[[str], Path], runs: Path) -> Callable[..., Path]:
    """`damaged(fault)` -> a copy of the smoke run with that fault, and its bytes before."""

    def make(fault: Callable[[Path], None]) -> Path:
        shutil.copytree(smoke_run("wrm"), runs / "damaged")
        fault(runs / "damaged")
        return runs / "damaged"

    return make


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_run_with_a_damaged_file_is_refused_and_left_as_it_is(cli, damaged, fault):
    damage, said = DAMAGE[fault]
    run = damaged(damage)
    before = sorted(run.rglob("*"))
    for line in (("wrm", "eval"), ("wrm", "certify"), ("attack",), ("certify",)):
        refused(cli(*line, run, "--quiet"), ExitCode.USER, said)
    assert sorted(run.rglob("*")) == before
    assert cli("runs", "list").code == 0
    assert cli("runs", "rm", "damaged", "--yes").code == 0
    assert not run.exists()


@pytest.mark.parametrize("content", [b'{"step": 1}\nxx\n{"step": 2}\n', b"\xff\x00\n", b'{"loss": 1}\n', b"[1]\n"])
def test_damaged_metrics_are_named_with_their_line(cli, damaged, content):
    run = damaged(written("metrics.jsonl", content))
    refused(cli("runs", "plot", run, "--out", run / "new.png"), ExitCode.USER, "metrics.jsonl is damaged at line")
    assert not (run / "new.png").exists()


def test_metrics_that_kill_has_cut_are_read_up_to_the_last_whole_line(cli, damaged):
    run = damaged(lambda run: (run / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 1.0}\n{"st') and None)
    assert cli("runs", "plot", run).code == 0


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"packages": 5}'])
def test_a_damaged_env_json_is_named(cli, damaged, smoke_run, content):
    run = damaged(written("env.json", content))
    refused(cli("runs", "diff", run, smoke_run("wrm")), ExitCode.USER, "env.json")


def test_a_run_whose_technique_is_missing_says_what_to_install(cli, damaged):
    run = damaged(changed("run.json", technique="gone", plugin="gone-plugin 1.0"))
    refused(cli("certify", run, "--method", "technique"), ExitCode.USER, "'gone'", "gone-plugin")
    refused(cli("wrm", "train", "--resume", "damaged"), ExitCode.USAGE, "was made by 'gone'")


def test_a_model_never_meets_data_it_was_not_made_for(cli, damaged):
    run = damaged(changed("model.json", dataset="digits"))
    for line in (("attack",), ("certify",), ("wrm", "eval"), ("wrm", "certify")):
        refused(cli(*line, run, "--quiet"), ExitCode.USER, "(1, 8, 8)", "(2,)")
    assert not any((run / kind).exists() for kind in ("attack", "certify", "eval"))


# ---- attacks and certificates


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("--attack pdg", ExitCode.USAGE, "Did you mean 'pgd'?"),
        ("--attack cw --norm linf", ExitCode.USAGE, "does not offer the norm 'linf'"),
        ("--norm l3", ExitCode.USAGE, "--norm"),
        ("--attack autoattack --steps 5", ExitCode.USAGE, "takes no --steps"),
        ("--attack pgd --queries 5", ExitCode.USAGE, "takes no --queries"),
        ("--attack torchattacks/pixle", ExitCode.USAGE, "not offered"),
        ("--attack apgd-dlr", ExitCode.USAGE, "classes"),
        ("--suite standard --attack square", ExitCode.USAGE, "exclude each other"),
        ("--nproc none", ExitCode.USAGE, "--nproc"),
        ("--target 7", ExitCode.USAGE, "names no class"),
        ("--from no-such-run", ExitCode.USER, "no-such-run"),
        ("--eps -1", ExitCode.USAGE, "--eps"),
        ("--eps nan", ExitCode.USAGE, "--eps"),
        ("--steps 0", ExitCode.USAGE, "--steps"),
        ("--limit -1", ExitCode.USAGE, "--limit"),
        ("--batch-size -1", ExitCode.USAGE, "--batch-size"),
        ("--split valid", ExitCode.USAGE, "its splits are train, test"),
        ("--attack pgd-torchattacks", ExitCode.USAGE, "torchattacks/pgd"),
        ("--attack torchattacks/fgsm", ExitCode.USAGE, "declared range"),
    ],
)
def test_an_attack_that_cannot_be_made_leaves_no_report(cli, smoke_run, options, code, said):
    refused(cli("attack", smoke_run("wrm"), *options.split(), "--quiet"), code, said)
    assert not (smoke_run("wrm") / "attack").exists()


@pytest.mark.parametrize("command", [("certify",), ("certify", "--method", "wasserstein"), ("wrm", "certify")])
def test_a_gamma_at_or_below_half_the_smoothness_is_refused_with_the_gamma_needed(cli, damaged, command):
    run = damaged(lambda run: None)
    ended = cli(*command, run, "--gamma", "0.001", "--quiet")
    refused(ended, ExitCode.USER, "not above L/2", "use gamma > ")
    assert float(ended.err.split("use gamma > ")[1].split(",")[0]) > 0.001
    assert not (run / "certify").exists()


def test_a_relu_net_gets_s0_that_says_so_and_no_dual_bound(cli, tmp_path):
    run = tmp_path / "relu"
    assert train("--activation", "relu", "--out", run).code == 0
    for command in (("certify",), ("wrm", "certify")):
        refused(cli(*command, run, "--gamma", "5", "--limit", "20", "--quiet"), ExitCode.USER, "ReLU has a kink")
    assert not (run / "certify").exists()
    ended = cli("certify", run, "--method", "wasserstein", "--rho", "0.01", "--limit", "20", "--json", "--quiet")
    assert ended.code == 0, ended.err
    (certificate,) = ended.json["certificates"]
    assert certificate["verdict"] == "proven"
    assert "S0" in certificate["statement"]
    assert any("ReLU" in warning for warning in certificate["warnings"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--method waserstein", "Did you mean 'wasserstein'?"),
        ("--rho -1", "rho must be at least 0"),
        ("--rho much", "--rho"),
        ("--delta 0", "delta must be greater than 0"),
        ("--loss square", "--loss"),
    ],
)
def test_wrong_usage_of_certify(cli, smoke_run, options, said):
    refused(cli("certify", smoke_run("wrm"), *options.split()), ExitCode.USAGE, said)


# ---- places that cannot be written


@pytest.mark.parametrize("option", ["--out", "--runs-dir"])
def test_a_place_that_cannot_be_written_is_refused(cli, tmp_path, option):
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/nowhere/run")):
        refused(train(option, place), ExitCode.USER, "Cannot write", "fix:")
    assert (tmp_path / "file").read_text() == "kept"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_figures_go_nowhere_else_when_their_place_cannot_be_written(cli, smoke_run, tmp_path):
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file" / "x.png", tmp_path, Path("/proc/x.png")):
        refused(cli("runs", "plot", smoke_run("wrm"), "--out", place), ExitCode.USER, "Cannot write")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_run_never_writes_into_a_folder_that_is_not_empty(cli, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(train("--out", tmp_path), ExitCode.USER, "not empty", "--resume")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def program(*arguments: object, **how: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "iclr18cli", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)  # type: ignore[call-overload]


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on the size of files")
def test_a_full_disk_ends_with_one_line_and_leaves_no_part_of_a_file(tmp_path):
    import resource

    def almost_full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # run.json fits, a checkpoint does not

    started = program("wrm", "train", *SMALL, "--out", tmp_path / "run", preexec_fn=almost_full)
    out, err = started.communicate(timeout=120)
    refused(Ended(started.returncode, out, err), ExitCode.USER, "Cannot write", "free some space")
    left = {p.name for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert not {"model.json", "model.safetensors", "last.pt"} & left
    assert not [name for name in left if name.endswith(".tmp")]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_two_processes_that_start_at_once_get_a_run_each(tmp_path):
    around = os.environ | {"ICLR18_RUNS": str(tmp_path)}
    started = [program("wrm", "train", *SMALL, "--json", env=around) for _ in range(2)]
    ended = [(process.communicate(timeout=120), process.returncode) for process in started]
    assert [code for _, code in ended] == [0, 0], ended
    paths = {json.loads(out)["run"] for (out, _), _ in ended}
    assert len(paths) == 2
    assert all(json.loads((Path(path) / "run.json").read_text())["status"] == "done" for path in paths)


# ---- going on with a run


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smoke run that SIGTERM stopped, with two checkpoints."""
    from iclr18cli.manager import plugins

    class Stop:
        @hookimpl
        def iclr18_run_logged(self, run, step, metrics):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path_factory.mktemp("stopped") / "run"
    plugins().register(Stop(), name="stop")
    try:
        ended = run_cli("wrm", "train", "--preset", "smoke", "--device", "cpu", "--quiet", "--out", folder,
                        "--checkpoint-every", "0", "--log-every", "1")  # fmt: skip
    finally:
        plugins().unregister("stop")
    assert ended.code == ExitCode.SIGTERM
    assert f"--resume {folder}" in ended.err
    return folder


@pytest.fixture
def stopped(stopped_once: Path, runs: Path) -> Path:
    return Path(shutil.copytree(stopped_once, runs / "stopped"))


def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_the_same_bits(cli, stopped, smoke_run):
    cut("checkpoints/last.pt")(stopped)
    ended = cli("wrm", "train", "--resume", "stopped", "--quiet")
    assert ended.code == 0, ended.err
    assert "going on from the checkpoint before it, step 2" in ended.err + (stopped / "log.txt").read_text()
    weights = "model.safetensors"
    assert (stopped / weights).read_bytes() == (smoke_run("wrm") / weights).read_bytes()


def test_without_a_whole_checkpoint_a_run_says_so_and_stays_as_it_is(cli, stopped):
    for name in ("last.pt", "last-1.pt"):
        cut(f"checkpoints/{name}")(stopped)
    refused(cli("wrm", "train", "--resume", "stopped"), ExitCode.USER, "last.pt cannot be used", "fix:")
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("command", [("wrm", "eval"), ("wrm", "certify"), ("attack",), ("certify",), ("wrm", "curves")])
def test_an_unfinished_run_is_not_measured_and_says_how_to_go_on(cli, stopped, command):
    before = sorted(stopped.rglob("*"))
    refused(cli(*command, "stopped", "--quiet"), ExitCode.USER, "has no model yet", "iclr18 wrm train --resume")
    assert sorted(stopped.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("--resume stoped", ExitCode.USER, "Did you mean 'stopped'?"),
        ("--resume stopped --gamma 7", ExitCode.USAGE, "gamma=7.0 differs from 2.0"),
        ("--resume stopped --seed 7", ExitCode.USAGE, "seed=7 differs from 0"),
        ("--resume stopped --device tpu", ExitCode.USAGE, "There is no device"),
    ],
)
def test_a_resume_that_cannot_be_leaves_the_run_as_it_is(cli, stopped, options, code, said):
    before = (stopped / "run.json").read_bytes()
    refused(cli("wrm", "train", *options.split()), code, said)
    assert (stopped / "run.json").read_bytes() == before


def test_a_run_that_another_process_works_on_is_left_alone(cli, stopped):
    changed("run.json", status="running", **owner())(stopped)
    refused(cli("wrm", "train", "--resume", "stopped"), ExitCode.USER, "is being worked on", "fix:")
    refused(cli("runs", "rm", "stopped", "--yes"), ExitCode.USER, "is being trained", "fix:")
    assert (stopped / "run.json").exists()


def test_a_changed_config_is_not_gone_on_with(cli, stopped):
    other_gamma(stopped)
    refused(cli("wrm", "train", "--resume", "stopped"), ExitCode.USER, "was changed after the run began")


def test_a_run_that_is_done_says_so_and_is_not_trained_again(cli, smoke_run):
    before = (smoke_run("wrm") / "run.json").read_bytes()
    ended = cli("wrm", "train", "--resume", smoke_run("wrm"), "--json")
    assert ended.code == 0
    assert ended.json["status"] == "done"
    assert "done already" in ended.err
    assert (smoke_run("wrm") / "run.json").read_bytes() == before


def test_resume_auto_without_an_unfinished_run_starts_one_and_says_so(cli, runs):
    line = [word for word in SMALL if word != "--quiet"]
    ended = cli("wrm", "train", *line, "--resume", "auto", "--name", "fresh")
    assert ended.code == 0, ended.err
    assert "starting a new one" in ended.err
    assert (runs / "fresh" / "model.json").exists()


def test_rm_asks_nobody_where_there_is_nobody(cli, stopped, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    refused(cli("runs", "rm", "stopped"), ExitCode.USAGE, "--yes")
    assert stopped.exists()


# ---- losses that are not finite


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_the_last_finite_loss(cli, runs):
    refused(train("--learning-rate", "1e30", "--name", "nan"), ExitCode.USER, "NaN at step 2",
            "the last finite loss was 0.", "at step 1", "fix: a smaller learning rate")  # fmt: skip
    info = json.loads((runs / "nan" / "run.json").read_text())
    assert info["status"] == "failed"
    assert "NaN at step 2" in info["reason"]
    assert not (runs / "nan" / "model.safetensors").exists()
    assert not (runs / "nan" / "checkpoints" / "last.pt").exists()
    assert cli("runs", "show", "nan").code == 0
