"""Differences between networks, and whether they exceed the noise of the seeds."""

import math

import pytest
from scipy import stats

from hydraprune.reports.aggregate import group_rows
from hydraprune.reports.differences import difference, differences
from hydraprune.reports.html import render_html
from hydraprune.reports.load import parse_results
from hydraprune.reports.markdown import render_markdown
from hydraprune.reports.wording import noise_note


def groups_of(results, made):
    return group_rows(parse_results(results(made), "results").rows)


def by_seed(row, values, criterion="hydra", allocation="erk", sparsity=0.99, **changes):
    return [row(criterion, allocation, sparsity, seed, robust=value, **changes) for seed, value in enumerate(values)]


def test_a_paired_difference_by_hand(row, results):
    # 0.04, 0.06, 0.08: mean 0.06, s = 0.02, standard error 0.02 / √3; t_(0.975, 2) = 4.3027
    one, other = groups_of(results, by_seed(row, (0.75, 0.76, 0.77)) + by_seed(row, (0.71, 0.70, 0.69), "lwm"))
    found = difference(other, one)
    assert (found.better.network, found.worse.network, found.seeds) == ("hydra erk", "lwm erk", 3)
    assert found.mean == pytest.approx(0.06)
    assert found.half_width == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-4)
    assert found.p_alone == pytest.approx(stats.ttest_rel((0.75, 0.76, 0.77), (0.71, 0.70, 0.69)).pvalue)


def test_only_seeds_that_both_have_are_compared_and_one_is_not_enough(row, results):
    one, other = groups_of(results, by_seed(row, (0.7, 0.8, 0.9)) + by_seed(row, (0.6, 0.6), "lwm"))
    assert difference(one, other).seeds == 2
    assert difference(one, other).mean == pytest.approx(0.15)
    alone = groups_of(results, by_seed(row, (0.7,)) + by_seed(row, (0.6,), "lwm"))
    assert difference(*alone) is None
    assert differences(alone) == ()


def test_equal_differences_are_not_taken_for_certainty(row, results):
    """Accuracies are whole images: a deviation of exactly 0 is rounding, and the p-value stays above 0."""
    one, other = groups_of(results, by_seed(row, (0.7, 0.7, 0.7)) + by_seed(row, (0.7, 0.7, 0.7), "lwm"))
    assert difference(one, other).p_alone == 1.0
    one, other = groups_of(results, by_seed(row, (0.7, 0.7, 0.7)) + by_seed(row, (0.698, 0.698, 0.698), "lwm"))
    assert 0.05 < difference(one, other).p_alone < 1


def test_pairs_differ_in_one_thing_only_and_stand_at_one_sparsity(row, results):
    made = [
        entry
        for criterion in ("hydra", "lwm", "snip")
        for allocation in ("erk", "global")
        for sparsity in (0.9, 0.99)
        for entry in by_seed(row, (0.7, 0.8), criterion, allocation, sparsity)
    ]
    made += by_seed(row, (0.9, 0.9), pattern="channels") + by_seed(row, (0.98, 0.98), None, None, 0.0)
    found = [{one.better.network, one.worse.network} for one in differences(groups_of(results, made))]
    assert len(found) == 2 * (2 * 3 + 3) + 1
    assert {"hydra erk", "hydra erk channels"} in found
    assert {"hydra erk", "lwm global"} not in found


def test_patterns_and_schedules_are_two_things_and_not_one(row, results):
    """Of weights and cubic channels neither could say what their difference is due to."""
    made = [
        entry
        for pattern in ("weights", "channels")
        for schedule in ("one-shot", "cubic")
        for entry in by_seed(row, (0.7, 0.8), pattern=pattern, schedule=schedule)
    ]
    found = {frozenset((one.better.network, one.worse.network)) for one in differences(groups_of(results, made))}
    usual, channels, cubic, both = (f"hydra erk{name}" for name in ("", " channels", " cubic", " channels cubic"))
    assert found == {frozenset(pair) for pair in ((usual, channels), (usual, cubic), (channels, both), (cubic, both))}


