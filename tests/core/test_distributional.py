"""The attack inside the certified set: within its budget, and spent where it pays."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from iclr18cli.certify.distributional import distributional_attack, distributional_attacks, within_budget
from iclr18cli.certify.problem import per_example_loss


def _load(name: str):
    """Import a module beside this file: pytest's importlib mode puts no folder on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


small_problem = _load("small_problem")
blobs, small_net = small_problem.blobs, small_problem.small_net


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_attack_spends_the_budget_on_the_few_points_where_it_pays():
    # A soft step at distance 1: moving every point a little gains nothing, moving every fifth beyond it does.
    loss = lambda x, y: torch.sigmoid(8 * (x[:, 0] - 1))
    x, y = torch.zeros(50, 1, dtype=torch.float64), torch.zeros(50, dtype=torch.long)
    attack = distributional_attack(loss, x, y, 0.2, steps=60)
    spread = float(loss(within_budget(x, x + 1, 0.2), y).mean())
    assert attack.mean_squared_distance <= 0.2
    assert attack.value > 0.09 > 5 * spread


def test_attacks_grow_with_the_budget_and_without_one_stay_put():
    net = small_net().requires_grad_(False)
    x, y = blobs(30)
    loss = per_example_loss(net, "cross-entropy")
    found = distributional_attacks(loss, x.double(), y, [0.0, 0.01, 0.1, 1.0])
    assert torch.equal(found[0].points, x.double())
    values = [attack.value for attack in found]
    assert values == sorted(values)
    assert values[-1] > 1.2 * values[0]
    for attack, rho in zip(found, [0.0, 0.01, 0.1, 1.0], strict=True):
        assert float((attack.points - x).square().sum(1).mean()) <= rho
        assert float(loss(attack.points, y).mean()) == pytest.approx(attack.value)
