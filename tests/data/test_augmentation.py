"""Augmentation: what comes out is a crop of what went in, image by image."""

import pytest
import torch
import torch.nn.functional as F

from hydraprune.data import AUGMENTATIONS, CropFlip, NoAugmentation
from hydraprune.errors import UserError


def images(n: int = 64, channels: int = 3, height: int = 5, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def augment(augmentation, batch, seed=0):
    return augmentation(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", tuple(AUGMENTATIONS))
def test_every_augmentation_keeps_shape_type_and_input_and_repeats_itself(name):
    batch, augmentation = images(), AUGMENTATIONS[name]()
    before = batch.clone()
    out = augment(augmentation, batch)
    assert (out.shape, out.dtype) == (batch.shape, torch.uint8)
    assert torch.equal(batch, before)
    assert torch.equal(out, augment(augmentation, batch))
    assert augment(augmentation, batch[:0]).shape == (0, 3, 5, 6)


def test_no_augmentation_changes_nothing():
    assert torch.equal(augment(NoAugmentation(), images()), images())


def test_without_padding_and_flip_nothing_changes():
    assert torch.equal(augment(CropFlip(padding=0, flip=False), images()), images())


def test_flip_alone_mirrors_about_half_of_the_images_left_to_right():
    batch = images(400)
    out = augment(CropFlip(padding=0), batch)
    mirrored = (out == batch.flip(3)).flatten(1).all(1)
    assert torch.equal(out[~mirrored], batch[~mirrored])
    assert 150 < int(mirrored.sum()) < 250


def test_each_image_is_one_of_its_own_zero_padded_crops():
    batch, padding = images(), 2
    out = augment(CropFlip(padding), batch)
    padded = F.pad(batch, [padding] * 4)
    seen = set()
    for image, source in zip(out, padded, strict=True):
        crops = {
            (y, x, flipped): source[:, y : y + 5, x : x + 6].flip(2) if flipped else source[:, y : y + 5, x : x + 6]
            for y in range(5)
            for x in range(5)
            for flipped in (False, True)
        }
        matches = [key for key, crop in crops.items() if torch.equal(crop, image)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(5))
    assert len(seen) > 20  # each image has an offset of its own


def test_another_seed_gives_other_images():
    assert not torch.equal(augment(CropFlip(), images(), 0), augment(CropFlip(), images(), 1))


def test_negative_padding_is_refused():
    with pytest.raises(UserError, match="padding must be at least 0, not -1"):
        CropFlip(padding=-1)
