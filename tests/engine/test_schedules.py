"""Schedules at points one can compute by hand, and never outside [0, 1]."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydraprune.engine import SCHEDULES, Constant, Cosine, OneCycle, Schedule
from hydraprune.errors import UserError


@pytest.mark.parametrize(
    ("schedule", "done", "factor"),
    [
        (Constant(), 0.0, 1.0),
        (Constant(), 0.99, 1.0),
        (Cosine(), 0.0, 1.0),
        (Cosine(), 0.5, 0.5),
        (Cosine(), 1 / 3, 0.75),
        (Cosine(), 0.25, (1 + math.sqrt(0.5)) / 2),
        (Cosine(warmup=0.2), 0.0, 0.0),
        (Cosine(warmup=0.2), 0.05, 0.25),
        (Cosine(warmup=0.2), 0.2, 1.0),
        (Cosine(warmup=0.2), 0.6, 0.5),
        (OneCycle(), 0.0, 0.0),
        (OneCycle(), 0.1, 0.25),
        (OneCycle(), 0.4, 1.0),
        (OneCycle(), 0.7, 0.5),
        (OneCycle(peak=0.25), 0.125, 0.5),
    ],
)
def test_by_hand(schedule, done, factor):
    assert schedule.factor(done) == pytest.approx(factor, abs=1e-12)


def schedules():
    share = st.floats(0.01, 0.99)
    return st.one_of(*(st.builds(SCHEDULES[name]) for name in SCHEDULES), share.map(Cosine), share.map(OneCycle))


@given(schedules(), st.floats(0, 1, exclude_max=True))
def test_a_factor_is_a_share_of_the_peak(schedule: Schedule, done):
    assert -1e-12 <= schedule.factor(done) <= 1 + 1e-12


@pytest.mark.parametrize("name", ["cosine", "one-cycle"])
def test_a_schedule_that_decays_ends_near_0(name):
    assert SCHEDULES[name]().factor(1 - 1e-9) < 1e-6


@pytest.mark.parametrize(
    "schedule", [lambda: Cosine(1.0), lambda: Cosine(-0.1), lambda: OneCycle(0), lambda: OneCycle(1)]
)
def test_shares_out_of_range_are_refused(schedule):
    with pytest.raises(UserError, match="a share of the stage in"):
        schedule()


def test_an_unknown_schedule_lists_the_known():
    with pytest.raises(UserError, match="unknown schedule 'linear'; known: constant, cosine, one-cycle"):
        _ = SCHEDULES["linear"]
