"""Finished stages: a network that is not what its stage left is one line with a way out, whoever reads it."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from hydraprune.errors import UserError
from hydraprune.pipeline import inspect, make_stage, open_target, run


def altered(path):
    state = load_file(path)
    save_file({name: tensor.flip(0) for name, tensor in state.items()}, path)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "its hash is not the one on record"),
        (altered, "its hash is not the one on record"),
    ],
)
def test_a_network_that_is_not_what_its_stage_left_is_one_line_with_a_way_out(quick, tmp_path, damage, what):
    parent = make_stage(quick, tmp_path, "pretrain")
    damage(parent.model)
    with pytest.raises(UserError, match=f"is not what its stage left: .*{what}.*; delete its folder") as caught:
        run(quick, tmp_path)
    assert "\n" not in str(caught.value)
    shutil.rmtree(parent.folder)
    make_stage(quick, tmp_path, "prune")


def test_nor_is_it_evaluated_or_inspected(quick, tmp_path):
    stage = make_stage(quick, tmp_path, "prune")
    altered(stage.model)
    for look in (open_target, inspect):
        with pytest.raises(UserError, match="is not what its stage left: its hash is not the one on record"):
            look(stage.folder)


def test_a_damaged_network_without_a_hash_on_record_is_one_line_too(quick, tmp_path):
    parent = make_stage(quick, tmp_path, "pretrain")
    outcome = json.loads(parent.outcome.read_text())
    parent.outcome.write_text(json.dumps({key: value for key, value in outcome.items() if key != "model_sha256"}))
    make_stage(quick, tmp_path, "prune")
    parent.model.write_bytes(b"no network")
    with pytest.raises(UserError, match=r"is not what its stage left: .*; delete its folder"):
        make_stage(replace(quick, prune=replace(quick.prune, sparsity=0.5)), tmp_path, "prune")
