"""Wasserstein certificates: no attack beats them, what they say, and what they refuse."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from iclr18cli.certify.dual import error_bound, population_margin
from iclr18cli.certify.ladder import PILOT, default_gammas
from iclr18cli.certify.problem import per_example_loss
from iclr18cli.certify.smoothness import smoothness
from iclr18cli.certify.sound import certify
from iclr18cli.certify.wording import up
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UserError


def _load(name: str):
    """Import a module beside this file: pytest's importlib mode puts no folder on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


small_problem = _load("small_problem")
adversaries, blobs, small_net, split_of = (
    small_problem.adversaries,
    small_problem.blobs,
    small_problem.small_net,
    small_problem.split_of,
)

RHOS = (0.0, 0.001, 0.01, 0.1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["cross-entropy", "error-probability"])
def test_no_distribution_within_the_budget_has_a_larger_loss_than_any_rung(name):
    net, split = small_net(), split_of(24)
    found = certify(net, split, loss=name, rhos=RHOS)
    loss = per_example_loss(net.requires_grad_(False), name)
    x, y = split.x.double(), split.y
    for c in found:
        rungs, rho = c.solver["rungs"], c.threat["radius"]
        assert set(rungs) == {"S0", "S1", "S2"}
        assert c.value == min(rungs.values())
        assert c.verdict == "proven"
        assert c.holds
        assert c.empirical["value"] <= c.value
        if rho > 0:
            for moved in adversaries(loss, x, y, rho):
                assert (moved - x).square().sum(1).mean() <= rho * (1 + 1e-12)
                assert loss(moved, y).mean() <= c.value
    values = [c.value for c in found]
    assert values == sorted(values)
    assert values[0] == pytest.approx(float(loss(x, y).mean()), rel=1e-7)


def test_the_dual_rung_is_never_above_the_taylor_rung_and_the_box_never_hurts():
    net = small_net()
    x, y = blobs(40)
    split = Split(x.clamp(-2, 2), y, ("a", "b"), "blobs", "test", (-2.0, 2.0))
    free = certify(net, split, rhos=RHOS[1:])
    boxed = certify(net, split, rhos=RHOS[1:], box=(-2.0, 2.0))
    loss = per_example_loss(net.requires_grad_(False), "cross-entropy")
    for one, other in zip(free, boxed, strict=True):
        assert one.solver["rungs"]["S2"] <= one.solver["rungs"]["S1"] * (1 + 1e-6)
        assert other.value <= one.value * (1 + 1e-6)
        assert other.threat["domain"] == [-2.0, 2.0]
        for moved in adversaries(loss, split.x.double(), y, other.threat["radius"], box=(-2.0, 2.0)):
            assert loss(moved, y).mean() <= other.value
    with pytest.raises(UserError, match="outside the domain"):
        certify(net, split, rhos=[0.1], box=(-1.0, 1.0))


def test_batch_size_and_a_pilot_on_part_of_the_points_change_only_rounding():
    net, split = small_net(), split_of(2 * PILOT + 40)
    rhos = (0.001, 0.02)
    one = certify(net, split, rhos=rhos, batch_size=37, attack_steps=0)
    two = certify(net, split, rhos=rhos, batch_size=5000, attack_steps=0)
    full = certify(net, split, rhos=rhos, gammas=one[0].solver["gammas_tried"], attack_steps=0)
    for a, b, c in zip(one, two, full, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-9)
        assert a.value >= c.value * (1 - 1e-9)
        assert a.empirical is None


def test_a_float32_model_is_bounded_as_its_float64_copy():
    net = small_net().float()
    rough, exact = (certify(model, split_of(), rhos=[0.01])[0] for model in (net, net.double()))
    assert rough.value == pytest.approx(exact.value, rel=1e-5)


def test_relu_is_certified_by_the_lipschitz_rung_alone():
    net = small_net(nn.ReLU)
    (found,) = certify(net, split_of(), rhos=[0.01])
    assert set(found.solver["rungs"]) == {"S0"}
    assert "kink" in found.solver["refused"]["S2"]
    assert "S0" in found.statement
    assert found.holds
    with pytest.raises(UserError, match="not smooth") as caught:
        certify(net, split_of(), rhos=[0.01], gammas=[1e6])
    assert "ReLU" in caught.value.why


def test_a_constant_that_is_too_small_is_exposed_by_the_attack():
    net = small_net()
    wrong = dataclasses.replace(smoothness(net, (2,)), K=1e-3, L=1e-3)
    (found,) = certify(net, split_of(), rhos=[0.1], constants=wrong)
    assert not found.holds
    assert any("beats the bound" in warning for warning in found.warnings)


