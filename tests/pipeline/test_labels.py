"""Names that tell settings apart: in rows, file names and the grid of `compare`."""

from dataclasses import replace

import pytest

from hydraprune import pipeline
from hydraprune.errors import UserError
from hydraprune.pipeline import Comparison, Pruning, Recipe, labels, runs
from hydraprune.sparsity import (
    CRITERIA,
    PATTERNS,
    Channels,
    Cubic,
    Function,
    Global,
    Hydra,
    Learned,
    NofM,
    RigL,
    Steps,
    Weights,
)


def test_a_label_shows_what_is_not_at_its_default():
    axes = labels.axes_of(Pruning(Hydra("random"), Learned(start="erk", settle=1.0), pattern=NofM(1, 4)))
    assert axes == {
        "criterion": "hydra(init=random)",
        "allocation": "learned(start=erk, settle=1.0)",
        "pattern": "n-of-m(n=1)",
        "schedule": "one-shot",
        "regrowth": "fixed",
        "shuffled": False,
    }


@pytest.mark.parametrize(
    "criterion", [*(CRITERIA[name]() for name in CRITERIA), Hydra("magnitude"), Function("math:sqrt")], ids=str
)
def test_what_a_label_shows_is_read_back(criterion):
    shown = labels.label(pipeline.as_dict(criterion), CRITERIA)
    assert labels.alternative(shown, CRITERIA, None) == criterion


def test_a_name_alone_is_what_the_recipe_configures_and_brackets_are_not():
    assert labels.alternative("n-of-m", PATTERNS, NofM(1, 8)) == NofM(1, 8)
    assert labels.alternative("n-of-m", PATTERNS, Channels()) == NofM()
    assert labels.alternative(" n-of-m( n = 1 ) ", PATTERNS, NofM(3, 8)) == NofM(1, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n-of", "unknown pattern 'n-of'"),
        ("n-of-m(", "not a name with settings"),
        ("n-of-m(1, 4)", "not a name with settings"),
        ("n-of-m(n=x)", r"n-of-m\(n=x\)': n: expected a whole number"),
        ("n-of-m(k=1)", r"n-of-m\(k=1\)': .*k"),
        ("n-of-m(n=9)", "n-of-m needs 1 <= n <= m"),
        ("channels(n=1)", r"channels\(n=1\)': "),
    ],
)
def test_a_bad_label_is_one_clear_line(text, said):
    with pytest.raises(UserError, match=said) as caught:
        labels.alternative(text, PATTERNS, Weights())
    assert "\n" not in str(caught.value)


def test_lists_are_split_outside_brackets():
    assert labels.split("hydra, n-of-m(n=1, m=4),b") == ["hydra", "n-of-m(n=1, m=4)", "b"]


def test_every_cell_has_a_file_of_its_own():
    prunings = [
        Pruning(criterion, allocation, 0.9, pattern, schedule, regrowth, shuffle=shuffle)
        for criterion in (Hydra("random"), Function("math:sqrt"))
        for allocation in (Global(), Global(min_kept=2), Global(min_per_output=2))
        for pattern in (Weights(), NofM(1, 8), NofM(1, 4))
        for schedule in (Cubic(), Steps(2), Steps(rewind=True))
        for regrowth in (pipeline.Pruning().regrowth, RigL(), RigL(every=0.5))
        for shuffle in (False, True)
    ]
    files = {labels.file_name(labels.axes_of(prune), prune.sparsity, 0) for prune in prunings}
    assert len(files) == len(prunings)
    assert all(set(name).isdisjoint(r' /\:*?"<>|()') for name in files)
    assert labels.file_name(labels.axes_of(Pruning()), 0.99, 0) == "hydra-global-0.99-s0"
    close = {labels.file_name(labels.axes_of(Pruning()), sparsity, 0) for sparsity in (0.9999999, 0.99999999)}
    assert len(close) == 2


def test_a_grid_is_the_product_of_its_axes():
    grid = Comparison(
        ("hydra", "hydra(init=random)", "lwm"),
        ("global",),
        (0.9, 0.95),
        (0, 1),
        patterns=("weights", "n-of-m(n=1)"),
        schedules=("one-shot", "cubic"),
    )
    cells = list(runs._cells(Recipe(compare=grid)))
    named = {(labels.cell_name(labels.axes_of(cell.prune)), cell.prune.sparsity, cell.seed) for cell in cells}
    assert len(cells) == len(named) == 3 * 2 * 2 * 2 * 2
    assert ("hydra(init=random)/global/n-of-m(n=1)/cubic", 0.95, 1) in named
    assert all(cell.prune.regrowth == Recipe().prune.regrowth for cell in cells)


def test_a_grid_names_nothing_twice_and_asks_for_what_can_be_had():
    twice = Recipe(prune=Pruning(Hydra("random")), compare=Comparison(("hydra", "hydra(init=random)")))
    with pytest.raises(UserError, match=r"the grid has criterion 'hydra\(init=random\)' twice"):
        list(runs._cells(twice))
    dense = Recipe(compare=Comparison(sparsities=(0.3,), patterns=("n-of-m",)))
    with pytest.raises(UserError, match=r"removes at least 0\.5 of the weights"):
        list(runs._cells(dense))
    repeated = Recipe(compare=Comparison(patterns=("weights", "weights")))
    assert repeated.complaints() == ["compare.patterns needs different values, got ['weights', 'weights']"]


def test_settings_and_patterns_stand_apart_in_results_files_and_report(quick, tmp_path):
    grid = Comparison(("hydra", "hydra(init=random)"), ("global",), (0.9,), (0,), patterns=("weights", "channels"))
    recipe = replace(quick, data=replace(quick.data, train_fraction=0.1), compare=grid)
    result = pipeline.compare(recipe, tmp_path)
    pruned = [row for row in result.rows if row["criterion"]]
    assert sorted({row["criterion"] for row in pruned}) == ["hydra", "hydra(init=random)"]
    assert len({row["artefact"] for row in pruned}) == len({row["stages"]["finetune"] for row in pruned}) == 4
    assert len(list(result.paths.artefacts.iterdir())) == 5
    assert len({row["stages"]["pretrain"] for row in result.rows}) == 1
