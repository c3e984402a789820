"""Crops and flips against one image at a time."""

from __future__ import annotations

import pytest
import torch

from iclr18cli.data.augment import CropAndFlip, random_crop, random_flip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(dtype, B=16, C=3, H=6, W=5):
    return torch.randint(1, 256, (B, C, H, W), generator=generator(9)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crops_equal_a_loop_over_images(dtype, padding):
    x_BCHW = images(dtype)
    B, C, H, W = x_BCHW.shape
    top_B, left_B = torch.randint(2 * padding + 1, (2, B), generator=generator(3))
    expected = torch.zeros_like(x_BCHW)
    for b in range(B):
        canvas = torch.zeros(C, H + 2 * padding, W + 2 * padding, dtype=dtype)
        canvas[:, padding : padding + H, padding : padding + W] = x_BCHW[b]
        expected[b] = canvas[:, top_B[b] : top_B[b] + H, left_B[b] : left_B[b] + W]
    result = random_crop(x_BCHW, padding=padding, generator=generator(3))
    assert result.dtype == dtype
    assert torch.equal(result, expected)


def test_crops_reach_every_corner_and_no_further():
    x_BCHW = torch.zeros(500, 1, 5, 5)
    x_BCHW[:, :, 2, 2] = 1
    places = random_crop(x_BCHW, padding=2, generator=generator()).flatten(1).argmax(1)
    assert set(places.tolist()) == set(range(25))


def test_the_border_takes_the_value_asked_for():
    cropped = random_crop(torch.ones(64, 1, 3, 3), padding=3, generator=generator(), value=0.5)
    assert set(cropped.unique().tolist()) == {0.5, 1.0}


def test_flips_mirror_the_chosen_images_and_leave_the_others():
    x_BCHW = images(torch.uint8, B=200)
    result = random_flip(x_BCHW, generator=generator(1))
    chosen_B = torch.rand(200, generator=generator(1)) < 0.5
    for b in range(200):
        assert torch.equal(result[b], x_BCHW[b].flip(-1) if chosen_B[b] else x_BCHW[b])
    assert 70 < int(chosen_B.sum()) < 130
    assert torch.equal(random_flip(x_BCHW, generator=generator(), probability=1.0), x_BCHW.flip(-1))
    assert torch.equal(random_flip(x_BCHW, generator=generator(), probability=0.0), x_BCHW)


def test_augmentation_follows_its_generator_and_leaves_the_input_alone():
    x_BCHW = images(torch.float32)
    before = x_BCHW.clone()
    augment = CropAndFlip(padding=2)
    assert torch.equal(augment(x_BCHW, generator(5)), augment(x_BCHW, generator(5)))
    assert not torch.equal(augment(x_BCHW, generator(5)), augment(x_BCHW, generator(6)))
    assert torch.equal(x_BCHW, before)
    assert torch.equal(CropAndFlip(padding=0, flip=False)(x_BCHW, generator()), before)


def test_augmentation_uses_no_global_randomness():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    CropAndFlip()(images(torch.float32), generator())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_arguments_out_of_range_are_named():
    with pytest.raises(ValueError, match="received -1"):
        random_crop(images(torch.uint8), padding=-1, generator=generator())
    with pytest.raises(ValueError, match=r"received \(3, 6, 5\)"):
        random_crop(images(torch.uint8)[0], padding=1, generator=generator())
    with pytest.raises(ValueError, match=r"received 1\.5"):
        random_flip(images(torch.uint8), generator=generator(), probability=1.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_cpu_generator_gives_the_same_crops_on_the_gpu():
    x_BCHW = images(torch.uint8)
    augment = CropAndFlip(padding=2)
    assert torch.equal(augment(x_BCHW.cuda(), generator()).cpu(), augment(x_BCHW, generator()))
