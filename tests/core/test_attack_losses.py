"""What attacks raise: values worked out by hand, invariances, and when a goal is reached."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iclr18cli.attack.losses import Goal, margin, objective
from iclr18cli.errors import UserError

LOGITS = torch.tensor([[1.0, 4.0, 2.0, -1.0], [3.0, 0.0, 2.5, 1.0]], dtype=torch.float64)
Y = torch.tensor([1, 2])
TARGETS = torch.tensor([0, 3])


def test_every_loss_has_the_value_worked_out_by_hand():
    assert objective(LOGITS, Y, loss="margin").tolist() == [-2.0, 0.5]
    # DLR: -(4 - 2) / (4 - 1) and -(2.5 - 3) / (3 - 1); targeted -(4 - 1) / (4 - (1 - 1) / 2), -(2.5 - 1) / (3 - 0.5)
    assert objective(LOGITS, Y, loss="dlr").tolist() == pytest.approx([-2 / 3, 0.25])
    assert objective(LOGITS, Y, loss="dlr", targets_S=TARGETS).tolist() == pytest.approx([-0.75, -0.6])
    assert objective(LOGITS, Y, loss="margin", targets_S=TARGETS).tolist() == [-3.0, -2.0]
    nats = LOGITS.exp().sum(1).log()
    assert objective(LOGITS, Y, loss="cross-entropy").tolist() == pytest.approx((nats - LOGITS[[0, 1], Y]).tolist())
    aimed = objective(LOGITS, Y, loss="cross-entropy", targets_S=TARGETS)
    assert aimed.tolist() == pytest.approx((LOGITS[[0, 1], TARGETS] - nats).tolist())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), targeted=st.booleans())
def test_neither_scale_nor_shift_of_the_logits_changes_dlr(seed, scale, shift, targeted):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 6, generator=draw, dtype=torch.float64)
    y, targets = torch.randint(6, (5,), generator=draw), torch.randint(6, (5,), generator=draw)
    aim = {"targets_S": targets} if targeted else {}
    before = objective(logits, y, loss="dlr", **aim)
    assert torch.allclose(objective(scale * logits + shift, y, loss="dlr", **aim), before, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(objective(2 * logits, y, loss="margin"), objective(logits, y, loss="margin"))


def test_untargeted_values_are_positive_exactly_where_the_prediction_is_wrong():
    draw = torch.Generator().manual_seed(0)
    logits, y = torch.randn(400, 5, generator=draw), torch.randint(5, (400,), generator=draw)
    for loss in ("margin", "dlr"):
        assert torch.equal(objective(logits, y, loss=loss) > 0, logits.argmax(1) != y)
    assert torch.equal(objective(logits, y, loss="margin"), margin(logits, y))


def test_the_largest_targeted_margin_of_the_true_class_is_the_untargeted_one():
    draw = torch.Generator().manual_seed(1)
    logits, y = torch.randn(50, 4, generator=draw, dtype=torch.float64), torch.randint(4, (50,), generator=draw)
    spread = logits.sort(1).values
    spread = spread[:, 3] - (spread[:, 1] + spread[:, 0]) / 2
    every = torch.stack([objective(logits, y, loss="dlr", targets_S=torch.full_like(y, t)) for t in range(4)])
    every.scatter_(0, y[None], -torch.inf)
    assert torch.allclose(every.amax(0) * spread, margin(logits, y))


def test_dlr_is_refused_where_there_are_too_few_classes():
    with pytest.raises(UserError, match="needs 3 classes; the model has 2"):
        objective(torch.zeros(1, 2), torch.tensor([0]), loss="dlr")
    with pytest.raises(UserError, match="needs 4 classes; the model has 3"):
        objective(torch.zeros(1, 3), torch.tensor([0]), loss="dlr", targets_S=torch.tensor([1]))


def test_a_goal_is_reached_by_any_wrong_class_unless_it_asks_for_its_target_exactly():
    predicted_1_and_0 = LOGITS
    assert Goal("margin", Y).broken(predicted_1_and_0).tolist() == [False, True]
    assert Goal("margin", Y, torch.tensor([1, 3])).broken(predicted_1_and_0).tolist() == [True, False]
    assert Goal("margin", Y, torch.tensor([0, 3]), exact=False).broken(predicted_1_and_0).tolist() == [False, True]
    second = Goal("dlr", Y, TARGETS, exact=False).at(torch.tensor([1]))
    assert (second.y.tolist(), second.targets.tolist(), second.exact) == ([2], [3], False)
    assert second.value(LOGITS[1:]).tolist() == pytest.approx([-0.6])
