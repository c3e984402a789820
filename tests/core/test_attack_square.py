"""Square Attack: what it may ask of a model, the shape of its windows, closed forms on linear models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from iclr18cli.attack.losses import objective
from iclr18cli.attack.pgd import noise, random_search
from iclr18cli.attack.square import _Board, _peak, square, window_share
from iclr18cli.attack.threat import Budget, Threat
from iclr18cli.errors import UserError

NORMS = ["linf", "l2", "l1"]
BLACK_BOX = [square, random_search]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(shape: tuple[int, ...], bias: float, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return two logits of any input of a shape; their difference is w.x + bias with w standard normal."""
    size = torch.Size(shape).numel()
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 2)).to(dtype)
    w = torch.randn(size, generator=seeded(seed), dtype=dtype)
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([w, -w]) / 2)
        net[1].bias.copy_(torch.tensor([bias, -bias]) / 2)
    return net


class Blind(nn.Module):
    """Counts the passes of each input, told apart by its last coordinate rounded, and has no gradient."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        self.asked += x.flatten(1)[:, -1].round().int().tolist()
        return self.net(x).detach()


@pytest.mark.parametrize("attack", BLACK_BOX)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("queries", [1, 2, 37])
def test_no_example_is_asked_more_often_than_the_budget_allows_and_no_gradient_ever(attack, norm, queries):
    x = torch.rand(6, 2, 4, 4, generator=seeded())
    x[:, -1, -1, -1] = torch.arange(6) * 10.0
    net = Blind(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    with torch.no_grad():
        y = net.net(x).argmax(1)
    z = attack(net, x, y, threat=Threat(norm, 1e-3, None), budget=Budget(queries=queries), generator=seeded())
    asked = [sum(abs(a - own) <= 4 for a in net.asked) for own in range(0, 60, 10)]
    assert asked == [queries] * 6
    assert (net.net(z).argmax(1) == y).all()


@pytest.mark.parametrize("norm", NORMS)
def test_broken_examples_are_not_asked_again_for_long(norm):
    net, x = linear((1, 6, 6), 0.1), torch.zeros(40, 1, 6, 6, dtype=torch.float64)
    sizes = []
    net.register_forward_hook(lambda *seen: sizes.append(len(seen[2])))
    square(net, x, torch.zeros(40, dtype=torch.int64), threat=Threat(norm, 5.0, None), budget=Budget(queries=5000))
    assert sum(sizes) < 40 * 60


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 4, 6), (9,), (2, 3)])
def test_linf_reaches_the_corner_that_is_best_for_a_linear_model(shape):
    net = linear(shape, 99.0)
    x = torch.rand(3, *shape, generator=seeded(1), dtype=torch.float64)
    y, w = torch.zeros(3, dtype=torch.int64), net[1].weight[0] * 2
    z = square(net, x, y, threat=Threat("linf", 0.3, None), budget=Budget(queries=2000), generator=seeded())
    assert ((z - x).flatten(1) @ w).tolist() == pytest.approx([-0.3 * w.abs().sum().item()] * 3)


@pytest.mark.parametrize(("shape", "norm", "share"), [
    ((1, 5, 5), "l2", 0.5),  # windows of 3 x 3 in smooth patterns cannot follow random weights
    ((9,), "l2", 0.9), ((2, 2), "l1", 0.9), ((2,), "l2", 0.999), ((2,), "l1", 0.95),
])  # fmt: skip
def test_l2_and_l1_come_near_the_closed_form_of_a_linear_model(shape, norm, share):
    net = linear(shape, 99.0)
    x, y = torch.zeros(3, *shape, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    w = net[1].weight[0] * 2
    best = 0.7 * (w.norm() if norm == "l2" else w.abs().max()).item()
    z = square(net, x, y, threat=Threat(norm, 0.7, None), budget=Budget(queries=400), generator=seeded())
    found = -(z - x).flatten(1) @ w
    assert (found <= best * (1 + 1e-9)).all()
    assert (found >= best * share).all()


@pytest.mark.parametrize("norm", NORMS)
def test_random_search_comes_near_the_closed_form_of_a_linear_model(norm):
    net, x = linear((4,), 99.0), torch.zeros(5, 4, dtype=torch.float64)
    w = net[1].weight[0] * 2
    best = 0.7 * torch.linalg.vector_norm(w, {"linf": 1, "l2": 2, "l1": torch.inf}[norm]).item()
    y = torch.zeros(5, dtype=torch.int64)
    z = random_search(net, x, y, threat=Threat(norm, 0.7, None), budget=Budget(queries=1000), generator=seeded())
    # l1: at a face of the ball a step must lower one coordinate while it raises another.
    assert (-(z - x) @ w >= (0.85 if norm == "l1" else 0.97) * best).all()


def test_the_windows_are_squares_that_shrink_on_schedule_each_example_its_own():
    assert [window_share(i) for i in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)] == pytest.approx(
        [0.8, 0.8] + [0.8 / 2**k for k in range(1, 10)]
    )
    x = torch.full((200, 2, 9, 7), 0.5)
    board = _Board.of(x, Threat("linf", 0.1), seeded())
    now = board.first(x)
    assert torch.allclose((now - x).abs(), torch.tensor(0.1))
    assert (now == now[:, :, :1]).all()  # stripes
    side = round((0.1 * 63) ** 0.5)
    changed = (board.propose(now, x, 0.1) != now).any(1)
    corners = set()
    for window in changed:
        rows, columns = window.any(1).nonzero().flatten(), window.any(0).nonzero().flatten()
        assert len(rows) > 0
        assert rows[-1] - rows[0] < side
        assert columns[-1] - columns[0] < side
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 20
    assert changed.any(0).all()  # the last row and the last column too


def test_no_linf_query_is_spent_on_the_point_as_it_is():
    x = torch.rand(50, 1, 6, 6, generator=seeded())
    board = _Board.of(x, Threat("linf", 0.1), seeded())
    now = board.first(x)
    for share in (0.8, 0.1, 0.01):
        assert (board.propose(now, x, share) != now).flatten(1).any(1).all()


def test_the_l2_pattern_is_two_opposite_peaks_with_the_values_worked_out_by_hand():
    # Weights 1, 1/4, 1/9 of the squares of radius 0, 1, 2 about the middle of 3 x 5.
    outer, ring, middle = 1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1
    rows = [[outer, ring, ring, ring, outer], [outer, ring, middle, ring, outer], [outer, ring, ring, ring, outer]]
    assert _peak(3, 5, 2).flatten().tolist() == pytest.approx([weight for row in rows for weight in row])
    for norm, order in (("l2", 2), ("l1", 1)):
        pattern = _Board.of(torch.zeros(1, 1, 9, 9), Threat(norm, 1.0), seeded())._pattern(5)
        assert pattern.norm(order).item() == pytest.approx(1)
        assert (pattern[:2] > 0).all()
        assert (pattern[2:] < 0).all()
        assert pattern[:2].norm(order).item() == pytest.approx(pattern[2:].norm(order).item())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_rearranged_perturbation_uses_all_of_eps_and_changes_two_windows(norm):
    x = torch.zeros(30, 2, 10, 10, dtype=torch.float64)
    threat = Threat(norm, 1.5, None)
    board = _Board.of(x, threat, seeded())
    now = board.first(x)
    assert threat.check(now, x).tolist() == pytest.approx([1.5] * 30)
    new = board.propose(now, x, 0.09)
    assert threat.check(new, x).tolist() == pytest.approx([1.5] * 30)
    changed = ((new - now).abs() > 1e-12).any(1).flatten(1).sum(1)
    assert (changed >= 9).all()
    assert (changed <= 18).all()


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.floats(0, 3),
    shape=st.sampled_from([(1,), (2,), (7,), (2, 3), (1, 4, 4), (3, 2, 5), (1, 1, 1), (3, 2, 2, 2)]),
    domain=st.sampled_from([None, (0.0, 1.0), (-2.5, 0.5)]),
    seed=st.integers(0, 1000),
    attack=st.sampled_from(BLACK_BOX),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_points_stay_in_the_threat_set_and_are_never_worse_than_the_input(
    norm, eps, shape, domain, seed, attack, dtype
):
    draw = seeded(seed)
    low, high = domain or (-3.0, 3.0)
    x = low + (high - low) * torch.rand(4, *shape, generator=draw, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=draw) < 0.3, torch.full_like(x, low), x)
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)).to(dtype)
    y, threat = torch.randint(3, (4,), generator=draw), Threat(norm, eps, domain)
    z = attack(net, x, y, threat=threat, budget=Budget(queries=15), generator=draw)
    threat.check(z, x)
    wrong = net(x).argmax(1) != y
    assert torch.equal(z[wrong], x[wrong])
    value = lambda p: objective(net(p), y, loss="margin")
    assert (value(z) >= value(x) - 1e-5).all()


def test_a_staircase_without_gradient_is_broken_where_noise_fails():
    class Staircase(nn.Module):
        """Class 0 while the sum of 64 rounded pixels is above its threshold."""

        def forward(self, x: Tensor) -> Tensor:
            margin = (x / 0.05).round().flatten(1).mean(1) * 0.05 - 0.42
            return torch.stack([margin, torch.zeros_like(margin)], 1)

    x, y, threat = torch.full((10, 1, 8, 8), 0.5), torch.zeros(10, dtype=torch.int64), Threat("linf", 0.1)
    tried = Budget(steps=100, restarts=3, queries=300)
    assert (Staircase()(noise(Staircase(), x, y, threat=threat, budget=tried)).argmax(1) == 0).all()
    assert (Staircase()(square(Staircase(), x, y, threat=threat, budget=tried)).argmax(1) == 1).all()


@pytest.mark.parametrize("attack", BLACK_BOX)
def test_targets_are_reached_and_nothing_else_counts(attack):
    net = nn.Linear(2, 3).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        net.bias.zero_()
    x, y = torch.tensor([[0.5, 0.0]], dtype=torch.float64), torch.tensor([0])
    for target in (1, 2):
        aim, budget = torch.tensor([target]), Budget(queries=300)
        z = attack(net, x, y, threat=Threat("l2", 2.0, None), budget=budget, targets=aim)
        assert net(z).argmax(1).item() == target


@pytest.mark.parametrize("attack", BLACK_BOX)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 6, 6), (5,)])
def test_the_generator_decides_everything_random_and_the_global_one_is_untouched(attack, norm, shape):
    net, x = linear(shape, 9.0), torch.rand(8, *shape, generator=seeded(2), dtype=torch.float64)
    y, threat, budget = torch.zeros(8, dtype=torch.int64), Threat(norm, 0.1), Budget(queries=12)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    run = lambda seed: attack(net, x, y, threat=threat, budget=budget, generator=seeded(seed))
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("attack", BLACK_BOX)
def test_nothing_to_attack_is_nothing_returned_and_bad_inputs_are_refused(attack):
    net, none = nn.Linear(3, 5), torch.zeros(0, 3)
    assert attack(net, none, torch.zeros(0, dtype=torch.int64), threat=Threat("l2", 1.0)).shape == (0, 3)
    x, y = torch.rand(2, 3), torch.tensor([0, 1])
    assert torch.equal(attack(net, x, y, threat=Threat("l1", 0.0)), x)
    with pytest.raises(UserError, match="outside the declared range"):
        attack(net, x + 3, y, threat=Threat("l1", 1.0))
