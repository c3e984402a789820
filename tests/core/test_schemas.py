"""The published JSON schemas: real output conforms to them, damaged documents do not, and the package ships them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.resources import files

import pytest
import torch
from torch import nn

from iclr18cli.attack.report import AttackCurve, AttackReport, Radius, Share
from iclr18cli.certify.lipschitz_margin import lipschitz
from iclr18cli.console import plain
from iclr18cli.errors import UsageError
from iclr18cli.report.schema import SCHEMAS, schema

jsonschema = pytest.importorskip("jsonschema")

SHARED = {
    "attack": "pgd", "statement": "On these 4 points robust accuracy is at most 50 %.", "not_claimed": ["more"],
    "threat": {"norm": "l2", "eps": 0.1, "domain": [0.0, 1.0]}, "budget": {"steps": 3},
    "stages": [{"attack": "pgd", "budget": {"steps": 3}, "points": 3, "broken": 1, "seconds": 0.1}],
    "sample": {"dataset": "d", "split": "test", "n": 4, "sha256": "0" * 64, "labels": "true labels"},
    "clean": Share(3, 4), "seconds": 0.5,
}  # fmt: skip


def validator(name: str):
    return jsonschema.Draft202012Validator(schema(name))


def faults(document) -> list[str]:
    """What the schema a document names says of it, after a round trip through JSON as the command line does it."""
    read = json.loads(json.dumps(plain(document), allow_nan=False))
    return [error.message for error in validator(read["schema"]).iter_errors(read)]


def damaged(document, path, value):
    """A copy with one entry changed, or removed where the value is `...`."""
    copied = copy.deepcopy(document)
    place = copied
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copied


@pytest.fixture(scope="module")
def certificate():
    net = nn.Linear(2, 2)
    (found,) = lipschitz(net, torch.randn(8, 2), torch.arange(8) % 2, radii=(0.1,))
    return plain(found.to_json())


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_a_valid_schema_named_for_its_documents(name):
    found = schema(name)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["title"] == name
    assert found["properties"]["schema"] == {"const": name}


def test_the_schemas_are_files_of_the_package():
    shipped = {file.name for file in (files("iclr18cli.report") / "schemas").iterdir() if file.name.endswith(".json")}
    assert shipped == {name.removeprefix("iclr18.").replace("/", "-") + ".json" for name in SCHEMAS}


def test_the_names_in_the_code_have_schemas():
    from iclr18cli.attack import report
    from iclr18cli.certify import result
    from iclr18cli.commands import certify_subject as certify

    assert {result.SCHEMA, certify.SCHEMA, report.SCHEMA, report.CURVE_SCHEMA} == set(SCHEMAS)


def test_an_unknown_schema_is_refused_with_a_guess():
    with pytest.raises(UsageError, match="certificat") as caught:
        schema("iclr18.certificat/1")
    assert "iclr18.certificate/1" in caught.value.fix


def test_reading_a_schema_needs_neither_torch_nor_jsonschema():
    program = (
        "import sys\nfrom iclr18cli.report.schema import schema\nschema('iclr18.certify/1')\n"
        "print([m for m in ('torch', 'jsonschema') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_what_a_certificate_says_of_itself_is_in_the_schema_field_by_field(certificate):
    assert set(certificate) == set(schema("iclr18.certificate/1")["properties"])
    assert set(schema("iclr18.certificate/1")["required"]) == set(certificate)


@pytest.mark.parametrize("method", ["wasserstein", "lipschitz", "all"])
def test_what_certify_prints_conforms(cli, smoke_run, method):
    ended = cli(
        "certify", smoke_run("wrm"), "--method", method, "--limit", "15", "--json", "--quiet", "--device", "cpu"
    )
    assert ended.code == 0, ended.err
    assert ended.json["schema"] == "iclr18.certify/1"
    assert faults(ended.json) == []
    for found in ended.json["certificates"]:
        assert faults(found) == []


@pytest.mark.parametrize("options", [(), ("--mode", "paper")])
def test_what_a_technique_certifies_conforms(cli, smoke_run, options):
    ended = cli("wrm", "certify", smoke_run("wrm"), *options, "--limit", "20", "--no-figure", "--json", "--quiet")
    assert ended.code == 0, ended.err
    for found in ended.json["certificates"]:
        assert faults(found) == []


def test_a_radius_without_end_is_a_null_and_conforms():
    net = nn.Linear(2, 2)
    net.weight.data.zero_()
    net.bias.data.copy_(torch.tensor([1.0, 0.0]))
    (found,) = lipschitz(net, torch.randn(4, 2), torch.zeros(4, dtype=torch.long), radii=(1.0,))
    assert faults(found.to_json()) == []
    assert plain(found.to_json())["constants"]["max_radius"] is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "certain"),
        (("verdict",), ...),
        (("kind",), "magic"),
        (("value",), "0.9"),
        (("statement",), "no full stop"),
        (("not_claimed",), []),
        (("holds",), "yes"),
        (("sample", "sha256"), "xyz"),
        (("threat", "radius"), -1.0),
        (("empirical",), {"attack": "pgd"}),
        (("confidence",), {"delta": 0.1}),  # proven is without a probability
        (("schema",), "iclr18.certificate/2"),
        (("software", "torch"), ...),
        (("bound",), "both"),
    ],
)
def test_a_damaged_certificate_does_not_conform(certificate, path, value):
    known = validator("iclr18.certificate/1")
    assert known.is_valid(certificate)
    assert not known.is_valid(damaged(certificate, path, value))


def test_a_probable_statement_needs_its_probability(certificate):
    known = validator("iclr18.certificate/1")
    assert not known.is_valid({**certificate, "verdict": "proven-prob"})
    assert known.is_valid({**certificate, "verdict": "proven-prob", "confidence": {"delta": 0.01}})


def test_fields_may_be_added(certificate):
    assert validator("iclr18.certificate/1").is_valid({**certificate, "new": 1})


def test_the_envelope_checks_the_certificates_in_it(cli, smoke_run):
    line = ("certify", smoke_run("wrm"), "--method", "lipschitz", "--limit", "5", "--json", "--quiet")
    document, known = cli(*line).json, validator("iclr18.certify/1")
    assert known.is_valid(document)
    for path in (("certificates", 0, "verdict"), ("refused",), ("summary", 0, "value"), ("method",)):
        assert not known.is_valid(damaged(document, path, ...)), path


def test_attack_reports_conform():
    report = AttackReport(
        **SHARED, robust=Share(2, 4), per_class=[{"class": "a", "n": 4, "clean": 3, "robust": 2}],
        perturbation={"mean": 0.1, "median": 0.1, "max": 0.1}, survivors=[0, 2],
    )  # fmt: skip
    document = plain(report.to_json())
    assert faults(document) == []
    assert set(document) <= set(schema("iclr18.attack/1")["properties"])
    assert faults({**document, "threat": {**document["threat"], "eps": None}, "targeted": {"reached": 1, "n": 3}}) == []
    for path, value in (("robust",), ...), (("value",), 1.5), (("threat", "norm"), "l7"), (("survivors",), ["0"]):
        assert faults(damaged(document, path, value)), path


def test_attack_curves_conform():
    made = AttackCurve(
        **{**SHARED, "threat": {"norm": "linf", "eps": [0.1, 0.2], "domain": None}},
        points=[Radius(0.1, Share(2, 4)), Radius(0.2, Share(1, 4))], broken_at=[0.0, 0.1, 0.2, None],
    )  # fmt: skip
    document = plain(made.to_json())
    assert faults(document) == []
    assert set(document) <= set(schema("iclr18.attack-curve/1")["properties"])
    for path, value in (("points",), []), (("points", 0, "eps"), ...), (("broken_at",), 3), (("clean",), 0.5):
        assert faults(damaged(document, path, value)), path


def test_what_attack_prints_conforms(cli, smoke_run):
    pytest.importorskip("iclr18cli.attack.diagnosis")
    line = ("attack", smoke_run("wrm"), "--norm", "l2", "--eps", "0.1", "--steps", "2", "--limit", "20")
    ended = cli(*line, "--json", "--quiet", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert ended.json["schema"] == "iclr18.attack/1"
    assert faults(ended.json) == []
