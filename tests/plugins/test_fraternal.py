"""Fraternal dropout: the card's exact properties, and the commands from end to end."""

from itertools import product

import pytest
import torch
from iclr18_fraternal.algorithm import FraternalTwins, fraternal_loss, twin_penalty
from iclr18_fraternal.certificate import gaps
from iclr18_fraternal.images import labelled_index
from iclr18_fraternal.language import TwinLoss
from torch import nn

from iclr18cli.errors import UsageError
from iclr18cli.models.card import open_model
from iclr18cli.testing import run_cli
from iclr18cli.text.dropout import GROUPS
from iclr18cli.text.recurrent import RecurrentLM

SMALL = ("--hidden", "16", "--epochs", "1", "--limit", "2000", "--limit-eval", "500", "--device", "cpu", "--quiet")
RATES = {"dropout_embedding": 0.2, "dropout_input": 0.4, "dropout_output": 0.5, "weight_drop": 0.5}


def lm(**rates):
    torch.manual_seed(0)
    return RecurrentLM(11, hidden=6, tied=True, **rates)


def piece():
    return torch.randint(11, (5, 3)), torch.randint(11, (5, 3))


def test_expected_penalty_on_a_linear_layer_is_its_closed_form():
    torch.manual_seed(0)
    w, x, p = torch.randn(3, 4).double(), torch.randn(4).double(), 0.3
    masks = torch.tensor(list(product((0.0, 1 / (1 - p)), repeat=4)), dtype=torch.float64)
    weight = torch.where(
        masks > 0, torch.tensor(1 - p, dtype=torch.float64), torch.tensor(p, dtype=torch.float64)
    ).prod(1)
    out = (masks * x) @ w.T
    expected = sum(
        weight[i] * weight[j] * twin_penalty(out[i].double(), out[j].double()).double()
        for i, j in product(range(16), repeat=2)
    )
    closed = 2 / 3 * (w.square() * x.square()).sum() * p / (1 - p)
    assert float(expected) == pytest.approx(float(closed), rel=1e-5)
    linear = sum(weight[i] * (out[i] - w @ x).square().mean() for i in range(16))
    assert float(linear) == pytest.approx(float(closed) / 2, rel=1e-9)


def test_kappa_term_is_twice_the_linear_gap_without_its_bias_by_enumeration():
    torch.manual_seed(1)
    w, v, x, p = torch.randn(5, 3).double(), torch.randn(4, 5).double(), torch.randn(3).double(), 0.4
    masks = torch.tensor(list(product((0.0, 1 / (1 - p)), repeat=5)), dtype=torch.float64)
    weight = torch.where(
        masks > 0, torch.tensor(1 - p, dtype=torch.float64), torch.tensor(p, dtype=torch.float64)
    ).prod(1)
    out = (((masks * (w @ x)).tanh()) @ v.T).tanh()  # nonlinear after the mask: a bias
    plain = (v @ (w @ x).tanh()).tanh()
    mean = (weight[:, None] * out).sum(0)
    fraternal = sum(weight[i] * weight[j] * (out[i] - out[j]).square().sum() for i, j in product(range(32), repeat=2))
    linear = (weight * (out - plain).square().sum(1)).sum()
    bias = (mean - plain).square().sum()
    variance = (weight[:, None] * (out - mean).square()).sum()
    assert float(bias) > 1e-3
    assert float(fraternal) == pytest.approx(2 * float(variance), rel=1e-9)
    assert float(fraternal) == pytest.approx(2 * float(linear - bias), rel=1e-9)
    assert float(fraternal) <= 4 * float(linear)


def test_penalty_is_symmetric_and_gradients_of_the_twins_are_opposite():
    torch.manual_seed(0)
    one, two = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    twin_penalty(one, two).backward()
    assert torch.allclose(one.grad, -two.grad)
    one, two = one.detach(), two.detach()
    assert float(twin_penalty(one, two)) == pytest.approx(float(twin_penalty(two, one)))
    assert float(twin_penalty(one + 5, two + 5)) == pytest.approx(float(twin_penalty(one, two)), rel=1e-5)
    assert float(twin_penalty(one + 5, two)) > 20
    assert float(twin_penalty(one + 5, one, distance="sym-kl")) == pytest.approx(0, abs=1e-6)
    doubled = torch.cat((one, one), 1), torch.cat((two, two), 1)
    assert float(twin_penalty(*doubled)) == pytest.approx(float(twin_penalty(one, two)))


