"""DGC among real processes: four gloo ranks run dgc_ranks.py once; a simulation in one place says what to expect."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

PROGRAM = Path(__file__).with_name("dgc_ranks.py")
spec = importlib.util.spec_from_file_location("dgc_ranks", PROGRAM)
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen([sys.executable, str(PROGRAM), str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(ranks.SIZE)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks.SIZE, errors
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(ranks.SIZE)]


def simulated(options, size, *, steps=range(ranks.STEPS), micro=1):
    """All workers in one place, tensor by tensor in NumPy, from the paper's description; returns (w, v of each)."""
    net = ranks.network()
    names = [name for name, _ in net.named_parameters()]
    w = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    u = [{name: np.zeros_like(w[name]) for name in names} for _ in range(size)]
    v = [{name: np.zeros_like(w[name]) for name in names} for _ in range(size)]
    whole = {name: np.zeros_like(w[name]) for name in names}  # momentum of tensors that go whole
    decay = {name: np.zeros_like(w[name]) for name in names}
    m, nesterov, masking = options["momentum"], options.get("nesterov", False), options.get("masking", True)
    rate, clip = options.get("weight_decay", 0.0), options.get("clip")
    wire = {"fp64": torch.float64, "fp16": torch.float16, "bf16": torch.bfloat16}[options["values"]]
    plan = options["schedule"]
    for number, first in enumerate(steps[::micro]):
        density = plan if isinstance(plan, float) else plan.at(number)
        gradients = []
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(torch.from_numpy(w[name]))
        for rank in range(size):
            net.zero_grad()
            for step in range(first, first + micro):
                ranks.loss_of(net, rank, step).backward()
            g = {name: p.grad.numpy().copy() for name, p in net.named_parameters()}
            if clip is not None:
                limit = (
                    clip / math.sqrt(size) if options.get("clip_convention", "sum") == "sum" else clip * math.sqrt(size)
                )
                every = math.sqrt(sum((x**2).sum() for x in g.values()))
                for name in names:
                    norm = every if options.get("clip_scope") == "model" else np.linalg.norm(g[name])
                    g[name] = g[name] * min(1.0, limit / norm)
            gradients.append(g)
        for name in names:
            if w[name].ndim <= 1:
                mean = sum(g[name] for g in gradients) / size
                whole[name] = m * whole[name] + mean
                update = mean + m * whole[name] if nesterov else whole[name]
            else:
                update = np.zeros_like(w[name])
                k = math.ceil(density * w[name].size)
                for rank in range(size):
                    g = gradients[rank][name]
                    u[rank][name] = m * u[rank][name] + g
                    v[rank][name] = v[rank][name] + (m * u[rank][name] + g if nesterov else u[rank][name])
                    flat_v, flat_u = v[rank][name].reshape(-1), u[rank][name].reshape(-1)
                    largest = np.argsort(-np.abs(flat_v), kind="stable")[:k]
                    sent = torch.from_numpy(flat_v[largest]).to(wire).double().numpy()
                    flat_v[largest] -= sent
                    if masking and m:
                        flat_u[largest] = 0
                    update.reshape(-1)[largest] += sent / size
            decay[name] = m * decay[name] + rate * w[name]
            w[name] = w[name] - ranks.RATE * (update + (rate * w[name] + m * decay[name] if nesterov else decay[name]))
    return w, v


def largest_gap(ours, theirs):
    return max(float((torch.as_tensor(ours[name]) - torch.as_tensor(theirs[name])).abs().max()) for name in theirs)


@pytest.mark.parametrize(
    ("size", "name"), [*(("4", name) for name in ranks.SCENARIOS), *(("2", name) for name in ranks.PAIRED)]
)
def test_hook_and_wrapper_do_what_a_simulation_of_all_workers_does(found, size, name):
    w, v = simulated(ranks.settings(name), int(size))
    for front in ("hook", "wrapper"):
        for rank in range(int(size)):
            result = found[rank][size][name, front]
            assert largest_gap(result["w"], w) < 1e-12
            weights = {key: x for key, x in v[rank].items() if x.ndim > 1}
            assert largest_gap({key: result["state"]["v"][key] for key in weights}, weights) < 1e-12


