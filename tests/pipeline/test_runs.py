"""Runs: stages once, numbers that hold together, any network, any data, any number of processes."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hydraprune import data, evaluation, export
from hydraprune.attacks import PGD, Eps
from hydraprune.data import Dataset, Split
from hydraprune.engine import Hardware, Training
from hydraprune.errors import Interrupted, UserError
from hydraprune.evaluation import empirical
from hydraprune.objectives import Benign
from hydraprune.pipeline import (
    Recipe,
    compare,
    descriptions,
    make_stage,
    open_target,
    provenance,
    run,
    stages,
)
from hydraprune.pipeline.finished import load_network
from hydraprune.pipeline.project import open_project
from hydraprune.sparsity import Criterion, Hydra, LeastWeightMagnitude, Uniform


def test_a_finished_stage_is_never_run_again(quick, tmp_path, monkeypatch):
    first = run(quick, tmp_path)
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("a finished stage was trained again"))
    again = run(quick, tmp_path)
    assert [row["robust_accuracy"] for row in again.rows] == [row["robust_accuracy"] for row in first.rows]


def test_rows_say_what_was_asked_delivered_and_preserved(quick, tmp_path):
    result = run(quick, tmp_path)
    dense, row = result.rows
    assert (dense["criterion"], dense["sparsity"], dense["sparsity_delivered"]) == (None, 0.0, 0.0)
    assert (row["criterion"], row["allocation"], row["sparsity"]) == ("hydra", "global", 0.9)
    assert row["weights_total"] == 144 + 4608 + 65536 + 1280
    assert row["weights_kept"] == 71568 - 64411 == sum(layer["kept"] for layer in row["layers"])
    assert row["sparsity_delivered"] == pytest.approx(64411 / 71568, rel=1e-12)
    assert row["preserved_benign"] == row["benign_accuracy"] / dense["benign_accuracy"]
    assert row["epochs"] == {"pretrain": 2, "prune": 1, "finetune": 1}
    assert (row["eps"], row["eps_text"], row["attack"], row["n"]) == (0.1, "0.1", "pgd3x2", 60)
    assert row["robust_accuracy"] <= row["benign_accuracy"]
    assert row["size_bytes"] == (tmp_path / row["artefact"]).stat().st_size < row["dense_size_bytes"] / 5
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["rows"] == result.rows
    assert written["schema_version"] == 1
    assert written["complete"] is True
    origin = {"commit", "torch", "processor", "threads", "dtype", "seconds"}
    assert all(origin <= each["provenance"].keys() for each in (written, *written["rows"]))


def test_the_artefact_predicts_to_the_bit_what_was_evaluated(quick, tmp_path):
    result = run(quick, tmp_path)
    project = open_project(quick, tmp_path)
    network = load_network(project, descriptions.finetune_stage(project))
    images = project.test.images.float() / 255
    with torch.no_grad():
        assert torch.equal(result.network()(images), network(images))
    target = open_target(tmp_path)
    measured = evaluation.evaluate(target.model, project.test, quick.evaluation.protocol, seed=quick.seed)
    assert measured.robust_accuracy == result.rows[1]["robust_accuracy"]
    assert (target.norm, target.eps.text) == ("linf", "0.1")


def test_pruned_weights_are_exactly_zero_in_the_artefact(quick, tmp_path):
    loaded = export.load_compact(run(quick, tmp_path).artefact)
    state = loaded.model.state_dict()
    assert len(loaded.masks) == 4
    for name, mask in loaded.masks.items():
        assert not state[name][~mask].any()
        assert not torch.signbit(state[name][~mask]).any()


class TiedAutoencoder(nn.Module):
    """Linear 64 → 32 and back with the same weight, depthwise and grouped convolutions before it."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Linear(64, 64)
        self.two = nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        x = self.norm(self.depthwise(self.grouped(x))).relu().mean(1).flatten(1)
        return self.out(self.two(self.one(x).relu()).relu())


def test_a_network_with_tied_weights_goes_from_training_to_artefact_and_stays_tied(quick, tmp_path):
    result = run(quick, tmp_path, model=TiedAutoencoder())
    row = result.rows[1]
    assert row["weights_total"] == 36 + 36 + 64 * 64 + 640
    loaded = result.network(TiedAutoencoder())
    assert loaded.one.weight is loaded.two.weight
    assert int((loaded.one.weight != 0).sum()) <= row["weights_kept"]


