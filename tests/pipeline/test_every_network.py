"""Every architecture goes the whole way: training, search, fine-tuning, compact file, ONNX, one step of each."""

import numpy as np
import pytest
import torch

from hydraprune import export, models, sparsity
from hydraprune.attacks import PGD, Eps
from hydraprune.data import Batch
from hydraprune.export import Architecture
from hydraprune.models import MODELS
from hydraprune.objectives import StageProgress, Trades
from hydraprune.sparsity import Hydra, Uniform

OBJECTIVE = Trades(attack=PGD(eps=Eps("8/255"), steps=1))
QUICK = {"cnn_tiny", "cnn_small"}
SHAPES = {"resnet50": (3, 64, 64)}  # the same path as at 224 pixels


def step(model, parameters, batch):
    """Make one update of `parameters`, all others frozen; return the loss."""
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is one for one in parameters))
    optimiser = torch.optim.SGD(parameters, lr=0.01)
    (loss,) = OBJECTIVE.losses(model.train(), batch, StageProgress(0, 1, 1))
    loss.total.backward()
    optimiser.step()
    return loss.total.item()


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS])
def test_every_network_trains_prunes_and_is_stored(name, tmp_path):
    torch.manual_seed(0)
    shape = SHAPES.get(name, MODELS[name].usual_shape)
    batch = Batch(torch.rand(2, *shape), torch.tensor([3, 7]))
    model = models.create(name, 10, shape)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = [step(model, list(model.parameters()), batch)]
    assert all(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True) if pair[0].dim() > 1)

    masks = sparsity.prune(model, Hydra(), Uniform(), 0.99)
    losses.append(step(model, masks.scores(), batch))
    masks.update()
    masks.fix()
    learning = [p for n, p in model.named_parameters() if "scores" not in n]
    losses.append(step(model, learning, batch))
    assert np.isfinite(losses).all()

    summary = masks.summary()
    assert summary.sparsity == pytest.approx(0.99, abs=0.002)
    plain = sparsity.bake(model).eval()
    kept = {layer: mask.clone() for layer, mask in masks.as_dict().items()}
    path = tmp_path / "compact.safetensors"
    size_bytes = export.save_compact(path, plain, kept, Architecture(name, 10, shape), {})
    dense_bytes = export.dense_size_bytes(plain)
    assert size_bytes < dense_bytes / 8 or dense_bytes < 2_000_000  # headers and BatchNorm weigh in small ones
    loaded = export.load_compact(path).model
    with torch.no_grad():
        expected = plain(batch.images)
        assert torch.equal(loaded(batch.images), expected)

    pytest.importorskip("onnxscript")
    export.save_onnx(tmp_path / "network.onnx", plain, shape, check_inputs=batch.images)  # compares the logits
