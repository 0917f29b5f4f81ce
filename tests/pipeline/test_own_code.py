"""Code of the user's own: other code is another stage, the same code in other words is not."""

import importlib
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from hydraprune.pipeline import descriptions
from hydraprune.pipeline.project import open_project
from hydraprune.sparsity import Function

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)
        self.scale = torch.tensor(2.0)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1))) * self.scale)
"""
UNTRACEABLE = NETWORK.replace("        return", "        if x.sum() < 0:\n            x = -x\n        return")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return what writes a module `mine` anew and imports it, as a new process would."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text):
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("mine")

    yield write
    sys.modules.pop("mine", None)


def network_key(recipe, tmp_path, model=None):
    return descriptions.pretrain_stage(open_project(recipe, tmp_path / "run", model=model)).key


@pytest.mark.parametrize("before", [NETWORK, UNTRACEABLE], ids=["traceable", "untraceable"])
@pytest.mark.parametrize(
    ("old", "new"), [("torch.relu", "torch.sigmoid"), ("nn.Linear(8, 10)", "nn.Linear(8, 10, bias=False)")]
)
def test_a_factory_whose_network_computes_something_else_makes_other_stages(
    quick, tmp_path, written, before, old, new
):
    recipe = replace(quick, model=replace(quick.model, name="mine:Net"))
    written(before)
    key = network_key(recipe, tmp_path)
    assert network_key(recipe, tmp_path) == key
    written(before.replace(old, new))
    assert network_key(recipe, tmp_path) != key


def test_words_of_a_network_that_change_nothing_and_random_buffers_leave_its_stages_alone(quick, tmp_path, written):
    recipe = replace(quick, model=replace(quick.model, name="mine:Net"))
    drawn = NETWORK.replace("torch.tensor(2.0)", "torch.rand(8)")
    written(drawn)
    key = network_key(recipe, tmp_path)
    torch.rand(1)
    written(
        drawn.replace(
            "        return self.last(", "        last = self.last  # as in the paper\n        return last("
        )
    )
    assert network_key(recipe, tmp_path) == key


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.relu", "torch.sigmoid"),
        ("tensor(2.0)", "tensor(3.0)"),
        ("* self.scale", "* torch.full((), 2.0)"),
        ("return self.last", "return -self.last if self.training else self.last"),
    ],
)
def test_a_module_in_python_that_computes_something_else_makes_other_stages(quick, tmp_path, written, old, new):
    def key(text):
        torch.manual_seed(0)
        return network_key(quick, tmp_path, written(text).Net())

    assert key(NETWORK) == key(NETWORK) != key(NETWORK.replace(old, new))


def test_a_hook_is_part_of_what_a_network_computes(quick, tmp_path):
    plain, doubled, halved = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(3))
    for model in (plain, doubled, halved):
        model.load_state_dict(plain.state_dict())
    doubled.register_forward_hook(lambda _module, _came, made: made * 2)
    halved.register_forward_hook(lambda _module, _came, made: made / 2)
    assert len({network_key(quick, tmp_path, model) for model in (plain, doubled, halved)}) == 3


class Shown(nn.Module):
    """Prints a function that it makes anew in every copy, with its address."""

    def __init__(self):
        super().__init__()
        self.fc, self.function = nn.Linear(64, 10), lambda y: y

    def extra_repr(self):
        return repr(self.function)

    def forward(self, x):
        return self.function(self.fc(x.flatten(1)))


def test_where_a_function_lies_in_memory_names_no_stage(quick, tmp_path):
    one, other = Shown(), Shown()
    other.load_state_dict(one.state_dict())
    assert repr(one) != repr(other)
    assert network_key(quick, tmp_path, one) == network_key(quick, tmp_path, other)


def test_own_code_leaves_no_trace_in_the_names_of_hydraprunes_own_networks(quick, tmp_path):
    project = open_project(quick, tmp_path)
    assert "code" not in project.source["model"]
    for stage in (descriptions.pretrain_stage, descriptions.prune_stage, descriptions.finetune_stage):
        assert "code" not in stage(project).description


PARTS = """
from dataclasses import dataclass

from hydraprune.objectives import Trades
from hydraprune.sparsity import Global, LeastWeightMagnitude

class Steady(Trades):
    def helper(self):
        return 1

@dataclass(frozen=True)
class Mine(Steady):
    gamma: float = 1.0

class Largest(LeastWeightMagnitude):
    def scores(self, weight, generator):
        return weight + 1

class Same(Global):
    def helper(self):
        return 1

def squared(weight):
    return weight * weight + 1

class Cubed:
    def __call__(self, weight):
        return weight ** 3

cubed = Cubed()
"""


def keys(recipe, tmp_path, mine):
    prune = replace(recipe.prune, allocation=mine.Same(), criterion=mine.Largest())
    recipes = {
        "objective": replace(recipe, objective=mine.Mine()),
        "pretrain_objective": replace(recipe, pretrain_objective=mine.Mine()),
        "axes": replace(recipe, prune=prune),
        "function": replace(recipe, prune=replace(recipe.prune, criterion=Function("mine:squared"))),
        "callable": replace(recipe, prune=replace(recipe.prune, criterion=Function("mine:cubed"))),
    }
    kinds = {"pretrain": descriptions.pretrain_stage, "prune": descriptions.prune_stage}
    projects = {name: open_project(each, tmp_path / "run") for name, each in recipes.items()}
    return {(name, kind): kinds[kind](project).key for name, project in projects.items() for kind in kinds}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        # A base class of the user's own counts as the class itself; one of hydraprune's is known by its version.
        (
            "class Steady(Trades):\n    def helper(self):\n        return 1",
            "class Steady(Trades):\n    x = 2",
            {"objective", "pretrain_objective"},
        ),
        ("gamma: float = 1.0", "gamma: float = 1.0\n\n    def own(self): ...", {"objective", "pretrain_objective"}),
        ("return weight + 1", "return weight + 2", {"axes"}),
        ("class Same(Global):\n    def helper(self):\n        return 1", "class Same(Global):\n    x = 2", {"axes"}),
        ("weight * weight + 1", "weight * weight + 2", {"function"}),
        ("weight ** 3", "weight ** 5", {"callable"}),
        ("\ncubed", "\n# a comment outside\ncubed", set()),
    ],
)
def test_classes_and_functions_of_the_users_own_are_named_by_their_source(
    quick, tmp_path, written, old, new, changed
):
    before = keys(quick, tmp_path, written(PARTS))
    after = keys(quick, tmp_path, written(PARTS.replace(old, new)))
    trained = {name for name in changed if name.endswith("objective")}
    assert {
        name for name, kind in before if kind == "pretrain" and before[name, kind] != after[name, kind]
    } == trained
    assert {name for name, kind in before if kind == "prune" and before[name, kind] != after[name, kind]} == changed
