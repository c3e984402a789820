"""Masked gradients that were planted are found by the check made for them; honest models are left in peace."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from iclr18cli.attack.diagnosis import CHECKS, Diagnosis, diagnose
from iclr18cli.attack.diagnosis_probe import Check, Probe
from iclr18cli.attack.masking import Clean, clean_pass
from iclr18cli.attack.pgd import fgsm, noise, pgd
from iclr18cli.attack.randomness import Expected, own_randomness
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.data.registry import open_split
from iclr18cli.data.tensors import Split

LINF = Threat("linf", 0.1)


@cache
def digits() -> Split:
    return open_split("digits", "test")


@cache
def trained(hidden: int = 32, eps: float = 0.0) -> nn.Sequential:
    """Return a net for the digits, linear without hidden units; with eps trained on single steps of that length."""
    data, generator = open_split("digits", "train"), torch.Generator().manual_seed(1)
    sizes = [64, hidden, 10] if hidden else [64, 10]
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (wide, narrow) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] if number else []
        layers.append(nn.Linear(wide, narrow))
        with torch.no_grad():
            layers[-1].weight.copy_(torch.randn(narrow, wide, generator=generator) / wide**0.5)
            layers[-1].bias.zero_()
    net = nn.Sequential(*layers)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(120):
        x = data.inputs()
        if eps:
            x = fgsm(net, x, data.y, threat=Threat("linf", eps))
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), data.y).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return net.eval()


def evaluated(model: nn.Module, split: Split, threat: Threat, attack=pgd, **budget) -> tuple[Tensor, Clean, Budget]:
    """Return survivors of a small evaluation, what is known of the unattacked points, and the budget."""
    spent = Budget(**{"steps": 20, "restarts": 2, **budget})
    with own_randomness(torch.device("cpu"), 0):
        clean = clean_pass(model, split, threat=threat, loss=spent.loss, batch_size=500)
        z = attack(model, split.inputs(), split.y, threat=threat, budget=spent)
        with torch.no_grad():
            robust = clean.correct & (model(z).argmax(1) == split.y)
    return robust, clean, spent


def diagnosed(
    model: nn.Module, threat: Threat = LINF, split: Split | None = None, attack=pgd, points: int = 128, **budget
) -> Diagnosis:
    split = split or digits()
    robust, clean, spent = evaluated(model.eval(), split, threat, attack, **budget)
    return diagnose(
        model, split, threat=threat, budget=spent, robust_N=robust, clean=clean, seed=0, batch_size=500, points=points
    )


def failed(found: Diagnosis, *, veto: bool = False) -> set[str]:
    return {check.name for check in found.checks if (check.veto if veto else check.passed is False)}


def check(found: Diagnosis, name: str) -> Check:
    return next(check for check in found.checks if check.name == name)


class Quantised(nn.Module):
    """Rounds its input to k + 1 levels; with `through`, the gradient passes as if it did not."""

    def __init__(self, k: int, through: bool = False):
        super().__init__()
        self.k, self.through = k, through

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * self.k).round() / self.k
        return x + (rounded - x).detach() if self.through else rounded


class _Shattering(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.randn(gradient.shape, generator=torch.Generator().manual_seed(5), dtype=gradient.dtype)


class Shattered(nn.Module):
    """The identity with a gradient of noise."""

    def forward(self, x: Tensor) -> Tensor:
        return _Shattering.apply(x)


class Scaled(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 1e4 * z


class Noisy(nn.Module):
    """Dropout that evaluation mode does not switch off."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.3, training=True)