@pytest.mark.parametrize("size", ["2", "4"])
def test_replicas_are_bit_identical(found, size):
    runs = [found[rank][size] for rank in range(int(size))]
    for key in runs[0]:
        for other in runs[1:]:
            assert all(torch.equal(runs[0][key]["w"][name], other[key]["w"][name]) for name in other[key]["w"])


def test_replicas_are_bit_identical_after_sixty_steps_in_float32(found):
    first = found[0]["many_steps"]
    for other in found[1:]:
        assert all(torch.equal(first["w"][name], other["many_steps"]["w"][name]) for name in first["w"])
        # They have different things to send: it is the update that they share.
        assert not torch.equal(first["state"]["v"]["0.weight"], other["many_steps"]["state"]["v"]["0.weight"])


@pytest.mark.parametrize("size", ["2", "4"])
def test_buckets_held_back_and_small_groups_make_the_same_step(found, size):
    one = found[0][size]["everything", "hook"]["w"]
    assert largest_gap(found[0][size]["held", "hook"]["w"], one) < 1e-13
    assert largest_gap(found[0][size]["small groups", "wrapper"]["w"], one) < 1e-13


@pytest.mark.parametrize("nesterov", [False, True])
def test_density_one_without_masking_is_momentum_sgd_on_the_mean_gradient(found, nesterov):
    name = "dense nesterov" if nesterov else "dense"
    for front in ("hook", "wrapper"):
        assert largest_gap(found[0]["4"][name, front]["w"], found[0]["plain"][nesterov]) < 1e-13


def test_density_one_with_masking_is_sgd_without_momentum(found):
    net = ranks.network()
    momentum = {name: torch.zeros_like(p) for name, p in net.named_parameters() if p.dim() == 1}
    for step in range(ranks.STEPS):
        net.zero_grad()
        (sum(ranks.loss_of(net, rank, step) for rank in range(4)) / 4).backward()
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name in momentum:  # biases and norms are not compressed: ordinary momentum
                    momentum[name].mul_(0.9).add_(p.grad)
                p -= ranks.RATE * momentum.get(name, p.grad)
    ours = found[0]["4"]["dense masked", "wrapper"]["w"]
    assert largest_gap(ours, {name: p.detach() for name, p in net.named_parameters()}) < 1e-13
    assert largest_gap(ours, found[0]["plain"][False]) > 1e-3


def test_a_nan_on_one_rank_skips_the_step_on_all(found):
    for front in ("hook", "wrapper"):
        for rank in range(4):
            before, after, end = found[rank]["poisoned"][front]
            assert all(torch.equal(before["w"][name], after["w"][name]) for name in before["w"])
            for kind in ("u", "v", "decay"):
                kept = before["state"][kind]
                assert all(torch.equal(kept[name], after["state"][kind][name]) for name in kept)
            assert (after["state"]["skipped"], after["state"]["step"]) == (1, 5)
            assert all(bool(w.isfinite().all()) for w in end["w"].values())
            assert not torch.equal(end["w"]["0.weight"], after["w"]["0.weight"])


def test_a_loss_scale_changes_nothing_and_a_nan_reaches_the_scaler_of_every_rank(found):
    for rank in range(4):
        assert largest_gap(found[rank]["poisoned"]["scaled"]["w"], found[0]["4"]["paper", "hook"]["w"]) < 1e-12
        assert found[rank]["poisoned"]["refused"] is True


def test_a_resumed_training_has_the_bits_of_one_that_was_not_stopped(found):
    """Through the hook up to rounding: DDP begins with other buckets, so that rings add in another order."""
    for rank in range(4):
        for front in ("hook", "wrapper"):
            whole, resumed = found[rank]["interrupted"][front]
            assert largest_gap(whole["w"], resumed["w"]) <= (0 if front == "wrapper" else 1e-15)
            for kind in ("u", "v", "decay"):
                gap = largest_gap(whole["state"][kind], resumed["state"][kind])
                assert gap <= (0 if front == "wrapper" else 1e-14)
            assert resumed["state"]["step"] == ranks.STEPS
            sent = "payload", "entries"
            assert [resumed["state"]["traffic"][key] for key in sent] == [
                whole["state"]["traffic"][key] for key in sent
            ]