def test_a_stage_folder_is_named_by_what_determines_it(quick, tmp_path):
    project = open_project(quick, tmp_path)
    keys = {
        name: descriptions.finetune_stage(open_project(changed, tmp_path)).key
        for name, changed in {
            "same": replace(quick, name="another name"),
            "threads": replace(quick, hardware=Hardware(accelerator="cpu", threads=2)),
            "seed": replace(quick, seed=1),
            "sparsity": replace(quick, prune=replace(quick.prune, sparsity=0.91)),
            "layout": replace(quick, hardware=replace(quick.hardware, channels_last=True)),
            "epochs": replace(quick, pretrain=replace(quick.pretrain, epochs=3)),
        }.items()
    }
    key = descriptions.finetune_stage(project).key
    assert keys["same"] == keys["threads"] == key
    assert len({key, keys["seed"], keys["sparsity"], keys["layout"], keys["epochs"]}) == 5


def test_what_the_validation_attacks_with_names_a_stage_where_it_selects(quick, tmp_path):
    """With an objective without a ball it is the protocol's, which says nothing else of how a network is trained."""

    def keys(select: str, eps: str = "0.1", **measured: int) -> list[str]:
        protocol = replace(quick.evaluation.protocol, attack=PGD(eps=Eps(eps), steps=3))
        recipe = replace(
            quick,
            objective=Benign(),
            pretrain=replace(quick.pretrain, select=select),
            prune=replace(quick.prune, search=replace(quick.prune.search, select=select)),
            finetune=replace(quick.finetune, select=select),
            evaluation=replace(quick.evaluation, protocol=protocol, **measured),
        )
        project = open_project(recipe, tmp_path)
        stages = descriptions.pretrain_stage, descriptions.prune_stage, descriptions.finetune_stage
        return [stage(project).key for stage in stages]

    best = keys("best")
    assert keys("best", eps="0.3")[0] != best[0]
    assert keys("best", batch_size=7)[0] != best[0]
    assert keys("last", eps="0.3", batch_size=7) == keys("last")
    assert keys("best", eps="0.3", validation_steps=0) == keys("best", validation_steps=0)


@pytest.mark.parametrize("stage", ["prune", "finetune"])
def test_a_stage_that_selects_is_named_by_the_validation_even_where_its_parent_does_not(quick, tmp_path, stage):
    best = Training(epochs=1, select="best")
    one = replace(quick, objective=Benign())
    one = replace(one, prune=replace(one.prune, search=best)) if stage == "prune" else replace(one, finetune=best)
    other = replace(one, evaluation=replace(one.evaluation, batch_size=7))
    describe = {"prune": descriptions.prune_stage, "finetune": descriptions.finetune_stage}[stage]
    projects = [open_project(recipe, tmp_path) for recipe in (one, other)]
    assert descriptions.pretrain_stage(projects[0]) == descriptions.pretrain_stage(projects[1])
    assert describe(projects[0]).key != describe(projects[1]).key


def test_more_test_images_than_there_are_are_refused_before_anything_is_trained(quick, tmp_path):
    recipe = replace(quick, evaluation=replace(quick.evaluation, n=498))
    with pytest.raises(UserError, match=r"evaluation.n asks for 498 test images and 'digits' has 497"):
        run(recipe, tmp_path)
    assert not list(tmp_path.iterdir())
    open_project(replace(recipe, evaluation=replace(recipe.evaluation, n=497)), tmp_path)


def test_the_search_does_not_matter_to_criteria_that_do_not_search(quick, tmp_path):
    lwm = replace(quick, prune=replace(quick.prune, criterion=LeastWeightMagnitude()))
    longer = replace(lwm, prune=replace(lwm.prune, search=replace(lwm.prune.search, epochs=5)))
    first, second = (open_project(recipe, tmp_path) for recipe in (lwm, longer))
    assert descriptions.prune_stage(first).key == descriptions.prune_stage(second).key
    assert descriptions.finetune_stage(first).key != descriptions.finetune_stage(second).key