class Adaptive(nn.Module):
    """Steps down the gradient of its own confidence before it looks."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.net(z).logsumexp(1).sum(), z)
        return self.net(x + 0.01 * gradient.sign())


@pytest.mark.parametrize(
    "threat",
    [Threat("linf", 0.03), LINF, Threat("linf", 0.2), Threat("l2", 0.4), Threat("l1", 1.0), Threat("linf", 1e-6)],
    ids=lambda threat: f"{threat.norm}={threat.eps:g}",
)
@pytest.mark.parametrize("model", [(0, 0.0), (32, 0.0), (32, 0.15)], ids=["linear", "mlp", "adversarial"])
def test_honest_models_are_left_in_peace(model, threat):
    found = diagnosed(trained(*model), threat)
    assert found.believable, found.sentence
    assert not failed(found) - {"more effort"}, found.to_text()


def test_saturated_logits_have_no_gradient_of_the_loss_and_one_of_the_margin():
    found = diagnosed(nn.Sequential(trained(), Scaled()))
    zero = check(found, "zero gradient")
    assert zero.figures["loss"] > 0.5
    assert zero.figures["margin"] == 0
    assert {"zero gradient", "uphill", "more effort"} <= failed(found, veto=True)
    assert found.sentence.startswith("Do not believe this robust accuracy: the loss has no gradient at")
    assert len(found.broken) > 10
    assert diagnosed(nn.Sequential(trained(), Scaled()), loss="margin").believable


def test_a_saturated_loss_beside_another_has_deceived_nobody():
    model = nn.Sequential(trained(), Scaled())
    robust, clean, _ = evaluated(model, digits(), LINF, loss="margin")
    found = [
        diagnose(
            model, digits(), threat=LINF, budget=Budget(), robust_N=robust, clean=clean, seed=0, batch_size=500,
            losses=losses,
        )
        for losses in (None, ("cross-entropy", "dlr"))
    ]  # fmt: skip
    assert [diagnosis.believable for diagnosis in found] == [False, True]


def test_rounded_inputs_have_no_gradient_where_the_loss_changes():
    found = diagnosed(nn.Sequential(Quantised(8), trained()))
    assert check(found, "zero gradient").figures["margin"] == 1
    assert "rounding or quantising" in check(found, "finite differences").sentence
    assert {"zero gradient", "finite differences", "uphill", "black box"} <= failed(found, veto=True)
    assert not found.believable


def test_a_straight_through_gradient_is_no_zero_gradient_and_foretells_long_steps():
    found = diagnosed(nn.Sequential(Quantised(8, through=True), trained()))
    assert check(found, "zero gradient").passed
    assert check(found, "finite differences").passed, found.to_text()
    assert check(found, "finite differences").figures["tiny_step_error"] > 0.9


def test_a_gradient_of_noise_is_no_derivative_and_a_black_box_beats_it():
    found = diagnosed(nn.Sequential(Shattered(), trained()))
    assert {"uphill", "finite differences", "black box"} <= failed(found, veto=True), found.to_text()
    assert check(found, "zero gradient").passed
    assert "not the derivative" in check(found, "finite differences").sentence


def test_a_random_model_is_told_to_be_one():
    found = diagnosed(nn.Sequential(Noisy(), trained()))
    assert "same outputs" in failed(found, veto=True)
    assert "--eot" in found.sentence
    assert check(found, "finite differences").passed is None


def test_a_random_model_attacked_in_expectation_is_told_and_not_rejected_for_it():
    found = diagnosed(Expected(nn.Sequential(Noisy(), trained()), 8))
    assert "same outputs" in failed(found)
    assert "same outputs" not in failed(found, veto=True)


@pytest.mark.parametrize(("loss", "least"), [("cross-entropy", 0.999), ("margin", 0.999), ("dlr", 0.98)])
def test_a_linear_model_changes_as_its_gradient_foretells(loss, least):
    two = nn.Sequential(trained(0), nn.Linear(10, 3, bias=False))
    with torch.no_grad():
        two[1].weight.zero_()
        two[1].weight[[0, 1, 2], [1, 4, 7]] = 1.0
    data = digits()
    keep = torch.isin(data.y, torch.tensor([1, 4, 7]))
    split = Split(x=data.x[keep], y=data.y[keep] // 3, classes=("1", "4", "7"), name="three", split="test")
    found = diagnosed(two, Threat("l2", 0.2), split, loss=loss)
    differences = check(found, "finite differences").figures
    assert differences["agreement"] > least
    assert differences["tiny_step_error"] < 1e-6
    assert check(found, "uphill").figures["share"] > 0.99
    assert found.believable


def test_a_lead_is_the_certain_share_of_survivors_times_their_share_of_all_points():
    x = torch.zeros(4, 2)
    probe = Probe(
        model=nn.Identity(), x=x, y=torch.zeros(4).long(), alive=torch.ones(4).bool(), index=torch.arange(4),
        survivors=30, n=60, threat=LINF, budget=Budget(), batch_size=4, seed=0,
    )  # fmt: skip
    assert probe.lead(4, 4) == pytest.approx(0.5 * 0.025 ** (1 / 4))
    assert probe.lead(0, 4) == probe.lead(0, 0) == 0


def test_probabilities_are_told_from_logits():
    found = diagnosed(nn.Sequential(trained(), nn.Softmax(1)))
    assert "logits" in failed(found, veto=True)
    assert "probabilities" in found.sentence


def test_autograd_inside_the_forward_pass_is_seen():
    found = diagnosed(Adaptive(trained()))
    assert check(found, "no autograd inside").figures["calls"] == 1
    assert "autograd" in found.sentence
    assert not found.believable


def test_a_model_without_gradient_is_reported_and_does_not_crash():
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    found = diagnosed(nn.Sequential(Cut(), trained()), attack=noise)
    assert {"zero gradient", "black box"} <= failed(found, veto=True)
    assert check(found, "larger radius").passed is None
    assert "detaches" in found.sentence


def test_a_weak_evaluation_is_not_believed_either():
    found = diagnosed(trained(), steps=1, restarts=1, step_size=0.02)
    assert "more effort" in failed(found, veto=True)
    assert not found.believable


def test_what_the_checks_break_are_survivors_and_nothing_else():
    model = nn.Sequential(Quantised(8), trained())
    robust, clean, budget = evaluated(model, digits(), LINF)
    found = diagnose(model, digits(), threat=LINF, budget=budget, robust_N=robust, clean=clean, seed=0, batch_size=500)
    assert found.broken == sorted(set(found.broken))
    assert robust[list(found.broken)].all()
    tried = check(found, "black box").figures
    assert 0 < tried["broken"] <= len(found.broken) <= 128


def test_a_hidden_island_far_off_gives_away_an_attack_that_is_blind_without_bound():
    class Plateau(nn.Module):
        """Flat logits inside a wide ball: any search by gradient stays where it is."""

        def forward(self, x: Tensor) -> Tensor:
            far = (x.flatten(1).abs().amax(1) > 2).to(x) + 0 * x.flatten(1).sum(1)
            return torch.stack([1 - 2 * far, 2 * far - 1], 1)

    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    x[20:] += 3
    split = Split(x=x, y=(torch.arange(40) >= 20).long(), classes=("a", "b"), name="p", split="test", range=None)
    found = diagnosed(Plateau(), Threat("linf", 0.1, None), split)
    assert {"unbounded", "zero gradient"} <= failed(found, veto=True)


def plane(n: int) -> tuple[Split, nn.Module]:
    """Return two classes in the plane and a small net that separates them."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(n) % 2
    x = torch.randn(n, 2, generator=generator) * 0.7 + 1.2 * (2.0 * y[:, None] - 1)
    with own_randomness(torch.device("cpu"), 3):
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    optimiser = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return Split(x=x, y=y, classes=("a", "b"), name="plane", split="test", range=None), net


