"""DGC without communication: arithmetic, choice of entries, packets, schedule, the sizes printed in the paper."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from iclr18_dgc import sizes
from iclr18_dgc.compression import (
    add_ranks_,
    clip_,
    compensate_,
    entries,
    on_the_wire,
    preview,
    settle_,
)
from iclr18_dgc.encoding import BLOCK, FILLER, decode, encode, packet_bytes
from iclr18_dgc.rule import Rule
from iclr18_dgc.schedule import PAPER, Schedule
from iclr18_dgc.selection import SAMPLED_FROM, passing, select, top_exact, top_sampled

ENCODINGS = ["int32", "runlength16", "block16"]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_two_steps_by_hand():
    u, v = torch.zeros(2), torch.zeros(2)
    compensate_(u, v, torch.tensor([1.0, 4.0]), momentum=0.5)
    assert (u.tolist(), v.tolist()) == ([1.0, 4.0], [1.0, 4.0])
    settle_(u, v, torch.tensor([1]), torch.tensor([4.0]), masking=True)
    assert (u.tolist(), v.tolist()) == ([1.0, 0.0], [1.0, 0.0])
    compensate_(u, v, torch.tensor([1.0, 4.0]), momentum=0.5)
    assert (u.tolist(), v.tolist()) == ([1.5, 4.0], [2.5, 4.0])  # u = .5 + 1, v = 1 + 1.5: the delayed entry kept its m
    u, v = torch.zeros(1), torch.zeros(1)
    compensate_(u, v, torch.tensor([2.0]), momentum=0.5, nesterov=True)
    assert (u.item(), v.item()) == (2.0, 3.0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_an_entry_that_waits_is_sent_as_momentum_sgd_would_have_summed_it(nesterov):
    """Eq. (7): after T steps without sending, v is the sum of the T updates of momentum SGD."""
    weight = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=nesterov)
    u, v = torch.zeros(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    for step in range(20):
        weight.grad = normal(50, seed=step)
        compensate_(u, v, weight.grad.clone(), momentum=0.9, nesterov=nesterov)
        optimizer.step()
    assert (v + weight).abs().max() < 1e-13


def test_both_parametrizations_of_nesterov_give_one_trajectory():
    """U = m u, as in the authors' code: U <- m (U + g), v <- v + U + g, with the mask on both."""
    n, m = 200, 0.9
    u, v = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    big_u, w = u.clone(), v.clone()
    for step in range(30):
        g = normal(n, seed=step)
        compensate_(u, v, g, momentum=m, nesterov=True)
        big_u = m * (big_u + g)
        w = w + big_u + g
        assert (v - w).abs().max() < 1e-13
        index = top_exact(v.abs(), 10)
        settle_(u, v, index, v[index], masking=True)
        w[index], big_u[index] = 0, 0
        assert (m * u - big_u).abs().max() < 1e-13


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_preview_has_the_bits_of_the_step(momentum, nesterov, dtype):
    u, v, g = (normal(1003, seed=s, dtype=dtype) for s in range(3))
    before = u.clone(), v.clone()
    seen = preview(u, v, g, momentum=momentum, nesterov=nesterov, out=torch.empty_like(v))
    assert torch.equal(u, before[0])
    assert torch.equal(v, before[1])
    compensate_(u, v, g, momentum=momentum, nesterov=nesterov)
    assert torch.equal(seen, v)


@pytest.mark.parametrize("values", ["fp64", "fp32", "fp16", "bf16"])
def test_what_rounding_takes_stays_in_the_residual(values):
    v = normal(1000) * 10.0 ** torch.arange(-5, 5, dtype=torch.float64).repeat(100)
    v[0], v[1] = 1e6, -1e9  # beyond fp16
    before, u = v.clone(), normal(1000, seed=1)
    index = top_exact(v.abs(), 100)
    sent = on_the_wire(v[index], values)
    assert sent.isfinite().all()
    settle_(u, v, index, sent, masking=True)
    total = v.clone()
    total[index] += sent
    assert torch.equal(total, before)
    assert (v[index].any().item(), u[index].any().item()) == (values != "fp64", False)
    packet = encode(index, sent, 1000, values=values)
    there, got = decode(packet, 1000, 100, values=values)
    assert torch.equal(there, index)
    assert torch.equal(got.double(), sent)


