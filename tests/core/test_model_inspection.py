"""What a look at a model finds: each with a planted model."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from iclr18cli.errors import UserError
from iclr18cli.models.inspection import inspect
from iclr18cli.models.layers import Normalize

MEAN, STD = 0.3, 0.4  # as the network of the fixture `digits` wants them


class Wrapped(nn.Module):
    """Makes something else of the outputs of a good network."""

    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x):
        return self.change(self.net((x - MEAN) / STD))


def look(digits, change=lambda z: z, **options):
    net, x, y = digits
    return inspect(Wrapped(net, change), x, y, **options)


def test_a_good_model_gets_no_warning_and_is_left_as_it_was(digits):
    model = Wrapped(digits[0], lambda z: z).train()
    model.net[1].weight.requires_grad_(True)
    state, draws = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    found = inspect(model, digits[1], digits[2])
    digits[0].requires_grad_(False)
    assert (found.warnings, found.notes, found.classes, found.n) == ((), (), 10, 200)
    assert found.accuracy > 0.95
    assert model.training
    assert draws == [True, False, False, False]
    assert torch.equal(torch.get_rng_state(), state)
    digits[0].eval()


@pytest.mark.parametrize(
    ("change", "message", "advice"),
    [
        (lambda z: (z, z), "a tuple of 2", "[0]"),
        (lambda z: {"features": z, "logits": z}, "keys features, logits", "['logits']"),
        (lambda z: z[:, 0], "two classes here has two logits", "zeros_like"),
        (lambda z: z[:, :1], "two classes here has two logits", "zeros_like"),
        (lambda z: z[:, :, None, None], "(200, 10, 1, 1)", "flatten"),
        (lambda z: z.sum(), "output of shape ()", "per input"),
        (lambda z: z.argmax(1, keepdim=True).expand(-1, 10), "int64", "argmax"),
        (lambda z: z[:, :9], "labels reach 9", "as many classes"),
        (lambda z: z.log(), "NaN or infinite", "log 0"),
        (lambda z: None, "NoneType", "wrap"),
    ],
)
def test_outputs_that_are_no_class_scores_are_refused(digits, change, message, advice):
    with pytest.raises(UserError) as caught:
        look(digits, change)
    assert message in f"{caught.value.what} {caught.value.why}"
    assert advice in caught.value.fix


@pytest.mark.parametrize("thing", [nn.Linear, (nn.Linear(2, 2), 1), {"a": torch.zeros(1)}, len, 3, None])
def test_what_is_no_module_is_refused(thing):
    with pytest.raises(UserError, match="no torch model"):
        inspect(thing, torch.zeros(2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("net", "shape", "advice"),
    [
        (nn.Linear(64, 10), (1, 8, 8), "nn.Flatten()"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10)), (1, 8, 8), "expand(-1, 3"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (1, 8, 8), "28x28"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(10)), (64,), "Unflatten"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), (1, 8, 8), "model.float()"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half(), (1, 8, 8), "model.float()"),
    ],
)
def test_a_wrong_shape_or_type_is_named_with_what_mends_it(net, shape, advice):
    if any(map(torch.nn.parameter.is_lazy, net.parameters())):
        net(torch.zeros(1, net[0].in_channels, 8, 8))
    with pytest.raises(UserError, match="cannot take inputs of shape") as caught:
        inspect(net, torch.rand(4, *shape), torch.arange(4))
    assert f"(4, {', '.join(map(str, shape))})" in caught.value.what
    assert "RuntimeError" in caught.value.why
    assert advice in caught.value.fix


class Chosen(nn.Module):
    """Draws noise in evaluation mode, or mixes the batch."""

    def __init__(self, net, how):
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x):
        z = self.net((x - MEAN) / STD)
        if self.how == "noise":
            return z + 0.01 * torch.randn_like(z)
        if self.how == "batch":
            return z - z.mean(0)
        if self.how == "autograd":
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (g,) = torch.autograd.grad((x**2).sum(), x)
            return self.net((x + 0 * g - MEAN) / STD)
        return z.detach()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: Wrapped(net, lambda z: z.softmax(1)), "probabilities; attacks want logits"),
        (lambda net: Wrapped(net, lambda z: z.sigmoid()), "as after a sigmoid"),
        (lambda net: Chosen(net, "noise"), "random in evaluation mode.*--eot"),
        (lambda net: Chosen(net, "batch"), "examples of a batch are mixed"),
        (lambda net: Chosen(net, "detach"), "No gradient leads"),
        (lambda net: Wrapped(net, lambda z: z.bfloat16()), "computes in bfloat16"),
        (lambda net: Wrapped(net, lambda z: z.roll(1, dims=1)), "renaming of the classes .0 as 1, 1 as 2"),
        (lambda net: Wrapped(net, lambda z: 0 * z), "guessing among 10 classes is right on 10.0%"),
        (lambda net: nn.Sequential(Normalize([2.0], [0.1]), Wrapped(net, lambda z: z)), "normalised twice"),
        (lambda net: nn.Sequential(Normalize([2.0], [0.1]), Normalize([MEAN], [STD]), net), "normalised twice"),
    ],
)
def test_a_doubtful_model_is_told_in_one_sentence(digits, make, message):
    net, x, y = digits
    found = inspect(make(net), x, y)
    assert [w for w in found.warnings if re.search(message, w)], found.warnings
    assert len(found.warnings) == 1 or "twice" in message, found.warnings


class Centred(nn.Module):
    """A good network for inputs of -1 .. 1 that sees nothing in others."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x * 0.5 + 0.5 - MEAN) / STD) * (x.amin((1, 2, 3)) == -1)[:, None]


def test_a_missing_normalisation_is_recognised_by_the_accuracy_it_would_give(digits):
    net, x, y = digits
    found = inspect(Centred(net), x, y)
    assert found.accuracy < 0.2
    assert re.search(
        r"right on \d+\.\d% of 200 points as it is given, and on (9\d|100)\.\d% with inputs of -1 .. 1",
        found.warnings[0],
    )
    assert "--normalize '0.5,0.5'" in found.warnings[0]
    assert inspect(nn.Sequential(Normalize([0.5], [0.5]), Centred(net)), x, y).warnings == ()


def test_log_probabilities_and_layers_left_in_training_mode_are_notes(digits):
    found = look(digits, lambda z: z.log_softmax(1))
    assert found.warnings == ()
    assert "log-probabilities" in found.notes[0]
    net = nn.Sequential(Wrapped(digits[0], lambda z: z), nn.Dropout(0.9)).train()
    found = inspect(net, digits[1], digits[2])
    assert found.warnings == ()
    assert "training mode, where Dropout behave" in found.notes[0]
    assert net.training
    digits[0].eval()


def test_a_forward_that_calls_autograd_is_inspected_all_the_same(digits):
    assert inspect(Chosen(digits[0], "autograd"), digits[1], digits[2]).accuracy > 0.95
