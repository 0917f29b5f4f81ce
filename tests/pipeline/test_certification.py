"""What a recipe asks to be proven: measured after the attack, resumed, and told beside it."""

import json
from dataclasses import replace

import pytest
import torch

from hydraprune import reports
from hydraprune.attacks import Eps
from hydraprune.errors import Interrupted, UserError
from hydraprune.evaluation import certified
from hydraprune.objectives import IBP, Benign
from hydraprune.pipeline import Certification, Model, descriptions, run, stages
from hydraprune.pipeline.project import open_project


@pytest.fixture
def proven(quick):
    """The job in miniature, trained on bounds and with something to prove."""
    measured = replace(quick.evaluation, certification=Certification("crown-ibp", Eps("1/1000")))
    return replace(quick, objective=IBP(eps=Eps("0.01")), model=Model(init="ibp"), evaluation=measured)


def test_each_network_is_certified_and_the_report_says_by_what(proven, tmp_path):
    dense, compact = run(proven, tmp_path).rows
    for row in (dense, compact):
        about = row["certification"]
        assert (about["method"], about["norm"], about["eps_text"], about["n"]) == ("crown-ibp", "linf", "1/1000", 60)
        assert row["certified_accuracy"] == about["certified"] / 60
        assert 0 < about["certified"] + about["undecided"] <= 60
    assert compact["preserved_certified"] == compact["certified_accuracy"] / dense["certified_accuracy"]
    assert dense["preserved_certified"] == 1.0
    written = reports.write(tmp_path)
    for page in (written.markdown.read_text(), written.html.read_text()):
        assert "preserved certified %" in page
        assert "crown-ibp, linf, ε = 1/1000, 60 test images" in page
    assert "certi-" in "".join(
        str(column.header)
        for column in reports.terminal_table(json.loads((tmp_path / "results.json").read_text())).columns
    )


def test_only_what_stood_the_attack_in_the_same_ball_is_worth_a_proof(proven, tmp_path):
    """An image that was attacked cannot be certified, and would take longest to give up."""
    same = replace(proven.evaluation, certification=Certification("ibp", Eps("0.1")))
    recipe = replace(proven, evaluation=same)
    (row, _) = run(recipe, tmp_path).rows
    about = row["certification"]
    assert about["certified"] + about["undecided"] == round(row["robust_accuracy"] * row["n"])


def test_a_radius_of_zero_is_the_radius_that_is_certified(proven, tmp_path):
    """A proof for the image itself is not a proof in the objective's ball."""
    measured = replace(proven.evaluation, certification=Certification("ibp", Eps("0")))
    project = open_project(replace(proven, evaluation=measured), tmp_path)
    assert descriptions.certified_ball(project) == ("linf", Eps("0"))


def test_without_it_nothing_is_certified_and_no_stage_has_another_name(quick, proven, tmp_path):
    rows = run(quick, tmp_path).rows
    assert all("certified_accuracy" not in row and "preserved_certified" not in row for row in rows)
    with_it = replace(quick, evaluation=proven.evaluation)
    network = descriptions.pretrain_stage(open_project(quick, tmp_path))
    assert descriptions.pretrain_stage(open_project(with_it, tmp_path)) == network
    one, other = (descriptions.evaluate_stage(open_project(recipe, tmp_path), network) for recipe in (quick, with_it))
    assert one == other


def test_a_certification_that_is_stopped_goes_on(quick, tmp_path, monkeypatch):
    certification = Certification("ibp", Eps("0.001"), batch_size=2)
    recipe = replace(quick, evaluation=replace(quick.evaluation, certification=certification))
    prove, calls = certified._Prover.prove, []

    def stopping(self, batch, number):
        calls.append(number)
        if len(calls) == 3:
            raise Interrupted
        return prove(self, batch, number)

    monkeypatch.setattr(certified._Prover, "prove", stopping)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path)
    assert list((tmp_path / "stages").glob("certify-*/checkpoint.pt"))
    run(recipe, tmp_path)
    assert calls[:4] == [0, 1, 2, 2]
    assert not list((tmp_path / "stages").glob("certify-*/checkpoint.pt"))


def test_the_initialisation_for_bounds_is_in_the_network_and_in_the_name_of_its_stages(quick, proven, tmp_path):
    plain, other = (open_project(recipe, tmp_path) for recipe in (quick, replace(quick, model=Model(init="ibp"))))
    assert descriptions.pretrain_stage(plain) != descriptions.pretrain_stage(other)
    weight = dict(stages._fresh(other).named_parameters())["network.fc1.weight"]
    assert float(weight.detach().std()) == pytest.approx((2 * torch.pi) ** 0.5 / weight.shape[1], rel=0.05)
    last = dict(stages._fresh(other).named_parameters())["network.fc2.weight"]
    assert float(last.detach().std()) > 2 * (2 * torch.pi) ** 0.5 / last.shape[1]


@pytest.mark.parametrize(
    ("certification", "answer"),
    [
        (Certification("magic", Eps("0.1")), "certification.method 'magic' is unknown; known: none, ibp, crown-ibp"),
        (Certification("ibp", batch_size=0), "evaluation.certification.batch_size must be at least 1, got 0"),
        (Certification("ibp"), "certification.eps is needed: the objective has no ball of its own"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(quick, tmp_path, certification, answer):
    recipe = replace(quick, objective=Benign(), evaluation=replace(quick.evaluation, certification=certification))
    with pytest.raises(UserError) as error:
        run(recipe, tmp_path)
    assert answer in str(error.value)
