"""The user's own networks: found, called with what they accept, and each failure told in one line."""

import sys

import pytest
from torch import nn

from hydraprune import models
from hydraprune.errors import UserError

SOURCE = """
import functools
from torch import nn

def both(num_classes, in_shape): return nn.Linear(in_shape[0], num_classes)
def classes_only(num_classes, width=7): return nn.Linear(width, num_classes)
def nothing(): return nn.Linear(3, 3)
def anything(**keywords): return nn.Linear(len(keywords), keywords["num_classes"])
def keyword_only(*, in_shape): return nn.Linear(in_shape[2], 1)
class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(1, num_classes)
    @classmethod
    def small(cls): return cls(2)
partial = functools.partial(both, in_shape=(9, 9, 9))

number = 3
def needs_more(num_classes, width, depth): return None
def positional(num_classes, width, /): return None
def returns_text(): return "network"
def returns_class(): return Own
def fails(): raise RuntimeError("no weights\\nhere")
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """The current folder holds a module of factories that nobody else has imported."""
    (tmp_path / "own_factories.py").write_text(SOURCE)
    (tmp_path / "broken_factories.py").write_text("def f(:\n")
    (tmp_path / "needy_factories.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = list(sys.path)
    yield
    assert sys.path == before
    for name in ("own_factories", "broken_factories", "needy_factories"):
        sys.modules.pop(name, None)


def make(target):
    return models.from_factory(target, num_classes=5, in_shape=(3, 8, 6))


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        ("both", (5, 3)),
        ("classes_only", (5, 7)),
        ("nothing", (3, 3)),
        ("anything", (5, 2)),
        ("keyword_only", (1, 6)),
        ("partial", (5, 3)),
    ],
)
def test_a_factory_gets_what_it_accepts(factories, factory, shape):
    network = make(f"own_factories:{factory}")
    assert isinstance(network, nn.Linear)
    assert network.weight.shape == shape


def test_a_class_and_its_methods_are_factories_too(factories):
    assert make("own_factories:Own").fc.out_features == 5
    assert make("own_factories:Own.small").fc.out_features == 2


def test_an_installed_package_is_found():
    assert isinstance(models.from_factory("torch.nn:Identity", num_classes=2, in_shape=(1, 1, 1)), nn.Identity)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("own_factories", "'own_factories' does not name a factory; write package.module:factory"),
        ("own_factories:", "does not name a factory"),
        (":both", "does not name a factory"),
        ("own_factories.py:both:x", "does not name a factory"),
        ("./own_factories:both", "does not name a factory"),
        ("no_such_module_here:f", "module 'no_such_module_here' cannot be imported: ModuleNotFoundError"),
        ("broken_factories:f", "cannot be imported: SyntaxError"),
        ("needy_factories:f", "cannot be imported: .*no_such_package_at_all"),
        ("own_factories:nobody", "module 'own_factories' has no 'nobody'"),
        ("own_factories:number", "is an object of type int, not a function that returns a network"),
        ("own_factories:needs_more", "asks for width, depth; only num_classes and in_shape are given"),
        ("own_factories:positional", "asks for"),
        ("own_factories:returns_text", "returned an object of type str, not a torch.nn.Module"),
        ("own_factories:returns_class", "returned the class Own, not a torch.nn.Module"),
        ("own_factories:fails", "factory 'own_factories:fails' failed: RuntimeError: no weights here"),
    ],
)
def test_each_failure_is_one_line_that_says_what_came(factories, target, says):
    with pytest.raises(UserError, match=says) as caught:
        make(target)
    assert "\n" not in str(caught.value)
    assert target in str(caught.value)
