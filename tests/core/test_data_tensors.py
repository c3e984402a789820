"""Splits in memory, batches, and the order of an epoch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from iclr18cli.data.tensors import Split, batches, order
from iclr18cli.errors import UserError


def small(N=10, dtype=torch.uint8, **changes):
    x = torch.arange(N * 4).view(N, 1, 2, 2).to(dtype)
    fields = {"x": x, "y": torch.arange(N) % 2, "classes": ("a", "b"), "name": "small", "split": "train"}
    return Split(**{**fields, **changes})


def test_inputs_are_float_pixels_and_storage_stays_as_it_was():
    split = small()
    x = split.inputs(torch.tensor([3, 1]))
    assert x.dtype == torch.float32
    assert torch.equal(x, split.x[[3, 1]].float() / 255)
    assert torch.equal(split.inputs(), split.x.float() / 255)
    assert split.x.dtype == torch.uint8
    assert split.x[3, 0, 0, 0] == 12
    floats = small(dtype=torch.float32, range=None)
    assert floats.inputs().data_ptr() == floats.x.data_ptr(), "floats are held once"


def test_the_same_device_means_no_copy():
    split = small()
    assert split.to("cpu") is split


def test_take_gives_the_first_or_the_indexed_examples():
    split = small()
    assert torch.equal(split.take(3).x, split.x[:3])
    assert split.take(99) is split
    assert split.take(torch.tensor([7, 2])).y.tolist() == [1, 0]
    with pytest.raises(ValueError, match="received 0"):
        split.take(0)


def test_the_digest_sees_values_labels_and_order():
    split = small()
    digests = {
        split.digest(),
        split.take(torch.arange(9, -1, -1)).digest(),
        dataclasses.replace(split, y=1 - split.y).digest(),
        dataclasses.replace(split, x=split.x.view(10, 4)).digest(),
        split.take(9).digest(),
    }
    assert len(digests) == 5
    assert small().digest() == split.digest() == dataclasses.replace(split, name="other").digest()


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="empty"):
        small(N=0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"x": torch.zeros(10, 2, dtype=torch.float64)}, TypeError),
        ({"y": torch.zeros(10)}, TypeError),
        ({"y": torch.zeros(9, dtype=torch.int64)}, ValueError),
        ({"x": torch.zeros(10)}, ValueError),
        ({"range": (-1.0, 1.0)}, ValueError),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(changes, error):
    with pytest.raises(error, match="received"):
        small(**changes)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 99])
def test_batches_cover_the_split_in_order(batch_size):
    split = small()
    pairs = list(batches(split, batch_size))
    assert torch.equal(torch.cat([x for x, _ in pairs]), split.inputs())
    assert torch.equal(torch.cat([y for _, y in pairs]), split.y)
    assert len(pairs) == math.ceil(10 / batch_size)
    with pytest.raises(ValueError, match="received 0"):
        next(batches(split, 0))


@pytest.mark.parametrize("length", [1, 2, 1000])
def test_an_order_is_a_permutation(length):
    assert order(length, seed=0, epoch=3).sort().values.tolist() == list(range(length))


def test_an_order_depends_on_seed_and_epoch_and_nothing_else():
    first = order(500, seed=1, epoch=2)
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    assert torch.equal(order(500, seed=1, epoch=2), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    orders = {tuple(order(500, seed=seed, epoch=epoch).tolist()) for seed in (-1, 0, 1, 2**40) for epoch in range(4)}
    assert len(orders) == 16
