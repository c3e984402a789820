"""DGC in training on one worker: what it equals, what it remembers, what it refuses."""

import copy
import warnings

import pytest
import torch
from iclr18_dgc import DGCOptimizer, DGCState, Schedule
from iclr18_dgc.baselines import gradient_dropping
from iclr18_dgc.compression import entries
from iclr18_dgc.slab import Slab
from iclr18_dgc.state import buckets
from torch import nn

from iclr18cli.errors import UserError


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).to(dtype)


def train(net, optimizer, steps, *, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 1, 4, 4, generator=generator, dtype=torch.float64).to(next(net.parameters()).dtype)
        y = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def dgc(net, lr=0.1, **options):
    return DGCOptimizer(torch.optim.SGD(net.parameters(), lr=lr), DGCState(net, **options))


@pytest.mark.parametrize("nesterov", [False, True])
def test_density_one_without_masking_has_the_bits_of_momentum_sgd(nesterov):
    net, other = network(), network()
    ours = train(net, dgc(net, schedule=1.0, masking=False, nesterov=nesterov, values="fp64"), 20)
    theirs = train(other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov), 20)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_density_one_with_masking_is_sgd_without_momentum():
    net, other = network(), network()
    optimizer = dgc(net, schedule=1.0, values="fp64")
    plain = torch.optim.SGD([
        {"params": [p for p in other.parameters() if p.dim() > 1], "momentum": 0.0},
        {"params": [p for p in other.parameters() if p.dim() <= 1], "momentum": 0.9},
    ], lr=0.1)  # fmt: skip
    ours, theirs = train(net, optimizer, 20), train(other, plain, 20)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("nesterov", [False, True])
def test_weight_decay_alone_is_momentum_sgd_with_weight_decay(nesterov):
    """Pitfall: SGD(momentum=0, weight_decay) behind DGC would be 1 - m times as strong."""
    net, other = network(), network()
    optimizer = dgc(net, schedule=0.1, weight_decay=0.1, nesterov=nesterov)
    plain = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    for _ in range(30):
        for p in [*net.parameters(), *other.parameters()]:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        plain.step()
    for ours, theirs, start in zip(net.parameters(), other.parameters(), network().parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-16)
        assert not start.any() or (theirs - start).abs().max() > 0.1 * start.abs().max()


def test_weight_decay_by_name_leaves_out_the_others():
    net = network()
    optimizer = dgc(net, schedule=0.1, weight_decay={"4.weight": 0.1})
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert changed == {"4.weight"}
    assert torch.allclose(net[4].weight, before["4.weight"] * (1 - 0.1 * 0.1))


def test_only_the_chosen_entries_of_weights_change_and_biases_and_norms_change_whole():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = dgc(net, schedule=0.1)
    for p in net.parameters():
        p.grad = torch.rand_like(p)
    optimizer.step()
    for old, new in zip(before, net.parameters(), strict=True):
        changed = int((old != new).sum())
        assert changed == (entries(old.numel(), 0.1) if old.dim() > 1 else old.numel())


def test_small_tensors_go_whole_if_asked():
    net = network()
    state = DGCState(net, schedule=0.1, dense_below=40)
    assert [name for slab in state.homes for name in slab.compressed] == ["4.weight"]


def test_momentum_zero_is_the_same_rule_and_sends_everything_in_the_end():
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = dgc(net, schedule=0.05, momentum=0.0, lr=1.0, values="fp64")
    total = [torch.zeros_like(p) for p in start]
    for step in range(25):
        optimizer.zero_grad()
        x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        net(x).square().mean().backward()
        for so_far, p in zip(total, net.parameters(), strict=True):
            so_far += p.grad
        optimizer.step()
    assert optimizer.state.pending()
    optimizer.flush()
    assert not optimizer.state.pending()
    for so_far, p, first in zip(total, net.parameters(), start, strict=True):
        assert (first - p - so_far).abs().max() < 1e-13


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_books_balance(nesterov):
    net = network()
    optimizer = dgc(net, schedule=0.05, nesterov=nesterov, audit=True, values="fp16", weight_decay=0.01)
    train(net, optimizer, 15)
    state = optimizer.state
    off = state.ledger.imbalance(state.residual)
    assert set(off) == {"0.weight", "4.weight"}
    assert max(off.values()) < 1e-14
    state.residual["4.weight"][0, 0] += 1e-3  # a gradient that nobody sent
    assert state.ledger.imbalance(state.residual)["4.weight"] > 1e-6
    optimizer.flush()
    assert state.ledger.imbalance(state.residual)["0.weight"] < 1e-14