@pytest.mark.parametrize("threat", [Threat(norm, eps, None) for norm in ("linf", "l2", "l1") for eps in (0.01, 0.5)])
def test_two_classes_in_the_plane_without_a_domain_are_judged(threat):
    split, net = plane(200)
    found = diagnosed(net, threat, split)
    assert found.believable, found.sentence
    assert check(found, "unbounded").passed
    assert len(found.checks) == len(CHECKS) == 12


def test_few_points_and_one_class_are_no_reason_to_crash():
    split, net = plane(200)
    right = net(split.x).argmax(1) == split.y
    for which in ((split.y == 0) & right, right & (torch.arange(200) < 3)):
        found = diagnosed(net, Threat("l2", 0.01, None), split.take(which.nonzero().flatten()[:3]))
        assert found.believable, found.sentence


def test_with_every_point_broken_nothing_is_left_to_judge():
    found = diagnosed(trained(0), Threat("linf", 0.5))
    assert found.believable
    assert all(check.passed is None for check in found.checks)
    assert "No point survived" in found.to_text()


def test_the_text_and_the_json_hold_every_check_and_a_seed_repeats_them():
    first, again = (diagnosed(trained()) for _ in "ab")
    document = json.loads(json.dumps(first.to_json(), allow_nan=False))
    assert document == json.loads(json.dumps(again.to_json()))
    assert {"believable", "sentence", "broken", "checks"} == set(document)
    assert {"name", "passed", "figures", "sentence", "veto"} == set(document["checks"][0])
    for row in document["checks"]:
        assert row["name"] in first.to_text()
        assert row["sentence"].endswith(".")
        assert row["figures"]
    assert first.sentence in first.to_text()


def test_flags_gradients_and_global_generators_are_left_alone():
    model = nn.Sequential(Noisy(), nn.Sequential(*trained(), nn.BatchNorm1d(10))).train()
    model[1].eval()
    robust = torch.ones(len(digits()), dtype=torch.bool)
    clean = Clean(robust, digits().y, ~robust, 10, [], "float32")
    state, seen = torch.get_rng_state(), []
    diagnose(
        model, digits(), threat=LINF, budget=Budget(), robust_N=robust, clean=clean, seed=0, batch_size=64, points=16,
        progress=lambda n, check: seen.append(check),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(part.training for part in model[1].modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert len(seen) == len(CHECKS)


def test_the_sample_is_half_survivors_and_filled_up_where_there_are_fewer():
    from iclr18cli.attack.diagnosis import _sample

    correct, robust = torch.ones(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    robust[::2] = True
    assert [int(robust[_sample(correct, robust, 20)].sum()), len(_sample(correct, robust, 20))] == [10, 20]
    robust[4:] = False
    assert [int(robust[_sample(correct, robust, 20)].sum()), len(_sample(correct, robust, 20))] == [2, 20]
    assert len(_sample(correct, correct, 20)) == 20
    assert len(_sample(correct, robust, 1000)) == 100


def test_bad_arguments_are_named():
    robust, clean, budget = evaluated(trained(0), digits(), LINF, steps=1)
    for threat, points in ((Threat("linf", 0.0), 128), (Threat("linf", torch.inf), 128), (LINF, 1)):
        with pytest.raises(ValueError, match="received"):
            diagnose(
                trained(0), digits(), threat=threat, budget=budget, robust_N=robust, clean=clean, seed=0,
                batch_size=10, points=points,
            )  # fmt: skip
