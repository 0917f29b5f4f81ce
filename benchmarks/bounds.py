"""Seconds of a training step with bounds, against a plain step of the same network on the same batch.

- ibp: interval bounds on the margins with the last layer merged, loss, backward pass; and the same beside a clean
  forward pass, as training objectives use it.
- crown-ibp: clean forward pass, interval bounds on all layers and one linear backward pass for the margins, loss,
  backward pass. Where `auto_LiRPA` can be imported, its CROWN-IBP (the same bounds) runs beside ours.
- certify: images a second of `evaluation.certify`, float64 with its rounding error, by each method asked for.

    python benchmarks/bounds.py                                  training steps, MNIST's shape, batch 128
    python benchmarks/bounds.py --network cnn7 --shape 3 32 32
    python benchmarks/bounds.py --certify --weights FILE         FILE: a state dict; else random weights

Steps take turns, each in a process of its own (`turns.py`); each line says mean and standard deviation of its
repetitions, the first left out.
"""

import argparse
import importlib
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Contender, Work, take_turns

from hydraprune import data, models
from hydraprune.attacks import Eps
from hydraprune.bounds import Network, Region, margins
from hydraprune.engine.memory import keep_freed_memory
from hydraprune.evaluation.certified import certify

Loss = Callable[[], Tensor]
OURS, THEIRS = "plain + crown-ibp", "auto_LiRPA crown-ibp"


def robust_loss(lower: Tensor) -> Tensor:
    """Cross-entropy of the worst logits: 0 for the label, −margin for each other class."""
    logits = torch.cat([lower.new_zeros(len(lower), 1), -lower], 1)
    return F.cross_entropy(logits, torch.zeros(len(lower), dtype=torch.int64))


Case = tuple[nn.Module, Tensor, Tensor, float]


def case(name: str, shape: tuple[int, int, int], batch: int, eps: float) -> Case:
    """Return the same network, images, labels and radius to whoever asks."""
    torch.manual_seed(0)
    model = models.create(name, 10, shape, [0.0] * shape[0], [1.0] * shape[0]).eval()
    return model, torch.rand(batch, *shape), torch.randint(10, (batch,)), eps


def our_loss(way: str, model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Loss:
    network = Network(model)
    classes = int(model(images[:2]).shape[1])

    def plain() -> Tensor:
        return F.cross_entropy(model(images), labels)

    def ibp() -> Tensor:
        return robust_loss(
            network.bounds(Region.ball(images, eps), "ibp", margins(labels, classes), both=False).lower
        )

    def both() -> Tensor:
        return plain() + ibp()

    def crown_ibp() -> Tensor:
        propagation = network.propagate(Region.ball(images, eps))
        return plain() + robust_loss(propagation.linear_bounds(margins(labels, classes), both=False).lower)

    return {"plain": plain, "ibp": ibp, "plain + ibp": both, "plain + crown-ibp": crown_ibp}[way]


def their_loss(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Loss:
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm  # where it can be had

    bounded = BoundedModule(model, images[:2], bound_opts={"conv_mode": "matrix"})
    region = Region.ball(images, eps)
    perturbation = PerturbationLpNorm(norm=float("inf"), x_L=region.lower, x_U=region.upper)
    rows = margins(labels, int(model(images[:2]).shape[1]))

    def crown_ibp() -> Tensor:
        inputs = BoundedTensor(images, perturbation)
        nominal = bounded(inputs)
        lower, _ = bounded.compute_bounds(x=(inputs,), C=rows, method="CROWN-IBP", bound_upper=False)
        return F.cross_entropy(nominal, labels) + robust_loss(lower)

    return crown_ibp


def step(way: str, *arguments: Any) -> Work:
    """Return a training step; what it returns is its loss."""
    model, images, labels, eps = case(*arguments)
    loss = their_loss(model, images, labels, eps) if way == THEIRS else our_loss(way, model, images, labels, eps)

    def make() -> float:
        model.zero_grad()
        found = loss()
        found.backward()
        return float(found.detach())

    return make


def loss_of(work: Work) -> float:
    """Return the loss of one step."""
    found = work()
    assert isinstance(found, float)
    return found


def is_there(package: str) -> bool:
    try:
        importlib.import_module(package)
    except Exception as error:  # noqa: BLE001 - an outside package may fail in any way
        print(f"{package} is not here: {type(error).__name__}: {error}")
        return False
    return True


def train(name: str, shape: tuple[int, int, int], batch: int, eps: float, repeats: int) -> None:
    ways = ["plain", "ibp", "plain + ibp", OURS]
    contenders = {way: Contender(True, step, way, name, shape, batch, eps) for way in ways}
    if is_there("auto_LiRPA"):
        contenders[THEIRS] = Contender(False, step, THEIRS, name, shape, batch, eps)
        ours, theirs = (contenders[way].ask(loss_of) for way in (OURS, THEIRS))
        print(f"the same loss: {ours:.6f} ours, {theirs:.6f} auto_LiRPA")
    seconds = take_turns(contenders, repeats)
    plain = statistics.mean(seconds["plain"])
    for contender, measured in seconds.items():
        mean, spread = statistics.mean(measured), statistics.stdev(measured)
        times = mean / plain
        print(f"{name:<10}{contender:<22}{mean:>9.4f} ± {spread:.4f} s{times:>8.2f} × plain  (n = {repeats})")
    if THEIRS in seconds:
        ratio = statistics.mean(seconds[THEIRS]) / statistics.mean(seconds[OURS])
        print(f"{'':<10}{ratio:.2f} times as fast as auto_LiRPA: ours")


def verify(name: str, weights: Path | None, root: Path, eps: Eps, methods: list[str], count: int) -> None:
    test = data.first(data.load("mnist", root).test, count)
    model = models.create(name, 10, (1, 28, 28))
    if weights is not None:
        model.load_state_dict(load_file(weights))
    for method in methods:
        result = certify(model, test, eps, method=method, attack=None)
        print(
            f"{name:<10}certify {method:<14}{result.n / result.seconds:>9.1f} images/s  eps {eps}, n = {result.n}: "
            f"{result.correct} right, {result.certified} certified, {result.undecided} undecided"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", default="cnn_large", help="one of hydraprune's networks")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 28, 28), help="channels, height, width")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--eps", type=Eps, default=Eps("0.1"))
    parser.add_argument("--repeats", type=int, default=5, help="at least 2")
    parser.add_argument("--certify", action="store_true", help="measure certificates instead of training")
    parser.add_argument("--weights", type=Path, help="with --certify: a state dict of the network, safetensors")
    parser.add_argument("--methods", nargs="+", default=["ibp", "crown"], help="with --certify")
    parser.add_argument("--n", type=int, default=1000, help="with --certify: test images")
    parser.add_argument("--root", type=Path, default=Path("data"), help="with --certify: the folder with MNIST")
    options = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    print(f"{os.cpu_count()} CPU cores, torch {torch.__version__} on {torch.get_num_threads()} threads")
    if not options.certify:
        train(options.network, tuple(options.shape), options.batch, float(options.eps), options.repeats)
    else:
        verify(options.network, options.weights, options.root, options.eps, options.methods, options.n)


if __name__ == "__main__":
    main()
