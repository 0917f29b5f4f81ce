import math

import pytest

from hydraprune.reports.aggregate import Spread, group_rows
from hydraprune.reports.load import parse_results
from hydraprune.reports.wording import (
    delivered_percent,
    facts,
    file_size,
    listed,
    percent,
    ratio,
    remarks,
    sparsity_percent,
    verdict,
)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (percent(Spread(0.8789, 0.0123)), "87.9 ± 1.2"),
        (percent(Spread(0.8789, None)), "87.9"),
        (percent(None), "–"),
        (sparsity_percent(0.99), "99"),
        (sparsity_percent(0.995), "99.5"),
        (sparsity_percent(0.9), "90"),
        (delivered_percent(0.99003), "99.00"),
        (delivered_percent(0.0), "0.00"),
        (delivered_percent(0.9), "90.00"),
        (delivered_percent(1.0), "100.00"),
        (delivered_percent(0.99995), "99.9950"),
        (file_size(999), "999 B"),
        (file_size(4321), "4.32 kB"),
        (file_size(12_345), "12.3 kB"),
        (file_size(153_000), "153 kB"),
        (file_size(999_600), "1.00 MB"),
        (file_size(58_600_000), "58.6 MB"),
        (file_size(2e12), "2,000 GB"),
        (ratio(35.4), "35×"),
        (ratio(3.44), "3.4×"),
        (ratio(9.96), "10×"),
        (ratio(math.inf), "–"),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_read_as_people_write_them(made, expected):
    assert made == expected


def parsed(value):
    made = parse_results(value, "results")
    return made, group_rows(made.rows)


def test_verdict_is_computed_from_the_rows(row, results):
    rows = [
        row(robust=0.8, benign=0.98),
        row("hydra", "global", 0.99, robust=0.76, benign=0.931, dense_robust=0.8, size_bytes=4_500),
        row("lwm", "global", 0.99, robust=0.7, dense_robust=0.8),
    ]
    text = verdict(parsed(results(rows))[1])
    assert text == (
        "At 99 % sparsity the best network (hydra global) keeps 95.0 % of the dense network's robust accuracy "
        "(76.0 of 80.0 %) and 95.0 % of its benign accuracy, at 1/34 of the bytes (4.50 kB instead of 153 kB; one "
        "seed). The next best at that sparsity, lwm global, reaches 70.0 % robust accuracy; with one seed each, the "
        "difference of 6.0 points may be chance."
    )


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ((0.71, 0.70, 0.69), "6.0 points exceeds the noise of the seeds (3 pairs, p = 0.035)."),
        ((0.80, 0.70, 0.75), "1.0 points is within the noise of the seeds (3 pairs, p = 0.79)."),
    ],
)
def test_verdict_does_not_sell_noise_as_a_lead(row, results, second, said):
    rows = [row("hydra", "erk", 0.9, i, robust=value) for i, value in enumerate((0.75, 0.76, 0.77))]
    rows += [row("lwm", "erk", 0.9, i, robust=value) for i, value in enumerate(second)]
    assert said in verdict(parsed(results(rows))[1])


def test_the_lead_of_the_best_of_many_is_corrected_for_their_number(row, results):
    networks = {"hydra": (0.75, 0.76, 0.77), "lwm": (0.71, 0.70, 0.69), "snip": (0.5, 0.5, 0.6), "random": (0.1,) * 3}
    rows = [
        row(name, "erk", 0.9, i, robust=value) for name, found in networks.items() for i, value in enumerate(found)
    ]
    said = "is within the noise of the seeds (3 pairs, p = 0.11 after correction for 3 rivals)."
    assert said in verdict(parsed(results(rows))[1])


def test_verdict_names_the_smallest_network_that_keeps_nearly_all(row, results):
    rows = [row(), row("lwm", "erk", 0.9, robust=0.87, size_bytes=15_000), row("lwm", "erk", 0.99, robust=0.2)]
    text = verdict(parsed(results(rows))[1])
    last = "The smallest network that keeps at least 95 % of the robust accuracy is lwm erk at 90 % sparsity, with "
    assert text.endswith(last + "15.0 kB.")


def test_verdict_of_a_dense_network_without_robustness_claims_no_share(row, results):
    rows = [row(robust=0.0, dense_robust=0.0), row("lwm", "erk", 0.9, robust=0.0, dense_robust=0.0)]
    assert "keeps no measurable share of robust accuracy" in verdict(parsed(results(rows))[1])


def test_verdict_of_a_dense_network_alone(row, results):
    assert verdict(parsed(results([row()]))[1]).startswith(
        "Only the dense network was evaluated: 98.0 % benign and 88.0"
    )


def test_facts_state_the_exact_eps_the_protocol_and_what_the_number_is_worth(row, results):
    stated = dict(facts(*parsed(results([row(), row("hydra", "erk", 0.9, epochs={"pretrain": 20, "prune": 0})]))))
    assert stated["Threat model"] == "linf ball of radius ε = 8/255 (exactly 0.03137254901960784), pixels in [0, 1]"
    assert stated["Attack"] == "pgd50x10: steps 50, restarts 10, step size 0.025, start uniform"
    assert stated["Test images"] == "497"
    assert "upper bound on the true robust accuracy" in stated["What robust accuracy means"]
    assert stated["Dense network"] == "98.0 % benign and 88.0 % robust accuracy; 37,520 prunable weights; 153 kB"
    assert stated["Epochs"] == "dense and hydra: 20 pretrain"


def test_a_protocol_that_is_not_known_is_not_called_empirical(row, results):
    stated = dict(facts(*parsed(results([row(attack="oracle", protocol={"name": "oracle"})]))))
    assert "what oracle promises is not known" in stated["What robust accuracy means"]


def test_remarks_gather_warnings_seeds_starved_layers_and_an_unfinished_run(row, results):
    starved = [{"name": "a", "shape": [2], "total": 2, "kept": 0}]
    rows = [
        row(),
        row(seed=1, warnings=["zero gradients"]),
        row("lwm", "erk", 0.9, layers=starved, warnings=["zero gradients"]),
    ]
    assert remarks(*parsed(results(rows, complete=False))) == [
        "The run is not complete: more networks will come, and the verdict may change.",
        "zero gradients (2 of 3 networks, the first is dense at 0 %, seed 1)",
        "Not every network was made with the same seeds; compare their means with care.",
        "A layer lost every weight in: lwm erk at 90 %, seed 0.",
    ]


def test_nothing_to_remark_is_no_remark(row, results):
    assert remarks(*parsed(results([row(), row("lwm", "erk", 0.9)]))) == []
