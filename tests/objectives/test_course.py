"""What an objective says of its schedule is what it does."""

from dataclasses import replace

import pytest

from hydraprune.attacks import PGD, Eps
from hydraprune.objectives import IBP, CrownIBP, FastAT, MixTrain, SmoothAdv, StageProgress, Trades

SHAPED = {"eps": Eps("0.1"), "warm_up": 0.1, "ramp": 0.5}


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (Trades(), ""),
        (Trades(attack=PGD(eps=Eps("8/255")), ramp_epochs=1), "ε rises from 0 to 8/255 over 1 epoch"),
        (FastAT(eps=Eps("8/255"), ramp_epochs=2.5), "ε rises from 0 to 8/255 over 2.5 epochs"),
        (SmoothAdv(eps=Eps("0.5"), ramp_epochs=3), "ε rises from 0 to 0.5 over 3 epochs"),
        (
            IBP(**SHAPED),
            "1 epoch on clean images, then ε rises from 0 to 0.1 over 5 epochs (smooth), then 4 epochs at ε 0.1; "
            "κ from 1 to 0 as ε rises",
        ),
        (
            CrownIBP(eps=Eps("2/255"), ramp=0.2, ramp_shape="linear", kappa_end=0.5),
            "ε rises from 0 to 2/255 over 2 epochs (linear), then 8 epochs at ε 2/255; κ from 1 to 0.5 as ε rises; "
            "β from 1 to 0",
        ),
        (MixTrain(eps=Eps("0.1")), "10 epochs at ε 0.1; w from 0.1, times 2.5 every 5 epochs"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_course_of_ten_epochs_in_words(objective, words):
    assert objective.course(10) == words


@pytest.mark.parametrize(("epoch", "share"), [(0.5, 0.0), (1.0, 0.0), (6.0, 1.0), (9.0, 1.0)])
def test_the_words_are_where_the_radius_begins_and_ends_to_rise(epoch, share):
    objective = IBP(**SHAPED)
    assert objective.rise(StageProgress(int(epoch * 10), 100, 10)) == share
    assert 0 < objective.rise(StageProgress(35, 100, 10)) < 1
    assert replace(objective, warm_up=0.0).course(10).startswith("ε rises")