def test_correction_is_holms(row, results):
    noise = (0.0, 0.01, -0.01, 0.005)
    made = by_seed(row, [0.8 + n for n in noise])
    for index, gap in enumerate((0.002, 0.01, 0.02, 0.2)):
        # Noise of its own for each, so that the differences are not constant.
        made += by_seed(row, [0.8 - gap + n * (index + 2) / 2 for n in noise], f"c{index}")
    found = differences(groups_of(results, made))
    assert len(found) == 10
    alone = sorted(one.p_alone for one in found)
    expected = [max(min(1.0, (10 - k) * alone[k]) for k in range(i + 1)) for i in range(10)]
    assert sorted(one.p for one in found) == pytest.approx(expected)
    assert all(one.p >= one.p_alone for one in found)


def test_three_verdicts(row, results):
    networks = {
        "hydra": (0.75, 0.76, 0.77),
        "lwm": (0.71, 0.70, 0.69),
        "snip": (0.70, 0.69, 0.70),
        "x": (0.2, 0.2, 0.2),
    }
    made = [entry for name, values in networks.items() for entry in by_seed(row, values, name)]
    found = {(one.better.way[0], one.worse.way[0]): one.verdict for one in differences(groups_of(results, made))}
    assert found["hydra", "x"] == "yes"
    assert found["hydra", "lwm"] == "alone"
    assert found["lwm", "snip"] == "no"


def test_the_note_says_how_many_pass_and_what_that_means(row, results):
    groups = groups_of(results, by_seed(row, (0.75, 0.76, 0.77)) + by_seed(row, (0.2, 0.21, 0.22), "lwm"))
    note = noise_note(differences(groups))
    assert note.startswith("1 of 1 differences in robust accuracy exceed the noise of the seeds.")
    assert "paired over 3 seeds" in note
    assert "Holm's correction for 1 comparison." in note
    assert noise_note(()).startswith("Nothing to tell apart from chance")


def test_every_form_of_the_report_has_the_differences(row, results, tmp_path):
    made = results(by_seed(row, (0.75, 0.76, 0.77)) + by_seed(row, (0.71, 0.70, 0.69), "lwm"))
    parsed = parse_results(made, "results")
    for text in (render_markdown(parsed), render_html(parsed, tmp_path)):
        assert "Which differences exceed the noise" in text
    alone = parse_results(results(by_seed(row, (0.75, 0.76, 0.77))), "results")
    assert "Which differences exceed the noise" not in render_markdown(alone)


def test_certified_accuracies_are_compared_too_where_there_are_some(row, results, tmp_path):
    def certified(values, criterion):
        rows = by_seed(row, (0.7, 0.8, 0.9), criterion)
        by = {"method": "ibp", "norm": "linf", "eps_text": "0.1", "n": 100}
        return [
            entry | ({} if value is None else {"certified_accuracy": value, "certification": by})
            for entry, value in zip(rows, values, strict=True)
        ]

    made = results(certified((0.5, 0.51, None), "hydra") + certified((0.3, 0.3, 0.9), "lwm"))
    groups = group_rows(parse_results(made, "results").rows)
    (found,) = differences(groups, "certified")
    assert (found.better.network, found.seeds) == ("hydra erk", 2)
    assert found.mean == pytest.approx(0.205)
    text = render_markdown(parse_results(made, "results"))
    assert "differences in certified accuracy" in text
    assert "by points of certified accuracy" in render_html(parse_results(made, "results"), tmp_path)


def test_patterns_schedules_regrowth_and_controls_are_told_apart(row, results):
    made = by_seed(row, (0.7, 0.8)) + by_seed(row, (0.6, 0.7), pattern="n-of-m(n=1)", shuffled=True)
    made += by_seed(row, (0.5, 0.5), pattern="weights", schedule="cubic", regrowth="rigl", shuffled=False)
    assert [group.network for group in groups_of(results, made)] == [
        "hydra erk",
        "hydra erk n-of-m(n=1) shuffled",
        "hydra erk cubic rigl",
    ]