class Own(nn.Module):
    """A user's network: its own forward, grouped convolution, BatchNorm, no normalisation layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        hidden = torch.relu(self.bn(self.first(images)))
        return self.head((hidden + torch.relu(self.second(hidden))).mean((2, 3)))


def own_data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (150, 3, 9, 7), generator=generator, dtype=torch.uint8)
    labels = torch.arange(150) % 3
    images[labels == 1, 0] = 255
    images[labels == 2, 1] = 255
    return Dataset("own", ("a", "b", "c"), Split(images[:120], labels[:120]), Split(images[120:], labels[120:]))


def whole(recipe: Recipe) -> Recipe:
    """The recipe on all images of a small data set."""
    data_whole = replace(recipe.data, train_fraction=1.0)
    return replace(recipe, data=data_whole, evaluation=replace(recipe.evaluation, n=None))


def test_a_users_network_and_data_run_through_python_and_stay_as_they_were(quick, tmp_path):
    model, dataset = Own(), own_data()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = replace(
        quick, data=replace(quick.data, train_fraction=1.0), evaluation=replace(quick.evaluation, n=None)
    )
    result = run(recipe, tmp_path, model=model, dataset=dataset)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert result.rows[1]["weights_total"] == 8 * 27 + 8 * 36 + 24
    compact = result.network(Own())
    assert compact(torch.rand(2, 3, 9, 7)).shape == (2, 3)
    with pytest.raises(UserError, match="does not know"):
        result.network()


def test_other_weights_or_other_data_are_other_stages(quick, tmp_path):
    torch.manual_seed(0)
    model, dataset, recipe = Own(), own_data(), whole(quick)
    key = descriptions.pretrain_stage(open_project(recipe, tmp_path, model=model, dataset=dataset)).key
    with torch.no_grad():
        model.head.bias[0] += 1
    assert descriptions.pretrain_stage(open_project(recipe, tmp_path, model=model, dataset=dataset)).key != key


def test_the_search_sees_the_share_of_the_images_that_is_asked(quick, tmp_path, monkeypatch):
    seen = []
    batches = stages.Batches
    monkeypatch.setattr(
        stages, "Batches", lambda images, *rest, **named: seen.append(images) or batches(images, *rest, **named)
    )
    half = replace(quick, prune=replace(quick.prune, criterion=Hydra(), train_fraction=0.5))
    run(half, tmp_path)
    pretrained, searched, finetuned = map(len, seen)
    assert pretrained == finetuned
    assert abs(searched - pretrained / 2) <= 10  # to the image in each of ten classes


@pytest.mark.parametrize(
    ("program", "shown"), [("/a/b/hydraprune", "hydraprune"), ("/x/hydraprune/__main__.py", "python -m hydraprune")]
)
def test_the_command_on_record_can_be_given_again(quick, tmp_path, monkeypatch, program, shown):
    monkeypatch.setattr(sys, "argv", [program, "run", "a b.yaml"])
    run(quick, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["command"] == f"{shown} run 'a b.yaml'"


def test_a_share_of_the_images_names_a_stage_only_where_it_counts(quick, tmp_path):
    def key(criterion: Criterion, share: float) -> str:
        prune = replace(quick.prune, criterion=criterion, train_fraction=share)
        return descriptions.prune_stage(open_project(replace(quick, prune=prune), tmp_path)).key

    assert key(Hydra(), 0.5) != key(Hydra(), 1.0)
    assert key(LeastWeightMagnitude(), 0.5) == key(LeastWeightMagnitude(), 1.0)


def test_a_network_that_does_not_fit_the_data_is_refused(quick, tmp_path):
    with pytest.raises(UserError, match=r"cannot take images of shape \(1, 8, 8\)"):
        run(quick, tmp_path, model=Own())
    with pytest.raises(UserError, match=r"expected \(1, 10\) logits"):
        run(quick, tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))


class Odd(nn.Module):
    """A network whose forward pass ends as it is told."""

    def __init__(self, end) -> None:
        super().__init__()
        self.head, self.end = nn.Linear(64, 10), end

    def forward(self, images):
        return self.end(self.head(images.flatten(1)))


def refusing(_):
    raise AssertionError


@pytest.mark.parametrize(
    ("end", "answer"),
    [
        (refusing, r"cannot take images of shape \(1, 8, 8\): AssertionError$"),
        (lambda logits: logits.nothing, "cannot take images .* has no attribute 'nothing'$"),
        (lambda logits: (logits, logits), r"returns a tuple for one image, expected \(1, classes\) logits"),
        (lambda logits: logits[0], r"returns \(10,\) for one image, expected \(1, classes\) logits"),
    ],
    ids=["assertion", "attribute", "tuple", "no batch"],
)
def test_a_network_that_fails_in_its_own_way_is_one_line(quick, tmp_path, end, answer):
    with pytest.raises(UserError, match=answer):
        open_project(quick, tmp_path, model=Odd(end))


def test_a_buffer_of_infinities_is_told_apart_like_any_other(quick, tmp_path):
    model, keys = Odd(torch.nn.Identity()), []
    for value in (float("-inf"), float("inf"), float("nan"), 0.0, 0.0):
        model.register_buffer("limits", torch.full((3,), value))
        keys.append(descriptions.pretrain_stage(open_project(quick, tmp_path, model=model)).key)
    assert len(set(keys)) == 4
    assert keys[3] == keys[4]


def test_a_network_is_taken_in_as_a_copy_on_the_cpu(quick, tmp_path, monkeypatch):
    """Wherever the user's lies; tensors on "meta" stand for those on a GPU, and their copy for what comes of them."""
    model, built = Own().to("meta"), Own()
    monkeypatch.setattr(Own, "cpu", lambda self: built)
    project = open_project(whole(quick), tmp_path, model=model, dataset=own_data())
    assert {parameter.device.type for parameter in project.build().parameters()} == {"cpu"}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_commit_on_record_is_of_hydraprune_and_not_of_the_repository_that_a_copy_lies_in(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b@c", *arguments], cwd=tmp_path, check=True)

    copied = tmp_path / "provenance.py"
    copied.write_text("")
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "something else")
    monkeypatch.setattr(provenance, "__file__", str(copied))
    assert provenance.commit.__wrapped__() is None
    git("add", "provenance.py")
    git("commit", "-q", "-m", "a checkout")
    assert len(provenance.commit.__wrapped__()) == 40


