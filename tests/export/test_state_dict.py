import copy

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.export import dense_size_bytes, load_state_dict, save_state_dict


def small(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2))


def equal(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_safetensors_come_back_to_the_bit_and_other_tools_read_them(tmp_path):
    model, other = small().to(memory_format=torch.channels_last), small()
    path = tmp_path / "model.safetensors"
    assert save_state_dict(path, model) == path.stat().st_size
    load_state_dict(path, other)
    assert equal(model, other)
    assert safetensors.torch.load_file(path).keys() == model.state_dict().keys()


def test_tied_weights_are_written_under_both_names(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_state_dict(tmp_path / "m.safetensors", model)
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_state_dict(tmp_path / "m.safetensors", other)
    assert equal(model, other)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model_best.pth.tar"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
    ],
)
def test_the_usual_pytorch_files_are_read(tmp_path, name, wrap):
    model, other = small(), small()
    torch.save(wrap(model.state_dict()), tmp_path / name)
    load_state_dict(tmp_path / name, other)
    assert equal(model, other)


def test_floats_are_cast_to_the_dtype_of_the_module(tmp_path):
    model, other = small(), small()
    torch.save(copy.deepcopy(model).half().state_dict(), tmp_path / "half.pt")
    load_state_dict(tmp_path / "half.pt", other)
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, model[0].weight.half().float())


class Hostile:
    def __reduce__(self):
        return (print, ("code from the file has run",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"w": Hostile()}, path), "objects other than tensors"),
        (lambda path: torch.save({"w": np.float64(1)}, path), "objects other than tensors|not a state dict"),
        (lambda path: path.write_bytes(b"nonsense"), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: torch.save([1, 2], path), "not a state dict"),
        (lambda path: torch.save({"w": 1}, path), "not a state dict"),
        (lambda path: torch.save({}, path), "no tensor '0.weight'"),
        (lambda path: torch.save(small(5).state_dict(), path), r"'0.weight' .* \[5, 3, 3, 3\]"),
        (lambda path: torch.save(small().state_dict() | {"extra": torch.ones(1)}, path), "'extra'"),
        (lambda path: None, "no such file"),
    ],
)
def test_files_that_do_not_fit_are_named_and_run_no_code(tmp_path, capsys, write, message):
    path, model = tmp_path / "foreign.pt", small()
    write(path)
    before = copy.deepcopy(model)
    with pytest.raises(UserError, match=message) as caught:
        load_state_dict(path, model)
    assert str(path) in str(caught.value)
    assert equal(model, before)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("content", "message"), [(b"xx", "not a sound safetensors file"), (None, "no such file")])
def test_broken_safetensors_are_named(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_state_dict(path, small())


def test_a_file_that_reads_back_differently_is_removed(tmp_path, monkeypatch):
    real = safetensors.torch.load_file
    monkeypatch.setattr(safetensors.torch, "load_file", lambda path: real(path) | {"0.bias": torch.zeros(4)})
    with pytest.raises(HydrapruneError, match="read back is not what was saved"):
        save_state_dict(tmp_path / "model.safetensors", small())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "model", [small(), nn.Linear(7, 3), nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)]), nn.ReLU()]
)
def test_the_dense_size_is_that_of_the_written_file(tmp_path, model):
    assert dense_size_bytes(model) == save_state_dict(tmp_path / "m.safetensors", model)
    assert dense_size_bytes(copy.deepcopy(model).half()) == dense_size_bytes(model)


def test_the_dense_size_counts_tied_weights_once():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    apart = dense_size_bytes(model)
    model[1].weight = model[0].weight
    assert 40_000 <= apart - dense_size_bytes(model) < 40_100
