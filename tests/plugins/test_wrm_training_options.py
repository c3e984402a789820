"""`wrm train --method ibp`, `--noise` and `--decay`: presets that parse, schedules, and runs that resume to the bit."""

from __future__ import annotations

import pytest
from iclr18_wrm.config import TrainConfig
from iclr18_wrm.schedule import Schedule

SMOKE = ("--dataset", "digits", "--limit", "300", "--epochs", "3", "--device", "cpu", "--quiet", "--json")


def test_ibp_needs_a_radius(cli):
    ended = cli("wrm", "train", "--method", "ibp", *SMOKE)
    assert ended.code == 2
    assert "--eps" in ended.err


@pytest.mark.parametrize(
    "options",
    [("--method", "ibp", "--eps", "0.02", "--norm", "linf", "--activation", "relu"),
     ("--method", "erm", "--noise", "0.25", "--decay", "0.5")],
)  # fmt: skip
def test_the_same_seed_gives_the_same_weights_and_the_certificates_take_the_run(cli, runs, options):
    one, two = (cli("wrm", "train", *options, *SMOKE, "--name", name) for name in ("one", "two"))
    assert one.code == two.code == 0, one.err
    first, second = ((runs / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    certified = cli("certify", "one", "--method", "ibp", "--eps", "0.001", "--limit", "20", "--json", "--quiet")
    assert certified.code == 0, certified.err
    assert certified.json["certificates"][0]["kind"] == "ibp"


def test_the_step_size_falls_to_zero_over_the_last_part_only():
    plan = Schedule.of(TrainConfig(epochs=10, batch_size=10, decay=0.2), 100)
    assert plan.steps == 100
    assert [plan.rate(step) for step in (1, 80, 81, 91, 100)] == pytest.approx([1, 1, 1, 0.5, 0.05])
    assert Schedule.of(TrainConfig(epochs=10, batch_size=10), 100).rate(100) == 1.0


@pytest.mark.parametrize("preset", ["ibp-mnist", "ibp-mnist-03", "smoothing-mnist-025", "smoothing-mnist-05"])
def test_presets_resolve(cli, preset):
    ended = cli("wrm", "train", "--preset", preset, "--dry-run", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["config"]["dataset"] == "mnist"