def test_symmetric_divergence_is_the_mean_of_both_of_torch():
    torch.manual_seed(0)
    one, two = torch.randn(6, 4), torch.randn(6, 4)
    p, q = (torch.distributions.Categorical(logits=out) for out in (one, two))
    expected = (torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)).mean() / 2
    assert float(twin_penalty(one, two, distance="sym-kl")) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("distance", ["logits-l2", "sym-kl"])
def test_masked_predictions_do_not_count(distance):
    torch.manual_seed(0)
    one, two, keep = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([1, 1, 0, 0, 1, 0]).bool()
    found = twin_penalty(one, two, mask=keep, distance=distance)
    assert float(found) == pytest.approx(float(twin_penalty(one[keep], two[keep], distance=distance)), rel=1e-5)
    with pytest.raises(ValueError, match="one shape"):
        twin_penalty(one, two[:3])


def test_loss_is_the_mean_of_two_losses_and_the_penalty():
    one, two = torch.zeros(1, 4), torch.ones(1, 4)
    found = fraternal_loss(one, two, torch.tensor(2.0), torch.tensor(4.0), 0.5)
    assert float(found) == pytest.approx(3.5)


@pytest.mark.parametrize("doubled", [False, True])
def test_without_dropout_fraternal_is_the_plain_model(doubled):
    x, y = piece()
    grads = []
    for method in ("none", "fd", "eld", "pm"):
        net = lm()
        loss, state, logged = TwinLoss(method=method, kappa=3.0, doubled=doubled)(net, x, y, None)
        loss.backward()
        grads.append([p.grad for p in net.parameters()])
        if method != "none":
            assert float(logged["twins"]) <= 1e-12
    for found in grads[1:]:
        assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(found, grads[0], strict=True))
    assert state[0].shape == (1, 3, 6)


def test_twins_that_share_every_mask_have_no_distance():
    x, y = piece()
    for same, expected in ((GROUPS, True), ((), False)):
        _, _, logged = TwinLoss(same=same)(lm(**RATES), x, y, None)
        assert (float(logged["twins"]) == 0) is expected


def test_doubled_batch_is_the_pass_with_shared_weight_and_word_masks():
    x, y = piece()
    net = lm(**RATES).double()
    state = [torch.randn(1, 3, 6).double() for _ in range(2)]
    torch.manual_seed(5)
    two, after_two, _ = TwinLoss(same=("weights", "embedding"))(net, x, y, state)
    torch.manual_seed(5)
    one, after_one, _ = TwinLoss(doubled=True)(net, x, y, state)
    assert float(one.detach()) == pytest.approx(float(two.detach()), rel=1e-6)
    assert torch.allclose(after_one[0], after_two[0])


def test_second_pass_has_a_target_in_fd_alone_and_no_mask_in_eld():
    x, y = piece()
    net = lm(**RATES)
    torch.manual_seed(3)
    pm, _, _ = TwinLoss(method="pm", kappa=0.0)(net, x, y, None)
    torch.manual_seed(3)
    plain, _, _ = TwinLoss(method="none")(net, x, y, None)
    torch.manual_seed(3)
    fd, _, _ = TwinLoss(method="fd", kappa=0.0)(net, x, y, None)
    assert float(pm) == float(plain) != float(fd)
    torch.manual_seed(3)
    masks = net.draw(5, 3)
    out = net(x, None, masks)[0], net.eval()(x)[0]
    net.train()
    torch.manual_seed(3)
    _, _, logged = TwinLoss(method="eld")(net, x, y, None)
    assert float(logged["twins"]) == pytest.approx(float(twin_penalty(*out)), rel=1e-5)


