"""Radii: exact, remembered as they were written, and refused in one line when they make no sense."""

import copy
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydraprune.attacks import Eps
from hydraprune.errors import UserError


@pytest.mark.parametrize(
    ("written", "value", "text"),
    [
        ("8/255", 8 / 255, "8/255"),
        ("0.031", 0.031, "0.031"),
        (" 2/255 ", 2 / 255, "2/255"),
        ("0", 0.0, "0"),
        ("1e-3", 0.001, "1e-3"),
        (0.1, 0.1, "0.1"),
        (1, 1.0, "1"),
        (Eps("8/255"), 8 / 255, "8/255"),
    ],
)
def test_the_value_is_exact_and_the_text_is_kept(written, value, text):
    eps = Eps(written)
    assert eps == value
    assert (eps.text, str(eps), f"{eps}") == (text, text, text)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_fractions_are_rounded_once(numerator, denominator):
    assert Eps(f"{numerator}/{denominator}") == float(Fraction(numerator, denominator))


@given(st.floats(0, 1e300))
def test_numbers_keep_their_bits(number):
    assert Eps(number) == number


@pytest.mark.parametrize(
    "written", ["-1", "-1/255", "nan", "inf", "-inf", "1/0", "x", "", "8/255/2", "1e400", True, None]
)
def test_what_is_not_a_radius_is_refused_by_name(written):
    with pytest.raises(UserError, match=f"'{written}' is not a radius"):
        Eps(written)


@pytest.mark.parametrize("written", ["1e300000000", "1E-1000", "1e1_000", "1e+99999999999/3", "9" * 10**7])
def test_a_radius_that_would_take_hours_to_read_is_refused_at_once(written):
    with pytest.raises(UserError, match="is not a radius: write at most 100 characters, no exponent above 999") as no:
        Eps(written)
    assert len(str(no.value)) < 200


@pytest.mark.parametrize("passed_on", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_the_text_survives_other_processes_and_copies(passed_on):
    eps = passed_on(Eps("8/255"))
    assert type(eps) is Eps
    assert (eps, eps.text) == (8 / 255, "8/255")
    assert repr(eps) == "Eps('8/255')"


def test_arithmetic_gives_plain_numbers():
    assert type(Eps("8/255") / 4) is float
