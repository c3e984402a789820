"""torchattacks behind our checks: the same answers as ours, and each of its traps closed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from iclr18cli.attack import registry
from iclr18cli.attack import torchattacks as ta
from iclr18cli.attack.builtin import BUILTIN
from iclr18cli.attack.pgd import pgd
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.attack.torchattacks_table import TABLE
from iclr18cli.errors import UsageError, UserError
from iclr18cli.plugin import resolve

OFFERED = [(row.name, norm) for row in TABLE.values() for norm in row.norms if not row.refused]
TARGETED = [(row.name, norm) for row in TABLE.values() for norm in row.norms if row.targeted != "no"]
EPS = {"linf": 0.2, "l2": 1.5, "l1": 6.0}


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


def small(name, *, classes=5, count=12):
    """Return a small net of random weights, half of it in training mode, and inputs of the shape an attack takes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        channels = 3 if TABLE[name].images == (3,) else 1
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(256, classes),
        )  # fmt: skip
        x = torch.rand(count, channels, 8, 8)
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    net.train()
    net[1].eval()
    return net, x, y


def budget_for(name):
    """Return the smallest budget with which an attack finds something."""
    slow = name in ("cw", "eadl1", "eaden")  # they stop early when asked for fewer steps
    return Budget(steps=50 if slow else 8, restarts=2, queries=300, searches=6 if slow else 3, target_classes=4)


@pytest.mark.parametrize(("name", "norm"), OFFERED)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # SparseFool and NumPy 2
def test_every_attack_keeps_to_its_threat_and_leaves_flags_and_generators_alone(name, norm, capfd):
    net, x, y = small(name)
    y[0] = (y[0] + 1) % 5  # wrong already
    threat, attack = Threat(norm, EPS[norm]), resolve(registry.find(f"torchattacks/{name}", norm).run)
    torch.manual_seed(7)
    np.random.seed(7)
    flags = [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in net.modules()]
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), net[1].running_mean.clone()
    with torch.inference_mode():
        z = attack(net, x, y, threat=threat, budget=budget_for(name))
    allowed = threat if TABLE[name].kind == "ball" else Threat(norm, float("inf"))
    allowed.check(z, x)
    assert torch.equal(z[0], x[0])
    assert flags == [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in net.modules()]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(net[1].running_mean, before[2])
    assert all(p.grad is None for p in net.parameters())
    assert capfd.readouterr().out == ""
    wrong = net.eval()(z).argmax(1) != y
    assert wrong[1:].any()
    if TABLE[name].kind == "minimal":
        assert torch.equal(z[~wrong], x[~wrong])


@pytest.mark.parametrize(("name", "norm"), TARGETED)
def test_targets_are_aimed_at(name, norm):
    net, x, y = small(name, count=8 if TABLE[name].kind == "minimal" else 24)
    net.eval()
    attack, targets = resolve(registry.find(f"torchattacks/{name}", norm).run), (y + 1) % 5
    threat = Threat(norm, {"linf": 0.3, "l2": 3.0, "l1": 20.0}[norm])
    rise = []
    for aim in (targets, (y + 3) % 5):
        z = attack(net, x, y, threat=threat, budget=budget_for(name), targets=aim)
        with torch.no_grad():
            rise.append((net(z).softmax(1) - net(x).softmax(1)).gather(1, targets[:, None]).mean())
    assert rise[0] > rise[1]


def test_every_class_of_the_package_has_a_row_and_every_target_resolves():
    import torchattacks as package

    assert sorted(row.package for row in TABLE.values()) == sorted(package.__all__)
    for spec in BUILTIN:
        assert bool(spec.refused) != bool(spec.run)
        assert spec.refused or callable(resolve(spec.run)), spec.name


@pytest.mark.parametrize("spec", [spec for spec in BUILTIN if spec.refused], ids=lambda spec: spec.name)
def test_what_is_not_offered_says_why_and_what_is(spec):
    with pytest.raises(UsageError, match="not offered") as caught:
        registry.find(spec.name, "linf")
    assert caught.value.why
    assert caught.value.fix


def test_old_and_unknown_names_point_at_new_ones():
    with pytest.raises(UsageError, match="torchattacks/pgd"):
        registry.find("pgd-torchattacks", "linf")
    with pytest.raises(UsageError, match="Did you mean 'torchattacks/mifgsm'"):
        registry.find("torchattacks/mifgm", "linf")


@pytest.mark.parametrize(
    ("name", "norm", "needs", "said"),
    [
        ("torchattacks/pgd", "l2", {}, r"does not offer the norm 'l2'.*it offers linf.*--attack pgd"),
        ("torchattacks/apgdt", "linf", {"classes": 3}, "needs 4 classes.*the model has 3"),
        ("torchattacks/tifgsm", "linf", {"shape": (1, 28, 28)}, r"with 3 channels.*\(1, 28, 28\)"),
        ("torchattacks/square", "linf", {"shape": (64,)}, "takes images"),
        ("torchattacks/bim", "linf", {"bounded": False}, "declared range.*--attack pgd or fgsm"),
        ("torchattacks/bim", "linf", {"task": "language"}, "task 'language'"),
    ],
)
def test_a_model_that_does_not_fit_is_told_before_anything_runs(name, norm, needs, said):
    with pytest.raises(UsageError, match=said):
        registry.find(name, norm, **needs)
    assert registry.find("torchattacks/apgdt", "linf", classes=4, shape=(1, 8, 8), bounded=True).classes == 4


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("tifgsm", (1, 8, 8), "3 channels"), ("square", (64,), "takes images"), ("difgsm", (1, 8, 6), "8 x 6"),
        ("jsma", (3, 32, 32), "at most 1024"),
    ],
)  # fmt: skip
def test_inputs_that_an_attack_cannot_take_are_refused(name, shape, said):
    norm = TABLE[name].norms[0]
    with pytest.raises(UserError, match=said):
        getattr(ta, name)(nn.Flatten(), torch.rand(2, *shape), torch.tensor([0, 1]), threat=Threat(norm, 0.1))