def test_the_model_comes_back_as_it_was_without_gradients():
    net = small_net().train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    certify(net, split_of(), rhos=[0.01])
    assert [m.training for m in net] == [True, False, True, True, True]
    assert not net[0].weight.requires_grad
    assert net[2].weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_statement_says_what_is_proven_and_never_rounds_in_our_favour():
    (found,) = certify(small_net(), split_of(), rhos=[0.001])
    assert found.statement.startswith(
        "For these 60 test points of blobs, moved by at most 0.001 squared 2-norm on average"
    )
    assert "labels kept, expected cross-entropy of the model is at most" in found.statement
    assert "(proven, S" in found.statement
    assert any("per-point" in limit for limit in found.not_claimed)
    assert found.sample["sha256"] == split_of().digest()
    assert found.constants["error_bound"] == pytest.approx(found.value / math.log(2))
    json.dumps(found.to_json())
    for value in (0.16501, 0.1649999, 1.0, 99.95, 3.2e-9):
        assert value <= float(up(value)) <= value * 1.011


def test_a_bound_of_log_two_or_more_is_called_vacuous():
    low, high = certify(small_net(), split_of(), rhos=[1e-6, 4.0])
    assert not low.vacuous
    assert high.vacuous
    assert high.vacuous_above == pytest.approx(math.log(2))
    assert high.constants["error_bound"] == 1.0
    assert "error rate" not in high.statement
    (bounded,) = certify(small_net(), split_of(), loss="error-probability", rhos=[1e4])
    assert bounded.value == 1.0
    assert bounded.vacuous


# The population form.


def test_the_population_margin_is_the_cards_number():
    assert population_margin(10_000, 0.001) == pytest.approx(0.0186, abs=5e-5)
    assert population_margin(10_000, 0.001, m=8, M=2.0) == pytest.approx(2 * math.sqrt(math.log(8000) / 20_000))
    with pytest.raises(ValueError, match="delta=0"):
        population_margin(10, 0)


def test_a_population_statement_adds_its_margin_and_counts_the_penalties():
    net, split = small_net(), split_of(400)
    gammas = default_gammas(smoothness(net, (2,), loss="error-probability").L)
    sample = certify(net, split, loss="error-probability", rhos=[0.001], gammas=gammas)[0]
    drawn = certify(net, split, loss="error-probability", rhos=[0.001], population=True, delta=0.01)[0]
    margin = population_margin(400, 0.01, m=len(gammas) + 1)
    assert drawn.verdict == "proven-prob"
    assert drawn.confidence["delta"] == 0.01
    assert drawn.solver["gammas_tried"] == gammas
    assert drawn.solver["rungs"]["S2"] == pytest.approx(sample.solver["rungs"]["S2"] + margin, rel=1e-6)
    assert "S1" in drawn.solver["refused"]
    assert drawn.statement.startswith("With probability at least 0.99")


def test_a_population_statement_is_refused_from_training_points_and_for_an_unbounded_loss():
    with pytest.raises(UserError, match="training points"):
        certify(small_net(), split_of(split="train"), loss="error-probability", population=True)
    with pytest.raises(UserError, match="bounded loss"):
        certify(small_net(), split_of(), population=True)


def test_labels_and_numbers_out_of_range_are_refused():
    x, y = blobs(10)
    with pytest.raises(UserError, match="2 classes"):
        certify(small_net(), Split(x, y + 1, ("a", "b", "c"), "blobs", "test", None), rhos=[0.1])
    with pytest.raises(ValueError, match="rhos"):
        certify(small_net(), split_of(), rhos=[-1.0])


def test_error_statements_follow_from_either_loss():
    assert error_bound(0.1, loss="cross-entropy") == pytest.approx(0.1 / math.log(2))
    assert error_bound(0.7, loss="cross-entropy") == 1.0
    assert error_bound(0.1, loss="error-probability") == 0.2
    logits = torch.randn(2000, 4, dtype=torch.float64) * 3
    y = torch.randint(4, (2000,))
    wrong = float((logits.argmax(1) != y).double().mean())
    for name in ("cross-entropy", "error-probability"):
        mean = float(per_example_loss(nn.Identity(), name)(logits, y).mean())
        assert wrong <= error_bound(mean, loss=name)


def test_one_minus_p_keeps_its_digits_where_it_is_tiny():
    logits = torch.tensor([[60.0, 0.0]], dtype=torch.float64)
    value = per_example_loss(nn.Identity(), "error-probability")(logits, torch.tensor([0]))
    assert value.item() == pytest.approx(math.exp(-60), rel=1e-9)


def test_images_in_bytes_are_certified_in_their_declared_box():
    x = torch.randint(0, 256, (12, 1, 6, 6), dtype=torch.uint8)
    split = Split(x, torch.arange(12) % 3, ("a", "b", "c"), "noise", "test")
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 3))
    seen = []
    found = certify(net, split, rhos=[0.01, 0.1], box=split.range, progress=seen.append)
    assert all(c.holds and c.empirical["value"] <= c.value for c in found)
    assert sum(seen) > 0
    assert [norm["layer"] for norm in found[0].solver["norms"]] == ["0", "2", "3", "4"]