@given(n=st.integers(1, 5000), density=st.floats(1e-4, 1.0), seed=st.integers(0, 9), levels=st.integers(1, 4))
@effort(max_examples=60, deadline=None)
def test_exactly_k_entries_are_chosen_and_none_left_is_larger(n, density, seed, levels):
    """With so few different magnitudes nearly all are ties."""
    magnitude = torch.randint(levels, (n,), generator=generator(seed)).double()
    k = entries(n, density)
    assert 1 <= k <= n
    assert k == max(1, math.ceil(density * n))
    for index in (top_exact(magnitude, k), top_sampled(magnitude, k, ratio=0.05, generator=generator(seed))):
        assert len(index) == k == len(index.unique())
        left = torch.ones(n, dtype=torch.bool)
        left[index] = False
        assert not left.any() or magnitude[left].max() <= magnitude[index].min()


@pytest.mark.parametrize("density", [0.25, 0.0625, 0.004, 0.001])
@pytest.mark.parametrize("kind", ["normal", "heavy", "tail", "periodic", "zero"])
def test_hierarchical_selection_is_exact_whatever_the_sample_says(kind, density):
    n = 3 * SAMPLED_FROM + 17
    magnitude = normal(n, dtype=torch.float32).abs()
    if kind == "heavy":
        magnitude = magnitude**8
    elif kind == "tail":  # all that matters stands at the end, which keeping the lowest positions would lose
        magnitude[-n // 100 :] += 100
    elif kind == "periodic":  # the stride of the sample meets only large ones, or only small ones
        magnitude[::100] *= 1000
    elif kind == "zero":
        magnitude.zero_()
    k = entries(n, density)
    want = magnitude.topk(k).values
    for seed in range(5):
        index = select(magnitude, k, selection="sampled", ratio=0.01, generator=generator(seed))
        assert len(index.unique()) == k
        assert torch.equal(magnitude[index].sort(descending=True).values, want)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000, 1001])
def test_looking_at_eight_answers_at_once_finds_the_same(n):
    magnitude = normal(n).abs()
    for threshold in (0.0, 1.0, 2.5, 100.0):
        want = (magnitude >= threshold).nonzero().view(-1)
        assert torch.equal(passing(magnitude, torch.tensor(threshold), few=True), want)
        assert torch.equal(passing(magnitude, torch.tensor(threshold), few=False), want)


def test_the_sample_lets_a_few_more_pass_and_rarely_has_to_start_over(monkeypatch):
    from iclr18_dgc import selection

    n, k = 400_000, 400
    asked = []
    monkeypatch.setattr(selection, "top_exact", lambda m, k: (asked.append(len(m)), top_exact(m, k))[1])
    draw = generator()
    for seed in range(20):
        selection.top_sampled(normal(n, seed=seed, dtype=torch.float32).abs(), k, ratio=0.01, generator=draw)
    assert sum(count == n for count in asked) <= 1
    assert sorted(asked)[10] < 6 * k


