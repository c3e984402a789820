"""The recurrent language model: exact sizes, exact dropout, gradients through weight drop."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from iclr18cli.text.dropout import GROUPS, Masks, mask
from iclr18cli.text.recurrent import RecurrentLM, activation_penalty, temporal_penalty

RATES = {
    "dropout_embedding": 0.2,
    "dropout_input": 0.4,
    "dropout_hidden": 0.3,
    "dropout_output": 0.5,
    "weight_drop": 0.5,
}


def made(**options):
    torch.manual_seed(0)
    return RecurrentLM(**{"vocabulary_size": 11, "embedding": 5, "hidden": 7, "layers": 3, "tied": True, **options})


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"vocabulary_size": 10_000, "embedding": 400, "hidden": 1150, "layers": 3}, 24_221_600),
        ({"vocabulary_size": 33_278, "embedding": 400, "hidden": 1150, "layers": 3}, 33_556_078),
        ({"vocabulary_size": 10_000, "hidden": 655}, 9_997_440),
    ],
)
def test_parameters_are_counted_as_in_the_papers(options, count):
    with torch.device("meta"):
        net = RecurrentLM(tied=True, **options)
    assert sum(p.numel() for p in net.parameters()) == count


def test_plain_model_is_embedding_lstm_and_decoder():
    net, x = made(layers=1, tied=False), torch.randint(11, (6, 2))
    expected, state = net.recurrent[0](net.embedding(x))
    logits, after = net(x)
    assert torch.equal(logits, net.decoder(expected))
    assert all(torch.equal(one, two) for one, two in zip(after, state, strict=True))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_carried_state_makes_two_pieces_one_text(cell):
    net, x = made(cell=cell).eval(), torch.randint(11, (9, 2))
    whole, _ = net(x)
    first, state = net(x[:4])
    second, _ = net(x[4:], state)
    assert torch.allclose(whole, torch.cat((first, second)), atol=1e-6)


def test_weight_drop_passes_gradcheck():
    net = RecurrentLM(7, embedding=3, hidden=4, layers=2, tied=True, weight_drop=0.5).double()
    x, masks = torch.randint(7, (3, 2)), None
    masks = net.draw(3, 2)
    names = [name for name, _ in net.named_parameters()]

    def logits(*parameters):
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (x, None, masks))[0]

    values = tuple(p.detach().clone().requires_grad_(True) for p in net.parameters())
    # A tied matrix is one parameter: functional_call ties it again.
    assert torch.autograd.gradcheck(logits, values, eps=1e-6, atol=1e-6)


def test_dropped_entries_get_no_gradient_and_kept_ones_do_and_the_weight_itself_stays():
    net, x = made(weight_drop=0.5), torch.randint(11, (6, 3))
    before, masks = copy.deepcopy(net.state_dict()), net.draw(6, 3)
    net(x, None, masks)[0].square().sum().backward()
    for layer, dropped in zip(net.recurrent, masks.weights, strict=True):
        assert (layer.weight_hh_l0.grad[dropped == 0] == 0).all()
        assert (layer.weight_hh_l0.grad[dropped > 0] != 0).float().mean() > 0.9
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_training_evaluating_and_copying_in_turns_works_and_keeps_the_plain_names():
    net, plain, x = made(**RATES), made(), torch.randint(11, (5, 2))
    for _ in range(2):
        net.train()(x)[0].sum().backward()
        net.eval()
        assert torch.equal(net(x)[0], net(x)[0])
    assert list(net.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(copy.deepcopy(net).state_dict())
    assert torch.equal(plain.eval()(x)[0], net(x)[0])


def test_rates_of_zero_draw_no_mask_and_are_the_plain_model():
    net, x = made(), torch.randint(11, (5, 2))
    assert net.draw(5, 2) == Masks()
    assert torch.equal(net.train()(x)[0], net.eval()(x)[0])


def test_masks_have_the_shapes_of_awd_lstm():
    net = made(**RATES)
    masks = net.draw(6, 4)
    assert masks.embedding.shape == (11, 1)  # a word, for all steps and sequences
    assert masks.input.shape == (1, 4, 5)  # locked: not over time, but over sequences
    assert [m.shape for m in masks.hidden] == [(1, 4, 7), (1, 4, 7)]
    assert masks.output.shape == (1, 4, 5)
    assert [m.shape for m in masks.weights] == [(28, 7), (28, 7), (20, 5)]
    assert not torch.equal(masks.input[:, 0], masks.input[:, 1]) or not torch.equal(
        masks.input[:, 2], masks.input[:, 3]
    )
    assert made(**RATES, locked=False).draw(6, 4).input.shape == (6, 4, 5)


def test_masks_are_inverted_and_of_mean_one():
    torch.manual_seed(0)
    drawn = mask((400, 500), 0.3, torch.empty(0, dtype=torch.float64))
    assert set(drawn.unique().tolist()) == {0.0, 1 / 0.7}
    assert abs(float(drawn.mean()) - 1) < 5 * (0.3 / 0.7 / 200_000) ** 0.5
    assert mask((3,), 0.0, drawn) is None
    with pytest.raises(ValueError, match="p must lie"):
        mask((3,), 1.0, drawn)


def test_dropped_word_reads_as_zero_and_is_still_predicted_from_the_raw_matrix():
    net, x = made(dropout_embedding=0.5), torch.tensor([[3], [4]])
    masks = Masks(embedding=torch.ones(11, 1).index_fill(0, torch.tensor([3]), 0.0))
    zeroed = copy.deepcopy(net)
    zeroed.decoder.weight = nn.Parameter(net.decoder.weight.detach().clone())
    with torch.no_grad():
        zeroed.embedding.weight[3] = 0
    assert torch.equal(net(x, None, masks)[0], zeroed.eval()(x)[0])


def test_two_passes_in_one_doubled_batch_are_the_two_passes():
    net, x = made(**RATES).double(), torch.randint(11, (6, 3))
    one, two = net.draw(6, 3), net.draw(6, 3)
    two = two.sharing(one, ("weights", "embedding"))
    both, _ = net(torch.cat((x, x), 1), None, one.beside(two))
    first, second = both.chunk(2, 1)
    assert torch.allclose(first, net(x, None, one)[0], atol=1e-12)
    assert torch.allclose(second, net(x, None, two)[0], atol=1e-12)
    assert not torch.allclose(first, second)


def test_sharing_all_groups_is_the_same_pass():
    net, x = made(**RATES), torch.randint(11, (6, 3))
    one = net.draw(6, 3)
    two = net.draw(6, 3).sharing(one, GROUPS)
    assert torch.equal(net(x, None, one)[0], net(x, None, two)[0])
    assert not torch.equal(net(x, None, one)[0], net(x, None, replace(two, output=net.draw(6, 3).output))[0])


def test_tied_gradient_is_the_sum_of_both_uses():
    tied, apart, x = made(), made(tied=False, hidden=5), torch.randint(11, (4, 2))
    tied = made(hidden=5)
    apart.load_state_dict({**tied.state_dict(), "decoder.weight": tied.embedding.weight.detach().clone()})
    tied(x)[0].square().sum().backward()
    apart(x)[0].square().sum().backward()
    assert torch.allclose(
        tied.embedding.weight.grad, apart.embedding.weight.grad + apart.decoder.weight.grad, atol=1e-5
    )


def test_activation_penalties_have_their_closed_forms():
    h = torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]], [[3.0, -2.0]]])
    assert float(activation_penalty(h)) == pytest.approx((1 + 4 + 9 + 4 + 9 + 4) / 6)
    assert float(temporal_penalty(h)) == pytest.approx((4 + 0 + 0 + 16) / 4)
    assert float(temporal_penalty(h[:1])) == 0


@pytest.mark.parametrize(
    "options", [{"layers": 0}, {"weight_drop": 1.0}, {"dropout_input": -0.1}, {"cell": "rnn"}, {"vocabulary_size": 0}]
)
def test_sizes_and_probabilities_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="received"):
        made(**options)
