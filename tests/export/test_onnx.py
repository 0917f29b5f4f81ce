"""The exporter takes seconds to warm up, so its tests are few and slow; the checks around it are tested without."""

import sys

import pytest
import torch
from torch import nn

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.export import onnx as onnx_export
from hydraprune.export import save_onnx


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.onnx"


@pytest.mark.slow
def test_onnx_runtime_predicts_what_the_module_predicts_at_any_batch_size(path, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = small().train()
    size = save_onnx(path, model, (3, 8, 8), check_inputs=torch.rand(4, 3, 8, 8))
    assert size == path.stat().st_size
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]
    assert capfd.readouterr() == ("", "")
    assert model.training
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = torch.rand(7, 3, 8, 8)
    (logits,) = session.run(["logits"], {"pixels": pixels.numpy()})
    assert torch.allclose(torch.from_numpy(logits), model.eval()(pixels), atol=1e-5)


class DependsOnData(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 1 else -x.flatten(1)


@pytest.mark.slow
def test_a_module_that_cannot_be_exported_is_a_quiet_user_error_and_leaves_no_file(path, capfd):
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match="cannot be exported to ONNX: ") as caught:
        save_onnx(path, DependsOnData(), (1, 2, 2))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_file_that_predicts_something_else_is_not_left(path, monkeypatch, wrong):
    pytest.importorskip("onnxscript")
    path.write_bytes(b"the file of before")
    monkeypatch.setattr(onnx_export, "_export", lambda file, model, in_shape: file.write_bytes(b"x"))
    monkeypatch.setattr(onnx_export, "_predict", lambda file, pixels: small().eval()(pixels) * (1 + wrong))
    with pytest.raises(HydrapruneError, match=r"'.*net\.onnx' is not written: at batch size 1 .* differs"):
        save_onnx(path, small(), (3, 8, 8))
    assert [file.read_bytes() for file in path.parent.iterdir()] == [b"the file of before"]


def test_a_difference_within_the_tolerance_passes_at_batch_sizes_one_and_three(path, monkeypatch):
    pytest.importorskip("onnxscript")
    sizes = []

    def predict(file, pixels):
        sizes.append(len(pixels))
        return small().eval()(pixels) * (1 + 1e-5)

    monkeypatch.setattr(onnx_export, "_export", lambda file, model, in_shape: file.write_bytes(b"x"))
    monkeypatch.setattr(onnx_export, "_predict", predict)
    assert save_onnx(path, small(), (3, 8, 8)) == 1
    assert sizes == [1, 3]


def test_a_file_that_onnx_runtime_cannot_run_is_not_left(path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_export, "_export", lambda file, model, in_shape: file.write_bytes(b"x"))
    with pytest.raises(HydrapruneError, match="ONNX Runtime cannot run the exported module"):
        save_onnx(path, small(), (3, 8, 8))
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_says_how_to_install_it(path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'hydraprune\[onnx\]'"):
        save_onnx(path, small(), (3, 8, 8))
    assert not path.exists()