def test_gradient_dropping_loses_the_momentum_of_entries_that_wait_and_dgc_keeps_it():
    """Eq. (4) to (7): constant gradient, one entry of two sent per step."""
    weight = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    net = nn.Module()
    net.weight = weight
    sums = {}
    for kind in ("dgc", "dropping", "dense"):
        weight.data.zero_()
        if kind == "dense":
            optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
        elif kind == "dgc":
            optimizer = dgc(net, schedule=0.5, lr=1.0, masking=False, values="fp64")
        else:
            inner = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
            optimizer = DGCOptimizer(inner, gradient_dropping(net, 0.5, values="fp64"))
        for _ in range(41):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        waiting = optimizer.state.residual["weight"].sum() if kind == "dgc" else 0
        sums[kind] = (-weight.sum() + waiting).item()
    assert sums["dgc"] == pytest.approx(sums["dense"], rel=1e-12)
    assert sums["dropping"] < 0.99 * sums["dense"]


def test_gradient_dropping_takes_no_momentum_of_its_own():
    with pytest.raises(ValueError, match="momentum"):
        gradient_dropping(network(), momentum=0.9)


def test_a_resumed_training_has_the_bits_of_one_that_was_not_stopped(tmp_path):
    options = {"schedule": Schedule(0.05, warmup_steps=8), "weight_decay": 0.01, "nesterov": True}
    net = network(dtype=torch.float32)
    whole = train(net, dgc(net, **options), 20)
    net = network(dtype=torch.float32)
    optimizer = dgc(net, **options)
    train(net, optimizer, 9)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    net = network(seed=1, dtype=torch.float32)
    optimizer = dgc(net, **options)
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(train(net, optimizer, 11, start=9), whole, strict=True))


def test_the_saved_state_is_a_copy_of_plain_values():
    net = network()
    optimizer = dgc(net, schedule=0.1, audit=True, weight_decay=0.1)
    train(net, optimizer, 3)
    state = optimizer.state.state_dict()
    kept = copy.deepcopy(state)
    train(net, optimizer, 3)

    def same(a, b):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                assert isinstance(key, str)
                same(a[key], b[key])
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
        else:
            assert type(a) in (int, float, str)
            assert a == b

    same(state, kept)


def other_rank(state, rank, size):
    return copy.deepcopy(state) | {"rank": rank, "size": size}


def test_merging_takes_the_mean_and_goes_on_on_any_rank():
    net = network()
    optimizer = dgc(net, schedule=0.1, audit=True)
    train(net, optimizer, 3)
    one = other_rank(optimizer.state.state_dict(), 0, 2)
    train(net, optimizer, 3)
    two = other_rank(optimizer.state.state_dict(), 1, 2) | {"step": 3}
    one["traffic"] = one["traffic"] | {"sent": 100}
    two["traffic"] = two["traffic"] | {"sent": 50}
    merged = DGCState.merge([two, one])
    assert merged["traffic"]["sent"] == 75
    for kind in ("u", "v"):
        for name in one[kind]:
            assert torch.equal(merged[kind][name], (one[kind][name] + two[kind][name]) / 2)
    fresh = DGCState(network(), schedule=0.1, audit=True)
    fresh.load_state_dict(merged)
    assert fresh.traffic.sent == 75
    assert max(fresh.ledger.imbalance(fresh.residual).values()) < 1e-14
    assert fresh.step == 3
    again = DGCState.merge([fresh.state_dict()])  # of one worker: the same, for any number of workers
    assert torch.equal(again["v"]["4.weight"], merged["v"]["4.weight"])
    assert DGCState.merge([again])["v"].keys() == again["v"].keys()


