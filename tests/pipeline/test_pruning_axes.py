"""Criteria, allocations, patterns, schedules and controls through the whole pipeline, and pruning in one call."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hydraprune as hp
from hydraprune import pipeline
from hydraprune.engine import SGD, Constant, Hardware, Training, graceful, request_stop
from hydraprune.errors import Interrupted, UserError
from hydraprune.objectives import Benign, Loss
from hydraprune.pipeline import descriptions, make_stage, project, stages
from hydraprune.pipeline.finished import load_network
from hydraprune.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    Channels,
    Cubic,
    Grasp,
    Hydra,
    Learned,
    LeastWeightMagnitude,
    Movement,
    NofM,
    RigL,
    Snip,
    Steps,
    SynFlow,
    Taylor,
    Weights,
    kept_count,
)


def with_prune(recipe, **changed):
    return replace(recipe, prune=replace(recipe.prune, **changed))


def stage(recipe, out, name="finetune"):
    paths = make_stage(recipe, out, name)
    return paths, load_file(paths.model)


def kept(tensors):
    return {name: int(t.sum()) for name, t in tensors.items() if name.endswith(".mask")}


KINDS = {
    **{name: {"criterion": CRITERIA[name]()} for name in CRITERIA if name not in {"hydra", "lwm", "random"}},
    **{f"to {name}": {"allocation": ALLOCATIONS[name]()} for name in ("lamp", "igq", "learned")},
    "1:4": {"pattern": NofM(1, 4)},
    "channels": {"pattern": Channels()},
    "gradual magnitude": {"criterion": LeastWeightMagnitude(), "schedule": Cubic()},
    "lottery": {"criterion": LeastWeightMagnitude(), "schedule": Steps(2, rewind=True)},
    "gradual hydra": {"schedule": Cubic()},
    "joint": {"criterion": Hydra(joint=True)},
    "rigl": {"regrowth": RigL(every=0.25)},
    "shuffled": {"shuffle": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_way_of_pruning_delivers_its_count_and_keeps_it_through_fine_tuning(kind, quick, tmp_path):
    changed = dict(KINDS[kind])
    if isinstance(changed.get("criterion"), SynFlow):
        changed["criterion"] = SynFlow(rounds=5)
    recipe = with_prune(quick, **changed)
    _, pruned = stage(recipe, tmp_path, "prune")
    _, tuned = stage(recipe, tmp_path)
    assert kept(tuned) == kept(pruned)
    total = sum(pruned[name].numel() for name in kept(pruned))
    if kind != "channels":
        assert sum(kept(tuned).values()) == kept_count(0.9, total)
    project = pipeline.open_project(recipe, tmp_path)
    network = load_network(project, descriptions.finetune_stage(project))
    for name, tensor in network.state_dict().items():
        if f"{name}.mask" in tuned:
            assert (tensor[~tuned[f"{name}.mask"]] == 0).all()
    assert ("rigl" in kind) == any(not torch.equal(tuned[name], pruned[name]) for name in kept(pruned))


def test_keys_depend_on_what_matters_and_on_nothing_else(quick, tmp_path):
    def keys(**changed):
        project = pipeline.open_project(with_prune(quick, **changed), tmp_path)
        return descriptions.prune_stage(project).key, descriptions.finetune_stage(project).key

    plain = keys()
    assert keys(probe_batches=9) == plain
    assert keys(regrowth=RigL())[0] == plain[0]
    assert keys(regrowth=RigL())[1] != plain[1]
    for changed in ({"pattern": NofM(1, 4)}, {"schedule": Cubic()}, {"shuffle": True}, {"allocation": Learned()}):
        assert keys(**changed)[0] != plain[0]
    assert keys(criterion=Snip())[0] != keys(criterion=Snip(), probe_batches=9)[0]


@pytest.mark.parametrize("criterion", [Snip(), Taylor(), Grasp()], ids=["snip", "taylor", "grasp"])
def test_the_batch_size_of_the_probe_is_in_the_key_and_the_rest_of_the_search_is_not(criterion, quick, tmp_path):
    def key(**changed):
        prune = replace(quick.prune, criterion=criterion, search=replace(quick.prune.search, **changed))
        return descriptions.prune_stage(pipeline.open_project(replace(quick, prune=prune), tmp_path)).key

    assert key(batch_size=8) != key()
    assert key(epochs=7) == key()
    assert key(batch_size=8, epochs=7, optimiser=SGD(lr=9.0)) == key(batch_size=8)


def test_what_reads_no_batch_has_none_in_its_key(quick, tmp_path):
    recipe = with_prune(quick, criterion=LeastWeightMagnitude())
    other = with_prune(recipe, search=replace(recipe.prune.search, batch_size=8))
    projects = [pipeline.open_project(one, tmp_path) for one in (recipe, other)]
    assert len({descriptions.prune_stage(project).key for project in projects}) == 1


def test_stages_of_an_older_format_are_made_anew_and_stay_where_they_are(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(project, "STAGE_FORMAT", 1)
    old = {name: make_stage(quick, tmp_path, name) for name in ("pretrain", "prune")}
    before = {path: path.read_bytes() for paths in old.values() for path in paths.folder.iterdir()}
    monkeypatch.undo()
    assert project.STAGE_FORMAT == 2
    new = {name: make_stage(quick, tmp_path, name) for name in old}
    assert all(new[name].folder != old[name].folder and new[name].outcome.exists() for name in old)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(new["prune"].folder.parent.iterdir())) == 4


def test_a_benign_network_is_pruned_by_the_robust_objective(quick, tmp_path):
    """The dense network is shared with a benign run; the search is not."""
    mixed, benign = replace(quick, pretrain_objective=Benign()), replace(quick, objective=Benign())
    projects = [pipeline.open_project(recipe, tmp_path) for recipe in (mixed, benign, quick)]
    pretrains = [descriptions.pretrain_stage(project).key for project in projects]
    assert pretrains[0] == pretrains[1] != pretrains[2]
    assert len({descriptions.prune_stage(project).key for project in projects}) == 3
    dense, sub = (stage(mixed, tmp_path, name)[1] for name in ("pretrain", "prune"))
    assert all(torch.equal(tensor, sub[name]) for name, tensor in dense.items() if name.endswith("weight"))


def test_a_recipe_with_every_axis_reads_back_equal_and_takes_options(quick, tmp_path):
    recipe = replace(
        with_prune(
            quick, pattern=Weights(), schedule=Steps(3, rewind=True), regrowth=RigL(every=0.5), allocation=Learned()
        ),
        pretrain_objective=Benign(),
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(pipeline.to_yaml(recipe))
    assert pipeline.load(path) == recipe
    changed = pipeline.from_arguments(
        [
            str(path),
            "--prune.regrowth",
            "fixed",
            "--prune.pattern",
            "channels",
            "--pretrain_objective",
            "pgd-at",
            "--prune.schedule=cubic",
        ]
    )
    assert changed.prune.pattern == Channels()
    assert changed.prune.schedule == Cubic()
    assert type(changed.pretrain_objective).__name__ == "PGDAT"


def test_what_does_not_go_together_is_said_at_once(quick):
    best = replace(quick.prune.search, select="best")
    wrong = with_prune(quick, pattern=NofM(1, 4), regrowth=RigL(), search=best, schedule=Cubic(), probe_batches=0)
    found = "\n".join(wrong.complaints())
    assert "prune.regrowth exchanges single weights" in found
    assert "prune.search.select 'best' would take an epoch that keeps more weights than asked" in found
    assert "prune.probe_batches must be at least 1, got 0" in found
    wrong = with_prune(quick, allocation=Learned(budget="flops"), schedule=Steps())
    assert wrong.complaints() == [
        "prune.allocation.budget 'flops' is filled from all weights; with it prune.schedule must not be steps"
    ]


def test_less_than_one_round_of_scoring_is_said_when_the_recipe_is_read():
    with pytest.raises(UserError, match="snip: rounds must be at least 1, got 0"):
        pipeline.from_arguments(["--prune.criterion", "snip", "--prune.criterion.rounds", "0"])


def test_epochs_are_equal_where_the_prune_stage_trains_and_where_it_does_not(quick):
    quick = replace(quick, finetune=Training(epochs=5, optimiser=SGD(lr=0.03)))
    quick = with_prune(quick, search=Training(epochs=1, optimiser=SGD(lr=2.0)))
    for changed, epochs, rate in (
        ({"criterion": LeastWeightMagnitude()}, 6, None),
        ({"criterion": LeastWeightMagnitude(), "schedule": Cubic()}, 5, 0.03),
        ({"criterion": Movement()}, 5, 0.03),
        ({"criterion": Hydra(joint=True)}, 5, 0.03),
        ({}, 5, 2.0),
    ):
        recipe = with_prune(quick, **changed)
        assert recipe.finetune_epochs == epochs
        assert recipe.prune_training.epochs == (0 if rate is None else 1)
        assert rate is None or recipe.prune_training.optimiser.lr == rate


def test_jointly_scores_learn_at_the_rate_of_the_search_and_weights_at_that_of_fine_tuning(
    quick, tmp_path, monkeypatch
):
    recipe = with_prune(
        quick, criterion=Hydra(joint=True), search=Training(1, optimiser=SGD(lr=2.0), schedule=Constant())
    )
    recipe = replace(recipe, finetune=Training(0, optimiser=SGD(lr=0.03)))
    rates = {}
    build = SGD.build

    def kept(self, parameters):
        optimiser = build(self, parameters)
        rates[len(rates)] = optimiser.param_groups
        return optimiser

    monkeypatch.setattr(SGD, "build", kept)
    dense, (paths, searched) = stage(recipe, tmp_path, "pretrain")[1], stage(recipe, tmp_path, "prune")
    weights, scores = rates[1]
    assert (weights["lr"], scores["lr"]) == (0.03, pytest.approx(2.0))
    assert [tuple(one.shape) for one in scores["params"]] == [
        tuple(tensor.shape) for name, tensor in dense.items() if name.endswith(".weight") and tensor.ndim > 1
    ]
    changed = [name for name in dense if not torch.equal(dense[name], searched[name])]
    assert any(name.endswith("weight") for name in changed)
    assert any(name.endswith("bias") for name in changed)
    histogram = json.loads(paths.histogram.read_text())
    largest = max(float(dense[name].abs().max()) for name in histogram["layers"])
    assert histogram["edges"][-1] == pytest.approx(largest)  # of the weights after pre-training
    frozen = with_prune(recipe, criterion=Hydra())
    assert recipe.score_lr == 2.0
    assert frozen.score_lr is None


@pytest.mark.parametrize(
    "changed",
    [
        {"allocation": Learned(speed=1.0)},
        {"criterion": LeastWeightMagnitude(), "schedule": Steps(2, rewind=True)},
        {"schedule": Steps(2), "allocation": Learned(speed=1.0)},
        {"criterion": Movement(), "schedule": Cubic()},
        {"criterion": Grasp(), "regrowth": RigL(every=0.25)},
        {"criterion": Hydra(joint=True)},
    ],
    ids=["learned", "lottery", "hydra in rounds", "movement", "rigl", "joint"],
)
def test_stopped_and_gone_on_it_ends_in_the_same_bits(changed, quick, tmp_path, monkeypatch):
    recipe = with_prune(quick, **changed)
    whole = stage(recipe, tmp_path / "whole")[1]
    real, seen = stages.train, []

    def stop_often(work, *arguments):
        """Stop after every third update."""
        losses = type(work.objective).losses

        def counted(self, model, batch, progress):
            seen.append(progress.step)
            if len(seen) % 3 == 0:
                request_stop()
            return losses(self, model, batch, progress)

        with monkeypatch.context() as patch:
            patch.setattr(type(work.objective), "losses", counted)
            return real(work, *arguments)

    stage(recipe, tmp_path / "stopped", "pretrain")
    monkeypatch.setattr(stages, "train", stop_often)
    for _ in range(100):
        try:
            with graceful():
                stopped = stage(recipe, tmp_path / "stopped")[1]
            break
        except Interrupted:
            continue
    assert len(seen) > 6
    assert whole.keys() == stopped.keys()
    assert [name for name in whole if not torch.equal(whole[name], stopped[name])] == []


class NothingAtTheEnd(Benign):
    """The loss of the stage's last batch is NaN."""

    def losses(self, model, batch, progress):
        for loss in super().losses(model, batch, progress):
            last = progress.step == progress.steps - 1
            yield Loss(loss.total * torch.nan, loss.correct) if last else loss


