"""Prune your own network on your own data: fifteen lines that matter."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hydraprune as hp
from hydraprune.attacks import PGD, Eps
from hydraprune.engine import SGD, Training
from hydraprune.objectives import Trades
from hydraprune.sparsity import Global, Hydra

digits = load_digits()
images = torch.tensor(digits.images * 15.9, dtype=torch.uint8).unsqueeze(1)  # (n, channels, height, width), 0..255
labels = torch.tensor(digits.target)
data = hp.Dataset(
    name="my digits",
    class_names=tuple("0123456789"),
    train=hp.Split(images[:1300], labels[:1300]),
    test=hp.Split(images[1300:], labels[1300:]),
)
network = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
    nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
)  # fmt: skip

recipe = hp.Recipe(
    objective=Trades(beta=6, attack=PGD(eps=Eps("0.1"), steps=2)),
    pretrain=Training(epochs=8),
    prune=hp.Pruning(criterion=Hydra(), allocation=Global(), sparsity=0.95, search=Training(4, optimiser=SGD(lr=1))),
    finetune=Training(epochs=6),
    evaluation=hp.Evaluation(n=200),
)
result = hp.run(recipe, out="runs/mine", model=network, dataset=data)

dense, compact = result.rows
print(f"dense    robust {dense['robust_accuracy']:.1%}  {dense['size_bytes']:,} bytes")
print(f"compact  robust {compact['robust_accuracy']:.1%}  {compact['size_bytes']:,} bytes  {result.artefact}")
small = result.network(network)  # a plain nn.Module again, pruned weights at zero
