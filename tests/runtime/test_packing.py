import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hydraprune.errors import UserError
from hydraprune.runtime import pack_positions, unpack_positions


def mask_with_gap(gap: int) -> np.ndarray:
    mask = np.zeros(gap + 1, dtype=bool)
    mask[gap] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "codes"),
    [
        ([True, False, True, True], [0, 1, 0]),
        ([False, False, True, False], [2]),
        ([[False, True], [False, True]], [1, 1]),
        ([True], [0]),
        ([False], []),
        ([False] * 1000, []),
        ([True] * 5, [0] * 5),
    ],
)
def test_codes_are_the_gaps_counted_by_hand(mask, codes):
    assert pack_positions(np.array(mask)).tolist() == codes


@pytest.mark.parametrize(
    ("gap", "codes"), [(254, [254]), (255, [255, 0]), (256, [255, 1]), (510, [255, 255, 0]), (511, [255, 255, 1])]
)
def test_long_gaps_are_escaped_at_multiples_of_255(gap, codes):
    packed = pack_positions(mask_with_gap(gap))
    assert packed.tolist() == codes
    assert unpack_positions(packed, gap + 1).tolist() == [gap]


def test_codes_follow_c_order_whatever_the_memory_layout():
    mask = np.random.default_rng(0).random((4, 3, 5)) < 0.4
    assert np.array_equal(pack_positions(np.asfortranarray(mask)), pack_positions(mask))


@settings(deadline=None)
@given(arrays(bool, array_shapes(max_dims=4, max_side=9)))
def test_unpacking_gives_the_packed_positions(mask):
    positions = unpack_positions(pack_positions(mask), mask.size)
    assert positions.dtype == np.int64
    assert np.array_equal(positions, np.flatnonzero(mask))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=12), st.integers(0, 700))
def test_sparse_masks_with_escaped_gaps_round_trip(gaps, tail):
    kept = np.cumsum(np.array(gaps, dtype=np.int64) + 1) - 1
    mask = np.zeros(int(kept[-1]) + 1 + tail if gaps else tail, dtype=bool)
    mask[kept] = True
    assert np.array_equal(unpack_positions(pack_positions(mask), mask.size), kept)


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 3000))
def test_any_codes_are_refused_or_stay_inside_the_mask(codes, size):
    try:
        positions = unpack_positions(np.frombuffer(codes, np.uint8), size)
    except UserError:
        return
    assert all(np.diff(positions) > 0)
    assert all((positions >= 0) & (positions < size))


@pytest.mark.parametrize(
    ("codes", "size", "message"),
    [
        (np.array([3, 255], np.uint8), 1000, "end inside a gap"),
        (np.array([255], np.uint8), 1000, "end inside a gap"),
        (np.array([1, 1], np.uint8), 3, "entry 3 of a tensor of 3"),
        (np.array([0], np.uint8), 0, "entry 0 of a tensor of 0"),
        (np.array([[0]], np.uint8), 4, "one row of uint8"),
        (np.array([0], np.int64), 4, "one row of uint8"),
    ],
)
def test_codes_that_fit_no_mask_are_refused(codes, size, message):
    with pytest.raises(UserError, match=message):
        unpack_positions(codes, size)
