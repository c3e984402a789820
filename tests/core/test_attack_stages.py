"""Plans of attacks: names, lists, the one fixed budget of AutoAttack, and options that nobody reads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from iclr18cli.attack.config import AttackConfig
from iclr18cli.attack.stages import AUTOATTACK, STANDARD, plan
from iclr18cli.errors import UsageError


def test_autoattack_is_the_standard_version_and_nothing_less():
    stages = plan(AUTOATTACK, "linf")
    assert [stage.spec.name for stage in stages] == ["apgd", "apgd-t", "fab-t", "square"]
    assert [stage.options.get("steps") for stage in stages] == [100, 100, 100, None]
    assert stages[1].options["target_classes"] == stages[2].options["target_classes"] == 9
    assert stages[3].options["queries"] == 5000
    with pytest.raises(UsageError, match="takes no --steps") as caught:
        plan(AUTOATTACK, "linf", options={"steps": 10})
    assert "--attack apgd,apgd-t,fab-t,square" in caught.value.fix
    with pytest.raises(UsageError, match="name it alone"):
        plan("pgd,autoattack", "linf")


def test_a_list_runs_in_order_and_each_attack_takes_the_options_it_reads():
    stages = plan("pgd,square", "l2", options={"steps": 7, "queries": 30})
    assert [(s.spec.name, dict(s.options)) for s in stages] == [("pgd", {"steps": 7}), ("square", {"queries": 30})]
    with pytest.raises(UsageError, match=r"pgd takes no --queries.*--steps"):
        plan("pgd", "linf", options={"queries": 10})


def test_every_attack_of_autoattack_reads_the_options_its_standard_names():
    for (name, own), stage in zip(STANDARD, plan(AUTOATTACK, "l2"), strict=True):
        assert stage.spec.name == name
        assert set(own) <= set(stage.spec.uses)
    assert [stage.options.get("restarts") for stage in plan(AUTOATTACK, "l1")] == [5, 1, 1, None]


def test_options_that_contradict_each_other_are_wrong_usage():
    for wrong in (
        AttackConfig(suite="standard", attack="square"), AttackConfig(from_="x", attack="square"),
        AttackConfig(from_="x", suite="standard"), AttackConfig(radii=(0.1,)), AttackConfig(suite="standard", steps=3),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            wrong.check()
    assert AttackConfig(suite="standard").name == AUTOATTACK
    assert AttackConfig(from_="x").name == "transfer"


def test_the_radius_is_infinite_only_for_attacks_that_look_for_the_nearest_error():
    assert AttackConfig(attack="deepfool", norm="l2").radius(plan("deepfool", "l2")) == float("inf")
    assert AttackConfig(attack="deepfool,pgd", norm="l2").radius(plan("deepfool,pgd", "l2")) == 0.5
    assert AttackConfig(attack="deepfool", norm="l2", sweep="eps").radius(plan("deepfool", "l2")) == 0.5
    assert AttackConfig(attack="deepfool", norm="l2", eps=0.2).radius(plan("deepfool", "l2")) == 0.2


def test_planning_imports_no_torch():
    code = (
        "import sys; from iclr18cli.attack.config import AttackConfig\nAttackConfig(suite='standard').check()\n"
        "assert not {'torch', 'torchattacks', 'scipy', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
