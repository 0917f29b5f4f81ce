import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydraprune.reports.aggregate import (
    Spread,
    dense_of,
    group_rows,
    ranking_at_highest_sparsity,
    smallest_that_keeps,
)
from hydraprune.reports.load import parse_results


def groups_of(results):
    return group_rows(parse_results(results, "results").rows)


def test_mean_and_sample_std_are_those_worked_out_by_hand(row, results):
    # 0.80, 0.82, 0.87: mean 0.83, deviations -0.03, -0.01, 0.04, squares 0.0026, / (3 - 1) = 0.0013
    rows = [row("hydra", "erk", 0.9, seed=i, robust=value) for i, value in enumerate((0.80, 0.82, 0.87))]
    (group,) = groups_of(results(rows))
    assert group.robust.mean == pytest.approx(0.83)
    assert group.robust.std == pytest.approx(math.sqrt(0.0013))


def test_one_seed_has_no_spread(row, results):
    (group,) = groups_of(results([row("hydra", "erk", 0.9)]))
    assert group.robust == Spread(0.88, None)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_spread_lies_within_the_values(values):
    spread = Spread.of(values)
    assert min(values) - 1e-12 <= spread.mean <= max(values) + 1e-12
    assert spread.std == pytest.approx(statistics.stdev(values))


def test_dense_comes_first_then_sparsity_rises_whatever_order_the_rows_have(row, results):
    rows = [row("lwm", "erk", 0.99), row("hydra", "erk", 0.99), row(), row("hydra", "erk", 0.9)]
    order = [(group.network, group.sparsity) for group in groups_of(results(rows))]
    assert order == [("dense", 0.0), ("hydra erk", 0.9), ("lwm erk", 0.99), ("hydra erk", 0.99)]


def test_best_is_marked_once_per_sparsity_and_only_against_rivals(row, results):
    rows = [
        row(robust=0.99),
        row("hydra", "erk", 0.9, robust=0.8),
        row("lwm", "erk", 0.9, robust=0.9),
        row("hydra", "erk", 0.99, robust=0.5),
    ]
    assert [group.network for group in groups_of(results(rows)) if group.best] == ["lwm erk"]


def test_networks_measured_differently_never_share_a_mean(row, results):
    rows = [row("hydra", "erk", 0.9, 0), row("hydra", "erk", 0.9, 1, attack="pgd10x1", robust=0.95)]
    groups = groups_of(results(rows))
    assert [len(group.rows) for group in groups] == [1, 1]
    assert not any(group.best for group in groups)


def test_an_attack_seed_in_the_protocol_does_not_split_the_seeds(row, results):
    rows = [row("hydra", "erk", 0.9, seed, protocol={"name": "pgd", "seed": seed}) for seed in range(3)]
    assert [len(group.rows) for group in groups_of(results(rows))] == [3]


def test_ratios_are_those_worked_out_by_hand(row, results):
    rows = [
        row("hydra", "erk", 0.9, seed, size_bytes=size, dense_size_bytes=1000, weights_total=1000, weights_kept=kept)
        for seed, (size, kept) in enumerate(((100, 90), (50, 110)))
    ]
    (group,) = groups_of(results(rows))
    assert group.byte_ratio == 15  # (10 + 20) / 2
    assert group.weight_ratio == 10  # 2000 / 200


def test_a_network_without_weights_has_an_infinite_ratio_and_does_not_divide_by_zero(row, results):
    (group,) = groups_of(results([row("hydra", "erk", 1.0, weights_kept=0)]))
    assert group.weight_ratio == math.inf


def test_a_dense_accuracy_of_zero_leaves_nothing_to_preserve(row, results):
    groups = groups_of(results([row(robust=0.0, dense_robust=0.0), row("lwm", "erk", 0.9, robust=0, dense_robust=0)]))
    assert [group.preserved_robust for group in groups] == [None, None]
    assert smallest_that_keeps(groups, 0.5) is None


def test_ranking_is_of_the_highest_sparsity_and_smallest_is_of_fewest_bytes(row, results):
    rows = [
        row(),
        row("hydra", "erk", 0.9, robust=0.87, size_bytes=15_000),
        row("lwm", "erk", 0.95, robust=0.86, size_bytes=8_000),
        row("lwm", "erk", 0.99, robust=0.3),
        row("hydra", "erk", 0.99, robust=0.6),
    ]
    groups = groups_of(results(rows))
    assert [group.network for group in ranking_at_highest_sparsity(groups)] == ["hydra erk", "lwm erk"]
    smallest = smallest_that_keeps(groups, 0.95)
    assert smallest is not None and smallest.sparsity == 0.95
    assert dense_of(groups) is groups[0]


def test_kept_share_of_a_layer_is_over_all_seeds(row, results):
    def layers(kept):
        return [{"name": "a", "shape": [10], "total": 10, "kept": kept}]

    rows = [row("hydra", "erk", 0.9, seed, layers=layers(kept)) for seed, kept in enumerate((1, 4))]
    (group,) = groups_of(results(rows))
    assert group.kept_share("a") == 0.25
    assert group.kept_share("b") is None
