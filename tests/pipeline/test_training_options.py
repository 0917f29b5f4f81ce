"""Every option × every stage × every objective through the pipeline, and what one that is off leaves: nothing."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hydraprune import sparsity
from hydraprune.attacks import PGD, Eps
from hydraprune.engine import AWP, Average, Distillation, Training
from hydraprune.errors import RecipeError, UserError
from hydraprune.objectives import MART, MTLIBP, PGDAT, CrownIBP, FastAT, Free, MixTrain, Trades
from hydraprune.pipeline import Data, as_dict, descriptions, load, make_stage, open_project

ATTACK = PGD(eps=Eps("0.1"), steps=1)
OBJECTIVES = {
    "trades": Trades(ATTACK),
    "pgd-at": PGDAT(ATTACK),
    "mart": MART(ATTACK),
    "free": Free(eps=Eps("0.1"), repeats=2),
    "fast-at": FastAT(),
    "fast-at aligned": FastAT(grad_align=0.2),
    "crown-ibp": CrownIBP(eps=Eps("0.01"), regularisation=0.5),
    "mixtrain": MixTrain(eps=Eps("0.01"), samples=2),
    "mtl-ibp": MTLIBP(eps=Eps("0.01"), steps=1),
}
OPTIONS = {
    "awp": {"awp": AWP(0.01)},
    "ema": {"average": Average(ema=0.5), "select": "best"},
    "swa": {"average": Average(swa=0.0)},
    "distillation": {"distillation": Distillation(0.5, 2.0)},
    "all": {"awp": AWP(0.01), "average": Average(ema=0.5), "distillation": Distillation(0.5)},
}


def with_options(recipe, **options):
    """Return the recipe with the options in every stage that may have them."""
    alone = {key: value for key, value in options.items() if key != "distillation"}
    return replace(
        recipe,
        pretrain=replace(recipe.pretrain, **alone),
        prune=replace(recipe.prune, search=replace(recipe.prune.search, **options)),
        finetune=replace(recipe.finetune, **options),
    )


@pytest.fixture
def tiny(quick):
    """Next to no images: two batches an epoch."""
    return replace(quick, data=Data(train_fraction=0.1), pretrain=replace(quick.pretrain, epochs=1))


def networks(out):
    """Return, by the name of its folder, the tensors of each stage."""
    return {path.parent.name: load_file(path) for path in out.glob("stages/*/model.safetensors")}


def combinations():
    """Yield every pair; together they are slow, so quick are those of TRADES and those of all options at once."""
    for objective in OBJECTIVES:
        for option in OPTIONS:
            marks = () if objective == "trades" or option == "all" else pytest.mark.slow
            yield pytest.param(objective, option, marks=marks)


@pytest.mark.parametrize(("objective", "option"), list(combinations()))
def test_every_option_runs_in_every_stage_with_every_objective(tiny, tmp_path, objective, option):
    chosen = OBJECTIVES[objective]
    if option == "all":
        chosen = replace(chosen, label_smoothing=0.1)
    recipe = with_options(replace(tiny, objective=chosen), **OPTIONS[option])
    folder = make_stage(recipe, tmp_path, "finetune")
    found = networks(tmp_path)
    assert sorted(name.partition("-")[0] for name in found) == ["finetune", "pretrain", "prune"]
    assert all(bool(torch.isfinite(tensor).all()) for tensors in found.values() for tensor in tensors.values())
    history = json.loads(folder.history.read_text())["epochs"]
    assert all(0 <= record["validation_robust"] <= 1 for record in history)
    model = open_project(recipe, tmp_path).build()
    masks = sparsity.restore(model, load_file(folder.model))
    assert masks.summary().sparsity == pytest.approx(0.9, abs=0.001)
    plain = sparsity.bake(model)
    assert not any(plain.get_parameter(name)[~mask].any() for name, mask in masks.as_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_all_options_go_with_a_compiled_network_and_end_near_the_one_that_is_not(tiny, tmp_path):
    recipe = with_options(replace(tiny, objective=OBJECTIVES["trades"]), **OPTIONS["all"])
    stages = []
    for compile in (False, True):
        out = tmp_path / str(compile)
        make_stage(replace(recipe, hardware=replace(tiny.hardware, compile=compile)), out, "finetune")
        stages.append({name.partition("-")[0]: tensors for name, tensors in networks(out).items()})
    assert sorted(stages[1]) == ["finetune", "pretrain", "prune"]
    for name, tensor in stages[0]["pretrain"].items():
        torch.testing.assert_close(stages[1]["pretrain"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_compiled_network_is_another_stage_and_not_for_bounds(tiny, tmp_path):
    project, compiled = open_project(tiny, tmp_path), replace(tiny.hardware, compile=True)
    assert "compile" not in descriptions.pretrain_stage(project).description
    changed = replace(project, recipe=replace(tiny, hardware=compiled))
    assert descriptions.pretrain_stage(changed).description["compile"] is True
    bounds = replace(tiny, objective=Trades(ATTACK), pretrain_objective=CrownIBP(eps=Eps("0.01")), hardware=compiled)
    (complaint,) = bounds.complaints()
    assert complaint.startswith("hardware.compile is for objectives that run the network; CrownIBP goes through it")
    assert complaint.endswith("set hardware.compile to false")


def test_sparse_attacks_that_are_asked_for_are_another_search_and_exclude_what_they_cannot_be_had_with(
    tiny, tmp_path
):
    project = open_project(tiny, tmp_path)
    assert "sparse_attacks" not in descriptions.prune_stage(project).description
    for asked in (True, False):
        hardware = replace(tiny.hardware, sparse_attacks=asked)
        changed = replace(project, recipe=replace(tiny, hardware=hardware))
        assert descriptions.prune_stage(changed).description["sparse_attacks"] is asked
        assert descriptions.pretrain_stage(changed).key == descriptions.pretrain_stage(project).key
    hardware = replace(tiny.hardware, sparse_attacks=True, compile=True, accelerator="cuda")
    asked = replace(tiny, objective=CrownIBP(eps=Eps("0.01")), hardware=hardware)
    found = "; ".join(asked.complaints())
    assert "hardware.sparse_attacks is for objectives that run the network; CrownIBP goes through it" in found
    assert "hardware.sparse_attacks and hardware.compile are two ways" in found
    assert "hardware.sparse_attacks is for a CPU" in found


def test_an_option_that_is_off_is_in_no_description_and_one_that_is_on_is(tiny, tmp_path):
    project = open_project(tiny, tmp_path)
    described = [stage(project).description for stage in (descriptions.pretrain_stage, descriptions.prune_stage)]
    described.append(descriptions.finetune_stage(project).description)
    text = json.dumps(described)
    assert not any(word in text for word in ("awp", "average", "distillation", "label_smoothing"))
    for options in OPTIONS.values():
        changed = replace(project, recipe=with_options(tiny, **options))
        assert descriptions.finetune_stage(changed).key != descriptions.finetune_stage(project).key
        assert descriptions.prune_stage(changed).key != descriptions.prune_stage(project).key
    smoothed = replace(project, recipe=replace(tiny, objective=Trades(ATTACK, label_smoothing=0.1)))
    assert descriptions.pretrain_stage(smoothed).key != descriptions.pretrain_stage(project).key


def test_options_of_finetuning_repeat_neither_pretraining_nor_pruning(tiny, tmp_path):
    project = open_project(tiny, tmp_path)
    recipe = replace(tiny, finetune=replace(tiny.finetune, **OPTIONS["all"]))
    changed = replace(project, recipe=recipe)
    assert descriptions.prune_stage(changed).key == descriptions.prune_stage(project).key
    assert descriptions.finetune_stage(changed).key != descriptions.finetune_stage(project).key


def test_a_teacher_is_the_pretrained_network_and_stays_as_it_was(tiny, tmp_path):
    make_stage(tiny, tmp_path, "finetune")
    before = networks(tmp_path)
    learnt = replace(tiny, finetune=replace(tiny.finetune, distillation=Distillation(1.0)))
    make_stage(learnt, tmp_path, "finetune")
    after = networks(tmp_path)
    assert len(after) == len(before) + 1
    assert all(torch.equal(tensor, after[name][key]) for name in before for key, tensor in before[name].items())


def test_options_of_a_file_are_the_values_that_python_writes(tmp_path):
    names = ("awp", "average", "distillation")
    training = Training(awp=AWP(0.005, 1.0), average=Average(swa=0.5), distillation=Distillation(0.5, 2.0))
    objective = FastAT(eps=Eps("8/255"), label_smoothing=0.1)
    written = {"objective": as_dict(objective), "finetune": {name: as_dict(training)[name] for name in names}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    recipe = load(path)
    assert recipe.objective == objective
    assert all(getattr(recipe.finetune, name) == getattr(training, name) for name in names)
    assert recipe.pretrain.average == Average()


def test_options_out_of_range_are_named_at_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "pretrain: {awp: {gamma: -1}, distillation: {weight: 0.5}}\n"
        "prune: {search: {average: {ema: 1.0, swa: 2.0}}}\n"
        "finetune: {average: {ema: 0.9, swa: 0.5}, distillation: {weight: 1.5, temperature: 0}, "
        "awp: {warmup_epochs: -2}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load(path)
    complaints = "\n".join(caught.value.complaints)
    for part in (
        "pretrain.awp.gamma must be at least 0, got -1",
        "pretrain.distillation has no teacher: its network is the teacher of prune.search and finetune",
        "prune.search.average.ema is a decay and must be in [0, 1), got 1.0",
        "prune.search.average.swa is a share of the stage and must be in [0, 1], got 2.0",
        "finetune.average takes either ema or swa, got both",
        "finetune.distillation.weight must be in [0, 1], got 1.5",
        "finetune.distillation.temperature must be above 0, got 0",
        "finetune.awp.warmup_epochs must be at least 0, got -2",
    ):
        assert part in complaints
    assert len(caught.value.complaints) == 8


def test_smoothing_out_of_range_is_one_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("objective: {name: mart, label_smoothing: 1}")
    with pytest.raises(UserError, match=r"label_smoothing must be in \[0, 1\), got 1") as caught:
        load(path)
    assert "\n" not in str(caught.value)
