"""What an evaluation keeps and goes on with, whom it aims at, random models, transfer, and curves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from iclr18cli.attack.curve import curve
from iclr18cli.attack.evaluation import attack_model, evaluate_model
from iclr18cli.attack.parts import Parts
from iclr18cli.attack.randomness import Expected, own_randomness
from iclr18cli.attack.search import Found
from iclr18cli.attack.setting import Effort
from iclr18cli.attack.targets import choose_targets
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.attack.transfer import Transfer
from iclr18cli.data.tensors import Split
from iclr18cli.errors import UsageError, UserError

CHEAP = Budget(steps=4, restarts=2)


def small(seed: int = 0, classes: int = 4) -> nn.Sequential:
    """A net whose four classes all have points in the unit cube."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, classes)).requires_grad_(False)
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    net[0].bias.copy_(-net[0].weight.sum(1) / 2)  # the middle of the cube is the middle of every unit
    net[2].bias.zero_()
    return net


def sample(net: nn.Module, n: int = 60) -> Split:
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(1))
    return Split(x=x, y=net(x).argmax(1), classes=("a", "b", "c", "d"), name="own", split="test")


def test_an_interrupted_evaluation_goes_on_to_the_same_result_and_repeats_no_batch(tmp_path, monkeypatch):
    net = small()
    split, threat = sample(net), Threat("linf", 0.05)
    ask = {"attack": "pgd,square", "budget": {"steps": 4, "restarts": 2, "queries": 30}, "threat": threat}
    options = {"batch_size": 8, "keep_points": True, "diagnose": False}
    whole = evaluate_model(net, split, **ask, effort=Effort(**options))

    calls = 0
    write = Parts.write

    def stop_after_five(self: Parts, key: str, found: dict[str, Tensor]) -> None:
        nonlocal calls
        write(self, key, found)
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(net, split, **ask, effort=Effort(**options, parts=tmp_path / "p"))
    monkeypatch.setattr(Parts, "write", write)
    assert len(list((tmp_path / "p").rglob("*.safetensors"))) == 5
    torch.rand(3)  # the global generator has no say
    again = evaluate_model(net, split, **ask, effort=Effort(**options, parts=tmp_path / "p"))
    assert again.resumed == 5
    for name in ("correct", "robust", "broken_by", "nearest", "predicted", "points"):
        assert torch.equal(getattr(again.found, name), getattr(whole.found, name)), name
    assert again.report.survivors == whole.report.survivors
    assert 0 < len(whole.report.survivors) < len(split)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_damaged_part_is_computed_anew(tmp_path):
    net = small()
    split, threat = sample(net, 10), Threat("linf", 0.05)
    parts = Parts(tmp_path / "rank-0-of-1")
    parts.write("00-00000", {"distance": torch.zeros(10, dtype=torch.float64)})
    (tmp_path / "rank-0-of-1" / "00-00000.safetensors").write_bytes(b"rubbish")
    found = evaluate_model(net, split, attack="noise", threat=threat,
                           effort=Effort(parts=tmp_path, diagnose=False))  # fmt: skip
    assert found.resumed == 0
    assert found.report.robust.n == 10


def test_later_attacks_see_only_survivors_and_the_stages_add_up():
    net = small()
    split = sample(net)
    report = attack_model(net, split, attack="fgsm,pgd,square", threat=Threat("linf", 0.08), diagnose=False)
    first, second, third = report.stages
    assert first["points"] == len(split)
    assert second["points"] == first["points"] - first["broken"]
    assert third["points"] == second["points"] - second["broken"]
    assert report.robust.correct == third["points"] - third["broken"]
    assert first["broken"] > 0


def test_a_minimal_norm_attack_counts_as_broken_only_what_lies_within_eps():
    net = nn.Linear(2, 2)
    net.weight.data, net.bias.data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.zeros(2)
    x = torch.tensor([[0.1, 5.0], [-0.2, 5.0], [0.3, 0.0], [-0.4, 0.0]])
    split = Split(x=x, y=(x[:, 0] > 0).long(), classes=("l", "r"), name="plane", split="test", range=None)
    near = attack_model(net, split, attack="deepfool", threat=Threat("l2", 0.25, None), diagnose=False)
    assert near.survivors == [2, 3]
    far = evaluate_model(net, split, attack="deepfool", threat=Threat("l2", torch.inf, None))
    assert far.report.survivors == []
    assert far.found.nearest.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=0.03)
    assert far.report.perturbation["max"] == pytest.approx(0.4, rel=0.03)
    assert "found an error near 4 of the 4 points" in far.report.statement
    swept = curve(net, split, norm="l2", radii=[0, 0.15, 0.25, 0.5], domain=None, attack="deepfool")
    assert [point.robust.correct for point in swept.points] == [4, 3, 2, 0]
    with pytest.raises(UsageError, match="needs a finite eps"):
        attack_model(net, split, attack="pgd", threat=Threat("l2", torch.inf, None))


