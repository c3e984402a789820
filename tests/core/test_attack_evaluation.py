"""The attack report: counts against closed forms, honest limits, signs of masked gradients, and the registry."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from iclr18cli.attack import registry
from iclr18cli.attack.config import AttackConfig
from iclr18cli.attack.curve import curve
from iclr18cli.attack.evaluation import attack_model
from iclr18cli.attack.memory import batch_size_for
from iclr18cli.attack.report import Share, clopper_pearson
from iclr18cli.attack.runs import attack_run
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError, UserError
from iclr18cli.plugin import AttackSpec

CHEAP = Budget(steps=5, restarts=2)


def half_space() -> nn.Linear:
    """Return a classifier of points in the plane: class 1 where x_0 > 0."""
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        net.bias.zero_()
    return net


def plane(range: tuple[float, float] | None = None) -> Split:
    """Return four right points at distance 0.1, 0.2, 0.3, 0.4 from the boundary and one wrong point."""
    x = torch.tensor([[0.1, 5.0], [-0.2, 5.0], [0.3, 0.0], [-0.4, 0.0], [0.9, 0.0]])
    return Split(
        x=x, y=torch.tensor([1, 0, 1, 0, 0]), classes=("left", "right"), name="plane", split="test", range=range
    )


def test_robust_accuracy_counts_points_beyond_eps_and_never_the_wrong_ones():
    for attack in ("pgd", "noise"):
        report = attack_model(
            half_space(), plane(), attack=attack, threat=Threat("l2", 0.25, None), budget=Budget(steps=100)
        )
        assert (report.clean.correct, report.robust.correct, report.robust.n) == (4, 2, 5)
        assert report.survivors == [2, 3]
        assert report.value == pytest.approx(0.4)
        assert [row["robust"] for row in report.per_class] == [1, 1]
        assert [row["clean"] for row in report.per_class] == [2, 2]
        assert [row["n"] for row in report.per_class] == [3, 2]
        assert 0.1 < report.perturbation["mean"] <= report.perturbation["max"] <= 0.25 * (1 + 1e-6)


def test_the_report_is_json_with_everything_needed_to_judge_and_repeat_it():
    report = attack_model(half_space(), plane(), threat=Threat("linf", 0.25, None), budget=CHEAP, seed=3)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["schema"] == "iclr18.attack/1"
    assert (document["verdict"], document["kind"], document["bound"]) == ("attack", "attack", "upper")
    assert document["clean"] | {"interval": None} == {"accuracy": 0.8, "correct": 4, "n": 5, "interval": None}
    assert document["robust"]["interval"] == pytest.approx(clopper_pearson(2, 5))
    assert document["threat"]["norm"] == "linf"
    assert document["threat"]["domain"] is None
    assert document["budget"]["step_size"] == pytest.approx(2.5 * 0.25 / 5)
    assert document["sample"]["sha256"] == plane().digest()
    assert document["survivors"] == [2, 3]
    assert document["seed"] == 3
    assert document["arithmetic"] == "float32"
    assert document["points_per_second"] > 0
    assert "torch" in document["software"]
    assert "at most 40.0%" in document["statement"]
    assert any("only a certificate" in limit for limit in document["not_claimed"])


def test_eps_zero_gives_clean_accuracy():
    report = attack_model(half_space(), plane(), threat=Threat("l2", 0.0, None))
    assert report.robust == report.clean == Share(4, 5)
    assert report.perturbation == {}
    assert report.survivors == [0, 1, 2, 3]


def test_clopper_pearson_meets_its_definition_and_the_closed_forms_at_the_ends():
    from scipy.stats import binom

    low, high = clopper_pearson(7, 50)
    assert binom.sf(6, 50, low) == pytest.approx(0.025)
    assert binom.cdf(7, 50, high) == pytest.approx(0.025)
    assert clopper_pearson(50, 50) == (pytest.approx(0.025 ** (1 / 50)), 1.0)
    for wrong in [(3, 2), (-1, 2), (0, 0)]:
        with pytest.raises(ValueError, match="received"):
            clopper_pearson(*wrong)


def test_a_curve_never_rises_and_agrees_with_single_attacks():
    net, split, radii = half_space(), plane(), [0.35, 0.0, 0.15, 0.25, 0.15]
    found = curve(net, split, norm="l2", radii=radii, domain=None, budget=CHEAP)
    assert [point.eps for point in found.points] == [0.0, 0.15, 0.25, 0.35]
    assert [point.robust.correct for point in found.points] == [4, 3, 2, 1]
    assert found.points[-1].error == pytest.approx(0.8)
    assert found.broken_at == [0.15, 0.25, 0.35, None, 0.0]
    for point in found.points:
        alone = attack_model(net, split, threat=Threat("l2", point.eps, None), budget=CHEAP)
        assert alone.robust == point.robust
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["threat"]["eps"] == [0.0, 0.15, 0.25, 0.35]
    assert document["points"][1]["accuracy"] == pytest.approx(0.6)
    with pytest.raises(ValueError, match="radii"):
        curve(net, split, norm="l2", radii=[], domain=None)


def test_a_point_broken_in_a_small_ball_stays_broken_where_a_larger_ball_fools_the_attack():
    class Island(nn.Module):
        """Wrong only where 0.05 < x_0 < 0.1."""

        def forward(self, x: Tensor) -> Tensor:
            margin = (x[:, 0] - 0.075).abs() - 0.025
            return torch.stack([margin, torch.zeros_like(margin)], 1)

    split = Split(x=torch.zeros(1, 2), y=torch.tensor([0]), classes=("a", "b"), name="one", split="test", range=None)
    budget = Budget(steps=1, restarts=1)
    alone = attack_model(
        Island(),
        split,
        threat=Threat("linf", 5.0, None),
        budget=Budget(steps=1, restarts=1, step_size=5),
        diagnose=False,
    )
    assert alone.robust.correct + alone.checks["noise"]["broken"] == 1  # the attack itself steps over the island
    found = curve(Island(), split, norm="linf", radii=[0.07, 5.0], domain=None, budget=budget)
    assert [point.robust.correct for point in found.points] == [0, 0]


def test_the_answer_is_the_same_for_the_same_seed_and_the_global_generator_is_untouched():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    x = torch.rand(100, 2)
    split = Split(x=x, y=net(x).argmax(1), classes=("a", "b"), name="own", split="test")
    state = torch.get_rng_state()
    one, two = (attack_model(net, split, threat=Threat("l2", 0.1), budget=CHEAP, seed=5, batch_size=32) for _ in "ab")
    assert one.survivors == two.survivors
    assert one.perturbation == two.perturbation
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_exposes_masked_gradients_and_its_finds_count_as_broken():
    class Staircase(nn.Module):
        """The half space with its input rounded: right gradients nowhere."""

        def forward(self, x: Tensor) -> Tensor:
            rounded = (x / 0.01).round() * 0.01 + 0 * x
            return half_space()(rounded)

    x = torch.full((20, 2), 0.02)
    split = Split(x=x, y=torch.ones(20, dtype=torch.int64), classes=("a", "b"), name="s", split="test", range=None)
    report = attack_model(Staircase(), split, threat=Threat("linf", 0.1, None), budget=Budget(steps=2, restarts=1))
    assert report.checks["zero_gradient_share"] == 1.0
    assert report.checks["noise"]["broken"] > 10
    assert report.robust.correct == 20 - report.checks["noise"]["broken"]
    assert any("no input gradient at 20 of 20" in warning for warning in report.warnings)
    assert any("Random noise broke" in warning for warning in report.warnings)
    assert attack_model(half_space(), plane(), threat=Threat("l2", 0.25, None), budget=CHEAP).warnings == []


def test_probabilities_and_random_models_are_reported():
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.sum(1, keepdim=True) + torch.rand(len(x), 1), x.sum(1, keepdim=True)], 1)

    threat = Threat("l2", 0.0, None)
    soft = attack_model(nn.Sequential(half_space(), nn.Softmax(1)), plane(), threat=threat)
    assert any("look like probabilities" in warning for warning in soft.warnings)
    assert any(
        "random in evaluation mode" in warning for warning in attack_model(Random(), plane(), threat=threat).warnings
    )


def test_bad_inputs_labels_and_outputs_are_refused_with_what_was_seen():
    threat = Threat("linf", 0.1, (0.0, 1.0))
    with pytest.raises(UserError, match=r"\[-0.4, 5\]"):
        attack_model(half_space(), plane(), threat=threat)
    one = nn.Sequential(half_space(), nn.Flatten(0))
    with pytest.raises(UserError, match=r"shape \(10,\)"):
        attack_model(one, plane(), threat=Threat("linf", 0.1, None))
    many = Split(x=torch.rand(3, 2), y=torch.tensor([0, 1, 2]), classes=("a", "b", "c"), name="m", split="test")
    with pytest.raises(UserError, match="classes 0 to 1"):
        attack_model(half_space(), many, threat=threat)


def test_an_attack_that_leaves_the_ball_is_a_bug_and_not_a_result(monkeypatch):
    monkeypatch.setattr("iclr18cli.attack.pgd.pgd", lambda model, x, y, **_: x + 1)
    with pytest.raises(RuntimeError, match="moved an input by"):
        attack_model(half_space(), plane(), threat=Threat("linf", 0.5, None))


def test_progress_adds_up_to_the_sample_and_robust_accuracy_only_falls():
    seen: list[tuple[int, float]] = []
    attack_model(
        half_space(), plane(), threat=Threat("l2", 0.25, None), budget=CHEAP, batch_size=2,
        progress=lambda n, robust: seen.append((n, robust)),
    )  # fmt: skip
    assert sum(n for n, _ in seen) == 5
    assert [robust for _, robust in seen] == pytest.approx([0.8, 0.4, 0.4])


def test_attacked_models_keep_every_flag():
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    net[1].eval()
    attack_model(net, plane(), threat=Threat("l2", 0.25, None), budget=CHEAP)
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def opened(task: str = "classify") -> SimpleNamespace:
    """Return what an attack needs of a run."""
    return SimpleNamespace(
        card=SimpleNamespace(task=task, range=None, sha256=""), technique="wrm", seed=1, model=half_space,
        split=lambda split="test", limit=0: plane().take(limit or 5), keep=lambda kind, name, **ranks: None,
        label="half-space", progress=lambda work, label: nullcontext(SimpleNamespace(advance=lambda n, robust: None)),
    )  # fmt: skip


def test_a_run_is_attacked_on_its_own_data():
    report = attack_run(opened(), AttackConfig(norm="l2", eps=0.25, steps=5, restarts=2, limit=4)).report
    assert (report.clean.correct, report.robust.correct, report.robust.n) == (4, 2, 4)
    assert report.seed == 1


def test_every_option_of_a_budget_is_an_option_of_the_command():
    import dataclasses

    fields = {field.name for field in dataclasses.fields(AttackConfig)}
    assert {field.name for field in dataclasses.fields(Budget)} <= fields


def test_what_is_no_classifier_and_unknown_names_and_norms_are_wrong_usage():
    with pytest.raises(UsageError, match=r"task 'language'.*iclr18 wrm eval"):
        attack_run(opened("language"))
    with pytest.raises(UsageError, match="Did you mean 'pgd'"):
        attack_run(opened(), AttackConfig(attack="pdg"))
    with pytest.raises(UsageError, match=r"it offers l2.*--attack"):
        attack_run(opened(), AttackConfig(attack="cw", norm="linf"))


def test_plugins_add_attacks_by_record(monkeypatch):
    own = AttackSpec(name="nothing", run=f"{__name__}:nothing", summary="", norms=("l2",), tasks=("classify",))
    monkeypatch.setattr("iclr18cli.manager.plugins", lambda: SimpleNamespace(attacks=lambda: [own]))
    assert list(registry.attacks())[-1] == "nothing"
    assert registry.find("nothing", "l2") is own
    with pytest.raises(UsageError, match="translate"):
        registry.find("nothing", "l2", "translate")


OWN = [
    (s.name, norm) for s in registry.attacks().values() if not s.name.startswith("torchattacks/") for norm in s.norms
]


@pytest.mark.parametrize(("name", "norm"), OWN)
def test_every_attack_of_our_own_breaks_a_linear_model_in_every_norm_it_offers(name, norm):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), torch.rand(12, 1, 4, 4)
    split = Split(x=x, y=net(x).argmax(1), classes=("a", "b", "c", "d"), name="r", split="test")
    budget = {"steps": 20, "restarts": 1, "queries": 100, "target_classes": 3, "searches": 4}
    uses = registry.attacks()[name].uses
    report = attack_model(
        net, split, attack=name, threat=Threat(norm, 6.0 if norm == "l1" else 1.0), diagnose=False,
        budget={field: value for field, value in budget.items() if field in uses},
    )  # fmt: skip
    assert report.clean.correct == 12
    assert report.robust.correct < 12
    assert report.stages[0]["attack"] == name


def test_the_batch_size_fits_the_memory_it_is_given(monkeypatch):
    monkeypatch.setattr("iclr18cli.attack.memory.free_bytes", lambda device: 4 * 2**20)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))
    # 784 in and flattened, 1000 twice, 10: 3578 numbers of 4 bytes, fourfold: 57 kB; a quarter of 4 MiB holds 18.
    assert batch_size_for(net, torch.rand(2, 784)) == 16
    assert batch_size_for(net, torch.rand(2, 784), share=1e-9) == 1


def test_listing_attacks_imports_no_torch():
    code = (
        "import sys; import iclr18cli.attack.builtin, iclr18cli.attack.config, iclr18cli.attack.registry\n"
        "assert not {'torch', 'torchattacks', 'scipy', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
