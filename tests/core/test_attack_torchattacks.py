"""torchattacks behind our checks: the same answers as ours, and each of its traps closed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iclr18cli.attack import torchattacks as ta
from iclr18cli.attack.pgd import pgd
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.errors import UserError


@pytest.fixture(scope="module")
def digits():
    """Return a small convolutional net trained for a second on 8x8 digits, and 300 points it was not trained on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target, dtype=torch.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.1), nn.Linear(128, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(6):
            for index in torch.randperm(1400).split(100):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[index]), y[index]).backward()
                optimiser.step()
    net.eval()
    x, y = x[1400:1700], y[1400:1700]
    right = net(x).argmax(1) == y
    assert right.float().mean() > 0.85
    return net, x[right], y[right]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.5)])
def test_ours_breaks_at_least_as_much_as_torchattacks_pgd_and_about_the_same(digits, norm, eps):
    net, x, y = digits
    threat, budget = Threat(norm, eps), Budget(steps=20, restarts=2)
    survive = {}
    for name, attack in (("ours", pgd), ("theirs", ta.pgd)):
        z = attack(net, x, y, threat=threat, budget=budget, generator=torch.Generator().manual_seed(0))
        threat.check(z, x)
        survive[name] = (net(z).argmax(1) == y).float().mean().item()
    assert 0.1 < survive["ours"] < 0.9
    assert survive["ours"] <= survive["theirs"] + 0.005
    assert survive["ours"] == pytest.approx(survive["theirs"], abs=0.04)


def test_fgsm_is_one_signed_step(digits):
    net, x, y = digits
    z = ta.fgsm(net, x, y, threat=Threat("linf", 0.05))
    x.requires_grad_()
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), y, reduction="sum"), x)
    x.requires_grad_(False)
    assert torch.allclose(z, (x + 0.05 * g.sign()).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("attack", [ta.fgsm, ta.pgd])
def test_another_declared_range_gives_the_rescaled_attack(digits, attack):
    net, x, y = digits

    class Shifted(nn.Module):
        """The same net for inputs in [-1, 3]."""

        def forward(self, x):
            return net((x + 1) / 4)

    budget = Budget(steps=5, restarts=2)
    z = attack(net, x, y, threat=Threat("linf", 0.05), budget=budget)
    wide = Threat("linf", 0.2, (-1.0, 3.0))
    z_wide = attack(Shifted(), 4 * x - 1, y, threat=wide, budget=budget)
    wide.check(z_wide, 4 * x - 1)
    same = (((z_wide + 1) / 4 - z).abs() < 1e-5).flatten(1).all(1)
    assert same.float().mean() > 0.97  # rounding may turn the sign of a gradient entry near 0


@pytest.mark.parametrize(("norm", "attack"), [("linf", ta.fgsm), ("linf", ta.pgd), ("l2", ta.pgd)])
def test_inputs_of_any_rank_with_a_declared_range_are_attacked(norm, attack):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), torch.rand(20, 2, 3)
    y, threat = net(x).argmax(1), Threat(norm, 0.3)
    z = attack(net, x, y, threat=threat)
    threat.check(z, x)
    assert (net(z).argmax(1) != y).any()


@pytest.mark.parametrize("attack", [ta.fgsm, ta.pgd])
def test_points_without_a_declared_range_are_refused_with_the_reason_and_served_by_ours(attack):
    net, x = nn.Linear(2, 2), torch.tensor([[5.0, -3.0]])
    y, threat = net(x).argmax(1), Threat("linf", 100.0, None)
    with pytest.raises(UserError, match=r"clamps every input to \[0, 1\].*--attack pgd"):
        attack(net, x, y, threat=threat)
    assert net(pgd(net, x, y, threat=threat)).argmax(1) != y


@pytest.mark.parametrize("attack", [ta.fgsm, ta.pgd])
def test_inputs_outside_the_range_are_refused_not_clamped(attack):
    with pytest.raises(UserError, match="outside the declared range"):
        attack(nn.Linear(2, 2), torch.tensor([[-2.0, 2.0]]), torch.tensor([0]), threat=Threat("linf", 0.03))


def test_the_margin_loss_is_refused():
    with pytest.raises(UserError, match="margin"):
        ta.pgd(
            nn.Linear(2, 2),
            torch.rand(1, 2),
            torch.tensor([0]),
            threat=Threat("linf", 0.1),
            budget=Budget(loss="margin"),
        )


def test_seeds_decide_and_the_global_generator_is_untouched(digits):
    net, x, y = digits
    threat, budget = Threat("linf", 0.02), Budget(steps=2, restarts=1)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    run = lambda seed: ta.pgd(net, x, y, threat=threat, budget=budget, generator=torch.Generator().manual_seed(seed))
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("attack", [ta.fgsm, ta.pgd])
def test_flags_of_every_submodule_come_back_and_no_grad_is_no_hindrance(digits, attack):
    net, x, y = digits
    try:
        net.train()
        net[1].eval()
        flags = [module.training for module in net.modules()]
        statistics = net[1].running_mean.clone()
        with torch.no_grad():
            z = attack(net, x[:8], y[:8], threat=Threat("linf", 0.1), budget=Budget(steps=2, restarts=1))
        assert [module.training for module in net.modules()] == flags
        assert torch.equal(net[1].running_mean, statistics)
        assert all(p.requires_grad for p in net.parameters())
        assert not z.requires_grad
        assert not torch.equal(z, x[:8])
    finally:
        net.eval()


def test_a_model_without_parameters_prints_nothing(capfd):
    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean(1), 1 - x.mean(1)], 1)

    z = ta.fgsm(Mean(), torch.full((1, 3), 0.6), torch.tensor([0]), threat=Threat("linf", 0.2))
    assert z.tolist() == [[pytest.approx(0.4)] * 3]
    assert capfd.readouterr().out == ""