def test_activation_penalties_are_added():
    x, y = piece()
    net = lm()
    plain = TwinLoss(method="none")(net, x, y, None)[0]
    raw, dropped, _ = net.features(x)
    found = TwinLoss(method="none", alpha=2.0, beta=1.0)(net, x, y, None)[0]
    assert float(found - plain) == pytest.approx(
        float(2 * dropped.square().mean() + raw.diff(dim=0).square().mean()), rel=1e-4
    )


def test_wrapper_runs_any_network_twice():
    torch.manual_seed(0)
    twins = FraternalTwins(nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)))
    one, two = twins(torch.randn(2, 4))
    assert not torch.equal(one, two)
    twins.eval()
    one, two = twins(torch.randn(2, 4))
    assert torch.equal(one, two)


def test_gaps_obey_the_bound_on_every_pair_and_the_identity_on_average():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.4), nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 3)).eval()
    fraternal, linear = gaps(net, torch.randn(40, 6), 400)
    assert (fraternal <= 4 * linear).all()
    assert float(fraternal.mean()) <= 2 * float(linear.mean())
    assert not net.training
    assert all(not part.training for part in net)


def test_labels_are_spread_evenly_and_chosen_by_the_seed():
    y = torch.arange(60) % 3
    index = labelled_index(y, 12, 3, seed=0)
    assert y[index].bincount().tolist() == [4, 4, 4]
    assert torch.equal(index, labelled_index(y, 12, 3, seed=0))
    assert not torch.equal(index, labelled_index(y, 12, 3, seed=1))
    for wrong in (10, 63):
        with pytest.raises(UsageError, match="evenly"):
            labelled_index(y, wrong, 3, seed=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fraternal") / "run"
    ended = run_cli("fraternal", "train", *SMALL, "--out", folder, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["metrics"]["tokens_per_second"] > 0
    return folder


def test_eval_counts_every_token_but_the_first(trained):
    ended = run_cli(
        "fraternal", "eval", trained, "--limit", "500", "--dynamic-rate", "0.1", "--device", "cpu", "--json", "--quiet"
    )
    assert ended.code == 0, ended.err
    found = ended.json["metrics"]
    assert found["tokens"] == 499
    assert found["dynamic_perplexity"] < found["perplexity"]


def test_certificates_name_the_gap_and_an_interval(trained):
    ended = run_cli(
        "fraternal", "certify", trained, "--limit", "300", "--pairs", "8", "--device", "cpu", "--json", "--quiet"
    )
    assert ended.code == 0, ended.err
    gap, interval = ended.json["certificates"]
    assert gap["verdict"] == interval["verdict"] == "estimate"
    assert gap["constants"]["R_FD"] <= gap["constants"]["4 R_ELD"]
    assert interval["constants"]["low"] < interval["constants"]["perplexity"] < interval["constants"]["high"]


def test_finetuning_goes_on_from_the_run_with_averaged_weights(trained, tmp_path):
    ended = run_cli(
        "fraternal",
        "finetune",
        trained,
        "--epochs",
        "2",
        "--device",
        "cpu",
        "--out",
        tmp_path / "ft",
        "--json",
        "--quiet",
    )
    assert ended.code == 0, ended.err
    assert open_model(tmp_path / "ft")[1].model == "recurrent-lm"
    assert run_cli("fraternal", "finetune", tmp_path / "none", "--device", "cpu").code == 3


def test_images_with_few_labels_train_and_are_measured(tmp_path):
    ended = run_cli(
        "fraternal",
        "images",
        "--epochs",
        "1",
        "--labels",
        "50",
        "--device",
        "cpu",
        "--out",
        tmp_path / "i",
        "--json",
        "--quiet",
    )
    assert ended.code == 0, ended.err
    assert ended.json["metrics"]["labels"] == 50
    for word in ("eval", "certify"):
        found = run_cli("fraternal", word, tmp_path / "i", "--limit", "60", "--device", "cpu", "--json", "--quiet")
        assert found.code == 0, found.err


def test_batch_mode_without_masks_in_the_second_pass_is_refused(tmp_path):
    ended = run_cli(
        "fraternal", "train", "--method", "eld", "--twin-mode", "batch", "--device", "cpu", "--out", tmp_path / "x"
    )
    assert ended.code == 2
    assert not (tmp_path / "x").exists()