def test_the_seconds_of_an_evaluation_count_those_before_it_was_stopped(quick, tmp_path, monkeypatch):
    """A clock that goes on by 100 s at each look before the stop, and by 1 s after it."""
    clock = {"now": 0.0, "tick": 100.0}

    def monotonic():
        clock["now"] += clock["tick"]
        return clock["now"]

    make_stage(quick, tmp_path, "finetune")
    monkeypatch.setattr(empirical, "time", SimpleNamespace(monotonic=monotonic))
    attack = empirical._attack

    def stopping(*arguments):
        if clock["tick"] == 100.0 and arguments[6] == 1:
            raise Interrupted("stop")
        attack(*arguments)

    monkeypatch.setattr(empirical, "_attack", stopping)
    with pytest.raises(Interrupted):
        run(quick, tmp_path)
    clock["tick"] = 1.0
    assert run(quick, tmp_path).rows[0]["seconds_evaluate"] >= 100


def test_a_comparison_says_how_many_processes_made_it(quick, tmp_path):
    grid = replace(quick.compare, criteria=("random",))
    compare(replace(quick, compare=grid), tmp_path)
    origin = json.loads((tmp_path / "results.json").read_text())["provenance"]
    assert (origin["jobs"], origin["processes"]) == (1, 1)


def test_an_own_network_is_pruned_where_the_patterns_say(quick, tmp_path):
    pruning = replace(quick.prune, allocation=Uniform(), include=("*second*", "*head*"), exclude=("*head*",))
    recipe = replace(quick, prune=pruning, data=replace(quick.data, train_fraction=1.0))
    row = run(
        replace(recipe, evaluation=replace(recipe.evaluation, n=None)), tmp_path, model=Own(), dataset=own_data()
    )
    assert [layer["name"] for layer in row.rows[1]["layers"]] == ["second.weight"]


def test_two_processes_make_the_bits_of_one(quick, tmp_path):
    one = compare(quick, tmp_path / "one", jobs=1)
    two = compare(quick, tmp_path / "two", jobs=2)
    assert len(one.rows) == len(two.rows) == 3
    for first, second in zip(one.rows, two.rows, strict=True):
        assert (first["criterion"], first["robust_accuracy"]) == (second["criterion"], second["robust_accuracy"])
        a, b = (load_file(folder / first["artefact"]) for folder in (tmp_path / "one", tmp_path / "two"))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_compare_makes_every_cell_of_the_grid_and_a_dense_row_a_seed(quick, tmp_path):
    grid = replace(quick.compare, criteria=("lwm", "random"), allocations=("uniform", "global"), seeds=(0, 1))
    short = replace(quick, compare=grid, pretrain=replace(quick.pretrain, epochs=1))
    rows = compare(short, tmp_path).rows
    cells = [(row["seed"], row["allocation"], row["criterion"]) for row in rows]
    pruned = [(seed, a, c) for seed in (0, 1) for a in ("uniform", "global") for c in ("lwm", "random")]
    assert cells == [(0, None, None), (1, None, None), *pruned]
    assert all(row["preserved_benign"] is not None for row in rows)


def test_weights_of_the_users_own_are_started_from(quick, tmp_path):
    project = open_project(quick, tmp_path / "a")
    network = project.build()
    export.save_state_dict(tmp_path / "start.safetensors", network)
    recipe = replace(
        quick,
        model=replace(quick.model, weights=tmp_path / "start.safetensors"),
        pretrain=replace(quick.pretrain, epochs=0),
    )
    stage = make_stage(recipe, tmp_path / "b", "pretrain")
    stored = load_file(stage.model)
    assert all(torch.equal(stored[name], tensor) for name, tensor in network.state_dict().items())


def test_the_test_split_is_read_by_evaluate_alone(quick, tmp_path):
    dataset = data.load("digits")
    broken = Dataset("d", dataset.class_names, dataset.train, dataset.test.take([0] * 5), dataset.mean, dataset.std)
    first = make_stage(quick, tmp_path / "a", "finetune")
    project = open_project(
        replace(quick, evaluation=replace(quick.evaluation, n=None)), tmp_path / "b", dataset=broken
    )
    second = stages.finetune(project)
    a, b = load_file(first.model), load_file(second.model)
    assert all(torch.equal(a[name], b[name]) for name in a)
