"""Networks without half of the channels of every layer: bytes of the compact file, and what the runtime computes.

    python benchmarks/shrunk.py

Channels go by least weight magnitude, from random weights; the difference is to the whole network in torch, float32,
over its largest logit.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from hydraprune import models, runtime, sparsity
from hydraprune.export import Architecture, save_compact

SHAPES = {"cnn_small": (1, 28, 28)}
NETWORKS = ("cnn_small", "cnn_large", "cnn7", "vgg11_bn", "vgg16_bn", "resnet18", "resnet50", "wrn_16_1", "wrn_28_4")


def without_half(name: str, image: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(name, 10, tuple(image.shape[1:])).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    criterion, pattern = sparsity.CRITERIA["lwm"](), sparsity.Channels()
    masks = sparsity.prune(model, criterion, sparsity.Uniform(), 0.5, 0, pattern=pattern, image=image)
    masks.fix()
    masks.silence(model, sparsity.silence(model, image))
    return sparsity.bake(model).eval()


def stored(path: Path, model: nn.Module, architecture: Architecture) -> int:
    kept = {name: weight != 0 for name, weight in model.named_parameters() if weight.dim() > 1}
    return save_compact(path, model, kept, architecture, {})


def main() -> None:
    print("| network | parameters | shrunk | bytes | shrunk | difference |\n|---|---:|---:|---:|---:|---:|")
    for name in NETWORKS:
        shape = SHAPES.get(name, (3, 32, 32))
        images = torch.rand(3, *shape)
        whole = without_half(name, torch.zeros(1, *shape))
        small = sparsity.shrink(whole, torch.zeros(1, *shape))
        counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (whole, small)]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "network.hp"
            size = stored(path, whole, Architecture(name, 10, shape))
            narrow = stored(path, small, Architecture(name, 10, shape, shrunk=True))
            wanted = whole(images)
            found = torch.from_numpy(runtime.load(path)(images.numpy()))
        difference = float((found - wanted).abs().max() / wanted.abs().max())
        print(f"| {name} | {counts[0]:,} | {counts[1]:,} | {size:,} | {narrow:,} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
