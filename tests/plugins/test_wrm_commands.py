"""The `wrm` commands from end to end: the paper's values on rings, certificates, figures, golden losses."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iclr18cli import api
from iclr18cli.errors import ClaimError, UsageError, UserError
from iclr18cli.testing import run_cli

GOLDEN = Path(__file__).parents[1] / "golden" / "wrm-smoke.json"
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def rings(tmp_path_factory):
    return api.train("wrm", preset="paper-rings", seed=0, out=str(tmp_path_factory.mktemp("wrm") / "rings"))


@pytest.fixture(scope="module")
def capped(tmp_path_factory):
    return api.train("wrm", preset="capped-rings", seed=0, out=str(tmp_path_factory.mktemp("wrm") / "capped"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_rings_gives_the_values_of_the_card(rings, split):
    found = api.evaluate("wrm", rings.path, split=split)
    assert found["accuracy"] >= 0.995
    assert found["rho_hat"] == pytest.approx(0.070, abs=0.004)
    assert found["phi"] == pytest.approx(0.110, abs=0.004)
    assert found["converged_rho_hat"] == pytest.approx(0.129, abs=0.006)
    assert found["converged_phi"] == pytest.approx(0.121, abs=0.004)
    assert found["converged_residual_max"] < 2e-3 < 0.5 < found["residual_max"]
    assert 0.02 < found["nonconcave_perturbed"] < 0.07
    assert found["phi"] + found["gamma"] * found["rho_hat"] == pytest.approx(found["adversarial_loss"], abs=1e-6)


def test_paper_mode_is_an_estimate_that_says_what_it_lacks(rings):
    (certificate,) = api.certify("wrm", rings.path, mode="paper", rho=(0.14,), limit=1000, figure=False)
    assert certificate.verdict == "estimate"
    assert "estimate" in certificate.statement
    assert certificate.solver["converged_value"] > certificate.value
    assert certificate.solver["max_residual"] > 0.1
    assert any("understate" in warning for warning in certificate.warnings)


def test_capped_run_has_a_proven_loss_that_no_attack_beats(capped):
    assert capped.info["metrics"]["accuracy"] >= 0.99
    small, large = api.certify("wrm", capped.path, rho=(0.001, 0.02), figure=False)
    assert small.verdict == large.verdict == "proven"
    assert small.value <= 0.20
    assert large.value < math.log(2)
    assert small.constants["L"] == pytest.approx(44, abs=1)
    for certificate in (small, large):
        assert certificate.holds
        assert not certificate.vacuous
        assert certificate.constants["clean"] < certificate.empirical["value"] <= certificate.value


def test_a_gamma_at_half_the_smoothness_is_refused_with_the_one_needed(capped):
    with pytest.raises(UserError) as refused:
        api.certify("wrm", capped.path, rho=(0.001,), gamma=(20.0,), figure=False)
    assert "gamma > 21.98" in str(refused.value)
    assert not isinstance(refused.value, UsageError | ClaimError)


def test_population_form_has_its_margin_and_its_delta(capped):
    options = {"rho": (0.001,), "figure": False, "loss": "error-probability"}
    (sample,) = api.certify("wrm", capped.path, **options)
    (population,) = api.certify("wrm", capped.path, population=True, delta=0.01, **options)
    assert population.verdict == "proven-prob"
    assert population.confidence["delta"] == 0.01
    assert population.value > sample.value
    with pytest.raises(UserError, match="train"):
        api.certify("wrm", capped.path, population=True, split="train", **options)


def test_figure_2_is_drawn_into_the_run(capped):
    api.certify("wrm", capped.path, rho=(0.001,), limit=200, figure_limit=200)
    assert (capped.path / "plots" / "certificate.png").read_bytes().startswith(PNG)


def test_relu_falls_back_to_the_lipschitz_rung(tmp_path):
    run = api.train("wrm", preset="smoke", activation="relu", out=str(tmp_path / "relu"))
    (certificate,) = api.certify("wrm", run.path, rho=(0.001,), limit=100, figure=False)
    assert certificate.solver["rung"] == "S0"
    assert set(certificate.solver["refused"]) == {"S1", "S2"}
    with pytest.raises(UserError, match="smooth"):
        api.certify("wrm", run.path, rho=(0.001,), gamma=(100.0,), limit=100, figure=False)


@pytest.mark.parametrize("method", ["erm", "fgm", "ifgm", "pgm"])
def test_every_baseline_trains(tmp_path, method):
    eps = {} if method == "erm" else {"eps": 0.26}
    run = api.train("wrm", preset="smoke", method=method, out=str(tmp_path / method), **eps)
    assert run.status == "done"
    assert 0 < run.info["metrics"]["accuracy"] <= 1


def test_a_ball_method_without_a_budget_is_refused(tmp_path):
    with pytest.raises(UsageError, match="budget"):
        api.train("wrm", preset="smoke", method="pgm", out=str(tmp_path / "pgm"))


def test_linf_cost_and_smoothed_labels_train(tmp_path):
    run = api.train("wrm", preset="smoke", cost="linf", label_smoothing=0.1, out=str(tmp_path / "linf"))
    assert run.status == "done"


def test_boundary_draws_figure_1_and_wrm_is_rounder_and_wider_than_erm(tmp_path):
    outcome = api.call("wrm", "boundary", out=str(tmp_path / "b"))
    rows = {(r["activation"], r["method"]): r for r in outcome.document["result"]["decision boundaries"]}
    assert len(rows) == 6
    assert rows["elu", "wrm"]["mean radius"] > rows["elu", "erm"]["mean radius"]
    assert rows["elu", "wrm"]["max / min radius"] < rows["elu", "erm"]["max / min radius"]
    assert (tmp_path / "b" / "plots" / "boundary.png").read_bytes().startswith(PNG)


def test_curves_draw_figures_3_and_4a(tmp_path, rings, capped):
    outcome = api.call("wrm", "curves", rings.path, capped.path, limit=200, points=3, figures=str(tmp_path))
    points = outcome.document["metrics"]["points"]
    assert {point["curve"] for point in points} == {"pgm-l2", "pgm-linf", "rho"}
    for run in {point["run"] for point in points}:
        errors = [p["value"] for p in points if p["run"] == run and p["curve"] == "pgm-l2"]
        costs = [p["value"] for p in points if p["run"] == run and p["curve"] == "rho"]
        assert errors == sorted(errors)
        assert costs == sorted(costs)  # rho_hat does not increase with gamma
    assert all(Path(file).read_bytes().startswith(PNG) for file in outcome.document["metrics"]["figures"])


def test_cartpole_prints_table_1_beside_the_papers(tmp_path):
    outcome = api.call("wrm", "cartpole", preset="smoke", out=str(tmp_path / "c"))
    rows = outcome.document["result"]["mean episode length"]
    assert [row["environment"] for row in rows] == ["original", "light", "long", "soft g", "heavy", "short", "strong g"]
    assert all(1 <= row[kind] <= 400 for row in rows for kind in ("regular", "robust"))
    assert (tmp_path / "c" / "plots" / "cartpole.png").read_bytes().startswith(PNG)


def test_smoke_losses_are_the_golden_ones(tmp_path):
    run = api.train("wrm", preset="smoke", epochs=4, log_every=1, device="cpu", out=str(tmp_path / "golden"))
    losses = [line["loss"] for line in run.metrics() if line["split"] == "train"]
    golden = json.loads(GOLDEN.read_text())["losses"]
    assert len(losses) == len(golden) == 20
    assert losses == pytest.approx(golden, rel=1e-5)


def test_kill_9_and_resume_auto_give_the_same_weights(tmp_path):
    options = [
        "wrm",
        "train",
        "--dataset",
        "rings:1000",
        "--epochs",
        "12",
        "--learning-rate",
        "0.01",
        "--device",
        "cpu",
        "--checkpoint-every",
        "0",
        "--quiet",
        "--runs-dir",
    ]
    assert run_cli(*options, tmp_path / "whole", "--name", "whole").code == 0
    process = subprocess.Popen([sys.executable, "-m", "iclr18cli", *options, tmp_path / "cut"], env={**os.environ})
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("cut/*/checkpoints/last.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (cut,) = tmp_path.glob("cut/*")
    assert not (cut / "model.safetensors").exists()
    assert json.loads((cut / "run.json").read_text())["status"] == "running"
    resumed = run_cli(*options, tmp_path / "cut", "--resume", "auto", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["run"] == str(cut)
    whole = tmp_path / "whole" / "whole"
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    def steps(run: Path) -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]

    assert steps(cut) == steps(whole)


def test_authors_preset_trains_on_mnist(tmp_path, shared_data):
    run = api.train(
        "wrm",
        preset="authors-mnist",
        limit=64,
        epochs=1,
        batch_size=32,
        out=str(tmp_path / "mnist"),
        data_dir=str(shared_data),
    )
    card = json.loads((run.path / "model.json").read_text())
    assert (card["model"], card["input"]["shape"]) == ("wrm/elu-cnn", [1, 28, 28])
