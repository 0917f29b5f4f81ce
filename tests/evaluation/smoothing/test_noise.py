"""The noise: its exact distribution, and that nothing is ever drawn twice."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, norm

from hydraprune.errors import UserError
from hydraprune.evaluation.smoothing.noise import CHUNK, GridNoise, noisy
from hydraprune.evaluation.smoothing.normal import cdf_64


@pytest.mark.parametrize("x", [0.0, 0.001, 0.5, 1.0, 2.5, 5.0, 8.0])
def test_the_normal_distribution_in_whole_numbers_agrees_with_scipy_in_both_tails(x):
    value = cdf_64(Fraction(x))
    assert value / 2**64 == pytest.approx(norm.cdf(x), rel=1e-15)
    assert 2**64 - value == pytest.approx(norm.sf(x) * 2**64, rel=1e-9, abs=1)


def test_the_normal_distribution_at_1_to_all_64_bits():
    """Φ(1) = 0.84134474606854294858523254563203 (Abramowitz and Stegun's table, more digits)."""
    assert cdf_64(Fraction(1)) == round(Fraction("0.84134474606854294858523254563203") * 2**64)


@pytest.mark.parametrize("sigma", [0.12, 0.25])
def test_each_step_has_the_probability_of_a_rounded_gaussian(sigma):
    noise = GridNoise(sigma)
    steps = np.arange(-noise.largest, noise.largest + 1)
    lower = -np.abs(steps)  # in this tail float64 has the digits
    edges = norm.cdf((2 * lower + 1) / (510 * sigma)) - norm.cdf((2 * lower - 1) / (510 * sigma))
    assert [noise.probability(int(step)) for step in steps] == pytest.approx(edges.tolist(), rel=1e-9, abs=2e-19)
    assert math.fsum(noise.probability(int(step)) for step in steps) == pytest.approx(1.0, abs=1e-15)
    assert noise.distance < 1e-16


@pytest.mark.parametrize("sigma", [1e-5, 0.0002, 0.0004, 0.00042, 0.0006, 0.001, 0.002, 0.004, 0.02, 0.25, 10.0])
def test_the_tail_that_is_never_drawn_is_no_more_than_the_distance_says(sigma):
    noise = GridNoise(sigma)
    missing = 2 * norm.sf((2 * noise.largest + 1) / (510 * sigma))
    assert missing <= 2.0**-64 <= noise.distance


def test_what_is_drawn_follows_the_probabilities_also_where_16_bits_do_not_decide():
    sigma = 0.02  # few steps, so that a test of fit has power
    noise = GridNoise(sigma)
    drawn = np.concatenate([noise.draw((0, chunk), (50, 50), CHUNK).numpy().ravel() for chunk in range(4)])
    inner = range(-15, 16)
    counts = [int((drawn == step).sum()) for step in inner]
    counts.append(len(drawn) - sum(counts))
    shares = [noise.probability(step) for step in inner]
    shares.append(1 - sum(shares))
    assert chisquare(counts, np.array(shares) * len(drawn)).pvalue > 1e-4


def test_the_noise_is_a_function_of_its_purpose_and_differs_between_any_two():
    noise = GridNoise(0.25)
    purposes = [
        ("smoothing", seed, index, phase, chunk)
        for seed in (0, 1, 2**40)
        for index in (0, 1, 12)
        for phase in ("selection", "estimation")
        for chunk in (0, 1, 2**32)
    ]
    drawn = [noise.draw(purpose, (1, 8, 8), 5) for purpose in purposes]
    assert torch.equal(drawn[0], noise.draw(purposes[0], (1, 8, 8), 5))
    assert torch.equal(drawn[0], noise.draw(purposes[0], (1, 8, 8), CHUNK)[:5])
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == len(purposes)


def test_noisy_pixels_lie_on_the_grid_and_are_not_clipped():
    pixels = torch.tensor([[[0, 255]]], dtype=torch.int16)
    noise = torch.tensor([[[[-3, 4]]], [[[0, 0]]]], dtype=torch.int16)
    expected = torch.tensor([-3, 259, 0, 255], dtype=torch.float32).div(255)
    assert torch.equal(noisy(pixels, noise).flatten(), expected)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), 11.0])
def test_a_sigma_that_is_no_noise_is_refused(sigma):
    with pytest.raises(UserError, match="sigma must be above 0 and at most 10"):
        GridNoise(sigma)
