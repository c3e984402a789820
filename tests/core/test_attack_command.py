"""`iclr18 attack` as it is typed: files beside the report, curves, pictures, tables, and reports that fit a schema."""

from __future__ import annotations

import jsonschema
import pytest

from iclr18cli.models import weights
from iclr18cli.report.schema import schema

QUICK = ("--limit", "30", "--device", "cpu", "--quiet", "--json")


@pytest.fixture
def digits(cli, runs):
    """A run on digits, trained for a moment."""
    ended = cli("wrm", "train", "--dataset", "digits", "--method", "erm", "--limit", "600", "--epochs", "4", "--name",
                "d", "--device", "cpu", "--quiet", "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    return runs / "d"


def test_examples_and_their_picture_are_kept_and_agree_with_the_report(cli, digits):
    ended = cli("attack", "d", "--eps", "0.3", "--steps", "10", "--save-examples", "--no-diagnose", *QUICK)
    assert ended.code == 0, ended.err
    report = ended.json
    jsonschema.validate(report, schema("iclr18.attack/1"))
    path = next((digits / "attack").glob("*-examples.safetensors"))
    kept = weights.loads(path.read_bytes(), path)
    assert kept["clean"].shape == kept["adversarial"].shape == (30, 1, 8, 8)
    assert kept["robust"].nonzero().flatten().tolist() == report["survivors"]
    moved = (kept["adversarial"] - kept["clean"]).abs().flatten(1).amax(1)
    assert moved.max() <= 0.3 + 1e-6
    broken = ~kept["robust"] & (kept["nearest"] > 0)
    assert broken.any()
    assert (kept["predicted"][broken] != kept["label"][broken]).all()
    picture = (digits / "plots").glob("attack-*-examples.png")
    assert next(picture).read_bytes().startswith(b"\x89PNG")
    heading, *rows = next((digits / "attack").glob("*-points.tsv")).read_text().splitlines()
    assert heading.split("\t")[0] == "index"
    assert len(rows) == 30
    assert not list((digits / "attack").glob("*.parts"))


def test_a_sweep_draws_a_curve_that_never_rises(cli, digits):
    ended = cli("attack", "d", "--sweep", "eps", "--radii", "0,0.05,0.2", "--steps", "5", *QUICK)
    assert ended.code == 0, ended.err
    jsonschema.validate(ended.json, schema("iclr18.attack-curve/1"))
    shares = [point["accuracy"] for point in ended.json["points"]]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == ended.json["clean"]["accuracy"]
    assert next((digits / "plots").glob("attack-pgd-*.png")).read_bytes().startswith(b"\x89PNG")


def test_runs_are_set_side_by_side_and_a_transfer_attack_names_itself(cli, digits):
    ended = cli("attack", "d", "d", "--steps", "3", "--limit", "10", "--device", "cpu", "--quiet", "--no-diagnose")
    assert ended.code == 0, ended.err
    assert "robust accuracy (attack)" in ended.out.splitlines()[-3]
    transfer = cli("attack", "d", "--from", "d", "--eps", "0.3", "--steps", "5", "--no-diagnose", *QUICK)
    assert transfer.code == 0, transfer.err
    assert transfer.json["attack"] == "transfer"
    assert transfer.json["robust"]["correct"] < transfer.json["clean"]["correct"]


def test_help_lists_every_attack_with_its_norms(cli, runs):
    ended = cli("attack", "--help")
    assert ended.code == 0
    for word in ("autoattack", "fab-t", "deepfool", "torchattacks/NAME", "--from", "--nproc", "--model"):
        assert word in ended.out
