"""What a prune stage chose, by hand on a network of two layers, and `hydraprune inspect` on a run."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hydraprune import io, pipeline
from hydraprune.cli import main
from hydraprune.errors import UserError
from hydraprune.paths import RunPaths
from hydraprune.pipeline import make_stage
from hydraprune.sparsity import LeastWeightMagnitude, Movement


@pytest.fixture
def by_hand(tmp_path):
    """A run folder with one prune stage whose numbers one can write down."""
    paths = RunPaths(tmp_path)
    pretrain, prune = paths.stage("pretrain", "a"), paths.stage("prune", "b")
    for stage in (pretrain, prune):
        stage.folder.mkdir(parents=True)
    weight = torch.tensor([[3.0, 1.0], [2.0, 0.5]])
    scores = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    mask = torch.tensor([[False, False], [True, True]])
    save_file({"0.weight": weight}, pretrain.model)
    save_file({"0.weight": weight, "0.weight.mask": mask, "0.weight.scores": scores}, prune.model)
    io.write_json(pretrain.description, {"seed": 0})
    io.write_json(pretrain.outcome, {})
    criterion = {"name": "hydra", "init": "magnitude"}
    spec = {"criterion": criterion, "allocation": {"name": "global"}, "sparsity": 0.5}
    io.write_json(prune.description, {"parent": "a", "prune": spec})
    io.write_json(prune.outcome, {"layers": [{"name": "0.weight"}]})
    return tmp_path


def test_every_figure_by_hand(by_hand):
    (found,) = pipeline.inspect(by_hand)
    (layer,) = found.layers
    assert found.title == "hydra(init=magnitude) / global, 50 %"
    assert (layer.total, layer.kept, layer.outputs, layer.dead, layer.inputs, layer.unread) == (4, 2, 2, 1, 2, 0)
    assert layer.lwm_overlap == 0.5  # magnitude keeps 3 and 2
    assert layer.entered == 0.5  # so did the scores before they were trained
    difference = torch.tensor([3.0, 1.0, 1.0, 2.5])
    assert layer.score_movement == pytest.approx(float(difference.norm() / torch.tensor([3.0, 1, 2, 0.5]).norm()))
    assert sum(found.kept_histogram) == sum(found.pruned_histogram) == 2
    assert found.edges[0] == -3.0
    assert found.pruned_histogram[-1] == 1  # the largest weight was dropped
    assert found.lwm_overlap == 0.5


def change(folder, scores=None, mask=None, **spec):
    """Change what the prune stage is said to have done, and what it left."""
    stage = RunPaths(folder).stage("prune", "b")
    described = io.read_json(stage.description)
    described["prune"] |= spec
    io.write_json(stage.description, described)
    tensors = load_file(stage.model)
    tensors |= {"0.weight.scores": scores} if scores is not None else {}
    tensors |= {"0.weight.mask": torch.tensor(mask)} if mask is not None else {}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, stage.model)
    return pipeline.inspect(folder)[0].layers[0]


N_OF_M, BLOCKS = {"name": "n-of-m", "n": 1, "m": 2}, {"name": "blocks", "outputs": 2, "inputs": 1}
ALONE, COUPLED = ({"name": "channels", "coupled": coupled} for coupled in (False, True))


@pytest.mark.parametrize(
    ("pattern", "mask", "entered"),
    [
        (N_OF_M, [[True, False], [True, False]], 0.0),  # of 3, 1 | 2, 0.5 the first of each row
        (N_OF_M, [[False, True], [True, False]], 0.5),
        (N_OF_M, [[False, False], [True, False]], 1.0),  # at one weight it would be the 3
        (BLOCKS, [[True, False], [True, False]], 0.0),
        (BLOCKS, [[False, True], [False, True]], 1.0),
        (ALONE, [[False, False], [True, True]], 1.0),
        (ALONE, [[True, True], [False, False]], 0.0),
        (COUPLED, [[False, False], [True, True]], None),
    ],
)
def test_what_entered_is_counted_from_the_patterns_own_starting_mask(by_hand, pattern, mask, entered):
    layer = change(by_hand, mask=mask, pattern=pattern)
    assert layer.entered == entered
    assert layer.score_movement is not None


@pytest.mark.parametrize("spec", [{"shuffle": True}, {"allocation": {"name": "global", "min_per_output": 1}}])
def test_what_entered_is_left_open_where_the_layers_scores_alone_do_not_say_it(by_hand, spec):
    assert change(by_hand, **spec).entered is None


def test_what_entered_follows_the_sign_of_scores_that_count_with_it(by_hand):
    start = Movement().scores(torch.tensor([[3.0, 1.0], [2.0, 0.5]]), torch.Generator())
    layer = change(by_hand, start, [[True, False], [True, False]], criterion={"name": "movement", "tie_break": 1e-6})
    assert (layer.entered, layer.score_movement) == (0.0, 0.0)


def test_one_stages_folder_will_do(by_hand):
    assert pipeline.inspect(by_hand / "stages" / "prune-b") == pipeline.inspect(by_hand)


def test_what_is_missing_is_named(by_hand, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        pipeline.inspect(by_hand / "nothing")
    with pytest.raises(UserError, match="no finished prune stage"):
        pipeline.inspect(by_hand / "stages" / "pretrain-a")
    (by_hand / "stages" / "pretrain-a" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="began with 'pretrain-a', which is not there"):
        pipeline.inspect(by_hand)


def test_the_command_shows_and_writes_what_a_run_kept(quick, tmp_path, capsys):
    make_stage(quick, tmp_path, "prune")
    lwm = replace(quick, prune=replace(quick.prune, criterion=LeastWeightMagnitude()))
    make_stage(lwm, tmp_path, "prune")
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "hydra / global, 90 %" in shown
    assert "inspection.html" in shown
    page = (tmp_path / "inspection.html").read_text()
    assert page.count("<figure") == 4
    assert "<script" not in page
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    hydra, magnitude = json.loads(capsys.readouterr().out)
    assert magnitude["lwm_overlap"] == pytest.approx(1.0)
    assert 0 < hydra["lwm_overlap"] < 1
    assert hydra["layers"][0]["score_movement"] > 0
    assert magnitude["layers"][0]["entered"] is None
    assert main(["inspect"]) == 2
