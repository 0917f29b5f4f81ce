"""Recipes: one value, one hash, one help; every mistake of a file at once."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from hydraprune import data, models
from hydraprune.attacks import PGD, Eps
from hydraprune.data.image_folder import IMAGENET_CLASSES
from hydraprune.engine import Adam, OneCycle, Training
from hydraprune.errors import RecipeError, UserError
from hydraprune.io import content_hash
from hydraprune.objectives import PGDAT, Benign, Trades
from hydraprune.pipeline import Comparison, Recipe, as_dict, from_arguments, load, to_yaml
from hydraprune.sparsity import Erk, Global, Hydra, LeastWeightMagnitude

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


OWN_CRITERION = '''
from dataclasses import dataclass
from hydraprune.sparsity import LeastWeightMagnitude

@dataclass(frozen=True)
class Mine(LeastWeightMagnitude):
    """A user's own.

    Args:
        power: of the magnitude.
    """

    power: float = 2.0
'''


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_recipe_written_out_reads_back_as_an_equal_value(tmp_path):
    recipe = Recipe(
        objective=PGDAT(PGD("l2", Eps("8/255"), 7, Eps("2/255"))),
        pretrain=Training(epochs=3, optimiser=Adam(), schedule=OneCycle(0.3), select="best"),
        compare=Comparison(sparsities=(0.5, 0.999)),
    )
    assert load(Path(write(tmp_path, to_yaml(recipe)))) == recipe


@pytest.mark.parametrize("text", ["", "\n", "# name: digits\n", "null"])
def test_an_empty_file_is_no_recipe_and_does_not_run_the_whole_default_job(tmp_path, text):
    with pytest.raises(UserError, match=r"recipe\.yaml' is empty: a recipe has keys.*runs the default"):
        load(Path(write(tmp_path, text)))
    assert from_arguments([]) == Recipe()


def test_alternatives_are_named_alone_with_parameters_or_by_path(tmp_path, monkeypatch):
    (tmp_path / "own_criterion.py").write_text(OWN_CRITERION)
    monkeypatch.syspath_prepend(tmp_path)
    text = "objective: benign\nprune: {criterion: {name: own_criterion.Mine, power: 3}, allocation: erk}"
    recipe = from_arguments([write(tmp_path, text)])
    assert recipe.objective == Benign()
    assert recipe.prune.allocation == Erk()
    assert as_dict(recipe.prune.criterion) == {"name": "own_criterion.Mine", "power": 3.0}
    assert load(Path(write(tmp_path, to_yaml(recipe)))) == recipe


def test_options_win_over_the_file(tmp_path):
    path = write(tmp_path, "objective: {name: trades, beta: 3}\nprune: {sparsity: 0.5, allocation: {name: global}}")
    recipe = from_arguments([path, "--objective.beta", "4", "--prune.allocation=uniform", "--prune.criterion", "lwm"])
    assert recipe.objective == Trades(beta=4.0)
    assert recipe.prune.sparsity == 0.5
    assert as_dict(recipe.prune.allocation) == {"name": "uniform"}
    assert recipe.prune.criterion == LeastWeightMagnitude()


def test_fractions_keep_their_text(tmp_path):
    recipe = from_arguments([write(tmp_path, "objective: {name: trades, attack: {eps: 8/255}}")])
    assert recipe.objective.threat[1].text == "8/255"
    assert float(recipe.objective.threat[1]) == 8 / 255


def test_every_mistake_of_a_file_is_named_at_once(tmp_path):
    text = """