def test_targets_are_wrong_classes_by_every_rule():
    net = small()
    split = sample(net)
    logits = net(split.x)
    own = {
        rule: choose_targets(net, split, rule, 4, batch_size=7) for rule in ("likeliest", "least-likely", "random", "2")
    }
    for targets in own.values():
        assert not (targets == split.y).any()
    masked = logits.scatter(1, split.y[:, None], -torch.inf)
    assert torch.equal(own["likeliest"], masked.argmax(1))
    assert torch.equal(own["least-likely"], (-logits).scatter(1, split.y[:, None], -torch.inf).argmax(1))
    assert torch.equal(own["2"][split.y != 2], torch.full_like(split.y[split.y != 2], 2))
    with pytest.raises(UsageError, match="from 0 to 3"):
        choose_targets(net, split, "4", 4, batch_size=7)


def test_a_targeted_evaluation_tells_how_many_points_reached_their_class():
    net = small()
    split = sample(net)
    report = attack_model(net, split, threat=Threat("linf", 0.5), target="least-likely", diagnose=False)
    assert report.targeted["n"] == len(split)
    assert 0 < report.targeted["reached"] <= len(split) - report.robust.correct
    with pytest.raises(UsageError, match="cannot aim"):
        attack_model(net, split, attack="noise", threat=Threat("linf", 0.5), target="random")


class Noisy(nn.Module):
    """The half space x_0 > 0.5 with noise on its logits in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        margin = x[:, :1] - 0.5 + 0.3 * torch.randn(len(x), 1)
        return torch.cat([-margin, margin], 1)


def test_expectation_over_draws_makes_a_random_model_judgeable():
    model = Expected(Noisy(), 400)
    x = torch.full((50, 2), 0.8)
    with own_randomness(torch.device("cpu"), 0):
        spread = model(x)[:, 1].std()
    assert 0.5 * 0.3 / 20 < spread < 1.5 * 0.3 / 20  # a mean of 400 draws
    split = Split(x=x, y=torch.ones(50, dtype=torch.int64), classes=("a", "b"), name="n", split="test")
    state = torch.get_rng_state()
    held = attack_model(Noisy(), split, threat=Threat("linf", 0.2), budget=CHEAP, eot=100, diagnose=False)
    beaten = attack_model(Noisy(), split, threat=Threat("linf", 0.4), budget=CHEAP, eot=100, diagnose=False)
    assert held.robust.correct == 50  # the boundary lies at a distance of 0.3
    assert beaten.robust.correct <= 5  # a lucky draw may end a search too soon
    assert "mean of 100 passes" in held.statement
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="received 0"):
        Expected(Noisy(), 0)


def test_a_transfer_attack_fools_a_model_without_gradients_through_a_look_alike():
    net = small()

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).detach().round(decimals=4)

    split = sample(net)
    threat = Threat("linf", 0.2)
    blind = attack_model(Blind(), split, threat=threat, source=net, diagnose=False)
    assert blind.attack == "transfer"
    assert blind.robust.correct < 0.7 * len(split)
    stranger = attack_model(net, split, threat=threat, source=small(9), diagnose=False)
    assert stranger.robust.correct > blind.robust.correct
    z = Transfer(net)(Blind(), split.x, split.y, threat=threat)
    assert threat.check(z, split.x).max() <= 0.2 * (1 + 1e-6)
    with pytest.raises(UserError):
        attack_model(Blind(), split, threat=threat, diagnose=False)


def test_what_is_known_before_any_attack_is_the_clean_result():
    found = Found.before(torch.tensor([True, False]), torch.tensor([1, 0]))
    assert found.nearest.tolist() == [float("inf"), 0.0]
    assert found.broken_by.tolist() == [-1, -1]
