"""What rounding kept weights does, and that it does no more."""

import numpy as np
import pytest

from hydraprune import runtime
from hydraprune.errors import UserError


def stored(tmp_path, weight, values):
    runtime.write(tmp_path / "n", {"w": weight}, {"w": weight != 0}, {}, values=values)
    return runtime.read(tmp_path / "n")


def test_float16_weights_are_the_nearest_halves(tmp_path):
    weight = np.array([[1 + 2**-11 + 2**-20, 0, -3], [0, 65504, 2**-24]], np.float32)
    file = stored(tmp_path, weight, "fp16")
    assert file.tensors["w"].tolist() == [[1 + 2**-10, 0, -3], [0, 65504, 2**-24]]
    assert np.array_equal(file.masks["w"], weight != 0)


def test_int8_weights_are_whole_steps_of_a_127th_of_their_row(tmp_path):
    weight = np.array([[127, 0, 63.6, -1.4], [0, 0, 0, 0], [0, -0.254, 0.001, 0]], np.float32)
    file = stored(tmp_path, weight, "int8")
    expected = np.array([[127, 0, 64, -1], [0, 0, 0, 0], [0, -0.254, 0, 0]])
    assert np.allclose(file.tensors["w"], expected, atol=1e-7)
    assert np.array_equal(file.masks["w"], weight != 0)  # a kept weight that rounds to 0 stays kept


@pytest.mark.parametrize("values", ["fp16", "int8"])
def test_a_tensor_without_a_single_kept_weight_comes_back(tmp_path, values):
    assert not stored(tmp_path, np.zeros((3, 4), np.float32), values).masks["w"].any()


@pytest.mark.parametrize(("values", "most"), [("fp32", 0), ("fp16", 2**-11), ("int8", 1 / 254)])
def test_rounding_stays_within_half_a_step_of_the_largest_weight(tmp_path, values, most):
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((40, 90)) < 0.2, rng.normal(size=(40, 90)), 0).astype(np.float32)
    found = stored(tmp_path, weight, values).tensors["w"]
    largest = np.abs(weight).max(axis=1, keepdims=True)
    assert np.all(np.abs(found - weight) <= most * largest * (1 + 1e-5))


@pytest.mark.parametrize(
    ("weight", "values", "message"),
    [
        ([1e6], "fp16", "too large for fp16"),
        ([np.inf], "int8", "not finite"),
        ([np.nan], "fp16", "not finite"),
        ([1], "fp8", "stored as fp32, fp16, int8, not 'fp8'"),
    ],
)
def test_weights_that_cannot_be_rounded_are_refused(tmp_path, weight, values, message):
    with pytest.raises(UserError, match=message):
        stored(tmp_path, np.array(weight, np.float32), values)


def test_smaller_values_make_smaller_files(tmp_path):
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((256, 900)) < 0.1, rng.normal(size=(256, 900)), 0).astype(np.float32)
    sizes = [
        runtime.write(tmp_path / "n", {"w": weight}, {"w": weight != 0}, {}, values=values)
        for values in ("fp32", "fp16", "int8")
    ]
    assert sizes[0] > 1.5 * sizes[1] > 1.8 * sizes[2]


def test_gaps_come_within_three_per_cent_of_the_entropy_of_the_mask(tmp_path):
    rng = np.random.default_rng(0)
    for share in (0.1, 0.01):
        mask = rng.random((512, 4608)) < share
        weight = np.where(mask, np.float32(1), np.float32(0))
        runtime.write(tmp_path / "n", {"w": weight}, {"w": mask}, {})
        entropy_bits = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) * mask.size
        # All values are 1 here, so that nearly all of the file is the mask.
        assert (tmp_path / "n").stat().st_size * 8 <= 1.03 * entropy_bits + 8 * 1200