objective: {name: trades, bta: 3}
pretrain: {epochs: ten, optimiser: {name: sgdd}}
prune: {sparsity: 1.2}
modle: {name: x}
finetune: {select: best}
data: {validation_fraction: 0}
"""
    with pytest.raises(RecipeError) as caught:
        load(Path(write(tmp_path, text)))
    complaints = "\n".join(caught.value.complaints)
    for part in (
        "unknown key 'objective.bta' (did you mean 'beta'?)",
        "unknown optimiser 'sgdd' (did you mean 'sgd'?)",
        "unknown key 'modle' (did you mean 'model'?)",
        "pretrain.epochs: expected a whole number, got 'ten'",
        "prune.sparsity is the share of weights removed and must be in [0, 1), got 1.2",
        "finetune.select 'best' needs data.validation_fraction above 0",
    ):
        assert part in complaints
    assert len(caught.value.complaints) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "it holds a list, not keys and values"),
        ("hello", "it holds a single value, not keys and values"),
        ("a: [", "line 1, column 5: expected the node content, but found the end of the file$"),
        ('a: "b', "line 1, column 6: found unexpected end of the file$"),
        ("a: b\0", "is not YAML: character 5 is not one of text$"),
        ("[" * 5000, "is not YAML: its values are nested too deeply$"),
        ("objective: {beta: 3}", "'objective' needs a name; known: benign, "),
        ("prune: {criterion: 7}", "'prune.criterion' needs a name"),
        ("compare: {seeds: [1, 1]}", r"compare.seeds needs one or more different values, got \[1, 1\]"),
        ("compare: {sparsities: [0.9, 1.0]}", "compare.sparsities is the share"),
        ("objective: {name: trades, attack: {eps: -1}}", "objective.attack.eps: '-1' is not a radius"),
        ("objective: {name: nowhere.Thing}", "objective: 'nowhere.Thing': No module named 'nowhere'"),
        ("prune: {sparsity: nan}", r"recipe\.yaml: prune.sparsity is the share .* must be in \[0, 1\), got nan"),
        ("prune: {sparsity: -0.5}", r"recipe\.yaml: prune.sparsity is the share"),
        ("finetune: {select: bset}", "finetune.select: expected one of last, best, got 'bset'"),
        ("evaluation: {n: 0, batch_size: 0}", "2 mistakes"),
        ("pretrain: {batch_size: 0}", "pretrain.batch_size must be at least 1"),
        ("data: {train_fraction: 0}", "data.train_fraction must be in"),
        ("prune: {train_fraction: 1.5}", r"prune.train_fraction must be in \(0, 1\], got 1.5"),
        ("seed: 1\nname: a\nseed: 2", "line 3: the key 'seed' comes twice"),
        ("prune: {sparsity: 0.9, sparsity: 0.5}", "line 1: the key 'sparsity' comes twice"),
        ("name: 2024-13-45", "is not YAML: month must be in"),
        (f"seed: {2**63}", f"seed must be at least 0 and at most {2**63 - 1}, got {2**63}"),
        (
            f"compare: {{seeds: [0, {2**63}]}}",
            f"compare.seeds must be at least 0 and at most {2**63 - 1}, got {2**63}",
        ),
        ("compare: {seeds: [-1]}", "compare.seeds must be at least 0 and .*, got -1"),
    ],
)
def test_a_bad_recipe_is_refused_with_what_came(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load(Path(write(tmp_path, text)))


def test_a_section_that_is_no_mapping_is_refused_and_not_left_out(tmp_path):
    text = """
data: null
model: cnn_small
objective: {name: trades, attack: 5}
pretrain: [1]
prune: {search: 20, sparsity: 0.5}
finetune: {awp: 0.01, average: 0.99}
evaluation: 100
compare: 3
hardware: cpu
checkpoint: 60
log: true
"""
    with pytest.raises(RecipeError) as caught:
        load(Path(write(tmp_path, text)))
    of_training = "epochs, batch_size, optimiser, schedule, select, awp, average, distillation, accumulate, on_nan"
    assert "pretrain: expected keys and values (" + of_training + "), got [1]" in caught.value.complaints
    said = [(line.partition(":")[0], line.rpartition(", got ")[2]) for line in caught.value.complaints]
    assert said == [
        ("data", "null"),
        ("model", "'cnn_small'"),
        ("objective.attack", "5"),
        ("pretrain", "[1]"),
        ("prune.search", "20"),
        ("finetune.awp", "0.01"),
        ("finetune.average", "0.99"),
        ("evaluation", "100"),
        ("compare", "3"),
        ("hardware", "'cpu'"),
        ("checkpoint", "60"),
        ("log", "True"),
    ]


def test_null_is_refused_where_none_is_no_value(tmp_path):
    text = """
