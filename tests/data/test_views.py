"""Which part of an image is shown: hand-computed rectangles, and that they never leave the image."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydraprune.data.views import Box, CentreView, RandomView, Try

USUAL = (3 / 4, 4 / 3)


def test_the_centre_of_an_image_of_256_pixels_is_cut_out_as_it_is():
    assert CentreView(224)(256, 256) == Box(16, 16, 224, 224)


def test_the_shorter_side_is_resized_before_the_centre_is_cut():
    # 512 × 384 -> 341 × 256 (341.33 rounded down), margins 58.5 -> 58 and 16
    box = CentreView(224)(512, 384)
    across, down = 512 / 341, 1.5
    assert (box.left, box.top) == pytest.approx((58 * across, 16 * down))
    assert (box.width, box.height) == pytest.approx((224 * across, 224 * down))


def test_other_sizes_keep_the_share_of_224_in_256():
    assert CentreView(64)(73, 73) == Box(4, 4, 64, 64)  # 64 · 256/224 = 73.1; margin 4.5 -> 4


def test_a_random_part_is_as_large_as_its_share_and_ratio_say():
    # area 5000 · 0.5 = 2500: 70.7 × 35.4 pixels; 30 and 16 places to begin at
    view = RandomView((Try(0.5, 2.0, 0.5, 0.999),), USUAL, mirrored=True)
    assert view(100, 50) == Box(15, 15, 71, 35, mirrored=True)


def test_the_first_try_that_fits_is_taken():
    too_wide, fits, fits_too = Try(1.0, 1.3, 0, 0), Try(0.25, 1.0, 0, 0), Try(0.5, 1.0, 0, 0)
    assert RandomView((too_wide, fits, fits_too), USUAL, mirrored=False)(40, 40) == Box(0, 0, 20, 20)


@pytest.mark.parametrize(
    ("size", "centre"),
    [
        ((100, 10), Box(43, 0, 13, 10)),  # too wide: 10 · 4/3
        ((10, 100), Box(0, 43, 10, 13)),  # too high: 10 / (3/4)
        ((40, 40), Box(0, 0, 40, 40)),
    ],
)
def test_where_no_try_fits_the_largest_centre_part_of_an_allowed_ratio_is_shown(size, centre):
    assert RandomView((), USUAL, mirrored=False)(*size) == centre


sides = st.integers(1, 3000)
positions = st.floats(0, 1, exclude_max=True)
tries = st.builds(Try, st.floats(0.01, 1), st.floats(0.2, 5), positions, positions)


@given(sides, sides, st.lists(tries, max_size=3))
def test_a_random_part_lies_in_the_image(width, height, attempts):
    box = RandomView(tuple(attempts), USUAL, mirrored=False)(width, height)
    assert box.width >= 1 and box.height >= 1
    assert 0 <= box.left <= box.left + box.width <= width
    assert 0 <= box.top <= box.top + box.height <= height


@given(sides, sides, st.integers(1, 600))
def test_the_centre_part_lies_in_the_image_and_in_its_middle(width, height, size):
    box = CentreView(size)(width, height)
    assert box.left >= 0 and box.top >= 0
    assert box.left + box.width <= width * (1 + 1e-9)
    assert box.top + box.height <= height * (1 + 1e-9)
    pixel = max(box.width, box.height) / size
    assert abs(box.left + box.width / 2 - width / 2) <= pixel
    assert abs(box.top + box.height / 2 - height / 2) <= pixel
