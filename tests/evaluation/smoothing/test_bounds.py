"""From counts to radii: closed forms, and how often the bounds hold in simulation."""

import numpy as np
import pytest
from scipy.stats import beta, norm

from hydraprune.evaluation.smoothing.bounds import (
    Sequential,
    largest_radius,
    looks,
    lower_bound,
    radius_of,
    samples_needed,
    spending,
    upper_bound,
)

ALPHA, SIGMA = 0.05, 0.25
GRID = (0.0, 0.25, 0.5, 110 / 255)


def test_the_bound_of_all_hits_is_the_nth_root_of_alpha_and_that_of_none_is_0():
    assert lower_bound(1000, 1000, 0.001) == pytest.approx(0.001 ** (1 / 1000), rel=1e-12)
    assert lower_bound(0, 1000, 0.001) == 0.0
    assert upper_bound(1000, 1000, 0.001) == 1.0
    assert upper_bound(0, 1000, 0.001) == pytest.approx(1 - 0.001 ** (1 / 1000), rel=1e-9)


@pytest.mark.parametrize("count", [1, 510, 900, 999])
def test_the_bounds_are_those_of_clopper_and_pearson(count):
    assert lower_bound(count, 1000, 0.001) == pytest.approx(beta.ppf(0.001, count, 1001 - count), rel=1e-9)
    assert upper_bound(count, 1000, 0.001) == pytest.approx(beta.isf(0.001, count + 1, 1000 - count), rel=1e-9)


def test_radii_are_rounded_down_and_half_or_less_certifies_nothing():
    assert radius_of(0.5, 0.25) == radius_of(0.1, 0.25) == -1.0
    assert radius_of(0.5000001, 0.25) == 0.0
    for p in (0.6, 0.9, 0.999):
        exact = 0.25 * norm.ppf(p)
        assert exact - 1.1e-6 < radius_of(p, 0.25) <= exact


@pytest.mark.parametrize("radius", [0.0, 0.25, 0.5, 0.75])
def test_the_fewest_samples_that_reach_a_radius_do_and_one_less_does_not(radius):
    needed = samples_needed(radius, 0.001, 0.25)
    assert largest_radius(needed, 0.001, 0.25) >= radius
    assert largest_radius(needed - 1, 0.001, 0.25) < radius


def test_looks_end_at_n_and_spend_alpha_and_no_more():
    assert looks(10_000) == (100, 200, 400, 700, 1300, 2500, 5000, 10_000)
    assert looks(100) == (100,)
    assert looks(40) == (40,)
    assert looks(150) == (100, 150)
    for n in (1, 40, 150, 10_000, 100_000):
        assert sum(spending(0.001, len(looks(n)))) == pytest.approx(0.001)


def hits_at_looks(probability, n, generator):
    sizes = np.diff([0, *looks(n)])
    return np.cumsum(generator.binomial(sizes, probability)).tolist()


def stop(sequential, hits):
    for seen in range(1, len(hits) + 1):
        if sequential.settled(hits[:seen]):
            return sequential.radius(hits[:seen]), looks(1000)[seen - 1]
    raise AssertionError("the last look always settles")


@pytest.mark.parametrize("probability", [0.45, 0.55, 0.8, 0.9, 0.97])
def test_fixed_bounds_hold_in_2000_simulated_certifications(probability):
    """Were the true coverage exactly 1 − alpha, a miss of this margin would come once in 10⁵ runs."""
    counts = np.random.default_rng(1).binomial(1000, probability, 2000)
    true = SIGMA * norm.ppf(probability)
    wrong = sum(radius_of(lower_bound(int(count), 1000, ALPHA), SIGMA) > max(true, -0.5) for count in counts)
    assert wrong <= 2000 * ALPHA + 4.3 * np.sqrt(2000 * ALPHA * (1 - ALPHA))


@pytest.mark.parametrize("probability", [0.45, 0.55, 0.8413, 0.9, 0.97])
def test_adaptive_bounds_hold_wherever_they_stop_in_2000_simulated_certifications(probability):
    generator = np.random.default_rng(2)
    sequential = Sequential(SIGMA, 1000, ALPHA, GRID)
    true = SIGMA * norm.ppf(probability)
    wrong = sum(
        stop(sequential, hits_at_looks(probability, 1000, generator))[0] > max(true, -0.5) for _ in range(2000)
    )
    assert wrong <= 2000 * ALPHA + 4.3 * np.sqrt(2000 * ALPHA * (1 - ALPHA))


def test_the_coverage_test_would_catch_looks_that_each_spend_all_of_alpha(monkeypatch):
    """The simulation has teeth: without the union bound it fails, at a share where all looks matter."""
    generator = np.random.default_rng(3)
    sequential = Sequential(SIGMA, 1000, ALPHA, (0.0, 1e9))
    sequential.levels = (ALPHA,) * len(sequential.looks)
    true = SIGMA * norm.ppf(0.9)
    wrong = sum(sequential.radius(hits_at_looks(0.9, 1000, generator)) > true for _ in range(2000))
    assert wrong > 2000 * ALPHA + 4.3 * np.sqrt(2000 * ALPHA * (1 - ALPHA))


def test_adaptive_sampling_takes_a_fifth_and_loses_next_to_nothing_on_the_grid():
    """Of images with these probabilities, at n 10,000: a mix of sure ones, hopeless ones and some in between."""
    generator = np.random.default_rng(4)
    sequential = Sequential(SIGMA, 10_000, 0.001, GRID)
    mix = [0.999] * 55 + [0.99] * 15 + [0.95, 0.93, 0.9, 0.87, 0.8, 0.75, 0.6] * 2 + [0.3] * 16
    used = lost = 0
    for probability in mix:
        hits = hits_at_looks(probability, 10_000, generator)
        seen = next(k for k in range(1, 9) if sequential.settled(hits[:k]))
        used += sequential.looks[seen - 1]
        fixed = radius_of(lower_bound(hits[-1], 10_000, 0.001), SIGMA)
        lost += sum(fixed >= radius > sequential.radius(hits[:seen]) for radius in GRID)
    assert used <= len(mix) * 10_000 / 5
    assert lost <= 2