def test_too_few_classes_and_losses_it_lacks_are_refused():
    net, x, y = small("apgd", classes=2)
    for name, budget in (("apgdt", Budget()), ("apgd", Budget(loss="dlr"))):
        with pytest.raises(UserError, match=r"needs [34] classes; the model has 2"):
            getattr(ta, name)(net, x, y, threat=Threat("linf", 0.1), budget=budget)
    for name in ("pgd", "apgd", "upgd"):
        with pytest.raises(UserError, match="margin"):
            getattr(ta, name)(net, x, y, threat=Threat("linf", 0.1), budget=Budget(loss="margin"))


@pytest.mark.parametrize("name", ["cw", "eadl1", "eaden"])
def test_a_constant_on_all_logits_changes_nothing(digits, name):
    """CW as it stands in the package finds nothing at all once every logit is negative."""
    import torchattacks as package

    net, x, y = digits
    x, y = x[:8], y[:8]

    class Lowered(nn.Module):
        def forward(self, x):
            return net(x) - 40

    threat, budget = Threat(TABLE[name].norms[0], float("inf")), Budget(steps=100, searches=3 if name == "cw" else 7)
    z, low = (getattr(ta, name)(model, x, y, threat=threat, budget=budget) for model in (net, Lowered()))
    wrong, low_wrong = net(z).argmax(1) != y, net(low).argmax(1) != y
    assert low_wrong.float().mean() > 0.8
    assert torch.equal(wrong, low_wrong)
    assert torch.allclose(low, z, atol=1e-3)
    if name == "cw":
        theirs = package.CW(ta.UnitBox(Lowered(), x, (0.0, 1.0)).eval(), c=100, steps=100)(x, y)
        assert (net(theirs).argmax(1) != y).float().mean() < 0.2


def test_pgd_is_the_package_s_own_pgd_at_the_points_it_breaks(digits):
    import torchattacks as package

    net, x, y = digits
    threat, budget = Threat("linf", 0.06), Budget(steps=10, restarts=1)
    z = ta.pgd(net, x, y, threat=threat, budget=budget, generator=torch.Generator().manual_seed(3))
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = package.PGD(net, eps=0.06, alpha=2.5 * 0.06 / 10, steps=10)(x, y)
    broken = net(theirs).argmax(1) != y
    assert 0.1 < broken.float().mean() < 0.95
    assert torch.equal(broken, net(z).argmax(1) != y)
    assert torch.allclose(z[broken], theirs[broken], atol=1e-6)


def test_autoattack_is_never_the_ten_steps_of_the_package(digits, monkeypatch):
    import torchattacks as package

    made = []
    monkeypatch.setattr(package, "MultiAttack", lambda attacks: made.extend(attacks) or package.FGSM(attacks[0].model))
    net, x, y = digits
    ta.autoattack(net, x[:2], y[:2], threat=Threat("linf", 0.01))
    assert [type(one).__name__ for one in made] == ["APGD", "APGDT", "FAB", "Square"]
    assert [one.steps for one in made[:3]] == [100, 100, 100]
    assert made[3].n_queries == 5000
    assert made[1].n_target_classes == made[2].n_target_classes == 9
    assert len({one.seed for one in made}) == 1
    assert registry.find("torchattacks/autoattack", "linf").uses == ()


def test_a_point_without_gradient_is_left_where_it_is():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([torch.relu(x.mean(1) - 0.5), 0.1 + 0 * x[:, 0]], 1)

    x = torch.tensor([[0.1, 0.2], [0.7, 0.8]])
    z = ta.mifgsm(Flat(), x, torch.tensor([1, 0]), threat=Threat("linf", 0.2), budget=Budget(steps=3))
    assert torch.equal(z[0], x[0])
    assert z[1].tolist() == pytest.approx([0.5, 0.6], abs=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.5)])
def test_ours_breaks_at_least_as_much_as_torchattacks_pgd_and_about_the_same(digits, norm, eps):
    net, x, y = digits
    threat, budget = Threat(norm, eps), Budget(steps=20, restarts=2)
    survive = {}
    for name, attack in (("ours", pgd), ("theirs", ta.pgd if norm == "linf" else ta.pgdl2)):
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
    step = (x + 0.05 * g.sign()).clamp(0, 1)
    worse = nn.functional.cross_entropy(net(step), y, reduction="none") < nn.functional.cross_entropy(
        net(x), y, reduction="none"
    )
    assert worse.float().mean() < 0.05
    assert torch.allclose(z[~worse], step[~worse], atol=1e-6)


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


@pytest.mark.parametrize(
    ("norm", "attack"), [("linf", ta.fgsm), ("linf", ta.pgd), ("l2", ta.pgdl2), ("l2", ta.cw), ("linf", ta.mifgsm)]
)
def test_inputs_of_any_rank_with_a_declared_range_are_attacked(norm, attack):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), torch.rand(20, 2, 3)
    y, threat = net(x).argmax(1), Threat(norm, 0.3)
    z = attack(net, x, y, threat=threat)
    (Threat(norm, float("inf")) if attack.args[0].kind == "minimal" else threat).check(z, x)
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
