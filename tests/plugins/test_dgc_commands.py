"""`dgc train`, `eval`, `certify` and `bench` as they are called, with real processes where several work together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from iclr18_dgc import bench, certificate, link, wire
from iclr18_dgc.audit import Audited
from iclr18_dgc.compressors import PowerSGD, compress
from iclr18_dgc.config import BenchConfig, CertifyConfig, TrainConfig
from iclr18_dgc.schedule import Schedule
from iclr18_dgc.train import learning_rate, schedule
from safetensors.torch import load_file
from torch import nn

from iclr18cli import api
from iclr18cli.errors import UsageError
from iclr18cli.testing import run_cli

TRAIN = [sys.executable, "-m", "iclr18cli", "dgc", "train", "--dataset", "digits", "--device", "cpu", "--limit", "650",
         "--batch-size", "100", "--density", "0.05", "--epochs", "2", "--quiet"]  # fmt: skip


def around():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def trained(folder, *options):
    ended = subprocess.run([*TRAIN, "--out", str(folder), *map(str, options)], capture_output=True, text=True,
                           env=around())  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return load_file(folder / "model.safetensors")


def distance(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


def test_at_density_one_workers_learn_what_one_learns(cli, tmp_path):
    # Neither the batches of 100 nor the last one of 50 examples are shared equally by 3 workers.
    dense = ["--density", "1", "--warmup-epochs", "0", "--no-masking"]
    assert cli(*TRAIN[3:], *dense, "--out", tmp_path / "alone").code == 0
    assert cli(*TRAIN[3:], "--compressor", "none", "--out", tmp_path / "plain").code == 0
    alone, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "plain"))
    assert distance(alone, plain) < 2e-5
    assert distance(alone, trained(tmp_path / "three", *dense, "--nproc", "3")) < 2e-5
    assert distance(alone, trained(tmp_path / "whole", "--compressor", "none", "--nproc", "2")) < 2e-5


def test_a_sparse_training_of_two_workers_goes_on_after_a_signal_to_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole", "--nproc", "2", "--epochs", "12")
    folder = tmp_path / "stopped"
    line = [*TRAIN, "--epochs", "12", "--nproc", "2", "--checkpoint-every", "0", "--out", str(folder)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=around())
    while not (folder / "checkpoints" / "last-1.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    parts = [torch.load(folder / "checkpoints" / name) for name in ("last.pt", "last.rank-1.pt")]
    waiting = [part["memory"]["own"]["compressor"]["v"] for part in parts]
    assert any(not torch.equal(waiting[0][name], waiting[1][name]) for name in waiting[0])  # each keeps its own
    resumed = subprocess.run([*TRAIN[:5], "--resume", str(folder), "--nproc", "2", "--quiet"], capture_output=True,
                             text=True, env=around())  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    counted = [json.loads((place / "run.json").read_text())["metrics"] for place in (tmp_path / "whole", folder)]
    assert counted[0] == counted[1]  # bytes included


@pytest.mark.parametrize("compressor", ["fp16", "powersgd", "gradient-dropping"])
def test_every_compressor_trains_and_counts(compressor, tmp_path):
    trained(tmp_path / "run", "--nproc", "2", "--compressor", compressor, "--epochs", "4")
    metrics = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert metrics["ratio"] > {"fp16": 1.99, "powersgd": 1.5, "gradient-dropping": 2}[compressor]
    assert metrics["sent_bytes"] > 0
    assert metrics["accuracy"] > 0.3


def test_powersgd_remembers_through_a_checkpoint():
    first, second = PowerSGD(2, 0), PowerSGD(2, 5)
    first.torch_state.iter = 12
    first.torch_state.error_dict[0] = torch.arange(3.0)
    first.torch_state.rng.rand(7)
    second.load_state_dict(first.state_dict())
    assert second.torch_state.iter == 12
    assert second.torch_state.error_dict[0].tolist() == [0, 1, 2]
    assert second.torch_state.rng.rand() == first.torch_state.rng.rand()
    merged = PowerSGD.merge([first.state_dict(), PowerSGD(2, 1).state_dict() | {"error_dict": {0: torch.ones(3)}}])
    assert merged["error_dict"][0].tolist() == [0.5, 1, 1.5]


def test_the_density_falls_over_the_warm_up_and_the_step_size_by_its_plan():
    config = TrainConfig(epochs=8, warmup_epochs=4, learning_rate=0.4, learning_rate_warmup=2, decay="steps")
    plan = schedule(config, per_epoch=10)
    assert [plan.at(10 * epoch) for epoch in range(6)] == [0.25, 0.0625, 0.015625, 0.00390625, 0.001, 0.001]
    rates = [learning_rate(config, step, 10) for step in (0, 10, 20, 49, 50, 64, 65)]
    assert rates == pytest.approx([0.04, 0.22, 0.4, 0.4, 0.04, 0.04, 0.004])
    cosine = replace(config, decay="cosine", learning_rate_warmup=0)
    assert learning_rate(cosine, 40, 10) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--compressor", "none", "--clip", "1"], "--clip"),
        (["--momentum", "1"], "--momentum"),
        (["--nesterov", "--momentum", "0"], "--nesterov"),
        (["--dataset", "rings:200", "--augment"], "--augment"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, word, cli):
    ended = cli("dgc", "train", "--preset", "smoke", *options)
    assert ended.code == 2
    assert word in ended.err


def audited(**changes):
    one = Audited(imbalance=1e-8, digest="a", claimed_sent=1000, claimed_received=1000, counted_sent=1100,
                  counted_received=1100, collectives=1, payload=1000, dense=500_000, pending=0.5)  # fmt: skip
    return [one, replace(one, **changes)]


def test_an_audit_is_contradicted_by_a_loss_by_unequal_replicas_and_by_bytes_that_were_not_claimed():
    config, trained_with = CertifyConfig(steps=10), TrainConfig()
    assert certificate.conservation(audited(), config, trained_with).holds
    assert not certificate.conservation(audited(imbalance=1e-3), config, trained_with).holds
    assert certificate.replicas(audited(), config).holds
    assert not certificate.replicas(audited(digest="b"), config).holds
    assert certificate.wire_bytes(audited(), config, trained_with).holds
    assert not certificate.wire_bytes(audited(counted_sent=10_000), config, trained_with).holds
    assert not certificate.wire_bytes(audited(counted_sent=900), config, trained_with).holds
    unknown = certificate.wire_bytes([replace(one, counted_sent=None) for one in audited()], config, trained_with)
    assert unknown.warnings


def test_the_audit_of_a_run_counts_the_bytes_on_the_wire(smoke_run):
    made = api.certify("dgc", smoke_run("dgc"), steps=5, workers=2)
    assert [one.verdict for one in made] == ["measured"] * 4
    assert all(one.holds for one in made)
    counts = made[2].solver["counted"]
    assert counts == [] or min(counts) >= made[2].solver["claimed"][0]
    assert "276.7" in made[3].statement
    assert "461.8" in made[3].statement
    assert "597.7" in made[3].statement


def test_a_run_that_held_nothing_back_is_not_certified(cli, tmp_path):
    assert cli("dgc", "train", "--preset", "smoke", "--compressor", "none", "--out", tmp_path / "run").code == 0
    ended = cli("dgc", "certify", tmp_path / "run")
    assert ended.code == 3
    assert "holds nothing back" in ended.err


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux counts the bytes of a connection")
def test_the_kernels_count_sees_every_byte_of_a_connection():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:
            before = wire.of_this_process()
            one.sendall(bytes(12_345))
            left = 12_345
            while left:
                left -= len(other.recv(left))
            time.sleep(0.05)  # for the acknowledgement
            counted = wire.of_this_process() - before
    assert (counted.sent, counted.received) == (12_345, 12_345)


def test_bench_on_loopback_shows_every_compressor_beside_the_dense_gradient(cli, tmp_path):
    ended = cli("dgc", "bench", "--preset", "smoke", "--compressor", "none", "--compressor", "dgc", "--out",
                tmp_path / "run", "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    rows = {row["compressor"]: row for row in ended.json["result"]["per step and worker"]}
    assert rows["none"]["times_faster"] == 1
    parameters = 784 * 64 + 64 + 64 * 10 + 10
    assert rows["none"]["claimed_bytes"] == 4 * parameters
    assert rows["dgc"]["claimed_bytes"] < 4 * parameters / 100
    assert (tmp_path / "run" / "plots" / "bench.png").is_file()


@pytest.mark.skipif(bool(link.why_not()), reason="needs root and network namespaces")
def test_a_link_carries_what_is_claimed_at_its_rate():
    config = BenchConfig(link=("20mbit",), compressor=("none", "dgc"), hidden=(256,), steps=3)
    rows = {
        row["compressor"]: row for row in bench.table_rows("20mbit", bench.on_link("20mbit", config), measured=True)
    }
    for row in rows.values():
        assert (
            row["claimed_bytes"] < row["sent_bytes"] < 1.1 * row["claimed_bytes"] + 8000
        )  # headers, acknowledgements, framing
    bits = 8 * rows["none"]["claimed_bytes"]
    assert rows["none"]["seconds"] > 0.8 * (bits - 8 * 2 * link.BURST) / 20e6
    assert rows["dgc"]["times_fewer_bytes"] > 50
    assert not any(name.startswith("iclr18-") for name in os.listdir("/run/netns"))


def test_without_a_link_the_time_is_computed_and_said_to_be():
    row = {"seconds": 0.5, "claimed": 1e6, "sent": 3e6, "compressor": "none"}
    assert bench.modelled(row, 1e8)["seconds"] == pytest.approx(0.58)
    made = bench.table_rows("100mbit", {"none": bench.modelled(row, 1e8)}, measured=False)
    assert made[0]["how"] == "computed"


@pytest.mark.parametrize("rate", ["fast", "0mbit", "10", "-1gbit", "1 gbit"])
def test_a_rate_is_a_number_with_a_unit(rate):
    with pytest.raises(UsageError, match="no rate"):
        link.bits_per_second(rate)


def test_one_worker_follows_the_same_rule_as_many():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 50), nn.Linear(50, 2))
    made = compress(net, TrainConfig(momentum=0.9), Schedule(0.01), world_size=1)
    made.model(torch.ones(1, 6)).sum().backward()
    made.exchange()
    sent = [int((p.grad != 0).sum()) for p in net.parameters() if p.dim() > 1]
    assert sent == [3, 1]  # ceil(0.01 * 300), ceil(0.01 * 100)
    assert made.state.residual["0.weight"].count_nonzero() == 297


def test_language_model_trains_with_compressed_gradients_and_is_measured_in_perplexity(tmp_path):
    ended = run_cli("dgc", "train", "--dataset", "python-docs", "--limit", "6000", "--density", "0.01", "--epochs", "1",
                    "--batch-size", "20", "--learning-rate", "1", "--device", "cpu", "--out", tmp_path / "lm", "--json",
                    "--quiet")  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.json["metrics"]["ratio"] > 2
    found = run_cli("dgc", "eval", tmp_path / "lm", "--limit", "400", "--device", "cpu", "--json", "--quiet")
    assert found.code == 0, found.err
    assert found.json["metrics"]["tokens"] == 399
    refused = run_cli("dgc", "certify", tmp_path / "lm", "--device", "cpu", "--quiet")
    assert refused.code == 3
    assert "language model" in refused.err