def test_merging_refuses_what_is_not_one_training():
    state = DGCState(network()).state_dict()
    for states in (
        [],
        [other_rank(state, 0, 2)],
        [other_rank(state, 0, 2)] * 2,
        [other_rank(state, r, 3) for r in (0, 1)],
    ):
        with pytest.raises(UserError, match="every rank"):
            DGCState.merge(states)
    with pytest.raises(UserError, match="one step"):
        DGCState.merge([other_rank(state, 0, 2), other_rank(state, 1, 2) | {"step": 5}])


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    net = network()
    optimizer = dgc(net, schedule=0.1)
    train(net, optimizer, 2)
    state = optimizer.state
    before = state.state_dict()
    for wrong, words in (
        (other_rank(before, 0, 4), "another worker"),
        (other_rank(before, 1, 1), "another worker"),
        (before | {"format": 99}, "another version"),
        (before | {"v": {"odd": torch.zeros(3)}}, "another model"),
    ):
        with pytest.raises(UserError, match=words):
            state.load_state_dict(wrong)
    assert torch.equal(state.state_dict()["v"]["4.weight"], before["v"]["4.weight"])


def test_loading_over_what_waits_warns_and_loading_into_a_new_state_does_not():
    net = network()
    optimizer = dgc(net, schedule=0.1)
    train(net, optimizer, 2)
    saved = optimizer.state.state_dict()
    with pytest.warns(UserWarning, match="drops the gradients that waited"):
        optimizer.state.load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DGCState(network(), schedule=0.1).load_state_dict(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(value):
    net = network()
    optimizer = dgc(net, schedule=0.1, weight_decay=0.1, clip=1.0)
    train(net, optimizer, 3)
    before, state = [p.detach().clone() for p in net.parameters()], optimizer.state.state_dict()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net[4].weight.grad[0, 0] = value
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    after = optimizer.state.state_dict()
    assert all(
        torch.equal(state[kind][name], after[kind][name]) for kind in ("u", "v", "decay") for name in state[kind]
    )
    assert (after["skipped"], after["step"]) == (1, 4)
    assert all(bool(w.isfinite().all()) for w in train(net, optimizer, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "Momentum would be applied twice"),
        (lambda p: torch.optim.Adam(p), "Momentum would be applied twice"),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-4), "Weight decay would be too weak"),
    ],
)
def test_an_optimiser_that_would_do_it_again_is_refused(make, words):
    net = network()
    with pytest.raises(UserError, match=words):
        DGCOptimizer(make(net.parameters()), DGCState(net))
    # Momentum 0 in DGC with momentum behind it is Gradient Dropping.
    DGCOptimizer(make(net.parameters()), DGCState(net, momentum=0.0))


def test_momentum_that_is_switched_on_later_is_refused_and_other_models_are_left_alone():
    net, other = network(), network()
    optimizer = dgc(net, schedule=0.1)
    train(net, optimizer, 1)
    train(other, torch.optim.Adam(other.parameters()), 1)
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(UserError, match="twice"):
        train(net, optimizer, 1)


def test_a_parameter_without_gradient_counts_as_one_with_zero():
    net, other = network(), network()
    optimizer, reference = dgc(net, schedule=0.1), dgc(other, schedule=0.1)
    train(net, optimizer, 3)
    train(other, reference, 3)
    for model, opt in ((net, optimizer), (other, reference)):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        model[4].weight.grad = None if model is net else torch.zeros_like(model[4].weight)
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_gradients_kept_in_place_give_the_same_training():
    """zero_grad(set_to_none=False) lets backward write into the memory that is exchanged."""
    net, other = network(), network()
    optimizer, reference = dgc(net, schedule=0.1), dgc(other, schedule=0.1)
    optimizer.zero_grad = lambda: optimizer.optimizer.zero_grad(set_to_none=False)
    ours, theirs = train(net, optimizer, 6), train(other, reference, 6)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_half_precision_parameters_have_residuals_in_float32():
    net = nn.Linear(64, 8).to(torch.bfloat16)
    optimizer = dgc(net, schedule=0.05, audit=True)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.ones(4, 64, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
    state = optimizer.state
    assert state.residual["weight"].dtype == torch.float32
    assert max(state.ledger.imbalance(state.residual).values()) < 1e-6
    assert net.weight.grad.dtype == torch.bfloat16


def test_a_closure_is_evaluated_and_a_step_is_counted():
    net = network()
    optimizer = dgc(net, schedule=0.1)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(2, 1, 4, 4, dtype=torch.float64)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert optimizer.state.step == optimizer.state.traffic.steps == 1
    assert optimizer.state.traffic.sent == 0  # alone
    assert optimizer.state.traffic.ratio > 1


def test_groups_of_parameters_are_cut_by_size_and_type():
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10).double(), nn.Linear(10, 10))
    names = buckets(dict(net.named_parameters()), 440)
    assert names == [["2.bias", "2.weight"], ["1.bias", "1.weight"], ["0.bias", "0.weight"]]
    assert len(buckets(dict(net.named_parameters()), 10**9)) == 2