def test_a_round_that_ends_with_an_update_left_out_ends_all_the_same(striped):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    short = Training(epochs=1, batch_size=20, on_nan="skip")
    options = {"criterion": "lwm", "schedule": Steps(2), "search": short, "finetune": Training(epochs=0)}
    small = hp.prune(
        model, 0.9, data=striped, objective=NothingAtTheEnd(), hardware=Hardware("cpu", threads=1), **options
    )
    assert int(small[1].weight.count_nonzero()) == kept_count(0.9, 192)


class Small(nn.Module):
    """A network of the user's own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))

    def forward(self, images):
        return self.body(images)


@pytest.fixture
def striped():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.rand(60, 1, 8, 8, generator=generator) * 0.3
    images[torch.arange(60), 0, 2 * labels] += 0.6
    return images, labels


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"criterion": "snip", "allocation": "lamp", "objective": "pgd-at"},
        {"criterion": torch.square, "pattern": NofM(1, 4), "objective": Benign()},
        {"allocation": Learned(budget="flops")},
        {"criterion": "lwm", "schedule": "cubic", "regrowth": RigL(every=0.5)},
    ],
    ids=["default", "snip", "own function", "learned", "gradual"],
)
def test_one_call_prunes_any_module_and_leaves_it_alone(options, striped):
    torch.manual_seed(0)
    model = Small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    short = Training(epochs=2, batch_size=20)
    small = hp.prune(
        model, 0.9, data=striped, search=short, finetune=short, hardware=Hardware("cpu", threads=1), **options
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert type(small) is Small
    assert not small.training
    weights = [small.body[0].weight, small.body[4].weight]
    assert sum(int(weight.count_nonzero()) for weight in weights) <= kept_count(0.9, 72 + 864)
    assert [int((weight == 0).sum()) for weight in weights] != [0, 0]
    assert small(striped[0]).shape == (60, 3)


def test_one_call_says_what_is_wrong_in_one_line(striped):
    images, labels = striped
    with pytest.raises(UserError, match=r"unknown criterion 'hydraa'.*did you mean 'hydra'"):
        hp.prune(Small(), data=striped, criterion="hydraa")
    with pytest.raises(UserError, match=r"prune.sparsity is the share .* got 1.5"):
        hp.prune(Small(), 1.5, data=striped)
    with pytest.raises(UserError, match=r"pixels in \[0, 1\]"):
        hp.prune(Small(), data=(images * 9, labels))
    for wrong, label in ((3, "0 to 3"), (-100, "-100 to 2")):
        with pytest.raises(UserError, match=f"labels span {label}, but the network's 3 logits are for labels 0 to 2"):
            hp.prune(Small(), data=(images, torch.cat([labels[1:], torch.tensor([wrong])])))
    with pytest.raises(UserError, match="there is no image to learn from"):
        hp.prune(Small(), data=(images[:0], labels[:0]))
    with pytest.raises(UserError, match=r"cannot take images of shape \(3, 8, 8\): .*expected input"):
        hp.prune(Small(), data=(images.expand(-1, 3, -1, -1), labels))
    with pytest.raises(UserError, match=r"cannot take .*; its weights are float64, give model.float\(\)"):
        hp.prune(Small().double(), data=striped)
    for name in ("search", "finetune"):
        with pytest.raises(UserError, match=f"{name}.select 'best' needs validation images.*; say 'last'"):
            hp.prune(Small(), data=striped, **{name: Training(epochs=1, select="best")})