@pytest.mark.parametrize("indices", ENCODINGS)
@pytest.mark.parametrize("values", ["fp64", "fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("n", "places"),
    [
        (1, [0]),
        (10, [0]),
        (10, [9]),
        (10, list(range(10))),
        (FILLER + 1, [FILLER]),
        (FILLER + 2, [FILLER + 1]),
        (BLOCK, [BLOCK - 1]),
        (BLOCK + 1, [BLOCK]),
        (300_000, [0]),
        (300_000, [299_999]),
        (300_000, [5, FILLER + 5, FILLER + 6, 2 * FILLER + 6, 2 * FILLER + 8, 299_998]),
        (300_000, list(range(BLOCK, 2 * BLOCK))),
    ],
    ids=str,
)
def test_decoding_gives_back_what_was_encoded(indices, values, n, places):
    index = torch.tensor(places)
    value = on_the_wire(normal(len(places)), values)
    shuffled = torch.randperm(len(places), generator=generator())
    packet = encode(index[shuffled], value[shuffled], n, values=values, indices=indices)
    assert packet.dtype == torch.uint8
    assert len(packet) == packet_bytes(n, len(places), values=values, indices=indices)
    there, got = decode(packet, n, len(places), values=values, indices=indices)
    assert torch.equal(torch.zeros(n, dtype=torch.float64).index_add_(0, there, got.double()).nonzero().view(-1), index)
    assert torch.equal(got.double()[there.argsort()], value)


@given(data=st.data(), n=st.integers(1, 200_000), indices=st.sampled_from(ENCODINGS))
@effort(max_examples=40, deadline=None)
def test_any_tensor_survives_the_wire(data, n, indices):
    k = data.draw(st.integers(1, min(n, 300)))
    index = torch.randperm(n, generator=generator(n))[:k]
    dense = torch.zeros(n, dtype=torch.float32)
    dense[index] = normal(k, dtype=torch.float32)
    packet = encode(index, dense[index], n, indices=indices)
    there, got = decode(packet, n, k, indices=indices)
    assert torch.equal(torch.zeros(n).index_add_(0, there, got), dense)


def test_an_all_zero_tensor_is_sent_as_zeros():
    v = torch.zeros(70_000)
    index = top_exact(v.abs(), 70)
    for indices in ENCODINGS:
        there, got = decode(encode(index, v[index], 70_000, indices=indices), 70_000, 70, indices=indices)
        assert not got.any()
        assert len(there.unique()) == 70


def test_bytes_of_a_packet_are_the_papers_48_bits_per_entry():
    assert packet_bytes(10_000, 10, values="fp32", indices="runlength16") == 60
    assert packet_bytes(1_000_000, 1000, values="fp32", indices="runlength16") == 6000 + 2 * 15  # 15 fillers at most
    assert packet_bytes(1_000_000, 1000, values="fp16", indices="block16") == 4000 + 4 * 16
    assert packet_bytes(60_000, 60, values="fp16", indices="block16") == 240
    assert packet_bytes(10_000, 10, values="fp32", indices="int32") == 80


def test_a_packet_of_the_wrong_length_and_an_unknown_encoding_are_refused():
    with pytest.raises(ValueError, match="received 7"):
        decode(torch.zeros(7, dtype=torch.uint8), 100, 1)
    with pytest.raises(ValueError, match="received indices='int64'"):
        packet_bytes(10, 1, values="fp32", indices="int64")


def test_ranks_are_added_one_after_the_other_and_divided_at_the_end():
    packets = [(torch.tensor([0, 2]), torch.tensor([1.0, 5.0])), (torch.tensor([2, 3]), torch.tensor([7.0, 1e-3]))]
    out = add_ranks_(torch.zeros(5), packets)
    assert out.tolist() == [0.5, 0.0, 6.0, torch.tensor(1e-3).div(2).item(), 0.0]
    ones = [(torch.tensor([0]), torch.tensor([value])) for value in (1e8, -1e8, 1.0)]
    assert add_ranks_(torch.zeros(1), ones).item() == pytest.approx(1 / 3)  # another order would lose the 1


def test_clipping_limits_each_tensor_or_the_whole():
    parts = [torch.tensor([3.0, 4.0]), torch.tensor([0.0]), torch.tensor([0.5])]
    each = [part.clone() for part in parts]
    clip_(each, 1.0, together=False)
    torch.testing.assert_close(torch.cat(each), torch.tensor([0.6, 0.8, 0.0, 0.5]))
    whole = [part.clone() for part in parts]
    clip_(whole, 1.0, together=True)
    assert torch.cat(whole).norm().item() == pytest.approx(1.0)
    torch.testing.assert_close(torch.cat(whole), torch.cat(parts) / torch.cat(parts).norm())
    small = [part / 100 for part in parts]
    clip_(small, 1.0, together=True)
    assert torch.equal(torch.cat(small), torch.cat(parts) / 100)


def test_the_sum_of_clipped_workers_has_the_norm_that_the_threshold_means():
    """Section 3.2: iid gradients of norm thr N^-1/2 add up to one of norm about thr; averaged, thr N^1/2 give thr."""
    thr, size, n = 2.0, 16, 20_000
    for convention, combine in (("sum", sum), ("average", lambda parts: sum(parts) / size)):
        limit = Rule(clip=thr, clip_convention=convention).clip_at(size)
        parts = []
        for rank in range(size):
            g = [10 * normal(n, seed=rank)]
            clip_(g, limit, together=True)
            parts += g
        assert combine(parts).norm().item() == pytest.approx(thr, rel=0.02)


def test_warm_up_is_the_papers():
    plan = Schedule.of_epochs(epochs=4, steps_per_epoch=100)
    sparsity = [100 * (1 - plan.at(100 * epoch + step)) for epoch in range(6) for step in (0, 99)]
    assert sparsity[::2] == sparsity[1::2]
    assert [round(s, 4) for s in sparsity[::2]] == [75, 93.75, 98.4375, 99.6094, 99.9, 99.9]
    one = Schedule.of_epochs(epochs=1, steps_per_epoch=8)
    assert [one.at(step) for step in range(9)] == [d for d in PAPER for _ in range(2)] + [0.001]
    free = Schedule(0.1, warmup_steps=3, densities=(1.0, 0.5, 0.01))
    assert [free.at(step) for step in range(4)] == [1.0, 0.5, 0.1, 0.1]
    assert Schedule(0.01).at(0) == 0.01
    half = Schedule.of_epochs(epochs=1, steps_per_epoch=500).mean(1000)
    assert half == pytest.approx((sum(PAPER) / 4 + 0.001) / 2)


@pytest.mark.parametrize("network", list(sizes.PRINTED))
def test_sizes_are_those_printed_in_the_paper(network):
    size = sizes.size_of(sizes.NETWORKS[network])
    dense, sent, ratio = sizes.PRINTED[network]
    assert round(size.dense_mib, 2) == dense
    assert round(size.sent_mib, 2) == sent
    assert abs(size.ratio - ratio) < 1


def test_sizes_count_every_parameter():
    counted = {name: (s.weights, s.whole) for name, s in ((n, sizes.size_of(x)) for n, x in sizes.NETWORKS.items())}
    assert counted == {
        "ResNet-50": (25_502_912, 54_120),
        "PTB LSTM": (51_000_000, 34_000),
        "AlexNet": (60_954_656, 10_568),
    }
    exact = sizes.size_of(sizes.NETWORKS["ResNet-50"], whole_entries=True)
    assert 25_503 <= exact.sent <= 25_503 + 54
    assert exact.ratio == pytest.approx(276.7, abs=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": 0.0}, {"schedule": 1.5}, {"momentum": 1.0}, {"clip": 0.0}, {"weight_decay": -1.0},
        {"values": "fp8"}, {"indices": "int64"}, {"clip_scope": "bucket"}, {"sample_ratio": 0.0}, {"dense_below": -1},
        {"weight_decay": {"w": -1.0}}, {"clip_convention": "mean"}, {"selection": "random"},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_out_of_range_is_refused_with_its_value(options):
    with pytest.raises(ValueError, match="received"):
        Rule(**options)


def test_a_schedule_out_of_range_is_refused():
    for options in ({"warmup_steps": -1}, {"warmup_steps": 1, "densities": ()}, {"densities": (2.0,)}):
        with pytest.raises(ValueError, match="received"):
            Schedule(**options)
    with pytest.raises(ValueError, match="received"):
        Schedule.of_epochs(epochs=-1, steps_per_epoch=10)


def test_the_package_and_its_settings_import_no_torch():
    program = (
        "import sys, iclr18_dgc, iclr18_dgc.rule, iclr18_dgc.schedule, iclr18_dgc.sizes, iclr18_dgc.traffic\n"
        "assert 'torch' not in sys.modules\n"
        "from iclr18_dgc import DGCOptimizer, DGCState, Schedule, dgc_hook\n"
        "assert 'torch' in sys.modules\n"
        "try:\n    iclr18_dgc.nothing\nexcept AttributeError as error:\n    assert 'nothing' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
