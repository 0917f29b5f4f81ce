"""The augmentation of ImageNet: what it draws, and what it does to tensors (files: test_files.py)."""

import numpy as np
import pytest
import torch
from PIL import Image

from hydraprune.data import RandomResizedCrop
from hydraprune.data.views import Box
from hydraprune.errors import UserError


def drawn(augmentation, count, seed=0):
    return augmentation.views(count, torch.Generator().manual_seed(seed))


def images(n=8, height=24, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def test_shares_are_uniform_ratios_log_uniform_places_uniform_and_half_are_mirrored():
    tries = torch.tensor([view.tries for view in drawn(RandomResizedCrop(), 1000)])
    share, ratio, across, down = tries.reshape(-1, 4).T
    for values, low, high in ((share, 0.08, 1), (ratio.log() / np.log(4 / 3), -1, 1), (across, 0, 1), (down, 0, 1)):
        assert low <= float(values.min()) < float(values.max()) <= high + 1e-6
        counts = torch.histc(values, 10, low, high)
        assert counts.sub(1000).abs().max() < 150  # of 10,000; five standard deviations
    mirrored = sum(view.mirrored for view in drawn(RandomResizedCrop(), 1000))
    assert 420 < mirrored < 580
    assert not any(view.mirrored for view in drawn(RandomResizedCrop(flip=False), 100))


def test_what_is_drawn_is_what_is_written_down():
    """A run begun with one version goes on with another: these numbers changing would break resuming."""
    (view,) = drawn(RandomResizedCrop(), 1)
    assert view(500, 375) == Box(left=20, top=17, width=386, height=327, mirrored=True)


def test_the_whole_image_stays_as_it_is():
    whole = RandomResizedCrop(scale=(1, 1), ratio=(1, 1), flip=False)
    square = images(height=32)
    assert torch.equal(whole(square, torch.Generator().manual_seed(0)), square)


def test_a_mirrored_part_is_the_mirror_image_of_the_part():
    turned = RandomResizedCrop()(images(), torch.Generator().manual_seed(0))
    plain = RandomResizedCrop(flip=False)(images(), torch.Generator().manual_seed(0))
    for view, ours, straight in zip(drawn(RandomResizedCrop(), 8), turned, plain, strict=True):
        assert torch.equal(ours, straight.flip(2) if view.mirrored else straight)
    assert not torch.equal(turned, plain)


def test_a_tensor_shows_what_pillow_makes_of_the_same_part():
    augmentation = RandomResizedCrop(flip=False)
    ours = augmentation(images(), torch.Generator().manual_seed(0))
    for view, image, came in zip(drawn(augmentation, 8), images(), ours, strict=True):
        box = view(32, 24).corners(1)
        expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
            (32, 24), Image.Resampling.BILINEAR, box=box
        )
        difference = came.permute(1, 2, 0).int() - torch.tensor(np.asarray(expected)).int()
        assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"scale": (0, 1)}, r"scale must be .* not \(0, 1\)"),
        ({"scale": (0.5, 1.5)}, "with 0 < low ≤ high ≤ 1"),
        ({"scale": (0.6, 0.5)}, "scale must be"),
        ({"ratio": (2, 1)}, r"ratio must be \(low, high\) with 0 < low ≤ high, not \(2, 1\)"),
        ({"ratio": (float("nan"), 1)}, "ratio must be"),
        ({"ratio": (1, float("inf"))}, "ratio must be"),
    ],
)
def test_ranges_that_cannot_be_are_refused(parameters, says):
    with pytest.raises(UserError, match=says):
        RandomResizedCrop(**parameters)


def test_whole_numbers_make_an_equal_value():
    assert RandomResizedCrop(scale=(1, 1)) == RandomResizedCrop(scale=(1.0, 1.0))
    assert all(isinstance(bound, float) for bound in RandomResizedCrop(scale=(1, 1)).scale)