def test_going_on_with_fewer_workers_keeps_the_mean_of_what_is_pending(found):
    for rank in range(2):
        states, new = found[rank]["interrupted"]["fewer before"]
        for kind in ("u", "v"):
            for name, tensor in new[kind].items():
                mean = sum(state[kind][name] for state in states) / 4
                assert (tensor - mean).abs().max() < 1e-15
        assert any(bool(tensor.any()) for tensor in new["v"].values())
        assert new["step"] == 7
    ended = [found[rank]["interrupted"]["fewer"]["w"] for rank in range(2)]
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])


def test_a_state_of_another_rank_or_another_size_is_refused_and_dropping_what_waits_warns(found):
    for rank in range(4):
        told = found[rank]["interrupted"]
        assert f"rank {(rank + 1) % 4} of 4, and this is rank {rank} of 4" in told["another rank"]
        assert "DGCState.merge" in told["another rank"]
        assert rank > 1 or f"rank {rank} of 4, and this is rank {rank} of 2" in told["another size"]
        assert any("drops the gradients that waited" in warning for warning in told["warned"])


def test_without_momentum_all_gradients_arrive_in_the_end(found):
    """Sum of the updates, flush included, is the sum over steps of the mean gradient."""
    totals = [found[rank]["flushed"]["all"][1] for rank in range(4)]
    for rank in range(4):
        start, _, end, waited, waits = found[rank]["flushed"]["all"]
        assert waited
        assert not waits
        for name in start:
            mean = sum(total[name] for total in totals) / 4
            assert ((start[name] - end[name]) / ranks.RATE - mean).abs().max() < 1e-12


def test_what_entered_the_residual_is_what_was_sent_and_what_is_left(found):
    for rank in range(4):
        for front in ("hook", "wrapper"):
            imbalance = found[rank]["flushed"][front]
            assert set(imbalance) == {"0.weight", "3.weight", "5.weight"}
            assert max(imbalance.values()) < 1e-14


def test_accumulated_gradients_are_exchanged_once(found):
    w, _ = simulated(ranks.settings("paper"), 4, micro=2)
    for front in ("hook", "wrapper"):
        assert largest_gap(found[0]["accumulated"][front]["w"], w) < 1e-12
        assert found[0]["accumulated"][front]["state"]["step"] == ranks.STEPS // 2


def test_buckets_leave_while_backward_goes_on_and_leave_no_memory_behind_when_ddp_makes_them_anew(found):
    seen, homes, slabs = found[0]["overlapping"]
    assert seen[0] == []  # the first step has one bucket
    assert all(len(buckets) >= 2 and all(buckets) for buckets in seen[1:])
    assert len(seen[-1]) + 1 == homes == slabs


def test_what_is_sent_for_a_layer_that_no_rank_used_in_a_step_arrives(found):
    """DDP alone leaves the gradient of such a layer as it is."""
    for rank in range(4):
        both = found[rank]["unused"]
        assert largest_gap(both["hook"], both["wrapper"]) < 1e-13
        assert all(torch.equal(both["hook"][name], found[0]["unused"]["hook"][name]) for name in both["hook"])


def test_momentum_behind_the_hook_is_refused(found):
    for rank in range(4):
        assert "Momentum would be applied twice" in found[rank]["refused"]


def test_bytes_claimed_are_those_of_the_packets_and_of_rings(found):
    """Ten steps of four workers, by hand: three tensors of 192, 128, 40 entries; 16 + 16 + 16 + 8 + 5 whole."""
    n, whole, size = 192 + 128 + 40, 16 + 16 + 16 + 8 + 5, 4
    ring = lambda count: -(-2 * (size - 1) * count // size)
    sent = payload = entries = 0
    for step in range(ranks.STEPS):
        density = ranks.settings("paper")["schedule"].at(step)
        k = sum(math.ceil(density * count) for count in (192, 128, 40))
        entries += k
        flag, kept = 1, 8 * whole
        if density * size >= 1:
            masked = 8 * (n + whole)
            payload, sent = payload + masked + flag, sent + ring(masked) + ring(flag)
        else:
            packet = (8 + 4) * k
            payload, sent = payload + packet + kept + flag, sent + (size - 1) * packet + ring(kept) + ring(flag)
    traffic = found[0]["4"]["paper", "wrapper"]["state"]["traffic"]
    assert traffic == {"steps": ranks.STEPS, "payload": payload, "dense": 8 * (n + whole) * ranks.STEPS,
                       "sent": sent, "received": sent, "entries": entries}  # fmt: skip