def test_a_slab_takes_over_what_was_kept_elsewhere():
    state = DGCState(network(), weight_decay=0.1)
    state.residual["4.weight"][:] = 7.0
    state.velocity["0.weight"][:] = 5.0
    slab = state.slab(["4.weight", "4.bias"])
    assert isinstance(slab, Slab)
    assert (state.residual["4.weight"] == 7).all()
    assert (slab.v[slab.places["4.weight"]] == 7).all()
    assert (state.velocity["0.weight"] == 5).all()
    assert len(state.homes) == 2
    assert state.slab(["4.weight", "4.bias"]) is slab
    assert sum(int((home.v == 7).sum()) for home in state.homes) == 48


def test_a_model_without_parameters_and_a_strange_gradient_are_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        DGCState(nn.ReLU())
    with pytest.raises(UserError, match="no parameter that this DGCState knows"):
        DGCState(network()).name_of(nn.Parameter(torch.zeros(3)))


def test_a_model_that_moves_after_its_state_was_made_is_refused():
    net = network()
    optimizer = dgc(net, schedule=0.1)
    slab = optimizer.state.homes[0]
    slab.u = slab.u.to("meta")  # as if the model had been on another device
    with pytest.raises(UserError, match="moved to another device"):
        optimizer.exchange()


def test_large_gradients_in_half_precision_are_finite_though_their_sum_is_not():
    net = nn.Linear(64, 64, bias=False).half()
    optimizer = dgc(net, schedule=0.1)
    net.weight.grad = torch.full_like(net.weight, 60_000.0)
    assert optimizer.exchange()


def test_a_gradient_scaler_sees_the_update_it_would_see_without_dgc_and_every_overflow():
    net, other = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000)
    optimizer = dgc(net, schedule=0.1, clip=0.5, weight_decay=0.01, loss_scale=scaler.get_scale)
    reference = dgc(other, schedule=0.1, clip=0.5, weight_decay=0.01)
    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in range(6):
        for model, opt in ((net, optimizer), (other, reference)):
            opt.zero_grad()
            loss = model(x + step).square().mean()
            (scaler.scale(loss) if model is net else loss).backward()
            if step == 3:
                model[4].weight.grad[0, 0] = float("inf")
        optimizer.exchange()
        scaler.step(optimizer.optimizer)
        scaler.update()
        reference.step()
    assert scaler.get_scale() == 512.0
    assert optimizer.state.skipped == reference.state.skipped == 1
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("indices", ["int32", "runlength16", "block16"])
def test_a_gpu_makes_the_same_training(indices):
    options = {"schedule": Schedule(0.05, warmup_steps=3), "nesterov": True, "clip": 1.0, "weight_decay": 0.01,
               "indices": indices, "audit": True}  # fmt: skip
    net, other = network(), network().cuda()
    optimizer, on_gpu = dgc(net, **options), dgc(other, **options)
    for step in range(8):
        for model, opt in ((net, optimizer), (other, on_gpu)):
            for number, p in enumerate(model.parameters()):
                draw = torch.Generator().manual_seed(100 * step + number)
                p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype).to(p.device)
            opt.step()
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-9, atol=1e-12)
    assert max(on_gpu.state.ledger.imbalance(on_gpu.state.residual).values()) < 1e-12


def test_frozen_parameters_are_left_alone():
    net = network()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    optimizer = dgc(net, schedule=0.1)
    train(net, optimizer, 2)
    assert torch.equal(net[0].weight, before)
    assert "0.weight" not in optimizer.state.residual
