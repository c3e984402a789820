from itertools import pairwise, product

import pytest
import torch

from iclr18cli.compression.binary_codes import (
    BinaryCodes,
    alternating,
    greedy,
    least_squares,
    levels,
    nearest_codes,
    ordered,
    refined,
    relative_error,
)
from iclr18cli.compression.methods import balanced, code_rows, exact_two_bits, ternary, uniform

SLACK = 1e-12


def rows(M=64, N=100, seed=0, dtype=torch.float64):
    return torch.randn(M, N, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(w, codes):
    return (w - codes.dense()).square().sum(1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_no_iteration_raises_the_error(bits):
    w = rows()
    errors = [error(w, greedy(w, bits))] + [error(w, alternating(w, bits, iterations=T)) for T in range(6)]
    for before, after in pairwise(errors):
        assert (after <= before + SLACK * w.square().sum(1)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_each_half_step_never_raises_the_error(bits):
    w = rows()
    codes = greedy(w, bits)
    for _ in range(4):
        fitted = ordered(BinaryCodes(least_squares(w, codes.codes_MKN), codes.codes_MKN))
        assert (error(w, fitted) <= error(w, codes) + 1e-10).all()
        codes = BinaryCodes(fitted.alpha_MK, nearest_codes(w, fitted.alpha_MK))
        assert (error(w, codes) <= error(w, fitted) + 1e-10).all()


def test_more_bits_never_raise_the_greedy_and_refined_error():
    w = rows()
    for method in (greedy, refined):
        errors = [error(w, method(w, bits)) for bits in range(1, 7)]
        for before, after in pairwise(errors):
            assert (after <= before + 1e-10).all()


def test_mean_errors_on_gaussian_rows_are_those_of_the_card():
    w = rows(256, 1024)
    expected = {2: (0.131, 0.126, 0.120), 3: (0.059, 0.051, 0.047), 4: (0.034, 0.025, 0.021)}
    for bits, figures in expected.items():
        found = (greedy(w, bits), refined(w, bits), alternating(w, bits, refit=False))
        means = [float(relative_error(w, codes).mean()) for codes in found]
        assert means == pytest.approx(figures, abs=0.0017)
        assert means[2] < means[1] < means[0]
        assert float(relative_error(w, alternating(w, bits)).mean()) < means[2]


def test_alternating_from_a_refined_start_is_never_worse_than_refined():
    w = rows()
    for bits in (2, 3, 4):
        better = error(w, alternating(w, bits, start="refined"))
        assert (better <= error(w, refined(w, bits)) + 1e-10).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["generic", "repeated", "zero", "ties"])
def test_sorted_search_tree_and_brute_force_find_the_same_levels(bits, kind):
    alpha = rows(8, bits, seed=bits).abs().sort(1, descending=True).values
    if kind == "repeated":
        alpha = alpha[:, :1].expand(-1, bits)
    elif kind == "zero":
        alpha = alpha * (torch.arange(bits) < 1)
    elif kind == "ties":  # integers: levels are even or odd, entries between them lie on midpoints
        alpha = torch.arange(bits, 0, -1, dtype=torch.float64).expand(8, -1)
    w = rows(8, 50, seed=9) if kind != "ties" else torch.arange(-25.0, 25.0, dtype=torch.float64).expand(8, -1)
    sums = torch.stack(
        [(alpha * torch.tensor(s, dtype=torch.float64)).sum(1) for s in product((-1.0, 1.0), repeat=bits)], 1
    )
    distance = (w[:, :, None] - sums[:, None]).abs()
    nearest = distance.amin(2, keepdim=True)
    upper = torch.where(distance <= nearest + 1e-12, sums[:, None], -torch.inf).amax(2)
    for search in ("sorted", "tree"):
        codes = nearest_codes(w, alpha, search=search)
        assert torch.allclose(BinaryCodes(alpha, codes).dense(), upper, atol=1e-12)
    assert torch.equal(nearest_codes(w, alpha), nearest_codes(w, alpha, search="tree"))


def test_two_bits_are_assigned_in_closed_form():
    w = rows()
    alpha = rows(64, 2, seed=3).abs().sort(1, descending=True).values
    first = torch.where(w < 0, -1.0, 1.0)
    second = torch.where(w - alpha[:, :1] * first < 0, -1.0, 1.0)
    assert torch.equal(nearest_codes(w, alpha), torch.stack([first, second], 1).double())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_residual_of_least_squares_is_orthogonal_to_every_code(bits):
    w, codes = rows(), rows(64, bits * 100, seed=1).sign().view(64, bits, 100)
    alpha = least_squares(w, codes)
    residual = w - BinaryCodes(alpha, codes).dense()
    assert (codes @ residual[:, :, None]).abs().max() < 1e-9
    expected = torch.linalg.lstsq(codes.mT, w[:, :, None]).solution[..., 0]
    assert torch.allclose(alpha, expected, atol=1e-10)


def test_dependent_codes_are_dropped_and_the_fit_stays_the_best():
    b = rows(1, 40, seed=2).sign()[0]
    other = rows(1, 40, seed=4).sign()[0]
    codes = torch.stack([b, -b, other])[None]
    w = rows(1, 40, seed=5)
    alpha = least_squares(w, codes)
    assert alpha[0, 1] == 0
    best = w[0] - codes[0].T @ torch.linalg.pinv(codes[0].T) @ w[0]
    assert torch.allclose((w - BinaryCodes(alpha, codes).dense())[0], best, atol=1e-10)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "w", [torch.zeros(1, 7), torch.full((1, 7), 3.0), torch.tensor([[2.0]]), torch.tensor([[1.0, -1.0]])]
)
def test_degenerate_rows_are_coded_without_error(bits, w):
    for method in (greedy, refined, alternating):
        assert torch.allclose(method(w, bits).dense(), w, atol=1e-6)


def test_one_bit_is_the_mean_size_and_the_sign():
    w = rows()
    for method in (greedy, refined, alternating):
        codes = method(w, 1)
        assert torch.allclose(codes.alpha_MK[:, 0], w.abs().mean(1))
        assert torch.equal(codes.codes_MKN[:, 0], w.sign())


def brute_force(w, bits):
    """Least squared error over all codes of one short row."""
    N = len(w)
    columns = torch.tensor(list(product((-1.0, 1.0), repeat=N)), dtype=torch.float64)
    least = w.square().sum()
    for chosen in product(range(len(columns)), repeat=bits):
        if list(chosen) != sorted(chosen):
            continue
        B = columns[list(chosen)].T
        least = torch.minimum(least, (w - B @ torch.linalg.pinv(B) @ w).square().sum())
    return float(least)


def test_exact_two_bits_reach_the_optimum_over_all_codes_and_alternating_never_beats_it():
    for seed in range(3):
        w = rows(1, 5, seed=seed)
        optimum = brute_force(w[0], 2)
        assert float(error(w, exact_two_bits(w))) == pytest.approx(optimum, abs=1e-10)
        assert float(error(w, alternating(w, 2, iterations=20))) >= optimum - 1e-10
    w = rows(256, 1024)
    best, found = error(w, exact_two_bits(w)), error(w, alternating(w, 2))
    assert (found >= best - 1e-9).all()
    assert float(found.mean() / best.mean()) < 1.02


def test_ternary_is_the_best_of_all_scales_and_supports():
    for seed in range(4):
        w = rows(1, 6, seed=seed)
        found = float(error(w, ternary(w)))
        least = min(
            float((w[0] - t * ((w[0] * t).sum() / (t * t).sum())).square().sum())
            for t in (torch.tensor(s, dtype=torch.float64) for s in product((-1.0, 0.0, 1.0), repeat=6) if any(s))
        )
        assert found == pytest.approx(least, abs=1e-10)
        assert set(ternary(w).dense()[0].abs().unique().tolist()) <= {0.0, float(ternary(w).alpha_MK.sum())}


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_uniform_follows_the_printed_formula_and_balanced_fills_all_levels_alike(bits):
    w = rows(4, 64)
    scale, top = w.abs().amax(1, keepdim=True), 2**bits - 1
    expected = scale * 2 * (torch.round(top * (w / scale + 1) / 2) / top - 0.5)
    assert torch.allclose(uniform(w, bits).dense(), expected, atol=1e-12)
    for row, size in zip(balanced(w, bits).dense(), scale[:, 0], strict=True):
        numbers = ((row / size + 1) * top / 2).round().long()
        assert torch.bincount(numbers, minlength=2**bits).tolist() == [64 // 2**bits] * 2**bits
    assert (balanced(w, bits).dense().gather(1, w.argsort(1)).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("method", ["greedy", "refined", "alternating", "uniform", "balanced", "exact", "ternary"])
def test_codes_scale_with_the_row_and_change_sign_with_it(method):
    w = rows(16, 64)  # no entry on a midpoint
    coded = code_rows(w, 2, method=method).dense()
    assert torch.allclose(code_rows(4 * w, 2, method=method).dense(), 4 * coded, atol=1e-10)
    assert torch.allclose(code_rows(-w, 2, method=method).dense(), -coded, atol=1e-10)


def test_levels_are_ascending_and_made_by_their_codes():
    alpha = rows(5, 3).abs()
    sums, codes = levels(alpha)
    assert (sums.diff(dim=1) >= 0).all()
    assert torch.allclose((codes * alpha[:, None]).sum(2), sums)


@pytest.mark.parametrize(
    ("bits", "method", "word"), [(0, "greedy", "bits"), (3, "exact", "2 bits"), (2, "best", "method")]
)
def test_refusals_name_what_was_received(bits, method, word):
    with pytest.raises(ValueError, match=word):
        code_rows(torch.ones(1, 3), bits, method=method)
