import json

import pytest

from hydraprune import reports
from hydraprune.errors import UserError
from hydraprune.reports.checked import clean
from hydraprune.reports.load import parse_results


def test_a_folder_without_results_is_a_user_error_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no results in .*'results.json' is missing") as caught:
        reports.write(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"text"', '{"schema_version": 1}', "\x00"])
def test_broken_results_are_a_user_error_in_one_line(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json") as caught:
        reports.write(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [0, 2, "1", None, "2\n3"])
def test_an_unknown_schema_is_refused_and_names_the_known_one(results, row, version):
    with pytest.raises(UserError, match=r"schema_version .* is unknown; this release reads 1") as caught:
        parse_results(results([row()], schema_version=version), "results")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"robust_accuracy": 1.5}, r"rows\[0\]: 'robust_accuracy' is 1.5, outside \[0, 1\]"),
        ({"robust_accuracy": float("nan")}, "'robust_accuracy' is nan"),
        ({"robust_accuracy": None}, "'robust_accuracy' should be a number, not null"),
        ({"robust_accuracy": True}, "'robust_accuracy' should be a number, not bool"),
        ({"size_bytes": 0}, "'size_bytes' is 0, less than 1"),
        ({"size_bytes": 3.5}, "'size_bytes' should be an integer, not float"),
        ({"stage": "prune"}, "'stage' is 'prune'; known: pretrain, finetune"),
        ({"criterion": 3}, "'criterion' should be a string, not int"),
        ({"protocol": []}, "'protocol': a mapping was expected, not list"),
        ({"layers": {}}, "'layers' should be a list, not dict"),
        ({"layers": [{"name": "a", "shape": [2], "total": 2, "kept": 3}]}, r"layers\[0\]: 3 weights kept of 2"),
        ({"stages": {"prune": 3}}, "'prune' should be a string"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(row, results, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        parse_results(results([row(**changes)]), "results")


def test_a_missing_key_is_named(row, results):
    broken = row()
    del broken["eps_text"]
    with pytest.raises(UserError, match=r"rows\[0\]: 'eps_text' is missing"):
        parse_results(results([broken]), "results")


def test_a_network_that_stands_there_twice_is_refused_for_it_would_pass_for_two_seeds(row, results):
    with pytest.raises(UserError, match=r"rows\[1\] repeats rows\[0\]: hydra erk, sparsity 0.9, seed 4"):
        parse_results(results([row("hydra", "erk", 0.9, 4), row("hydra", "erk", 0.9, 4)]), "results")


def test_no_rows_is_nothing_to_report(results):
    with pytest.raises(UserError, match="'rows' is empty"):
        parse_results(results([]), "results")


def test_optional_parts_may_be_absent(row, results):
    bare = row()
    for key in ("warnings", "artefact", "stages", "epochs", "seconds_train", "seconds_evaluate", "preserved_robust"):
        del bare[key]
    (parsed,) = parse_results(json.loads(json.dumps(results([bare]))), "results").rows
    assert (parsed.warnings, parsed.artefact, parsed.stages, parsed.preserved_robust) == ((), None, (), None)


def test_text_becomes_one_printable_line():
    assert clean("a\n b\t\x00c\ud800") == "a b \ufffdc\ufffd"