name: null
seed: null
data: {validation_fraction: null, root: null}
model: {name: null, weights: null}
objective: {name: trades, beta: null, attack: {step_size: null, steps: null}}
pretrain_objective: null
pretrain: {optimiser: null}
prune: {sparsity: null, shuffle: null, include: null}
finetune: {epochs: null, batch_size: null, select: null}
evaluation: {n: null, certification: {eps: null}}
compare: {seeds: null}
hardware: {threads: null}
checkpoint: {every_s: null}
"""
    with pytest.raises(RecipeError) as caught:
        load(Path(write(tmp_path, text)))
    assert list(caught.value.complaints) == [
        "name: expected text, got null",
        "seed: expected a whole number, got null",
        "data.validation_fraction: expected a number, got null",
        "model.name: expected text, got null",
        "objective.beta: expected a number, got null",
        "objective.attack.steps: expected a whole number, got null",
        "pretrain.optimiser: expected one of sgd, adam, got null",
        "prune.sparsity: expected a number, got null",
        "prune.shuffle: expected true or false, got null",
        "prune.include: expected a list, got null",
        "finetune.epochs: expected a whole number, got null",
        "finetune.batch_size: expected a whole number, got null",
        "finetune.select: expected one of last, best, got null",
        "compare.seeds: expected a list, got null",
        "hardware.threads: expected a whole number, got null",
    ]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--objective", "trades", "--objective.beta", "null"], "objective.beta: expected a number, got null"),
        (["--prune", '{"sparsity": null}'], "prune.sparsity: expected a number, got null"),
        (["--prune", '{"search": 20}'], r"prune.search: expected keys and values \(epochs, .*\), got 20"),
        (["--prune.sparsity", "1.5"], "^command line: prune.sparsity"),
    ],
)
def test_options_are_no_way_around(options, answer):
    with pytest.raises(RecipeError, match=answer):
        from_arguments(options)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--prune.sparsty", "0.9"], "unknown option '--prune.sparsty' (did you mean '--prune.sparsity'?)"),
        (
            ["--prune.serch.epochs=3", "--nmae", "--x y"],
            "unknown option '--prune.serch.epochs' (did you mean '--prune.search.epochs'?); "
            "unknown option '--nmae' (did you mean '--name'?)",
        ),
        (
            ["--objective.attack.epz", "3"],
            "unknown option '--objective.attack.epz' (did you mean '--objective.attack.eps'?)",
        ),
        (["--objective", "free", "--objective.repeat", "3"], "(did you mean '--objective.repeats'?)"),
        (["--prune.criterion.bogus", "3"], "(known: --prune.criterion.init, --prune.criterion.joint)"),
        (["--prune", '{"sparsty": 0.9}'], "unknown option '--prune.sparsty' (did you mean '--prune.sparsity'?)"),
        (["--prune.sparsity.x", "3"], "--prune.sparsity as it is has no part 'x'"),
        (["--seed", "1", "2"], "unexpected '2'; a value comes behind its --OPTION"),
        (["--evaluation.n", "3.5"], "evaluation.n: expected a whole number, got '3.5'"),
        (
            ["--prune.sparsity", "nan"],
            "prune.sparsity is the share of weights removed and must be in [0, 1), got nan",
        ),
        (
            ["--prune.sparsity=-inf"],
            "prune.sparsity is the share of weights removed and must be in [0, 1), got -inf",
        ),
        (["--prune.sparsity", "-inf"], "--prune.sparsity needs a value, such as --prune.sparsity=VALUE"),
        (["--objective.beta", "nan"], "objective.beta: expected a number, got 'nan'"),
    ],
)
def test_a_bad_option_is_one_line_with_the_nearest_that_there_is(options, answer):
    with pytest.raises(UserError) as caught:
        from_arguments(options)
    assert answer in str(caught.value)


def test_a_mistake_is_laid_to_the_file_or_to_the_command_line_whichever_has_it(tmp_path):
    sound, bad = write(tmp_path, "name: a"), str(tmp_path / "bad.yaml")
    Path(bad).write_text("prune: {sparsity: 1.5}")
    for arguments, origin in (
        ([sound, "--prune.sparsity", "1.5"], "command line"),
        ([f"--recipe={sound}", "--prune.sparsity", "1.5"], "command line"),
        ([bad, "--seed", "3"], bad),
        ([bad, "--seed", "-1"], f"{bad} and command line"),
        ([sound, "--prune", '{"sparsity": null}'], "command line"),
    ):
        with pytest.raises(RecipeError) as caught:
            from_arguments(arguments)
        assert caught.value.source == origin


def test_null_for_a_class_of_the_users_own_is_refused_too(tmp_path, monkeypatch):
    (tmp_path / "null_criterion.py").write_text(OWN_CRITERION)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=r"prune\.criterion\.power: expected a number, got null"):
        load(Path(write(tmp_path, "prune: {criterion: {name: null_criterion.Mine, power: null}}")))


def test_a_key_merged_in_and_written_again_is_no_key_that_comes_twice(tmp_path):
    text = "pretrain: &short {epochs: 3, batch_size: 7}\nfinetune: {<<: *short, epochs: 4}"
    recipe = load(Path(write(tmp_path, text)))
    assert (recipe.pretrain.epochs, recipe.finetune.epochs, recipe.finetune.batch_size) == (3, 4, 7)


def test_a_missing_recipe_is_named():
    with pytest.raises(UserError, match=r"no such recipe: 'nowhere\.yaml'"):
        from_arguments(["nowhere.yaml"])


def test_a_missing_recipe_is_named_with_the_nearest_that_is_there(tmp_path):
    recipe = write(tmp_path, "name: a")
    with pytest.raises(UserError, match=f"nearest: '{re.escape(recipe)}'$"):
        load(tmp_path / "recipy.yaml")


def test_what_is_no_text_is_no_recipe_and_a_folder_names_the_recipe_in_it(tmp_path):
    (tmp_path / "noise").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match=r"noise' is not a recipe: byte 4 is not text in UTF-8$"):
        load(tmp_path / "noise")
    with pytest.raises(UserError, match=r"is a folder, not a recipe; give a YAML file$"):
        load(tmp_path)
    written = write(tmp_path, "name: a")
    with pytest.raises(UserError, match=f"that of the run in it is '{re.escape(written)}'$"):
        load(tmp_path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_names_things_that_exist(path):
    recipe = load(path)
    if recipe.data.name in data.IMAGE_FOLDERS:
        classes, shape = IMAGENET_CLASSES, (3, recipe.data.size or 224, recipe.data.size or 224)
    else:
        info = data.DATASETS[recipe.data.name]
        classes, shape = info.num_classes, info.in_shape
    with torch.device("meta"):
        assert models.create(recipe.model.name, classes, shape) is not None
    assert recipe.name == path.stem
    assert recipe.objective.threat[1] > 0
    assert yaml.safe_load(to_yaml(recipe)) == as_dict(recipe)


def test_criteria_that_do_not_search_get_the_epochs_of_the_search():
    recipe = Recipe(finetune=Training(epochs=16))
    searching = replace(recipe, prune=replace(recipe.prune, criterion=Hydra(), search=Training(epochs=8)))
    plain = replace(searching, prune=replace(searching.prune, criterion=LeastWeightMagnitude()))
    unequal = replace(plain, prune=replace(plain.prune, equal_epochs=False))
    assert (searching.finetune_epochs, plain.finetune_epochs, unequal.finetune_epochs) == (16, 24, 16)


def test_whole_numbers_from_python_hash_like_those_of_a_file():
    whole, written = Recipe(objective=Trades(beta=6)), Recipe(objective=Trades(beta=6.0))
    assert content_hash(as_dict(whole)) == content_hash(as_dict(written))


def test_as_dict_is_plain_json_with_names_of_alternatives():
    described = as_dict(Recipe(prune=replace(Recipe().prune, allocation=Global(min_kept=2))))
    assert described["prune"]["allocation"] == {"name": "global", "min_kept": 2, "min_per_output": 0}
    assert described["objective"]["attack"]["eps"] == "0.1"
