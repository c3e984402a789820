"""Section 4.3: the adversary's shift, the table's shifted edges, the physics, training and evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from iclr18_wrm.qlearning import (
    ANGLE_BINS,
    ANGLE_LIMIT,
    ENVIRONMENTS,
    MAX_STEPS,
    VELOCITY_BINS,
    CartPole,
    QTable,
    _edges,
    _next_state,
    evaluate,
    outward_shift,
    shifted_edges,
    train,
)
from scipy.optimize import minimize_scalar


@pytest.mark.parametrize("gamma", [0.1, 1.0, 50.0])
def test_the_shift_solves_its_fixed_point_and_its_minimisation(gamma):
    angles = np.array([-0.2, -0.01, 0.0, 0.05, 0.2])
    shift = outward_shift(angles, gamma)
    np.testing.assert_allclose(shift, np.exp(-(np.abs(angles) + shift)) / (2 * gamma), rtol=1e-12)
    for angle, d in zip(np.abs(angles), shift, strict=True):
        worst = minimize_scalar(
            lambda beta, angle=angle: math.exp(-abs(beta)) + gamma * (beta - angle) ** 2,
            bounds=(angle, angle + 10),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert worst.x - angle == pytest.approx(d, abs=1e-6)


def test_the_shift_is_the_global_minimum_over_all_angles():
    grid = np.linspace(-6, 6, 240001)
    for gamma, angle in ((0.2, 0.1), (1.0, 0.0), (50.0, 0.2)):
        objective = np.exp(-np.abs(grid)) + gamma * (grid - angle) ** 2
        moved = angle + outward_shift(angle, gamma)
        assert math.exp(-moved) + gamma * (moved - angle) ** 2 <= objective.min() + 1e-9


def test_the_shift_vanishes_as_gamma_grows_and_a_penalty_must_be_positive():
    assert outward_shift(0.1, 1e9) < 1e-9
    assert outward_shift(0.1, 10.0) > outward_shift(0.1, 20.0) > outward_shift(0.2, 20.0)
    with pytest.raises(ValueError, match="received gamma=0"):
        outward_shift(0.1, 0)


@pytest.mark.parametrize("gamma", [2.0, 20.0, 50.0])
def test_looking_up_the_shifted_edges_is_looking_up_the_moved_angle(gamma):
    edges = _edges(ANGLE_LIMIT, ANGLE_BINS)
    angles = np.random.default_rng(0).uniform(-0.3, 0.3, size=20000)
    moved = angles + np.sign(angles) * outward_shift(angles, gamma)
    direct = np.searchsorted(edges, moved, side="right")
    assert np.array_equal(np.searchsorted(shifted_edges(edges, gamma), angles, side="right"), direct)


def test_the_pole_falls_with_the_textbook_acceleration():
    pole = CartPole(force=0.0, cart_mass=1e12)  # an immovable cart: a rod of length 2 l has g sin / (4 l / 3)
    angle = 0.1
    state = _next_state(pole, (0.0, 0.0, angle, 0.0), 1, math.sin, math.cos)
    assert state[3] / pole.seconds_per_step == pytest.approx(9.8 * math.sin(angle) / (0.5 * 4 / 3))
    assert state[:3] == pytest.approx((0.0, 0.0, angle))


def test_one_step_agrees_with_the_equations_of_motion():
    """Both Newton equations of the cart and the pole hold for the accelerations of one step."""
    c, (position, speed, angle, turn), action = ENVIRONMENTS["heavy"], (0.1, -0.4, 0.07, 0.9), 1
    after = _next_state(c, (position, speed, angle, turn), action, math.sin, math.cos)
    speed_rate, turn_rate = (after[1] - speed) / c.seconds_per_step, (after[3] - turn) / c.seconds_per_step
    ml = c.pole_mass * c.half_length
    force = (c.cart_mass + c.pole_mass) * speed_rate + ml * (turn_rate * math.cos(angle) - turn**2 * math.sin(angle))
    assert force == pytest.approx(c.force)
    assert 4 / 3 * c.half_length * turn_rate == pytest.approx(
        c.gravity * math.sin(angle) - speed_rate * math.cos(angle)
    )


def test_the_cart_pole_is_symmetric_and_arrays_agree_with_numbers():
    rng = np.random.default_rng(1)
    states = rng.uniform(-0.2, 0.2, size=(4, 6))
    actions = rng.integers(2, size=6)
    together = np.array(_next_state(ENVIRONMENTS["short"], tuple(states), actions, np.sin, np.cos))
    mirrored = np.array(_next_state(ENVIRONMENTS["short"], tuple(-states), 1 - actions, np.sin, np.cos))
    np.testing.assert_allclose(mirrored, -together, rtol=1e-12, atol=1e-15)
    for i in range(6):
        alone = _next_state(ENVIRONMENTS["short"], tuple(states[:, i]), int(actions[i]), math.sin, math.cos)
        np.testing.assert_allclose(together[:, i], alone, rtol=1e-12)


def test_evaluation_side_by_side_agrees_with_one_trial_at_a_time():
    values = np.random.default_rng(3).normal(size=(ANGLE_BINS, VELOCITY_BINS, 2))
    values[ANGLE_BINS // 2 :, :, 1] += 2.0  # leaning right, push right: balances for a while
    values[: ANGLE_BINS // 2, :, 0] += 2.0
    table, c = QTable(values, None, 0, 0.0), ENVIRONMENTS["original"]
    lengths = evaluate(table, c, trials=30, seed=5)
    starts = np.random.default_rng(5).uniform(-0.05, 0.05, size=(4, 30))
    for start, length in zip(starts.T, lengths, strict=True):
        state, steps = tuple(start), 0
        while steps < MAX_STEPS:
            action = int(table.actions(np.array([state[2]]), np.array([state[3]]))[0])
            state, steps = _next_state(c, state, action, math.sin, math.cos), steps + 1
            if abs(state[2]) > math.radians(12) or abs(state[0]) > 2.4:
                break
        assert length == steps
    assert len(set(lengths.tolist())) > 3


def test_training_is_reproducible_and_learns_to_balance():
    seen = []
    table = train(episodes=600, seed=1, each_episode=lambda episode, length: seen.append((episode, length)))
    again = train(episodes=600, seed=1)
    assert np.array_equal(table.values, again.values)
    assert [episode for episode, _ in seen] == list(range(600))
    untrained = QTable(np.zeros_like(table.values), None, 0, 0.0)
    c = ENVIRONMENTS["original"]
    assert evaluate(table, c, trials=100).mean() > 8 * evaluate(untrained, c, trials=100).mean()
    assert table.length == max(np.mean([n for _, n in seen[i : i + 20]]) for i in range(581))
    assert not np.array_equal(train(episodes=20, seed=2).values, train(episodes=20, seed=3).values)


def test_an_adversary_of_infinite_penalty_trains_the_regular_agent():
    assert np.array_equal(train(1e18, episodes=60, seed=4).values, train(episodes=60, seed=4).values)
    assert not np.array_equal(train(5.0, episodes=60, seed=4).values, train(episodes=60, seed=4).values)


def test_the_values_never_exceed_the_discounted_sum_of_the_largest_reward():
    values = train(50.0, episodes=300, seed=0, discount=0.9).values
    assert values.min() >= 0
    assert 1 < values.max() <= 1 / (1 - 0.9)


def test_table_one_has_seven_environments_that_differ_in_one_constant():
    assert list(ENVIRONMENTS) == ["original", "light", "long", "soft g", "heavy", "short", "strong g"]
    original = vars(ENVIRONMENTS["original"])
    for name, environment in ENVIRONMENTS.items():
        changed = [key for key, value in vars(environment).items() if value != original[key]]
        assert len(changed) == (name != "original")
    assert ENVIRONMENTS["heavy"].pole_mass == 0.2
    assert ENVIRONMENTS["short"].half_length == 0.25
    assert ENVIRONMENTS["strong g"].gravity == pytest.approx(49.0)


def test_bad_settings_are_refused_with_what_was_received():
    with pytest.raises(ValueError, match="gamma=-1"):
        train(-1.0, episodes=1)
    with pytest.raises(ValueError, match="episodes=0"):
        train(episodes=0)
